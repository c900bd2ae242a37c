package poller

import "time"

// The tests of Desc, Poller and Loop are in package poller_test, because the fake backend imports this package.

// WaiterParked tells whether a goroutine sleeps, or is about to, until the direction changes.
func (d *Desc) WaiterParked(mode Mode) bool {
	w, _ := d.mode(mode)
	return w.state.Load() == stateWaiting
}

// Latched tells whether an edge of the direction is latched.
func (d *Desc) Latched(mode Mode) bool {
	w, _ := d.mode(mode)
	return w.state.Load() == stateReady
}

// Cancel wakes the waiter of a direction for no reason.
func (d *Desc) Cancel(mode Mode) {
	w, _ := d.mode(mode)
	w.cancel()
}

// RegisteredAs returns the descriptor's token.
func (d *Desc) RegisteredAs() Token { return d.token }

// Dispatch delivers a batch, as the loop does. The poller must not have a loop that does so at the same time.
func (p *Poller) Dispatch(events []Event) { p.dispatch(events) }

// NewWithoutLoop makes a poller whose events the test dispatches.
func NewWithoutLoop(b Backend, c Clock) *Poller {
	return &Poller{backend: b, clock: c, ready: make([]*Desc, batchMost), ended: make(chan struct{})}
}

// SystemClock is the clock that New uses.
var SystemClock Clock = systemClock{}

// FillMailbox makes the loop's mailbox believe that n more letters wait.
func (l *Loop) FillMailbox(n int64) { l.mailbox.length.Add(n) }

// TimersMost and MailboxMost are the bounds of a loop's turn and of its mailbox.
const (
	TimersMost  = timersMost
	MailboxMost = mailboxMost
	BatchMost   = batchMost
)

// SetAlone has loops believe that the process has one CPU. It returns what undoes it.
func SetAlone() (undo func()) {
	before := alone
	alone = true
	return func() { alone = before }
}

// GivenAway returns how often the loop has given its P away. It is for the goroutine that runs the loop.
func (l *Loop) GivenAway() uint64 { return l.slice.turn }

// Asks tells whether the loop's scout asks for an idle P. It is for the goroutine that runs the loop.
func (l *Loop) Asks() bool { return l.scout.asks }

// A Scout finds out who waits for a P.
type Scout struct{ s scout }

// Eager, Pause, Note, Ask, Pending and Resolve are the scout's own.
func (s *Scout) Eager() bool          { return s.s.eager() }
func (s *Scout) Pause() time.Duration { return time.Duration(s.s.pause) }
func (s *Scout) Note(used bool)       { s.s.note(used) }
func (s *Scout) Ask()                 { s.s.asks = true }
func (s *Scout) Pending() bool        { return s.s.pending }
func (s *Scout) Resolve(idle bool)    { s.s.resolve(idle) }

// ScoutTrusted is how often it is not asked again whether a P is idle when none was.
const ScoutTrusted = scoutTrusted

// IdleP returns what tells whether a P is idle.
func IdleP() func() bool {
	var p procs
	p.open()
	return p.idle
}

// ScoutMisses is after how many tries in vain a scout is not eager any more.
const ScoutMisses = scoutMisses

// Ticks follows how often a P has scheduled.
type Ticks struct{ t ticks }

// Yielded, Renewed and Due are its own.
func (t *Ticks) Yielded(p int64, second, first, loop time.Duration, others bool) {
	t.t.yielded(p, int64(second), int64(first), int64(loop), others)
}
func (t *Ticks) Renewed(p int64, took time.Duration) { t.t.renewed(p, int64(took)) }
func (t *Ticks) Due() bool                           { return t.t.due() }

// TicksFair is at which scheduling the shared queue comes first, TicksAge for how many slices that is believed to be known, and
// BetweenLate stands for a first goroutine that had its turn before the second one.
const (
	TicksFair   = ticksFair
	TicksAge    = ticksAge
	BetweenLate = time.Duration(betweenLate)
)
