package pollux

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/pollux-go/pollux/internal/host"
	"github.com/pollux-go/pollux/internal/sys"
)

// lowered is something that each thread of the process has, and that is kept low while engines ask for it.
//
// New threads have it from the one that makes them. What somebody has set himself meanwhile is left to him.
type lowered struct {
	get    func(tid int) (time.Duration, sys.Errno) // 0: this thread has none
	set    func(tid int, d time.Duration) sys.Errno
	low    time.Duration
	resets bool // setting it to 0 makes it what a thread has usually
	own    bool // threads lower it themselves; here it is only given back

	denied atomic.Uint32 // the last refusal of the kernel, or of a sandbox, since the first engine began

	mu      sync.Mutex // protects the fields below
	engines int        // that ask for it
	active  bool
	sweeps
	usual  time.Duration // what most threads had
	before map[int]time.Duration
}

// shortSlices keeps the slices short that the kernel gives to threads that are not realtime (since 6.12). A loop that has to
// give up its P has it back from several of them, one after the other, and the kernel lets a thread that has the CPU finish its
// slice first, of 3 ms or so: see [cgo.Attendant], which has it look. What each thread gets of the CPU is the same.
var shortSlices = lowered{get: sys.SliceOf, set: sys.SetSlice, low: 100 * time.Microsecond, resets: true}

// shortSlack has sleeps end when they are to, and not up to 50 us later. A thread of the runtime that looks for work sleeps for
// 3 us before it takes what a running goroutine has just made ready, and a loop that is always hot is running, as far as the
// runtime knows.
var shortSlack = lowered{get: host.TimerSlack, set: host.SetTimerSlack, low: time.Nanosecond}

// workerSlack is what threads of the runtime set themselves that have run workers: see Slack of [scheduler.Config]. It needs no
// privilege; to be given back, as they are other threads than the one that ends the engine, it does.
var workerSlack = lowered{get: host.TimerSlack, set: host.SetTimerSlack, low: time.Nanosecond, own: true}

// deny notes an error that says that it is not allowed. Others say that the thread has ended meanwhile, or is scheduled otherwise now,
// or that the kernel has no such thing: those are to be expected.
func (l *lowered) deny(errno sys.Errno) {
	if errno == sys.EPERM || errno == sys.EACCES || errno == sys.ENOSYS {
		l.denied.Store(uint32(errno))
	}
}

// begin keeps it low until as many ends. The error says that this is not allowed for some threads, or for all; it is done for the others.
func (l *lowered) begin() sys.Errno {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.engines++; l.active {
		return sys.Errno(l.denied.Load())
	}
	l.denied.Store(0)
	l.usual, l.before = 0, map[int]time.Duration{}
	counts := map[time.Duration]int{}
	for _, tid := range host.Threads() {
		d, errno := l.get(tid)
		switch {
		case errno != 0:
			l.deny(errno)
		case d <= l.low:
			l.before[tid] = d
		default:
			if counts[d]++; counts[d] > counts[l.usual] {
				l.usual = d
			}
		}
	}
	if l.usual == 0 {
		return sys.Errno(l.denied.Load()) // Or the kernel has no such thing.
	}
	l.active = true
	if !l.own {
		l.sweeps.begin(l.lower)
	}
	return sys.Errno(l.denied.Load())
}

// end gives the threads back what they had, when no other engine asks for it.
func (l *lowered) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.engines--; l.engines != 0 || !l.active {
		return
	}
	if l.active = false; l.own {
		untilNone(l.restore)
		return
	}
	l.finish(l.restore)
}

func (l *lowered) lower() (changed bool) {
	for _, tid := range host.Threads() {
		d, errno := l.get(tid)
		if errno != 0 || d <= l.low {
			continue // It has ended, has none, or a low one already.
		}
		if _, known := l.before[tid]; !known {
			l.before[tid] = d
		}
		errno = l.set(tid, l.low)
		changed = changed || errno == 0
		l.deny(errno)
	}
	return changed
}

func (l *lowered) restore() (changed bool) {
	for _, tid := range host.Threads() {
		d, errno := l.get(tid)
		if errno != 0 || d != l.low {
			continue // It has ended, or was never low, or somebody has set it since.
		}
		to, known := l.before[tid]
		switch {
		case known && to <= l.low:
			continue // It was low before.
		case !known || to == l.usual:
			to = l.usual // One that was born meanwhile has it from another one.
			if l.resets {
				to = 0
			}
		}
		changed = l.set(tid, to) == 0 || changed
	}
	return changed
}
