package pollux

import (
	"sync/atomic"
	"time"

	"github.com/pollux-go/pollux/poller"
)

// A call is slow that takes longer than slowCall: others have waited for it by then for longer than a hand-over to a worker takes.
const slowCall = 200 * time.Microsecond

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

// note counts a call that has taken so many nanoseconds, and fills in weight if that is slow. One that is fast, of a handler that always is, costs a load.
func (p *pace) note(nanos int64, weight int32) {
	if nanos > int64(slowCall) {
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

// Callbacks are measured one by one, at two readings of the clock each, for timingTurns turns, or timingCalls of them, after a turn
// that was long. One that was shorter than a slow call had none. A turn may also be long because it had many; so after a time in
// which none was slow, long turns are passed over for timingPauseLeast, then for twice as long, and so on.
const (
	timingTurns      = 1 << 10
	timingCalls      = 1 << 12
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

// beginTurn and endTurn clock a turn.
func (l *loop) beginTurn() {
	l.turnAt = poller.Nanotime()
	if l.lookout.turns > 0 {
		l.beginWatched()
	}
}

func (l *loop) endTurn() {
	now := poller.Nanotime()
	l.timing.turn(now, l.calls.Load(), now-l.turnAt > int64(slowCall))
}

// measured ends a callback that was measured.
func (l *loop) measured(c *Conn) {
	now := poller.Nanotime()
	took := now - l.callAt.Load()
	l.callAt.Store(0)
	c.service.pace.note(took, l.slowWeight())
	if took > int64(slowCall) {
		l.timing.found = true
	}
	if l.lookout.note(now, took > int64(slowCall)) {
		l.beWatched()
	}
}
