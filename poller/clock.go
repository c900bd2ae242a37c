package poller

import (
	"math"
	"time"
)

// epoch is when the process started. Instants are nanoseconds of the monotonic clock since then, so that a change of
// the wall clock moves no deadline.
var epoch = time.Now()

// Nanotime returns the current instant: nanoseconds of the monotonic clock since the process started.
func Nanotime() int64 { return int64(time.Since(epoch)) }

// instant returns t on the same scale. A time without a monotonic reading is placed by its distance to now.
func instant(t time.Time) int64 {
	if t == t.Round(0) { // Round(0) strips the monotonic reading: t had none.
		return int64(addDuration(time.Since(epoch), time.Until(t)))
	}
	return int64(t.Sub(epoch)) // Both have one; Sub saturates.
}

func addDuration(a, b time.Duration) time.Duration {
	if sum := a + b; b <= 0 || sum > a {
		return sum
	}
	return math.MaxInt64
}

// A Clock tells the time and runs functions later. It exists so that tests can move the time by hand.
type Clock interface {
	// Now returns an instant in nanoseconds; only differences count.
	Now() int64
	// Instant returns t on the same scale.
	Instant(t time.Time) int64
	// AfterFunc returns a stopped timer that runs f on a goroutine of its own once it has been set and its time is over.
	AfterFunc(f func()) ClockTimer
}

// A ClockTimer is a timer of a [Clock].
type ClockTimer interface {
	// Set makes the timer fire once, after d; it replaces what was set before.
	Set(d time.Duration)
	// Stop makes it not fire, unless it is firing already.
	Stop()
}

// systemClock is the monotonic clock and the runtime's timers.
type systemClock struct{}

func (systemClock) Now() int64 { return Nanotime() }

func (systemClock) Instant(t time.Time) int64 { return instant(t) }

func (systemClock) AfterFunc(f func()) ClockTimer {
	t := time.AfterFunc(math.MaxInt64, f)
	t.Stop()
	return (*systemTimer)(t)
}

type systemTimer time.Timer

func (t *systemTimer) Set(d time.Duration) { (*time.Timer)(t).Reset(d) }

func (t *systemTimer) Stop() { (*time.Timer)(t).Stop() }
