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

// timingTurns is for how many turns callbacks are measured after a turn that was long.
const timingTurns = 1 << 10

// beginTurn and endTurn clock a turn. One that was shorter than a slow call had none; after one that was not, every callback is
// measured for a while: two readings of the clock each.
func (l *loop) beginTurn() {
	l.turnAt = poller.Nanotime()
	if l.lookout.turns > 0 {
		l.beginWatched()
	}
}

func (l *loop) endTurn() {
	if poller.Nanotime()-l.turnAt > int64(slowCall) {
		l.timing = timingTurns
	} else if l.timing > 0 {
		l.timing--
	}
}

// measured ends a callback that was measured.
func (l *loop) measured(c *Conn) {
	took := poller.Nanotime() - l.callAt.Load()
	l.callAt.Store(0)
	c.service.pace.note(took, l.slowWeight())
	// A leaky bucket, too: a thread that the kernel has stopped for a moment looks like a slow call.
	if took <= int64(slowCall) {
		l.lookout.bucket = max(0, l.lookout.bucket-1)
	} else if l.lookout.bucket += watchWeight; l.lookout.bucket > watchWeight {
		l.lookout.bucket = 2 * watchWeight
		l.beWatched()
	}
}
