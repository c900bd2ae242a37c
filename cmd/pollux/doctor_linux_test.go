package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/pollux-go/pollux/internal/uring"
)

func TestDoctorText(t *testing.T) {
	out, errs, status := output(t, []string{"doctor"})
	if status != exitOK || errs != "" {
		t.Fatalf("status %d, %q", status, errs)
	}
	for _, want := range []string{
		`(?m)^kernel +Linux \d+\.\d+`, `(?m)^seccomp +(off|strict|filter|-), no_new_privs (yes|no)$`, `(?m)^io_uring_disabled +`,
		`(?m)^memlock +.*CAP_IPC_LOCK (yes|no); the rings of \d+ loops take \d+ [KM]iB$`, `(?m)^nofile +`, `(?m)^somaxconn +\d`, `(?m)^busy_poll +can`,
		`(?m)^cpu +.*\d+ cores in \d+ packages`, `(?m)^affinity +\d+.* of \d+`, `(?m)^quota +`, `(?m)^gomaxprocs +\d+$`,
		`(?m)^IO_URING FEATURE +ANSWER +SINCE +WITHOUT IT$`, `(?m)^epoll +works$`, `(?m)^io_uring +`,
		`(?m)^auto +takes (epoll|io_uring): `, `(?m)^in force +POLLUX_BACKEND=`, `(?m)^To do better:\n  \S`,
	} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("no line matches %s", want)
		}
	}
	for _, a := range uring.Answers() {
		if !regexp.MustCompile(`(?m)^` + a.Name + ` +(yes|no|unknown|masked off) +` + regexp.QuoteMeta(a.Since) + ` +` + regexp.QuoteMeta(a.Without) + `$`).MatchString(out) {
			t.Errorf("%s is missing", a.Name)
		}
	}
	if t.Failed() {
		t.Log(out)
	}
}

func TestDoctorJSON(t *testing.T) {
	out, errs, status := output(t, []string{"doctor", "-json"}, "POLLUX_URING_FEATURES=-multishot_recv", "POLLUX_LOOPS=3")
	if status != exitOK || errs != "" {
		t.Fatalf("status %d, %q", status, errs)
	}
	var r report
	dec := json.NewDecoder(strings.NewReader(out))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&r); err != nil {
		t.Fatal(err)
	}
	if r.Kernel.System != "Linux" || r.Kernel.Release == "" || r.Kernel.Machine == "" || r.Sandbox.Seccomp == "" {
		t.Errorf("%+v, %+v", r.Kernel, r.Sandbox)
	}
	if r.Limits.Memlock == nil || r.Limits.Nofile == nil || r.Limits.Nofile.Soft == 0 || r.Limits.MemlockUse != 3*216<<10 {
		t.Errorf("%+v", r.Limits)
	}
	if r.CPU.Cores == 0 || r.CPU.Usable == 0 || r.CPU.Affinity == "" || r.CPU.GOMAXPROCS == 0 {
		t.Errorf("%+v", r.CPU)
	}
	if r.Config.Loops != 3 || r.Config.Features != "-multishot_recv" || r.Config.Error != "" {
		t.Errorf("%+v", r.Config)
	}
	if len(r.Features) != len(uring.Answers()) {
		t.Errorf("%d features", len(r.Features))
	}
	for _, f := range r.Features {
		switch {
		case f.Name == "multishot_recv" && f.Answer != answerMasked:
			t.Errorf("%+v", f)
		case f.Since == "" || f.Without == "" || f.Answer == answerUnknown && f.Detail == "":
			t.Errorf("%+v", f)
		}
	}
	if !r.Backend.works("epoll") || len(r.Backend.Backend) != 2 || r.Backend.Auto != "epoll" || r.Backend.Reason == "" {
		t.Errorf("%+v", r.Backend)
	}
	if !slices.ContainsFunc(r.Advice, func(a advice) bool { return a.Set == "POLLUX_URING_FEATURES=" }) {
		t.Errorf("%+v", r.Advice)
	}
	for _, key := range []string{`"kernel"`, `"sandbox"`, `"io_uring_disabled"`, `"limits"`, `"memlock"`, `"nofile"`, `"somaxconn"`, `"cpu"`,
		`"siblings": [`, `"affinity"`, `"quota"`, `"features"`, `"config"`, `"backend"`, `"auto"`, `"reason"`, `"advice": [`} {
		if !strings.Contains(out, key) {
			t.Errorf("no %s in the JSON", key)
		}
	}
}

// A doctor who fails with what he finds is of no use.
func TestDoctorInvalidEnvironment(t *testing.T) {
	out, errs, status := output(t, []string{"doctor"}, "POLLUX_LOOPS=many", "POLLUX_BUFFERS=3")
	if status != exitOK || errs != "" {
		t.Fatalf("status %d, %q", status, errs)
	}
	for _, want := range []string{`POLLUX_LOOPS="many"`, "pollux env", "takes "} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

// healthy is a machine on which nothing is to be done.
func healthy() report {
	return report{
		Limits: limitsReport{
			Memlock: &limitReport{8 << 20, 8 << 20}, MemlockUse: 216 << 10,
			Nofile: &limitReport{1 << 20, 1 << 20}, Somaxconn: 4096,
		},
		CPU:     cpuReport{Usable: 4},
		Config:  configReport{Backend: "auto", Loops: 4},
		Backend: backendReport{Auto: "io_uring", Backend: []backendAnswer{{"epoll", true, ""}, {"io_uring", true, ""}}},
	}
}

func TestAdvice(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*report)
		want   []string
	}{
		"nothing":       {func(*report) {}, nil},
		"auto on epoll": {func(r *report) { r.Backend.Auto = "epoll" }, []string{"POLLUX_BACKEND=io_uring"}},
		"old kernel": {func(r *report) {
			r.Backend.Auto = "epoll"
			r.Features = []featureReport{{Name: "defer_taskrun", Answer: answerNo}}
		}, nil},
		"sysctl": {func(r *report) {
			r.Backend.Auto, r.Backend.Backend, r.Sandbox.UringDisabled = "epoll", nil, "2"
		}, []string{"sysctl -w kernel.io_uring_disabled=0"}},
		"seccomp": {func(r *report) {
			r.Backend.Auto, r.Backend.Backend, r.Sandbox.Seccomp = "epoll", nil, "filter"
		}, []string{"docker run --security-opt seccomp=FILE"}},
		"asked for in vain": {func(r *report) {
			r.Backend.Backend, r.Config.Backend = nil, "io_uring"
		}, []string{"POLLUX_BACKEND=auto"}},
		"masked":         {func(r *report) { r.Config.Features = "-epoll_wait" }, []string{"POLLUX_URING_FEATURES="}},
		"memlock":        {func(r *report) { r.Limits.Memlock.Soft = 64 << 10 }, []string{"ulimit -l 432", "POLLUX_RING_ENTRIES=256"}},
		"memlock, root":  {func(r *report) { r.Limits.Memlock.Soft, r.Limits.MayLock = 64<<10, true }, nil},
		"memlock, none":  {func(r *report) { r.Limits.Memlock.Soft = -1 }, nil},
		"quota":          {func(r *report) { r.CPU.Quota = 1.5 }, []string{"POLLUX_LOOPS=2"}},
		"affinity":       {func(r *report) { r.CPU.Usable = 3 }, []string{"POLLUX_LOOPS=3"}},
		"nofile":         {func(r *report) { r.Limits.Nofile.Hard = 4096 }, []string{"ulimit -Hn 1048576"}},
		"somaxconn":      {func(r *report) { r.Limits.Somaxconn = 128 }, []string{"sysctl -w net.core.somaxconn=4096"}},
		"nothing known":  {func(r *report) { r.Limits = limitsReport{} }, nil},
		"bad variable":   {func(r *report) { r.Config.Error = "x" }, []string{"pollux env"}},
		"io_uring fails": {func(r *report) { r.Backend.Auto, r.Backend.Backend = "epoll", nil }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			r := healthy()
			tc.change(&r)
			var got []string
			for _, a := range advise(r) {
				got = append(got, a.Set)
				if a.Why == "" || a.Kind == "" {
					t.Errorf("%+v", a)
				}
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("%q, want %q", got, tc.want)
			}
		})
	}
}

// A machine that hides everything still gets a report.
func TestDoctorEmptyReport(t *testing.T) {
	var out bytes.Buffer
	if err := doctorText(&out, report{Backend: backendReport{Reason: "one\ntwo"}}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"memlock            -,", "auto      one; two\n", "nothing to change"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	failing := writerFunc(func([]byte) (int, error) { return 0, errors.New("no room") })
	if doctorText(failing, report{}) == nil || doctorJSON(failing, report{}) == nil {
		t.Error("a failed write is not reported")
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
