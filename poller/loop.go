package poller

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/pollux-go/pollux/internal/sys"
)

// A Sink gets what a [Loop] finds. Its methods run on the loop's goroutine.
type Sink interface {
	// Ready is given the events of one turn; there may be none. The slice belongs to the loop again when Ready returns.
	Ready(events []Event)

	// Due is given the token of each timer that is due, in the order of their instants.
	Due(token Token)

	// EndTurn is called last. more says that there is work left that needs no event: the loop then looks for events without
	// waiting for them. lent says that some of the sink's work is with other goroutines, which come for more by themselves: the
	// loop then need not hurry to have them run where another P is idle.
	EndTurn() (more, lent bool)
}

// A Loop waits on a backend and hands to its [Sink], turn by turn, a batch of events, then what other goroutines
// posted, then the timers that are due. Run is called once, and others may run the loop by turns with it: see Share. Post,
// PostAlways and Stop may be called from any goroutine, Schedule and Now only from the one that runs.
//
// Every turn does a bounded amount of work: at most 256 events, the posts that were there when it looked, 256 timers.
type Loop struct {
	backend Backend
	sink    Sink
	events  []Event
	mailbox Mailbox
	letters *Letter // that were taken from it
	stopped atomic.Bool

	timers  timers
	now     int64  // the instant of this turn; 0: not asked for yet
	renewed int64  // the instant at which it last began a new time slice
	sliced  int64  // the instant at which one began that it has not begun itself
	asks    uint64 // what the hot waits had been asked by then
	slice   slice
	blind   bool     // see isBlind
	scout   *scout   // of these:
	scouts  [2]scout // the second one while some of the sink's work is lent
	procs   procs
	empty   bool // nobody waited for the P when the turn began
	vain    int  // breaks in a row that nobody has used, and those that were left out since: see Between

	share    share
	counters counters
	begun    int64 // the instant at which the last wait was over

	holder Holder        // the backend, if it can hold the P
	hot    time.Duration // see Heat
	isHot  bool
	hold   Hold           // of the hot waits
	pulse  *atomic.Uint64 // see Attend
	worked int64          // the instant at which it last had something to do

	spin     time.Duration // see Spin
	adaptive bool
	budget   time.Duration // what the backend was told
	waited   int64         // the instant at which the last wait that might sleep began; 0: it could not
	gap      int64         // how long those took lately, a moving average in nanoseconds
}

// timersMost is how many timers one turn hands over.
const timersMost = 256

// NewLoop makes a loop on a backend, which stays the caller's to close.
func NewLoop(b Backend, s Sink) *Loop {
	l := &Loop{backend: b, sink: s, events: make([]Event, batchMost), share: share{owner: owned}}
	l.scouts[1].asks = true
	l.scout = &l.scouts[0]
	return l
}

// Heat says for how long after its last event the loop waits hot: in a system call that keeps the P, so that nothing stands
// between the next event and its handler. 0, which is how a loop begins, is never. A loop that is cold wakes up for events
// only; one that is hot also every few milliseconds. It is for a goroutine that is locked to its thread, with a P to spare
// for it, and must be called before Run. It has no effect on a backend that is no [Holder].
func (l *Loop) Heat(d time.Duration) {
	l.hot = d
	if l.holder, _ = l.backend.(Holder); l.holder == nil {
		l.hot = 0
	}
}

// Spin says for how long the loop looks for events before it sleeps. If it is adaptive, it does so only as long as events
// have lately come within that time. It is for the goroutine that runs the loop, or before Run, and has no effect on a backend
// that is no [Holder].
func (l *Loop) Spin(d time.Duration, adaptive bool) {
	l.spin, l.adaptive = d, adaptive
	if l.holder, _ = l.backend.(Holder); l.holder == nil {
		l.spin = 0
	} else if d == 0 && l.budget != 0 {
		l.budget = 0
		l.holder.Spin(0)
	}
}

// Attend has the loop count in a word that somebody watches, when a wait begins and when it has ended, so that the word is odd
// during waits; and tell in another one when it is about to give up its P, because the runtime asks for it or to find out
// whether somebody waits for it: see [Hold]. With nil it does so no more. It is for the goroutine that runs the loop, or
// before Run.
func (l *Loop) Attend(pulse *atomic.Uint64, asked *uint32) { l.pulse, l.hold.Asked = pulse, asked }

// SliceBegan returns the instant at which the loop's time slice has begun, as far as it is known; it may have begun later. The runtime's
// monitor asks for the P of a goroutine whose slice began 10 ms ago. It is for the goroutine that runs the loop.
func (l *Loop) SliceBegan() int64 { return max(l.renewed, l.sliced) }

// BeginSlice tells the loop that its time slice has begun at an instant or later. It is for the goroutine that runs the loop.
func (l *Loop) BeginSlice(at int64) { l.sliced = max(l.sliced, at) }

// Backend returns what the loop waits on.
func (l *Loop) Backend() Backend { return l.backend }

// Run runs the loop until Stop. It returns an error only if the backend fails. If a function that it calls ends the goroutine
// (runtime.Goexit), or is never going to return to Run, another goroutine may call Run again.
func (l *Loop) Run() error { return l.run(false) }

// run is Run, or Follow.
func (l *Loop) run(follow bool) error {
	more := false
	if !follow {
		// The last Run has not returned, and may have left work in the sink.
		if more = l.slice.first != nil; !more {
			l.slice.open()
		}
		if l.blind = isBlind(); l.blind {
			l.procs.open()
		}
	}
	ended := false
	defer func() {
		if ended {
			l.slice.close() // Else somebody goes on: see above.
		}
	}()
	busy := true
	var buffer []Event
	for follow || !l.stopped.Load() {
		var n int
		var err error
		timeout := time.Duration(-1)
		if !follow {
			if busy {
				l.handOver()
			}
			if timeout = l.timeout(more); timeout != 0 {
				timeout = l.temper(timeout, busy)
			}
		}
		if l.pulse != nil {
			l.pulse.Add(1)
		}
		if follow || timeout != 0 && l.share.on.Load() {
			if buffer == nil {
				buffer = make([]Event, sharedMost)
			}
			n, err = l.waitShared(buffer, timeout, follow)
			if follow && err != nil || err == ErrElsewhere {
				return err
			}
			follow = false
		} else {
			n, err = l.backend.Wait(l.events, timeout)
			if l.share.on.Load() {
				l.backend.(Sharer).AnswerLate()
			}
		}
		if l.mailbox.unpark() {
			l.counters.rescues.Add(1)
		}
		l.count(n, timeout)
		if l.asks != l.hold.Asks {
			l.asks = l.hold.Asks
			l.BeginSlice(l.begun)
		}
		if err != nil {
			l.Stop()
			ended = true
			return fmt.Errorf("wait for events: %w", err)
		}
		l.empty = sys.QueueEmpty()
		if l.scouts[1].pending {
			l.scouts[1].resolve(l.procs.idle())
		}
		l.now = 0
		l.sink.Ready(l.events[:n])
		busy = n > 0
		busy = l.RunPosts() || busy
		more = false
		if at, ok := l.timers.next(); ok {
			busy = busy || at <= l.Now()
			more = l.fire()
		}
		left, lent := l.sink.EndTurn()
		l.lend(lent)
		more = left || more
		busy = busy || more
	}
	ended = true
	return nil
}

// handOver lets the goroutines run that this turn has made ready, if they wait for this P. Where the queue was not known to be
// empty before the turn, the other Ps are idle, most likely, and take them; or goroutines that compute wait here too, which
// the loop must not wait for.
func (l *Loop) handOver() {
	if l.blind {
		if l.scout.eager() {
			l.giveWay()
		}
		return
	}
	if l.empty && !sys.QueueEmpty() {
		l.counters.handOvers.Add(1)
		l.slice.yield()
		l.renewed = Nanotime()
	}
}

// breakEach is after how many callbacks of a turn there is a break: see Between. A break that nobody uses costs two switches of
// threads, so after some in a row that were of no use, all but each breakRest-th are left out.
//
// At 20,000 hand-overs a second on one CPU, beside goroutines that compute, the p99 with these breaks is a quarter of what it is
// without; with one after each callback, or each second one, it was 12 to 60 times what it is without.
const (
	breakEach = 4
	breakRest = 16
)

// Between is for the sink, between two events of a turn: after some callbacks it lets the goroutines run that they have made ready,
// as is done at the end of a turn. A turn may have hundreds of events, and the first of them may have readied somebody. It takes
// how many callbacks the sink has had since the turn began, or since the last break, and returns it, or 0 after a break.
func (l *Loop) Between(callbacks int) int {
	if callbacks < breakEach {
		return callbacks
	}
	l.handOverBetween()
	return 0
}

func (l *Loop) handOverBetween() {
	switch {
	case l.slice.first == nil || l.scout.asks: // It does not run, or workers have what it has made ready.
	case !l.blind:
		l.handOver()
	case l.scout.eager():
		if l.vain >= scoutMisses {
			if l.vain++; l.vain < scoutMisses+breakRest {
				return
			}
			l.vain = scoutMisses - 1
		}
		if l.slice.yield() == used {
			l.counters.handOvers.Add(1)
			l.scout.needed(true)
			l.vain = 0
		} else { // At the end of the turn somebody may: the scout does not count it.
			l.vain++
		}
		l.renewed = Nanotime()
	}
}

// lend has the scout look that is for a loop some of whose work is lent, or none.
func (l *Loop) lend(some bool) {
	l.scout = &l.scouts[0]
	if some {
		l.scout = &l.scouts[1]
	}
}

// giveWay lets those run that wait for this P, if there are any.
func (l *Loop) giveWay() {
	use := l.slice.yield()
	l.renewed = Nanotime()
	if use == used {
		l.counters.handOvers.Add(1)
	}
	if use != unknown {
		l.scout.note(use == used)
	}
}

// holdMost is how long one hot wait is at most: stopping the world may have to wait for it where signals do not preempt
// goroutines (GODEBUG=asyncpreemptoff=1).
const holdMost = 4 * time.Millisecond

// temper decides how the next wait, which may block, does so, and for how long. busy says that the last turn had something
// to do.
func (l *Loop) temper(timeout time.Duration, busy bool) time.Duration {
	now := Nanotime()
	l.waited = now
	if busy {
		l.worked = now
	}
	hot := l.hot > 0 && now-l.worked < int64(l.hot) && !l.share.on.Load()
	if hot != l.isHot {
		l.isHot = hot
		if hot {
			l.holder.Hold(&l.hold)
		} else {
			l.holder.Hold(nil)
		}
	}
	if l.spin > 0 {
		budget := l.spin
		if l.adaptive && l.gap > int64(l.spin) {
			budget = 0
		}
		if budget != l.budget {
			l.budget = budget
			l.holder.Spin(budget)
		}
	}
	if !hot {
		l.counters.cold.Add(1)
		if now-l.renewed >= renewPeriod {
			l.renewed = now
			l.counters.renewals.Add(1)
			switch {
			case l.blind:
				l.giveWay()
			case sys.QueueEmpty():
				l.slice.renew()
			default:
				l.slice.yield() // The monitor would have let them run, had it not been kept off.
			}
		}
		return timeout
	}
	l.counters.hot.Add(1)
	if l.blind && busy && now-l.renewed >= max(l.scout.pause, scoutPauseLeast) {
		l.hold.Ask() // Nobody has asked for the P, but it may take as long to have it back.
		l.giveWay()
	}
	most := min(holdMost, l.hot)
	if timeout < 0 || timeout > most {
		return most
	}
	return timeout
}

// gapWeight is how many waits the moving average of their lengths goes back, and gapMost what one counts at most, so that a
// busy time after a quiet one is noticed after some tens of events.
const (
	gapWeight = 16
	gapMost   = 4 // times the spin
)

// count notes what a wait has brought, which might take so long, and how long it has taken.
func (l *Loop) count(n int, timeout time.Duration) {
	c := &l.counters
	c.turns.Add(1)
	if l.pulse != nil {
		l.pulse.Add(1)
	}
	c.events.Add(uint64(n))
	if l.waited == 0 {
		return // It could not sleep: the turn before goes on.
	}
	now := Nanotime()
	if l.begun != 0 {
		c.times.Note(l.waited - l.begun)
	}
	l.begun = now
	if n == 0 {
		c.timeouts.Add(1)
		early := timeout < 0 || now-l.waited < int64(timeout)
		if early && l.mailbox.isEmpty() && !l.share.on.Load() && !l.stopped.Load() {
			c.spurious.Add(1)
		}
	}
	if l.budget > 0 {
		c.spins.Add(1)
		if now-l.waited <= int64(l.budget) {
			c.spinHits.Add(1)
		}
	}
	if l.adaptive {
		gap := min(now-l.waited, gapMost*int64(l.spin))
		l.gap += (gap - l.gap) / gapWeight
	}
	l.waited = 0
}

// timeout says how long the next wait may be, and parks the mailbox if it may be long.
func (l *Loop) timeout(more bool) time.Duration {
	if more {
		return 0
	}
	wait := time.Duration(-1)
	if at, ok := l.timers.next(); ok {
		// The clock is read anew: handlers may have run for long since the turn began.
		if wait = time.Duration(at - Nanotime()); wait <= 0 {
			return 0
		}
	}
	if !l.mailbox.park() {
		return 0
	}
	return wait
}

func (l *Loop) fire() (more bool) {
	now := l.Now()
	for range timersMost {
		token, ok := l.timers.pop(now)
		if !ok {
			return false
		}
		l.counters.timers.Add(1)
		l.sink.Due(token)
	}
	return true
}

// Now returns the instant of this turn, see [Nanotime]. It reads the clock at most once a turn.
func (l *Loop) Now() int64 {
	if l.now == 0 {
		l.now = Nanotime()
	}
	return l.now
}

// Schedule makes the loop hand token to the sink's Due at the instant at, or soon after. There is no cancel: the sink
// must see for itself whether anything is due.
func (l *Loop) Schedule(at int64, token Token) { l.timers.add(at, token) }

// Post makes the loop call run, in the order of the posts. It fails with [ErrMailboxFull] when 65,536 posts wait, and
// with [ErrClosed] once the loop has been stopped; a post that races with Stop may be dropped, see [Loop.Drain].
func (l *Loop) Post(run func()) error {
	if l.stopped.Load() {
		return ErrClosed
	}
	wake, err := l.mailbox.post(run)
	l.counters.woken(wake)
	if wake || l.share.on.Load() { // The thread that runs may be stuck.
		_ = l.backend.Break()
	}
	return err
}

// PostAlways is Post without the bound, for callers that have one themselves, as one post a connection.
func (l *Loop) PostAlways(run func()) error {
	return l.PostLetter(&Letter{Run: run})
}

// PostLetter is PostAlways of a letter that the caller owns, and must not post again before it runs: it may be posted again from
// then on.
func (l *Loop) PostLetter(letter *Letter) error {
	wake, err := l.mailbox.postAlways(letter)
	l.counters.woken(wake)
	if wake || l.share.on.Load() { // The thread that runs may be stuck.
		_ = l.backend.Break()
	}
	return err
}

// Stop makes Run return after the current turn.
func (l *Loop) Stop() {
	l.stopped.Store(true)
	_ = l.backend.Break()
}

// RunPosts runs what was posted, and tells whether there was something. Run does so each turn; it is for the goroutine that ran
// the loop, after Run has returned, which waits for a post before it calls Drain.
func (l *Loop) RunPosts() (any bool) {
	posts := uint64(0)
	if l.letters == nil {
		l.letters = l.mailbox.take()
	}
	for l.letters != nil {
		// Taken off first: should it end the goroutine (runtime.Goexit), the next Run goes on with the others.
		letter := l.letters
		l.letters = letter.next
		letter.Run()
		posts++
	}
	l.counters.posts.Add(posts)
	return posts > 0
}

// Sleeps tells whether the loop sleeps, or is about to. It may be called from any goroutine.
func (l *Loop) Sleeps() bool { return l.mailbox.parked.Load() == asleep }

// Drain closes the mailbox and runs what is still in it. It is for the goroutine that ran the loop, after Run has returned, so
// that nobody waits for a post for ever. If a post ends the goroutine (runtime.Goexit), another one may call Drain again.
func (l *Loop) Drain() {
	l.slice.close() // If the last Run has not returned.
	l.RunPosts()
	l.letters = l.mailbox.close()
	l.RunPosts()
}
