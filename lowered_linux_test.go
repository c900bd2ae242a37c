package pollux

import (
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pollux-go/pollux/cgo"
	"github.com/pollux-go/pollux/internal/host"
	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/internal/testutil"
)

// TestTimeslices looks at the slices of the process's threads while engines with realtime loops come and go: they are short
// until the last one has closed, those of new threads too, and what somebody has set himself is his again afterwards.
func TestTimeslices(t *testing.T) {
	testutil.CheckLeaks(t)
	usual, errno := sys.SliceOf(0)
	if errno != 0 || usual == 0 || !cgo.Attends {
		t.Skip("the kernel has no slices, or there are no attendants without cgo")
	}
	var own [2]int // threads that have slices of their own
	stop, ended := make(chan struct{}), make(chan struct{})
	defer func() { close(stop); <-ended; <-ended }() // Their threads end with them.
	for i, slice := range []time.Duration{10 * time.Millisecond, shortSlices.low} {
		ready := make(chan struct{})
		var begin func()
		begin = func() {
			runtime.LockOSThread() // For good: the thread ends with the goroutine, but for the first one.
			if sys.IsFirstThread() {
				go begin()
				<-ready
				runtime.UnlockOSThread()
				return
			}
			defer func() { ended <- struct{}{} }()
			own[i] = sys.Gettid()
			if errno := sys.SetSlice(0, slice); errno != 0 {
				t.Error(errno)
			}
			close(ready)
			<-stop
		}
		go begin()
		<-ready
	}
	// is tells whether every thread has that slice, but for those two.
	is := func(want, first, second time.Duration) bool {
		for _, tid := range host.Threads() {
			slice, errno := sys.SliceOf(tid)
			want := want
			switch tid {
			case own[0]:
				want = first
			case own[1]:
				want = second
			}
			if errno == 0 && slice != 0 && slice != want {
				return false
			}
		}
		return true
	}
	log := new(lines)
	config := Config{Loops: 1, Sched: "fifo:2", Logger: log.logger()}
	a, b := newEngine(t, config), newEngine(t, config)
	sa, _ := bind(t, a, "tcp", echo{})
	if strings.Contains(strings.Join(log.all(), "\n"), "CAP_SYS_NICE") {
		t.Skip("the process may not")
	}
	ping(t, dial(t, sa.Addrs()[0]))
	eventually(t, "short slices", func() bool { return is(shortSlices.low, shortSlices.low, shortSlices.low) })
	sb, _ := bind(t, b, "tcp", echo{})
	ping(t, dial(t, sb.Addrs()[0]))
	a.Close()
	eventually(t, "short slices of the second engine", func() bool { return is(shortSlices.low, shortSlices.low, shortSlices.low) })
	b.Close()
	eventually(t, "what they were", func() bool { return is(usual, 10*time.Millisecond, shortSlices.low) })
}

// TestTimerSlack looks at the timer slack of the process's threads while an engine comes and goes whose loops are always hot.
func TestTimerSlack(t *testing.T) {
	testutil.CheckLeaks(t)
	usual, errno := host.TimerSlack(os.Getpid())
	if errno == sys.EPERM || errno == sys.EACCES {
		t.Skip(errno)
	}
	is := func(want time.Duration) bool {
		done := make(chan bool)
		go func() {
			runtime.LockOSThread() // A new thread, most likely.
			defer runtime.UnlockOSThread()
			ok := true
			for _, tid := range host.Threads() {
				slack, errno := host.TimerSlack(tid)
				ok = ok && (errno != 0 || slack == want)
			}
			done <- ok
		}()
		return <-done
	}
	// A loop's thread, whose slack is its own, may take a moment to end.
	eventually(t, "the usual slack", func() bool { return is(usual) })
	for _, config := range []Config{
		{Loops: 1, Profile: Balanced, Logger: slog.New(slog.DiscardHandler)},
		{Loops: 1, Profile: Latency, Procs: ProcsKeep, Logger: slog.New(slog.DiscardHandler)},
	} {
		e := newEngine(t, config)
		s, _ := bind(t, e, "tcp", echo{})
		ping(t, dial(t, s.Addrs()[0]))
		if slack, _ := host.TimerSlack(os.Getpid()); slack != usual {
			t.Errorf("%s, Procs %d: it is %v", config.Profile, config.Procs, slack)
		}
		e.Close()
	}
	e := newEngine(t, Config{Loops: 1, Profile: Latency, Logger: slog.New(slog.DiscardHandler)})
	s, _ := bind(t, e, "tcp", echo{})
	ping(t, dial(t, s.Addrs()[0]))
	eventually(t, "short slack", func() bool { return is(shortSlack.low) })
	e.Close()
	eventually(t, "the slack that it was", func() bool { return is(usual) })
}

// TestWorkerSlack has a handler on workers look at its thread's timer slack, which the process's threads have lost again when the
// engine has closed. Loops that are hot make workers sleep in system calls, from which they come back without help.
func TestWorkerSlack(t *testing.T) {
	testutil.CheckLeaks(t)
	usual, errno := host.TimerSlack(os.Getpid())
	if errno != 0 {
		t.Skip(errno)
	}
	for _, tc := range []struct {
		hot  time.Duration
		want time.Duration
	}{{HotNever, workerSlack.low}, {time.Millisecond, usual}} {
		var slack atomic.Int64
		e := newEngine(t, Config{Loops: 1, Dispatch: DispatchWorkers, Hot: tc.hot, Logger: slog.New(slog.DiscardHandler)})
		s, _ := bind(t, e, "tcp", funcs{data: func(c *Conn) error {
			d, errno := host.TimerSlack(sys.Gettid())
			if errno == 0 {
				slack.Store(int64(d))
			}
			return echo{}.OnData(c)
		}})
		c := dial(t, s.Addrs()[0])
		// The runtime may have moved the worker to another thread since it has begun to look.
		eventually(t, fmt.Sprintf("hot %v: a worker whose slack is %v", tc.hot, tc.want), func() bool {
			ping(t, c)
			return time.Duration(slack.Load()) == tc.want
		})
		e.Close()
		if _, errno := host.TimerSlack(1); errno == sys.EPERM || errno == sys.EACCES {
			return // Without CAP_SYS_NICE nobody can give it back.
		}
		eventually(t, "the slack that it was", func() bool {
			for _, tid := range host.Threads() {
				if slack, errno := host.TimerSlack(tid); errno == 0 && slack != usual {
					return false
				}
			}
			return true
		})
	}
}

// TestPartlyRefused has the kernel allow a thread to change itself only, as for a process without privileges, and a sandbox refuse
// slices, and masks. One line of each engine says what was refused, and what it needs, and the loops run.
func TestPartlyRefused(t *testing.T) {
	allowed := host.Affinity()
	for _, test := range []struct {
		name   string
		config Config
		op     sys.Op
		errno  sys.Errno
		text   []string
		skip   bool
	}{
		{"timer slack", Config{Profile: Latency, Sched: "other"}, sys.OpSchedSetattr, sys.EPERM, []string{"level=WARN", "timer slack", "CAP_SYS_NICE"}, false},
		{"workers' slack", Config{Dispatch: DispatchWorkers}, sys.OpSchedSetattr, sys.EACCES, []string{"level=DEBUG", "timer slack", "CAP_SYS_NICE"}, false},
		{"slices", Config{Sched: "fifo:2"}, sys.OpSchedSetattr, sys.EPERM, []string{"level=WARN", "time slices", "sandbox", "sched_setattr"}, !cgo.Attends},
		{"no slices", Config{Sched: "fifo:2"}, sys.OpSchedSetattr, sys.ESRCH, nil, !cgo.Attends},
		{"masks", Config{CPUs: itoa(allowed[0]), Isolate: true}, sys.OpSchedSetaffinity, sys.EPERM, []string{"level=WARN", "Isolate", "sandbox", "sched_setaffinity"}, len(allowed) < 2},
		{"no masks", Config{CPUs: itoa(allowed[0]), Isolate: true}, sys.OpSchedSetaffinity, sys.ESRCH, nil, len(allowed) < 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.skip {
				t.Skip("the threads are left as they are: it needs two CPUs, or attendants, which need cgo")
			}
			if slice, errno := sys.SliceOf(0); test.text != nil && strings.Contains(test.name, "slices") && (errno != 0 || slice == 0) {
				t.Skip("the kernel has no slices")
			}
			testutil.CheckLeaks(t)
			defer sys.Inject(func(op sys.Op, tid int) sys.Fault {
				if op == test.op && tid != 0 && (op == sys.OpSchedSetaffinity || tid != sys.Gettid()) {
					return sys.Fault{Errno: test.errno}
				}
				return sys.Fault{}
			})()
			for range 2 { // The second one finds it begun already.
				log := new(lines)
				test.config.Loops, test.config.Logger = 1, log.logger()
				e := newEngine(t, test.config)
				s, _ := bind(t, e, "tcp", echo{})
				ping(t, dial(t, s.Addrs()[0]))
				found := func() (found int) {
					for _, line := range log.all() {
						has := len(test.text) > 0
						for _, part := range test.text {
							has = has && strings.Contains(line, part)
						}
						if has {
							found++
						} else if strings.Contains(line, "refused") {
							t.Errorf("the log has %s", line)
						}
					}
					return found
				}
				want := min(1, len(test.text))
				eventually(t, "the line", func() bool { return found() >= want })
				if n := found(); n != want {
					t.Errorf("%d lines, want %d, in %q", n, want, log.all())
				}
			}
		})
	}
}

// TestTimerSlackRefused has the kernel not allow it: the log says so once, and the loops run.
func TestTimerSlackRefused(t *testing.T) {
	testutil.CheckLeaks(t)
	log := new(lines)
	defer sys.Inject(func(op sys.Op, _ int) sys.Fault {
		if op == sys.OpSchedSetattr {
			return sys.Fault{Errno: sys.EACCES}
		}
		return sys.Fault{}
	})()
	e := newEngine(t, Config{Loops: 1, Profile: Latency, Sched: "other", Logger: log.logger()})
	s, _ := bind(t, e, "tcp", echo{})
	ping(t, dial(t, s.Addrs()[0]))
	if text := strings.Join(log.all(), "\n"); strings.Count(text, "timer slack") != 1 || !strings.Contains(text, "CAP_SYS_NICE") {
		t.Errorf("the log is %q", text)
	}
}

// TestIsolationWaitsForNoLogger has a logger block that is told that the kernel refuses to move threads: the engine begins, and so does
// another one, and the watchdog goes on.
func TestIsolationWaitsForNoLogger(t *testing.T) {
	allowed := host.Affinity()
	if len(allowed) < 2 {
		t.Skip("it needs two CPUs")
	}
	testutil.CheckLeaks(t)
	told, goOn := make(chan struct{}, 100), make(chan struct{})
	defer close(goOn)
	testutil.InjectFaults(t, func(op sys.Op, tid int) sys.Fault {
		if op == sys.OpSchedSetaffinity && tid != 0 {
			return sys.Fault{Errno: sys.EPERM}
		}
		return sys.Fault{}
	})
	config := Config{CPUs: itoa(allowed[0]), Isolate: true, Loops: 1}
	for range 2 {
		config.Logger = slog.New(logHandler{func(slog.Record) { told <- struct{}{}; <-goOn }})
		e := newEngine(t, config)
		s, _ := bind(t, e, "tcp", echo{})
		receive(t, "the line", told)
		ping(t, dial(t, s.Addrs()[0]))
		looked := make(chan struct{})
		go func() { isolated.keptNow(); close(looked) }() // As the watchdog does.
		receive(t, "the watchdog's look", looked)
	}
}
