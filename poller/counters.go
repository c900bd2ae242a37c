package poller

import (
	"sync/atomic"
	"time"

	"github.com/pollux-go/pollux/internal/tally"
)

// Counters is what a loop has counted since it began.
type Counters struct {
	Turns  uint64 // waits, with what followed each
	Events uint64
	Posts  uint64 // letters that were run
	Timers uint64 // that were due

	HotWaits, ColdWaits uint64 // waits that might sleep, with the P kept and not
	Timeouts            uint64 // of those, the ones that brought nothing
	SpuriousWakes       uint64 // of these, the ones that ended before their time, and nothing was posted: by a signal, or by a wake that came late
	Spins, SpinHits     uint64 // waits that began with a spin, and those that were over within its time

	HandOvers, Renewals uint64 // of the P, to whom a handler has made ready, and to begin a new time slice

	WakesSent, WakesElided uint64 // posts that had to wake the loop, and that had not
	Rescues                uint64 // sleeps that Rescue has ended, which must not happen
	MailboxDepth           int    // posts that wait now

	Busy time.Duration // spent outside of waits

	// TurnTimes[i] is how many turns took less than 1 us << i outside of the wait, and not less than half of that; the last
	// one has all that took longer.
	TurnTimes [TurnTimesLen]uint64
}

// TurnTimesLen is the number of classes of turns: the last but one is below 131 ms.
const TurnTimesLen = tally.TimesLen

// counters are Counters as the loop keeps them.
type counters struct {
	turns, events, posts, timers tally.Counter
	hot, cold                    tally.Counter
	timeouts, spurious           tally.Counter
	spins, spinHits              tally.Counter
	handOvers, renewals, rescues tally.Counter
	wakesSent, wakesElided       atomic.Uint64 // of the posters
	times                        tally.Times   // of turns, outside of their waits
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
		Turns: c.turns.Load(), Events: c.events.Load(), Posts: c.posts.Load(), Timers: c.timers.Load(),
		HotWaits: c.hot.Load(), ColdWaits: c.cold.Load(), Timeouts: c.timeouts.Load(), SpuriousWakes: c.spurious.Load(),
		Spins: c.spins.Load(), SpinHits: c.spinHits.Load(),
		HandOvers: c.handOvers.Load(), Renewals: c.renewals.Load(),
		WakesSent: c.wakesSent.Load(), WakesElided: c.wakesElided.Load(), Rescues: c.rescues.Load(),
		MailboxDepth: l.mailbox.depth(), Busy: c.times.Sum(),
	}
	c.times.AddTo(&s.TurnTimes)
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
