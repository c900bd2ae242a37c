package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pollux-go/pollux/bench/internal/proc"
)

func runArgs(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var out, progress bytes.Buffer
	err = run(ctx, args, &out, &progress)
	return out.String(), progress.String(), err
}

// unpinned leaves this process's affinity alone: the tests of other packages run
// beside it.
var unpinned = []string{"-server-cpu", "", "-client-cpu", ""}

func TestEcho(t *testing.T) {
	if _, err := exec.LookPath("gcc"); err != nil {
		t.Skip("no gcc for the c-epoll server")
	}
	file := filepath.Join(t.TempDir(), "out.json")
	out, progress, err := runArgs(t, append([]string{"echo", "-servers", "std,c-epoll,std@GOGC=50", "-rounds", "1", "-duration", "100ms",
		"-warmup", "20ms", "-conns", "1,8", "-json", file}, unpinned...)...)
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, progress, out)
	}
	for _, want := range []string{"1 connection, 64 bytes, closed loop", "8 connections, 64 bytes", "c-epoll: ", "std@GOGC=50: ", "req/s ×std", "Not shown: "} {
		if !strings.Contains(out, want) {
			t.Errorf("the output has no %q:\n%s", want, out)
		}
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var result struct {
		Machine machine
		Result  struct {
			Samples []struct {
				Server   string
				Requests uint64
				CPU      float64 `json:"cpu_us"`
				RSS      int64   `json:"rss_bytes"`
			}
		}
	}
	if err := json.Unmarshal(data, &result); err != nil {
		t.Fatal(err)
	}
	if got := len(result.Result.Samples); got != 6 {
		t.Errorf("%d samples in the JSON, want 3 servers x 2 numbers of connections", got)
	}
	for _, s := range result.Result.Samples {
		if s.Requests == 0 || s.CPU <= 0 || s.RSS <= 0 {
			t.Errorf("sample %+v has nothing in it", s)
		}
	}
	if result.Machine.Go == "" || result.Machine.Kernel == "" {
		t.Errorf("machine is %+v", result.Machine)
	}
}

// With turns, the servers of a round are up together, and what each has done in all its turns makes one sample.
func TestEchoTurns(t *testing.T) {
	file := filepath.Join(t.TempDir(), "out.json")
	out, progress, err := runArgs(t, append([]string{"echo", "-servers", "std,pollux,std@GOGC=50", "-rounds", "2", "-duration", "100ms", "-turns", "4",
		"-warmup", "20ms", "-conns", "8", "-json", file}, unpinned...)...)
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, progress, out)
	}
	for _, want := range []string{"all servers up, each driven in 4 turns of 25ms", "pollux: ", "CPU ×std"} {
		if !strings.Contains(out, want) {
			t.Errorf("the output has no %q:\n%s", want, out)
		}
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var result struct {
		Result struct {
			Samples []struct {
				Server   string
				Round    int
				Requests uint64
				Seconds  float64
				CPU      float64 `json:"cpu_us"`
			}
		}
	}
	if err := json.Unmarshal(data, &result); err != nil {
		t.Fatal(err)
	}
	for i, s := range result.Result.Samples {
		server := []string{"std", "pollux", "std@GOGC=50"}[i%3]
		if s.Server != server || s.Round != 1+i/3 || s.Requests == 0 || s.CPU <= 0 || s.Seconds < 0.1 {
			t.Errorf("sample %d: %+v, want %s's of 100 ms or more", i, s, server)
		}
	}
	if n := len(result.Result.Samples); n != 6 {
		t.Errorf("%d samples, want 6", n)
	}
}

func TestEchoOpenLoop(t *testing.T) {
	out, progress, err := runArgs(t, append([]string{"echo", "-servers", "std", "-rounds", "1", "-duration", "100ms", "-warmup", "20ms",
		"-conns", "4", "-rate", "2000", "-deadline", "1s", "-markdown"}, unpinned...)...)
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, progress, out)
	}
	for _, want := range []string{"open loop at 2,000 requests/s", "p99 ×std", "| std | ", "a read deadline of 1s"} {
		if !strings.Contains(out, want) {
			t.Errorf("the output has no %q:\n%s", want, out)
		}
	}
}

// The scenarios that differ from echo in their servers and tables.
func TestScenarios(t *testing.T) {
	for _, test := range []struct {
		args []string
		want []string
	}{
		{[]string{"busy", "-servers", "std,pollux@POLLUX_PROFILE=latency", "-churn", "1"},
			[]string{"2 goroutines compute and 1 allocate", "p99 ×std", "p99.9 ×c-epoll@SCHED=fifo:1", "std ", "pollux@POLLUX_PROFILE=latency"}},
		{[]string{"busy", "-isolated", "-servers", "std,pollux"}, []string{"the servers have no CAP_SYS_NICE", "2 goroutines compute", "pollux "}},
		{[]string{"pingpong", "-servers", "std,pollux@POLLUX_SPIN=1ms"}, []string{"1 connection, 64 bytes", "p50 ×c-epoll@SPIN=1", "pollux@POLLUX_SPIN=1ms"}},
		{[]string{"handover", "-servers", "handover-std,handover-pollux,c-epoll@HAND=1"},
			[]string{"16 connections, open loop at 20,000", "2 goroutines compute", "handover-pollux", "p99 ×handover-std", "p99 ×c-epoll@HAND=1", "answer p99"}},
	} {
		out, progress, err := runArgs(t, append(append(test.args, "-rounds", "1", "-duration", "50ms", "-warmup", "10ms"), unpinned...)...)
		if err != nil {
			t.Errorf("%q: %v\n%s\n%s", test.args, err, progress, out)
		}
		for _, want := range test.want {
			if !strings.Contains(out, want) {
				t.Errorf("%q: the output has no %q:\n%s", test.args, want, out)
			}
		}
	}
}

func TestIdle(t *testing.T) {
	out, progress, err := runArgs(t, append([]string{"idle", "-servers", "std", "-rounds", "1", "-conns", "300", "-watch", "200ms"}, unpinned...)...)
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, progress, out)
	}
	if !strings.Contains(out, "300 idle connections") || !strings.Contains(out, "wake-ups/s in 200ms") {
		t.Errorf("the output is\n%s", out)
	}
}

// A server that cannot run is listed with the reason, and the others go on.
func TestServerThatDoesNotStart(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	l, err := proc.NewLauncher(nil, false)
	if err != nil {
		t.Fatal(err)
	}
	c := contender{program: program{name: "false"}, bin: "/bin/sh"}
	if _, err := c.start(ctx, l, &options{loops: 1}); err == nil || !strings.Contains(err.Error(), "start: it ended") {
		t.Errorf("error is %v, want one that says it ended", err)
	}
	c.bin = filepath.Join(t.TempDir(), "missing")
	if _, err := c.start(ctx, l, &options{loops: 1}); err == nil || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error is %v, want a missing file", err)
	}
}

func TestCommandLine(t *testing.T) {
	for _, test := range []struct {
		args []string
		want string // In what is printed.
		err  error
	}{
		{[]string{"list"}, "c-epoll", nil},
		{[]string{"-h"}, "usage: bench", nil},
		{[]string{"echo", "-h"}, "-pipeline", flag.ErrHelp},
		{[]string{"idle", "-h"}, "-conns", flag.ErrHelp},
		{[]string{"conns", "-h"}, "RLIMIT_NOFILE", flag.ErrHelp},
		{[]string{"conns", "-conns", "0"}, "must be above 0", errUsage},
		{[]string{"dance"}, `no subcommand "dance"`, errUsage},
		{[]string{"-servers", "nosuch"}, `there is no server "nosuch"`, errUsage},
		{[]string{"-servers", "std@GOGC"}, "is not VARIABLE=VALUE", errUsage},
		{[]string{"-servers", ","}, "the list is empty", errUsage},
		{[]string{"-conns", "1,x"}, "-conns", errUsage},
		{[]string{"-rounds", "0"}, "-rounds 0", errUsage},
		{[]string{"-server-cpu", "x"}, "-server-cpu", errUsage},
		{[]string{"-rate", "1", "-share", "1"}, "exclude each other", errUsage},
		{[]string{"-turns", "0"}, "-turns 0: 1 to 1000", errUsage},
		{[]string{"-turns", "2", "-rate", "1"}, "-turns is for echo in a closed loop", errUsage},
		{[]string{"pingpong", "-turns", "2"}, "-turns is for echo in a closed loop", errUsage},
		{[]string{"-turns", "50", "-duration", "500ms"}, "less than 20ms each", errUsage},
		{[]string{"-rate", "1", "-pipeline", "2"}, "-pipeline is for the closed loop", errUsage},
		{[]string{"-client", "x"}, "auto, spin or block", errUsage},
		{[]string{"-size", "0"}, "-size 0", errUsage},
		{[]string{"echo", "extra"}, `unexpected argument "extra"`, errUsage},
		{[]string{"idle", "-conns", "1,2"}, "one number", errUsage},
		{[]string{"idle", "-watch", "-1s"}, "-watch -1s", errUsage},
	} {
		out, progress, err := runArgs(t, test.args...)
		if !errors.Is(err, test.err) {
			t.Errorf("%q: error is %v, want %v", test.args, err, test.err)
		}
		if !strings.Contains(out+progress, test.want) {
			t.Errorf("%q printed %q, want %q in it", test.args, out+progress, test.want)
		}
	}
}

func TestQuickLeavesWhatIsSet(t *testing.T) {
	var stderr bytes.Buffer
	o, err := parseOptions(t.Context(), "echo", []string{"-quick", "-conns", "7"}, &stderr)
	if err != nil {
		t.Fatal(err, stderr.String())
	}
	if len(o.conns) != 1 || o.conns[0] != 7 || o.rounds != 3 || o.duration != time.Second {
		t.Errorf("options are %+v", o)
	}
}

func TestDefaultServers(t *testing.T) {
	without := strings.Join(slices.DeleteFunc(programNames(), func(name string) bool {
		return name == "c-uring" || strings.HasPrefix(name, "handover-")
	}), ",")
	if got := defaultServers(t.Context(), true); got != without {
		t.Errorf("a quick run has %s, want %s", got, without)
	}
	want := strings.Replace(without, "pollux,", "pollux@POLLUX_BACKEND=epoll,pollux@POLLUX_BACKEND=io_uring,", 1)
	t.Setenv("CC", "false")
	if got := defaultServers(t.Context(), false); got != want {
		t.Errorf("a full run without the header has %s, want %s", got, want)
	}
	t.Setenv("CC", "true")
	want = strings.Replace(want, "c-epoll,", "c-epoll,c-uring,", 1)
	if got := defaultServers(t.Context(), false); got != want {
		t.Errorf("a full run with the header has %s, want %s", got, want)
	}
	for _, list := range []string{want, busyServers(), isolatedServers(), skewServers(), pingpongServers(t.Context()), handoverServers()} {
		if _, err := parseContenders(list); err != nil {
			t.Error(err)
		}
	}
}

// Without its library a server is listed with the reason, and the others go on.
func TestMissingLibrary(t *testing.T) {
	if _, err := exec.LookPath("gcc"); err != nil {
		t.Skip("no gcc to look for the header")
	}
	p := program{name: "c-uring", c: true, library: "nosuchthing"}
	if _, err := p.build(t.Context(), t.TempDir(), t.TempDir()); err == nil || !strings.Contains(err.Error(), "libnosuchthing.h is missing") {
		t.Errorf("error is %v, want one that names the missing header", err)
	}
}

// The io_uring server answers right with its buffers and when they run out.
func TestUring(t *testing.T) {
	if _, err := exec.LookPath("gcc"); err != nil {
		t.Skip("no gcc for the c-uring server")
	}
	if i := slices.IndexFunc(programs, func(p program) bool { return p.name == "c-uring" }); !programs[i].hasHeader(t.Context()) {
		t.Skip("no liburing.h for the c-uring server")
	}
	out, progress, err := runArgs(t, append([]string{"echo", "-servers", "std,c-uring,c-uring@C_URING_BUFFERS=4", "-rounds", "1", "-duration", "100ms",
		"-warmup", "20ms", "-conns", "8", "-pipeline", "16", "-size", "1000"}, unpinned...)...)
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, progress, out)
	}
	if strings.Contains(out, "io_uring: ") {
		t.Skipf("io_uring is refused here:\n%s", out)
	}
	for _, want := range []string{"c-uring: ", "c-uring@C_URING_BUFFERS=4: "} {
		if !strings.Contains(out, want) || strings.Contains(out, "Left out") {
			t.Errorf("the output has no %q, or leaves something out:\n%s", want, out)
		}
	}
}

// What runs beside the servers in C is what runs beside those in Go: it counts in the same file, and SCHED is for the server's
// own thread alone.
func TestBesideC(t *testing.T) {
	if _, err := exec.LookPath("gcc"); err != nil {
		t.Skip("no gcc for the c-epoll server")
	}
	dir, err := moduleDir(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(programs, func(p program) bool { return p.name == "c-epoll" })
	c := contender{program: programs[i]}
	if c.bin, err = c.build(t.Context(), dir, t.TempDir()); err != nil {
		t.Fatal(err)
	}
	l, err := proc.NewLauncher(nil, false)
	if err != nil {
		t.Fatal(err)
	}
	start := func(o options, env ...string) (*child, error) {
		o.loops, c.env = 1, env
		return c.start(t.Context(), l, &o)
	}

	s, err := start(options{burn: 2, churn: 1})
	if err != nil {
		t.Fatal(err)
	}
	for begin := time.Now(); s.done.Computed.Load() < 2 || s.done.Allocated.Load() < 2; time.Sleep(time.Millisecond) {
		if time.Since(begin) > 20*time.Second {
			t.Fatalf("computed %d, allocated %d", s.done.Computed.Load(), s.done.Allocated.Load())
		}
	}
	s.stop()

	for _, test := range []struct {
		o    options
		env  string
		want string
	}{
		{options{burn: 5000}, "", "-burn 5000: 0 to 1000 is allowed"},
		{options{sleep: time.Millisecond}, "", "-sleep 1ms: this server has no requests that are slow"},
		{options{cost: time.Microsecond}, "", "-cost 1µs: this server has no requests that are slow"},
		{options{}, "SCHED=fifo", "SCHED=fifo: fifo:1 to fifo:99 is allowed"},
		{options{}, "SCHED=fifo:", "SCHED=fifo:: fifo:1 to fifo:99 is allowed"},
		{options{}, "SCHED=fifo:100", "SCHED=fifo:100: fifo:1 to fifo:99 is allowed"},
	} {
		if s, err := start(test.o, test.env); err == nil {
			s.stop()
			t.Errorf("%q %+v was taken", test.env, test.o)
		} else if !strings.Contains(err.Error(), test.want) {
			t.Errorf("error is %v, want %q", err, test.want)
		}
	}

	s, err = start(options{burn: 1}, "SCHED=fifo:7")
	if err != nil {
		if strings.Contains(err.Error(), "CAP_SYS_NICE") {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	defer s.stop()
	pid := s.cmd.Process.Pid
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil || len(tasks) != 2 {
		t.Fatalf("%d threads, %v, want 2", len(tasks), err)
	}
	for _, task := range tasks {
		want := "0" // What computes is an ordinary thread.
		if task.Name() == strconv.Itoa(pid) {
			want = "7"
		}
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/stat", pid, task.Name()))
		if err != nil {
			t.Fatal(err)
		}
		// rt_priority is field 40 of proc_pid_stat(5); the second one, the name in brackets, may have spaces.
		_, rest, _ := strings.Cut(string(stat), ") ")
		if got := strings.Fields(rest)[37]; got != want {
			t.Errorf("thread %s has realtime priority %s, want %s", task.Name(), got, want)
		}
	}
}

// A few connections by each kind of descriptor.
func TestConns(t *testing.T) {
	t.Setenv("BENCH_TEST_CONNS_CLIENT", "1") // The clients' processes are this program: see TestMain.
	out, progress, err := runArgs(t, "conns", "-conns", "300", "-ordinary", "100", "-loops", "2")
	if strings.Contains(progress+out, "POLLUX_DIRECT") || err != nil && strings.Contains(err.Error(), "direct") {
		t.Skipf("no direct descriptors here: %v", err)
	}
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, progress, out)
	}
	for _, want := range []string{"io_uring, direct", "epoll", "PASS: one process held 300 connections"} {
		if !strings.Contains(out, want) {
			t.Errorf("the output has no %q:\n%s", want, out)
		}
	}
}

// TestMain makes the test's program what the scenario with many connections starts.
func TestMain(m *testing.M) {
	if os.Getenv("BENCH_TEST_CONNS_CLIENT") != "" && len(os.Args) > 1 && os.Args[1] == connsClient {
		if err := run(context.Background(), os.Args[1:], os.Stdout, os.Stderr); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}
