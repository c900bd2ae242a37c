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

// On workers, where goroutines wait for a P as long as a slow call takes, or longer, a call that has waited in its middle tells nothing
// of its handler; and to wait for a worker each time is worse for all than what the handler does now and then. It is so when more than
// one call in lateWeight waits for its worker for longer than lateCall, which counts in another bucket. Calls that have slept are not
// counted then. So a handler comes back that was taken for slow by mistake; if it is slow all the same, that is soon found on the loop,
// and it is believed for believeLeast, and for twice as long each time that it comes back and goes.
const (
	lateCall     = int64(time.Millisecond)
	lateWeight   = 8
	lateEnough   = 4 * lateWeight
	lateMost     = 8 * lateWeight
	believeLeast = int64(time.Second)
	believeMost  = 64 * believeLeast
	soon         = int64(time.Second) / 2
)

// pace is what is known of how fast a service's handler is. Anybody may use it; what gets lost between two of them does not matter.
type pace struct {
	bucket  atomic.Int32
	isSlow  atomic.Bool
	late    atomic.Int32 // the bucket of calls that came late to a worker
	doubted atomic.Bool  // calls that have slept were not counted since it is slow
	back    atomic.Int64 // the instant at which it was last found not to be slow
	pause   atomic.Int64 // how long it was believed last,
	believe atomic.Int64 // and the instant until which it is
}

func (p *pace) slow() bool { return p.isSlow.Load() }

// note counts a call, and fills in weight if it was slow. One that is fast, of a handler that always is, costs a load.
func (p *pace) note(slow bool, weight int32) {
	if slow {
		switch n := p.bucket.Add(weight); {
		case n > slowMost:
			p.bucket.Store(slowMost)
		case n >= slowEnough && !p.isSlow.Swap(true):
			p.leave(poller.Nanotime())
		}
		return
	}
	p.drain(1)
}

// drain takes something out of the bucket.
func (p *pace) drain(n int32) {
	if p.bucket.Load() > 0 && p.bucket.Add(-n) <= 0 && p.isSlow.Swap(false) {
		p.bucket.Store(0)
		p.back.Store(poller.Nanotime())
	}
}

// leave notes that the handler is slow from now on.
func (p *pace) leave(now int64) {
	if !p.doubted.Swap(false) || now-p.back.Load() > soon {
		p.pause.Store(0)
		return
	}
	pause := min(max(2*p.pause.Load(), believeLeast), believeMost)
	p.pause.Store(pause)
	p.believe.Store(now + pause)
}

// noteAway is note for a call on a worker, which has waited for it for so many nanoseconds.
func (p *pace) noteAway(v verdict, waited int64, weight int32) {
	if waited > lateCall {
		if p.late.Add(lateWeight) > lateMost {
			p.late.Store(lateMost)
		}
	} else if p.late.Load() > 0 {
		p.late.Add(-1)
	}
	switch doubt := v != slow && p.late.Load() >= lateEnough && poller.Nanotime() >= p.believe.Load(); {
	case doubt && v == asleep:
		p.doubted.Store(true)
	case doubt && p.slow():
		p.drain(measureEach) // It comes back anyway.
	default:
		p.note(v != quick, weight)
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

// verdict is what is to be said of a call.
type verdict uint8

const (
	quick  verdict = iota
	asleep         // it is slow, unless what it has waited for was a P: see noteAway and interrupted
	slow
)

// judge says whether a call was slow that has begun at an instant, after s, took so many nanoseconds, and has ended with now.
// Of what the thread has used since s, the time before the call is not counted as the call's.
func (s spent) judge(began, took int64, now spent) verdict {
	switch {
	case took <= int64(slowCall):
		return quick
	case s.at == 0 || now.at == 0:
		return slow // It is not known.
	case s.tid != now.tid:
		return asleep // Its goroutine has.
	case now.cpu-s.cpu-(began-s.at) > int64(slowCompute):
		return slow
	case s.waits != now.waits:
		return asleep
	}
	return quick
}

// judgeSince is judge for a call that ends now, on the calling thread, and tells how long it took.
func (s spent) judgeSince(began int64) (took int64, v verdict) {
	took = poller.Nanotime() - began
	if took <= int64(slowCall) {
		return took, quick
	}
	return took, s.judge(began, took, spentNow())
}

// askedAfter is a bit less than what the runtime's monitor leaves a goroutine its P for (forcePreemptNS in runtime/proc.go): a slow call
// that only waits for a P has computed for less than the rest before.
const askedAfter = int64(10*time.Millisecond - 2*slowCompute)

// interrupted tells whether a call on a loop that looks as if it had slept may have lost its P to the monitor meanwhile: the time slice
// of the loop was at its end when it began. The loop's thread, which runs nothing else, sleeps until it has one again: for some hundred
// microseconds, or some milliseconds where all other threads are kept off its CPU and those that compute have theirs.
func interrupted(sliceBegan, began int64) bool { return began-sliceBegan >= askedAfter }

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
	v, took := quick, now-began
	l.times.Note(took)
	if took > int64(slowCall) {
		before := l.spent
		l.spent = spentNow()
		if v = before.judge(began, took, l.spent); v == asleep {
			if interrupted(l.inner.SliceBegan(), began) {
				v = quick
			}
			l.inner.BeginSlice(now) // Whatever it has waited for.
		}
	}
	slow := v != quick
	c.service.pace.note(slow, l.slowWeight())
	if slow {
		l.timing.found = true
	}
	if l.lookout.note(now, slow) {
		l.beWatched()
	}
}
