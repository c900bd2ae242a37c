package poller

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// Counters is what a loop has counted since it began.
type Counters struct {
	Turns  uint64 // waits, with what followed each
	Events uint64
	Posts  uint64 // letters that were run
	Timers uint64 // that were due

	HotWaits, ColdWaits uint64 // waits that might sleep, with the P kept and not
	Timeouts            uint64 // of those, the ones that brought nothing
	Spins, SpinHits     uint64 // waits that began with a spin, and those that were over within its time

	HandOvers, Renewals uint64 // of the P, to whom a handler has made ready, and to begin a new time slice

	WakesSent, WakesElided uint64 // posts that had to wake the loop, and that had not
	Rescues                uint64 // sleeps that Rescue has ended, which must not happen

	Busy time.Duration // spent outside of waits

	// TurnTimes[i] is how many turns took less than 1 us << i outside of the wait, and not less than half of that; the last
	// one has all that took longer.
	TurnTimes [TurnTimesLen]uint64
}

// TurnTimesLen is the number of classes of turns: the last but one is below 131 ms.
const TurnTimesLen = 19

// counter is written by the loop and read by anybody.
type counter struct{ n atomic.Uint64 }

func (c *counter) add(n uint64) {
	if n != 0 {
		c.n.Store(c.n.Load() + n) // There is one writer.
	}
}

// counters are Counters as the loop keeps them.
type counters struct {
	turns, events, posts, timers counter
	hot, cold, timeouts          counter
	spins, spinHits              counter
	handOvers, renewals          counter
	busy, rescues                counter
	wakesSent, wakesElided       atomic.Uint64 // of the posters
	times                        [TurnTimesLen]counter
}

// turn notes how long a turn has taken outside of its wait.
func (c *counters) turn(nanos int64) {
	nanos = max(nanos, 0)
	c.busy.add(uint64(nanos))
	c.times[min(bits.Len64(uint64(nanos)/uint64(time.Microsecond)), TurnTimesLen-1)].add(1)
}

// woken notes whether a post had to wake the loop.
func (c *counters) woken(wake bool) {
	if wake {
		c.wakesSent.Add(1)
	} else {
		c.wakesElided.Add(1)
	}
}

// Counters returns what the loop has counted. It may be called from any goroutine; the numbers are those of one moment each,
// not all of the same.
func (l *Loop) Counters() Counters {
	c := &l.counters
	s := Counters{
		Turns: c.turns.n.Load(), Events: c.events.n.Load(), Posts: c.posts.n.Load(), Timers: c.timers.n.Load(),
		HotWaits: c.hot.n.Load(), ColdWaits: c.cold.n.Load(), Timeouts: c.timeouts.n.Load(),
		Spins: c.spins.n.Load(), SpinHits: c.spinHits.n.Load(),
		HandOvers: c.handOvers.n.Load(), Renewals: c.renewals.n.Load(),
		WakesSent: c.wakesSent.Load(), WakesElided: c.wakesElided.Load(), Rescues: c.rescues.n.Load(),
		Busy: time.Duration(c.busy.n.Load()),
	}
	for i := range c.times {
		s.TurnTimes[i] = c.times[i].n.Load()
	}
	return s
}

// Overlooked tells whether a post waits for a loop that sleeps, or is about to, and nobody is going to wake it. It is for a
// watchdog, which calls Rescue when it sees that twice.
func (l *Loop) Overlooked() bool { return l.mailbox.overlooked() }

// Rescue wakes the loop up. If it did sleep, that is counted in [Counters].
func (l *Loop) Rescue() {
	if l.mailbox.rescue() {
		_ = l.backend.Break()
	}
}
