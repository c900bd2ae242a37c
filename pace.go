package pollux

import (
	"sync/atomic"
	"time"

	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/poller"
)

// A call is slow that takes longer than slowCall, part of which it sleeps: others have waited for it by then for longer than a
// hand-over to a worker takes. One that computes is slow when it has had the CPU for slowCompute. Somebody else would need a
// CPU as well, and between the two a hypervisor that takes the CPU away, which nobody can tell from computing, made many a fast
// call slow.
const (
	slowCall    = 200 * time.Microsecond
	slowCompute = 500 * time.Microsecond
)

// A handler is slow when more than one in slowWeight of its calls is. It counts in a leaky bucket: a slow call fills in
// slowWeight, every other one takes out 1. The handler is slow from slowEnough on until the bucket is empty; it never holds more
// than slowMost, so that the way back has an end.
const (
	slowWeight = 256
	slowEnough = slowWeight + slowWeight/4 // Two slow calls with less than 192 between them.
	slowMost   = 4 * slowWeight
)

// reliefWeight is slowWeight where a relief costs less than sending every callback away: the handler is slow when more than one in
// sixteen of its calls is.
const reliefWeight = 16

func (l *loop) slowWeight() int32 {
	if l.relievable() {
		return reliefWeight
	}
	return slowWeight
}

// pace is what is known of how fast a service's handler is. Anybody may use it; what gets lost between two of them does not matter.
type pace struct {
	bucket atomic.Int32
	isSlow atomic.Bool
}

func (p *pace) slow() bool { return p.isSlow.Load() }

// note counts a call, and fills in weight if it was slow. One that is fast, of a handler that always is, costs a load.
func (p *pace) note(slow bool, weight int32) {
	if slow {
		switch n := p.bucket.Add(weight); {
		case n > slowMost:
			p.bucket.Store(slowMost)
		case n >= slowEnough:
			p.isSlow.Store(true)
		}
		return
	}
	if p.bucket.Load() > 0 && p.bucket.Add(-1) <= 0 {
		p.isSlow.Store(false)
	}
}

// measureEach is of how many callbacks on workers one is measured, of a handler that is slow: that takes three system calls, which
// are felt where a callback does little. One that is measured counts as one. If it counted as so many, a handler of which one call in
// a hundred is slow would be taken for fast whenever 256 in a row were not, which they are one time in thirteen.
const measureEach = 4

// looksInto tells whether the next callback is measured that goes to a worker.
func (l *loop) looksInto(c *Conn, what callback) bool {
	switch {
	case l.engine.config.Dispatch != DispatchSteal:
		return false // It makes no difference.
	case what == onClose || !c.service.pace.slow():
		return true
	}
	return l.calls.Load()*golden>>62 == 0
}

// golden is 2^64 divided by the golden ratio. The two highest bits of its multiples are all 0 for one number of measureEach; but not for
// each fourth one, which might be the same connection's each time.
const golden = 0x9e3779b97f4a7c15

// Callbacks are measured one by one, at two readings of the clock each, for timingTurns turns, or timingCalls of them, after a turn
// that was long. One that was shorter than a slow call had none. A turn may also be long because it had many; so after a time in
// which none was slow, long turns are passed over for timingPauseLeast, then for twice as long, and so on.
const (
	timingTurns      = 1 << 10
	timingCalls      = 1 << 10
	timingPauseLeast = int64(10 * time.Millisecond)
	timingPauseMost  = 16 * timingPauseLeast
)

// timing says which callbacks are measured.
type timing struct {
	turns int    // that are left, of this time
	calls uint64 // that had begun when it began
	found bool   // something slow in it
	pause int64  // how long turns were passed over after the last one
	after int64  // the instant until which they are
}

func (t *timing) begin(calls uint64) { t.turns, t.calls, t.found = timingTurns, calls, false }

// turn notes a turn that has ended now, after so many callbacks since the loop began. long says that something in it may have been
// slow.
func (t *timing) turn(now int64, calls uint64, long bool) {
	if t.turns == 0 {
		if long && now >= t.after {
			t.begin(calls)
		}
		return
	}
	if t.turns--; t.turns > 0 && calls-t.calls < timingCalls {
		return
	}
	t.turns = 0
	if t.found {
		t.pause = 0
		return
	}
	t.pause = min(max(2*t.pause, timingPauseLeast), timingPauseMost)
	t.after = now + t.pause
}

// spent is what a thread has spent until an instant. A callback may have taken long because others had its CPU. It is not slow
// then, and a worker, or another thread for the loop, would only be one more that wants a CPU.
type spent struct {
	at    int64 // 0: not known
	tid   int
	cpu   int64 // nanoseconds for which it had a CPU
	waits int64 // how often it has waited by itself, for whatever
}

// spentNow looks at the calling thread.
func spentNow() spent {
	s := spent{at: poller.Nanotime(), tid: sys.Gettid()}
	var errno1, errno2 sys.Errno
	s.cpu, errno1 = sys.CPUTime(0)
	s.waits, errno2 = sys.Waits()
	if errno1 != 0 || errno2 != 0 {
		return spent{}
	}
	return s
}

// slow tells whether a call was slow that has begun at an instant, after s, took so many nanoseconds, and has ended with now.
// Of what the thread has used since s, the time before the call is not counted as the call's.
func (s spent) slow(began, took int64, now spent) bool {
	switch {
	case took <= int64(slowCall):
		return false
	case s.at == 0 || now.at == 0:
		return true // It is not known.
	case s.tid != now.tid:
		return true // Its goroutine has slept.
	}
	return s.waits != now.waits || now.cpu-s.cpu-(began-s.at) > int64(slowCompute)
}

// slowSince is slow for a call that ends now, on the calling thread, and tells how long it took.
func (s spent) slowSince(began int64) (took int64, slow bool) {
	took = poller.Nanotime() - began
	return took, took > int64(slowCall) && s.slow(began, took, spentNow())
}

// beginTurn and endTurn clock a turn.
func (l *loop) beginTurn(events int) {
	l.turnAt = poller.Nanotime()
	l.beginBacklog(events)
	if l.lookout.turns > 0 {
		l.beginWatched()
	}
	if l.timing.turns > 0 || l.lookout.turns > 0 {
		l.spent = spentNow()
	}
}

func (l *loop) endTurn() {
	now := poller.Nanotime()
	l.timing.turn(now, l.calls.Load(), now-l.turnAt > int64(slowCall))
	l.backlog.turn(now - l.turnAt)
}

// measured ends a callback that was measured.
func (l *loop) measured(c *Conn) {
	now, began := poller.Nanotime(), l.callAt.Load()
	l.callAt.Store(0)
	slow, took := false, now-began
	l.times.Note(took)
	if took > int64(slowCall) {
		before := l.spent
		l.spent = spentNow()
		slow = before.slow(began, took, l.spent)
	}
	c.service.pace.note(slow, l.slowWeight())
	if slow {
		l.timing.found = true
	}
	if l.lookout.note(now, slow) {
		l.beWatched()
	}
}
