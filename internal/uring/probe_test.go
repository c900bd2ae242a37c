//go:build linux

package uring

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/pollux-go/pollux/internal/host"
	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/internal/testutil"
)

// forget makes every probe ask the kernel again, now and after the test, which may have lied to them.
func forget(t *testing.T) {
	t.Helper()
	again := func() {
		for _, p := range probes {
			p.mu.Lock()
			p.known = false
			p.mu.Unlock()
		}
	}
	again()
	t.Cleanup(again)
}

// everything that there is.
const everything = ^Feature(0)

// usable skips the test where io_uring cannot be used at all.
func usable(t *testing.T) {
	t.Helper()
	if p, errno := setup(0); errno != 0 {
		t.Skipf("io_uring cannot be used here: %v", Explain(errno))
	} else if p.Features&featuresNeeded != featuresNeeded {
		t.Skipf("io_uring has only the features %#x", p.Features)
	}
}

// A probe that says no on a kernel that has the feature would cost every user of that kernel the feature, silently. A yes
// on an older kernel is right where a distribution has ported it back.
func TestProbesAgainstVersion(t *testing.T) {
	usable(t)
	testutil.CheckLeaks(t)
	forget(t)
	major, minor := host.Version()
	for _, a := range Answers() {
		t.Run(a.Name, func(t *testing.T) {
			sinceMajor, sinceMinor := host.ParseVersion(a.Since)
			newer := major > sinceMajor || major == sinceMajor && minor >= sinceMinor
			var unsupported *UnsupportedError
			switch {
			case a.Err == nil:
				t.Logf("yes, since %s", a.Since)
			case errors.As(a.Err, &unsupported) && newer:
				t.Errorf("Linux %d.%d: %v", major, minor, a.Err)
			case errors.As(a.Err, &unsupported):
				t.Log(a.Err)
			default:
				t.Errorf("no certain answer: %v", a.Err)
			}
		})
	}
}

func TestEveryFeatureHasProbe(t *testing.T) {
	if len(probes) != len(featureNames) {
		t.Errorf("%d probes of %d features", len(probes), len(featureNames))
	}
	for _, n := range featureNames {
		p := probes[n.feature]
		if p == nil || p.name != n.name || p.since != n.since {
			t.Errorf("%s: the probe is %+v", n.name, p)
		}
		if n.since == "" || n.without == "" {
			t.Errorf("%s: since %q, without %q", n.name, n.since, n.without)
		}
	}
	if err := Probe(1 << 31); err == nil {
		t.Error("a feature that nobody knows was found")
	}
}

// The kernel's own list and a trial must agree, so that the trial is right on kernels that have no list.
func TestTrialAgreesWithQuery(t *testing.T) {
	usable(t)
	q, ok := query()
	if !ok {
		t.Skip("the kernel has no list of its features (6.18)")
	}
	for _, flags := range []uint32{
		setupCoopTaskrun | setupTaskrunFlag, setupSingleIssuer | setupDeferTaskrun | setupTaskrunFlag, setupNoSQArray,
		1 << 30, // No kernel knows it.
	} {
		has, err := trySetup(flags)
		if err != nil || has != (q.setup&uint64(flags) == uint64(flags)) {
			t.Errorf("flags %#x: %v, %v; the list has %#x", flags, has, err, q.setup)
		}
	}
}

// A completion that nobody has waited for is not the answer to the next request. Kernels before 5.17 complete a no-op that
// must be skipped, and end the submission there: what came after it was once taken for the answer of another probe.
func TestTrialPassesOver(t *testing.T) {
	usable(t)
	testutil.CheckLeaks(t)
	err := onOwnThread(Options{}, func(trial *trial) error {
		for range 3 {
			if _, err := trial.submit(SQE{Opcode: OpNop}); err != nil {
				return err
			}
		}
		c, err := trial.do(SQE{Opcode: ^uint8(0)}) // No kernel knows it.
		if err == nil && c.Res != -int32(sys.EINVAL) {
			t.Errorf("%+v is not the answer of an operation that does not exist", c)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// A kernel that refuses, rather than not knowing, leaves a probe undecided; nothing of that is remembered.
func TestProbesUndecided(t *testing.T) {
	usable(t)
	testutil.CheckLeaks(t)
	for _, op := range []sys.Op{sys.OpUringSetup, sys.OpUringEnter, sys.OpUringRegister} {
		for _, errno := range []sys.Errno{sys.EPERM, sys.ENOSYS, sys.ENOTSUP, sys.ENOMEM, sys.EINVAL} {
			t.Run(op.String()+" "+errno.Error(), func(t *testing.T) {
				forget(t)
				var lacking Feature // A no to these is right, where what the probe asks meets no fault.
				for _, a := range Answers() {
					if errors.Is(a.Err, errors.ErrUnsupported) {
						lacking |= a.Feature
					}
				}
				forget(t)
				restore := sys.Inject(func(got sys.Op, _ int) sys.Fault {
					if got == op {
						return sys.Fault{Errno: errno}
					}
					return sys.Fault{}
				})
				undecided := 0
				for _, a := range Answers() {
					var unsupported *UnsupportedError
					switch {
					case a.Err == nil:
					case errors.As(a.Err, &unsupported) && lacking&a.Feature != 0 && op != sys.OpUringSetup:
					case errors.As(a.Err, &unsupported) || errors.Is(a.Err, errors.ErrUnsupported):
						t.Errorf("%s: %v, which is a no", a.Name, a.Err)
					case !errors.Is(a.Err, errno):
						t.Errorf("%s: %v, which is not %v", a.Name, a.Err, errno)
					default:
						undecided++
					}
				}
				restore()
				if undecided == 0 {
					t.Error("the fault was not met")
				}
				for _, a := range Answers() {
					if errors.Is(a.Err, errno) {
						t.Errorf("%s: %v was remembered", a.Name, a.Err)
					}
				}
			})
		}
	}
}

func TestProbeNo(t *testing.T) {
	tries := 0
	p := newProbe(EpollWait, func() (bool, error) { tries++; return false, nil }, nil)
	for range 3 {
		err := p.ask(nil)
		var unsupported *UnsupportedError
		if !errors.Is(err, errors.ErrUnsupported) || !errors.As(err, &unsupported) || *unsupported != (UnsupportedError{"epoll_wait", "6.15"}) {
			t.Errorf("%#v", err)
		}
		if !strings.Contains(err.Error(), "epoll_wait") || !strings.Contains(err.Error(), "6.15") {
			t.Error(err)
		}
	}
	if tries != 1 {
		t.Errorf("tried %d times", tries)
	}
}

func TestMissing(t *testing.T) {
	usable(t)
	forget(t)
	if missing, err := Missing(0); missing != 0 || err != nil {
		t.Errorf("%v, %v", missing, err)
	}
	p := probes[EpollWait]
	p.mu.Lock()
	p.known, p.has = true, false
	p.mu.Unlock()
	missing, err := Missing(EpollWait | ExtArg)
	if missing != EpollWait || err != nil {
		t.Errorf("%v, %v", missing, err)
	}
	p.mu.Lock()
	p.known = false
	p.mu.Unlock()
	testutil.InjectFaults(t, func(sys.Op, int) sys.Fault { return sys.Fault{Errno: sys.EPERM} })
	if missing, err = Missing(EpollWait | ExtArg); missing != 0 || !errors.Is(err, sys.EPERM) {
		t.Errorf("%v, %v", missing, err)
	}
}

func TestSelfTest(t *testing.T) {
	usable(t)
	testutil.CheckLeaks(t)
	for _, mask := range []Feature{0, EpollWait, MultishotRecv, EpollWait | BufferRing, NoSQArray | NoIOWait | EpollWait, DeferTaskrun} {
		t.Run("without "+mask.String(), func(t *testing.T) {
			start := time.Now()
			for range 50 {
				missing, err := SelfTest(mask, everything, 0)
				if err != nil {
					t.Fatal(err)
				}
				if missing&mask != 0 {
					t.Fatalf("%v is masked off, and was asked for", missing&mask)
				}
			}
			t.Log(time.Since(start)/50, "each")
		})
	}
}

// Whatever call fails, the self-test says so, soon, and leaves nothing behind.
func TestSelfTestFaults(t *testing.T) {
	usable(t)
	testutil.CheckLeaks(t)
	for _, op := range []sys.Op{sys.OpUringSetup, sys.OpUringEnter, sys.OpUringRegister, sys.OpMmap, sys.OpEpollCreate, sys.OpEventfd, sys.OpSend} {
		for _, errno := range []sys.Errno{sys.EPERM, sys.ENOSYS, sys.ENOMEM} {
			for n := range int64(8) {
				f := &testutil.Nth{Op: op, N: n, Fault: sys.Fault{Errno: errno}}
				restore := sys.Inject(f.Hook)
				start := time.Now()
				_, err := SelfTest(0, everything, 0)
				restore()
				if d := time.Since(start); d > trialTime {
					t.Errorf("%v %d, %v: it took %v", op, n, errno, d)
				}
				if !f.Hit() {
					break
				}
				if err != nil && !errors.Is(err, errno) {
					t.Errorf("%v %d, %v: %v", op, n, errno, err)
				}
			}
		}
	}
}

func TestExplain(t *testing.T) {
	for _, tc := range []struct {
		errno sys.Errno
		want  []string
	}{
		{sys.EPERM, []string{"POLLUX_BACKEND=epoll"}},
		{sys.ENOSYS, []string{"5.1", "POLLUX_BACKEND=epoll"}},
		{sys.ENOTSUP, []string{"6.1", "POLLUX_BACKEND=epoll"}},
		{sys.EINVAL, []string{"5.11", "6.1"}},
		{sys.ENOMEM, []string{"RLIMIT_MEMLOCK", "ulimit -l", "POLLUX_RING_ENTRIES"}},
		{sys.EMFILE, []string{"RLIMIT_NOFILE"}},
	} {
		err := Explain(tc.errno)
		if !errors.Is(err, tc.errno) {
			t.Errorf("%v does not wrap %v", err, tc.errno)
		}
		for _, want := range tc.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%v: no %q in %q", tc.errno, want, err)
			}
		}
	}
	for _, tc := range []struct {
		errno sys.Errno
		here  surroundings
		want  string
	}{
		{sys.EPERM, surroundings{disabled: "1"}, "kernel.io_uring_group"},
		{sys.EPERM, surroundings{disabled: "2", seccomp: "filter"}, "sysctl kernel.io_uring_disabled=0"},
		{sys.EPERM, surroundings{disabled: "0", seccomp: "filter"}, "--security-opt seccomp="},
		{sys.EPERM, surroundings{disabled: "0"}, "seccomp"},
		{sys.EACCES, surroundings{seccomp: "off"}, "SELinux"},
		{sys.ENOSYS, surroundings{release: "4.19.0", seccomp: "off"}, "Linux 4.19.0"},
		{sys.ENOSYS, surroundings{seccomp: "filter"}, "seccomp filter hides it"},
		{sys.ENOMEM, surroundings{memlock: "64 KiB"}, "64 KiB"},
	} {
		if got := explanation(tc.errno, tc.here); !strings.Contains(got, tc.want) {
			t.Errorf("%v, %+v: no %q in %q", tc.errno, tc.here, tc.want, got)
		}
	}
	if err := errors.New("other"); Explain(err) != err {
		t.Error("an error without a number was changed")
	}
}
