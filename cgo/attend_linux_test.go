//go:build cgo

package cgo

import (
	"errors"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pollux-go/pollux/internal/host"
	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/internal/testutil"
)

// attended runs f on a thread of its own, with SCHED_FIFO and an attendant.
func attended(t *testing.T, f func(a *Attendant)) {
	t.Helper()
	testutil.CheckLeaks(t)
	done := make(chan struct{})
	var refused error
	go func() {
		defer close(done)
		runtime.LockOSThread() // For good: the thread ends with the goroutine.
		for end := time.Now().Add(20 * time.Millisecond); time.Now().Before(end); {
			// The runtime's threads have worked for others before.
		}
		cpus, _ := sys.Affinity()
		thread := Thread{CPU: cpus[len(cpus)-1], Sched: Sched{sys.Sched{FIFO: true, Priority: 3}, true}}
		a, err := Attend(sys.Gettid(), thread.CPU, thread.Sched, "an attendant")
		if errors.Is(err, sys.EPERM) {
			refused = err
			return
		}
		if err != nil {
			t.Error(err)
			return
		}
		defer a.Close()
		if errs := thread.Pin(); len(errs) > 0 {
			t.Error(errs)
			return
		}
		f(a)
	}()
	<-done
	if refused != nil {
		t.Skip(refused)
	}
}

// eventually fails the test if what is does not become true.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Errorf("in vain: %s", what)
			return
		}
	}
}

func realtime() bool {
	s, errno := sys.GetSched(0)
	return errno == 0 && s.FIFO
}

func TestAttendantIsAbove(t *testing.T) {
	attended(t, func(a *Attendant) {
		s, errno := sys.GetSched(a.Thread())
		if want := (sys.Sched{FIFO: true, Priority: 4}); errno != 0 || s != want {
			t.Errorf("it is scheduled as %+v (%v), want %+v", s, errno, want)
		}
		mine, _ := sys.AffinityOf(0)
		its, _ := sys.AffinityOf(a.Thread())
		if len(its) != 1 || its[0] != mine[0] {
			t.Errorf("it runs on %v, and its thread on %v", its, mine)
		}
		if !slices.Contains(host.Threads(), a.Thread()) {
			t.Error("it does not run")
		}
	})
}

// TestAttendantCountsFromItsStart sleeps before the first turn, on a thread that has used CPU time for others.
func TestAttendantCountsFromItsStart(t *testing.T) {
	attended(t, func(a *Attendant) {
		_, asked := a.Pulse()
		ask(asked)
		eventually(t, "looks", func() bool { return a.Counts().Ticks >= 5 })
		if n := a.Counts().Demotions; n != 0 {
			t.Errorf("%d demotions of a thread that sleeps", n)
		}
	})
}

// TestAttendantTicks asks for the P: the attendant wakes up often until the next wait, and no more from then on.
func TestAttendantTicks(t *testing.T) {
	attended(t, func(a *Attendant) {
		pulse, asked := a.Pulse()
		ticks := func() bool {
			before := a.Counts().Ticks
			time.Sleep(10 * time.Millisecond)
			return a.Counts().Ticks != before
		}
		if pulse.Add(1); ticks() {
			t.Error("ticks for a thread that was not asked")
		}
		for range 3 {
			ask(asked)
			eventually(t, "ticks", ticks)
			before := a.Counts().Ticks
			pulse.Add(2) // That wait has ended, and the next one begun.
			eventually(t, "no more ticks", func() bool { return !ticks() })
			if n := a.Counts().Ticks - before; n > 100 {
				t.Errorf("%d ticks after the next wait had begun", n) // Without the wait, it is 500.
			}
		}
		// Without another wait it gives up.
		ask(asked)
		time.Sleep(100 * time.Millisecond) // In one go: looking takes CPU time, and it may have 1 ms of it.
		eventually(t, "that it gives up", func() bool { return !ticks() })
		if n := a.Counts().Demotions; n != 0 {
			t.Errorf("%d demotions of a thread that sleeps", n)
		}
	})
}

// TestAttendantCallsTheUsher asks for the P, and sleeps, or computes: only who sleeps is looked for.
func TestAttendantCallsTheUsher(t *testing.T) {
	attended(t, func(a *Attendant) {
		pulse, asked := a.Pulse()
		calls := func() uint64 { return a.Counts().Calls }
		if time.Sleep(20 * time.Millisecond); calls() != 0 {
			t.Errorf("%d calls for a thread that was not asked", calls())
		}
		for i := range 3 {
			before := a.Counts()
			ask(asked)
			eventually(t, "a call", func() bool { return calls() > before.Calls })
			eventually(t, "the usher", func() bool { return a.Counts().Ushered > before.Ushered })
			pulse.Add(1)
			eventually(t, "no more calls", func() bool {
				before := calls()
				time.Sleep(10 * time.Millisecond)
				return calls() == before
			})
			pulse.Add(1)
			if t.Failed() {
				t.Fatal("round ", i)
			}
		}
		// Computing, it keeps its CPU until it is demoted.
		rounds, vain := uint64(20), uint64(0)
		for range rounds {
			counts := a.Counts()
			ask(asked)
			now := counts
			for now.Ticks < counts.Ticks+5 && now.Demotions == counts.Demotions {
				now = a.Counts()
			}
			if now.Demotions == counts.Demotions {
				vain += now.Calls - counts.Calls
			}
			eventually(t, "its priority, and no more ticks", func() bool {
				pulse.Add(2) // This takes CPU time, too.
				before := a.Counts().Ticks
				time.Sleep(time.Millisecond)
				return realtime() && a.Counts().Ticks == before
			})
		}
		if vain > rounds { // Without the look at its CPU time it is five times as many. Something else may have had the CPU.
			t.Errorf("%d calls for a thread that computed %d times", vain, rounds)
		}
	})
}

// ask does what a Hold does when a signal ends the wait.
func ask(asked *uint32) {
	atomic.AddUint32(asked, 1)
	sys.FutexWake(asked, 1)
}

// TestAttendantDemotes computes without a turn.
func TestAttendantDemotes(t *testing.T) {
	attended(t, func(a *Attendant) {
		pulse, asked := a.Pulse()
		compute := func(until uint64) {
			end := time.Now().Add(20 * time.Second)
			for a.Counts().Demotions < until && time.Now().Before(end) {
			}
		}
		compute(1)
		if realtime() {
			t.Error("the priority was not taken")
		}
		pulse.Add(1)
		eventually(t, "the priority after the turn", realtime)
		// Once more, and asked for its P.
		ask(asked)
		compute(2)
		if realtime() {
			t.Error("the priority was not taken")
		}
		t.Cleanup(func() {
			if n := a.Counts().Demotions; n != 2 {
				t.Errorf("%d demotions after the close", n)
			}
		})
	})
}

// TestAttendantGoesOn lets turns pass that take all of the CPU: it is those that do not end that cost the priority.
func TestAttendantGoesOn(t *testing.T) {
	attended(t, func(a *Attendant) {
		pulse, _ := a.Pulse()
		for end := time.Now().Add(100 * time.Millisecond); time.Now().Before(end); {
			pulse.Add(1)
		}
		if n := a.Counts().Demotions; n != 0 {
			t.Errorf("%d demotions", n)
		}
	})
}

// TestAttendIsRefused looks at the error.
func TestAttendIsRefused(t *testing.T) {
	testutil.CheckLeaks(t)
	defer sys.Inject(func(op sys.Op, _ int) sys.Fault {
		if op == sys.OpSchedSetattr {
			return sys.Fault{Errno: sys.EPERM}
		}
		return sys.Fault{}
	})()
	_, err := Attend(sys.Gettid(), -1, Sched{sys.Sched{FIFO: true, Priority: 3}, true}, "an attendant")
	const want = "schedule the thread as fifo:3: start its attendant, one priority above: operation not permitted: " +
		"it needs CAP_SYS_NICE, or RLIMIT_RTPRIO of 4, and a sandbox that allows sched_setattr"
	if err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}

// TestAttendOnNoCPU asks for a CPU that there is not: the thread ends again.
func TestAttendOnNoCPU(t *testing.T) {
	testutil.CheckLeaks(t)
	if _, err := Attend(sys.Gettid(), sys.CPUsMax-1, Sched{sys.Sched{FIFO: true, Priority: 3}, true}, "an attendant"); !errors.Is(err, sys.EINVAL) {
		t.Error(err)
	}
}
