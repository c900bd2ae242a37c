package pollux

import (
	"errors"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/pollux-go/pollux/internal/invariants"
	"github.com/pollux-go/pollux/poller"
	"github.com/pollux-go/pollux/scheduler"
)

// callback names a method of a [Handler], or a function that Async was given.
type callback uint8

const (
	onOpen callback = iota
	onData
	onEOF
	onWritable
	onClose
	onAsync
)

// errand is a callback of a connection that a worker runs.
//
// A connection whose callback is away belongs to two: its input buffer to the worker, everything else to the loop, which
// writes none of its flags meanwhile and keeps what comes for it in the errand. Conn.duty says so. It is 0 while the
// connection is at home; the loop sets it to the errand's number when it sends it away. The worker brings it home by a
// compare-and-swap back to 0, and then nobody is told: the common case. It fails if the loop has set the low bit, because it keeps
// something for the connection; and the worker does not try it where the loop must do something itself. Then it posts the
// errand, and the loop brings it home.
//
// Progress: both compare-and-swaps are tried once. Either one fails only because the other has succeeded.
type errand struct {
	loop   *loop
	number uint32        // in the loop's table, from 1 on
	next   uint32        // of the free list; its number, or 0
	letter poller.Letter // brings it home

	// What is to be run, from the loop to the worker, and what has come of it, back.
	conn    *Conn
	what    callback
	fns     []func(*Conn) // of Async
	err     error         // for OnClose; then what the handler has returned
	buffer  []byte        // the bytes that have come, where they lay in memory of the loop's
	asked   requests
	paused  bool
	silent  bool
	clocked bool   // whether it is measured: see looksInto
	sent    int64  // then: the instant at which it was sent away
	began   int64  // with a relief: the instant at which the callback began
	spent   spent  // and what the thread had spent before
	lent    []byte // and the loop's buffer, which it may look at
	weight  int32  // and the loop's slowWeight

	// What the loop keeps meanwhile.
	kept     kept
	late     []byte // that a completer has received
	lateEnd  int32  // the result of its last event
	ready    poller.Ready
	calls    []func(*Conn) // of Async
	toReason error         // it is to be closed at once, for this
}

// kept says what the loop keeps for a connection whose callback is away.
type kept uint16

const (
	keptEvents kept = 1 << iota
	keptEnd
	keptCanceled // the completer was told to stop, as too much has come
	keptAnswer
	keptAgain
	keptDue
	keptDrain
	keptClose
	keptOpening // OnOpen: what follows it is to be done
)

// poison is what a buffer is filled with that is free, in builds that look for such mistakes.
const poison = 0xdd

// errandsChunk is how many errands are made at once, and errandsMost how many a loop may have: beyond, it runs callbacks itself.
const (
	errandsChunk = 256
	errandsMost  = 1 << 20
	fnsMost      = 64 // that a free errand keeps room for
)

// errands is the table of a loop's errands.
//
// Roles: the loop takes free ones and makes more; workers look them up and give them back.
// Ownership: an errand is the loop's until its number is pushed to the scheduler, then the worker's, but for what the loop keeps.
// Progress: giving back is lock-free, taking wait-free but for the memory.
// Source: a Treiber stack that is only ever emptied whole, as the mailbox is.
type errands struct {
	chunks [errandsMost / errandsChunk]atomic.Pointer[[errandsChunk]errand]
	made   uint32        // the loop's
	free   uint32        // the loop's: the first of those that it has taken
	freed  atomic.Uint32 // the first of those that were given back since
}

// get returns an errand by its number.
func (t *errands) get(number uint32) *errand {
	number--
	return &t.chunks[number/errandsChunk].Load()[number%errandsChunk]
}

// take returns a free errand, or nil.
func (t *errands) take(l *loop) *errand {
	if t.free == 0 && t.freed.Load() != 0 {
		t.free = t.freed.Swap(0) // Takes them all; pairs with the compare-and-swap in give.
	}
	if t.free != 0 {
		r := t.get(t.free)
		t.free = r.next
		return r
	}
	if t.made == errandsMost {
		return nil
	}
	if t.made%errandsChunk == 0 {
		// Publishes the errands to the workers that are given their numbers.
		t.chunks[t.made/errandsChunk].Store(new([errandsChunk]errand))
	}
	t.made++
	r := t.get(t.made)
	r.loop, r.number = l, t.made
	r.letter.Run = func() { l.guard(func() { l.back(r) }) }
	return r
}

// give gives an errand back, which nobody else knows any more.
func (t *errands) give(r *errand) {
	if invariants.Enabled {
		for i, b := 0, r.buffer[:cap(r.buffer)]; i < len(b); i++ {
			b[i] = poison // A handler that has kept the slice is to find out.
		}
	}
	clear(r.fns)
	*r = errand{loop: r.loop, number: r.number, letter: poller.Letter{Run: r.letter.Run}, buffer: r.buffer[:0], late: r.late[:0], fns: r.fns[:0]}
	if cap(r.buffer) > 4*corkSize {
		r.buffer = nil
	}
	if cap(r.late) > 4*corkSize {
		r.late = nil
	}
	if cap(r.fns) > fnsMost {
		r.fns = nil
	}
	for {
		r.next = t.freed.Load()
		if t.freed.CompareAndSwap(r.next, r.number) { // Publishes what was cleared.
			return
		}
	}
}

// dutyAwaited is the low bit of Conn.duty: the loop keeps something for the connection.
const dutyAwaited = 1

// elsewhere returns the errand that a callback of c is away on, or nil if c is at home. The loop must keep in it what it would
// have done now.
func (l *loop) elsewhere(c *Conn) *errand {
	duty := c.duty.Load()
	if duty == 0 || c.isClosed() {
		return nil // A closed connection stays away with its OnClose, and needs nothing any more.
	}
	// Says that something is kept; pairs with the compare-and-swap in end: one of the two fails.
	if duty&dutyAwaited == 0 && !c.duty.CompareAndSwap(duty, duty|dutyAwaited) {
		return nil
	}
	return l.errands.get(duty >> 1)
}

// offloads tells whether callbacks of c go to workers.
func (l *loop) offloads(c *Conn) bool {
	return l.errands != nil && !l.ending && (l.engine.config.Dispatch == DispatchWorkers || c.service.pace.slow())
}

// offloadsClose tells whether the OnClose of c goes to a worker.
func (l *loop) offloadsClose(c *Conn) bool {
	return l.offloads(c) || l.lookout.turns > 0 && !l.ending
}

// sendAway has a worker run a callback of c. It is false when none can: there are too many of them already.
func (l *loop) sendAway(c *Conn, what callback, reason error, fns ...func(*Conn)) bool {
	r := l.errands.take(l)
	if r == nil {
		return false
	}
	r.conn, r.what, r.err = c, what, reason
	if r.clocked = l.looksInto(c, what); r.clocked {
		r.sent = poller.Nanotime()
	}
	shared := what == onData && !l.offloads(c)
	r.fns = append(r.fns, fns...)
	if c.in.memory == 0 && len(c.in.view) > 0 {
		r.buffer = append(r.buffer[:0], c.in.view...)
		c.in.view = r.buffer
	}
	c.mu.Lock()
	c.asked |= withWorker
	c.mu.Unlock()
	l.away.Add(1)
	l.calls.Store(l.calls.Load() + 1)
	dog.rouse()
	c.duty.Store(r.number << 1)
	if !l.source(shared).Push(scheduler.Item(l.index)<<32 | scheduler.Item(r.number)) {
		c.duty.Store(0)
		c.mu.Lock()
		c.asked &^= withWorker
		c.mu.Unlock()
		c.in.keep() // As at the end of a callback.
		l.away.Add(-1)
		l.errands.give(r)
		return false
	}
	if shared {
		l.backlog.given++
		l.backlog.shared.Add(1)
	} else {
		l.offloaded.Add(1)
	}
	l.engine.dispatcher.Wake()
	return true
}

// source returns where workers find the loop's errands: those that are slow, or those that it shares.
func (l *loop) source(shared bool) *scheduler.Source {
	if shared {
		return l.engine.dispatcher.Source(l.index + len(l.engine.loops))
	}
	return l.engine.dispatcher.Source(l.index)
}

// runItem runs an errand on a worker.
func (e *Engine) runItem(_ int, item scheduler.Item) {
	e.loops[item>>32].errands.get(uint32(item)).run()
}

// run runs the callback, and brings the connection home.
func (r *errand) run() {
	ended := false
	defer func() {
		if v := recover(); v != nil {
			r.err = &PanicError{Value: v, Stack: debug.Stack()}
		} else if !ended {
			r.err = ErrGoexit
		}
		r.end()
	}()
	var before spent
	if r.clocked {
		before = spentNow()
	}
	began, c := poller.Nanotime(), r.conn
	switch r.what {
	case onClose:
		c.service.handler.OnClose(c, r.err)
		r.err = nil
	case onAsync:
		for _, fn := range r.fns {
			if c.state.Load() < stateClosing {
				fn(c)
			}
		}
	default:
		r.err = c.handle(r.what)
	}
	ended = true
	if !r.clocked {
		return
	}
	took, v := before.judgeSince(began)
	r.loop.timesAway.NoteShared(took)
	c.service.pace.noteAway(v, began-r.sent, r.loop.slowWeight())
	if r.what == onClose && v != quick {
		r.loop.lookout.slowEnd.Store(true)
	}
}

// end brings the connection home.
func (r *errand) end() {
	l, c := r.loop, r.conn
	if r.err != nil {
		r.tell()
	}
	if r.what == onClose {
		l.errands.give(r)
		c.service.leave(l)
		l.away.Add(-1)
		return
	}
	c.in.keep()
	c.mu.Lock()
	// From here on, requests post letters.
	r.asked = c.asked &^ (posted | askWritable | spoke | withWorker)
	r.silent = c.asked&spoke == 0 && c.out == nil
	c.asked &= posted | askWritable
	r.paused = c.paused.Load() // Here, as in leave.
	c.mu.Unlock()
	if r.err == nil && r.asked == 0 && !r.paused && !(r.silent && l.completes(c)) && c.flags&(flagDraining|flagEOF|flagDeliver) == 0 &&
		len(c.in.view) <= c.service.readLimit && !c.isClosed() {
		// Publishes what the callback has left; pairs with the load in elsewhere.
		if c.duty.CompareAndSwap(r.number<<1, 0) {
			l.errands.give(r)
			l.away.Add(-1)
			return
		}
	}
	_ = l.inner.PostLetter(&r.letter) // Bounded by the errands. The loop does not end while one is away.
}

// tell logs how a callback has ended that has not returned.
func (r *errand) tell() {
	log := r.loop.engine.log
	err, panicked := r.err.(*PanicError)
	switch {
	case panicked && r.what == onClose:
		log.Error("pollux: OnClose panicked", "panic", err.Value, "stack", string(err.Stack))
	case panicked:
		log.Error("pollux: a handler panicked; its connection is closed", "panic", err.Value, "stack", string(err.Stack))
	case r.err == ErrGoexit:
		log.Error("pollux: a handler has ended its goroutine by runtime.Goexit; its connection is closed")
	}
}

// back ends an errand that the worker has posted, on the loop: the callback's end, then what was kept.
func (l *loop) back(r *errand) {
	c, k := r.conn, *r
	l.errands.give(r)
	l.away.Add(-1)
	c.duty.Store(0)
	_, ended := k.err.(*PanicError)
	ended = ended || k.err == ErrGoexit
	switch {
	case c.fd < 0 && ended:
		l.closed(c, k.err) // Detach has taken the descriptor before.
		return
	case c.fd < 0:
		l.closed(c, ErrDetached)
		return
	case ended:
		l.destroy(c, k.err)
		return
	case k.kept&keptClose != 0:
		l.destroy(c, k.toReason)
		return
	}
	if k.kept&keptAgain != 0 {
		c.flags &^= flagAgain
		l.later(c)
	}
	l.catching = k
	l.conclude(c, k.err, k.asked, k.paused)
	if k.silent && c.flags&flagArmed != 0 && !c.isClosed() && !l.alive(c) {
		l.catching = errand{}
		return
	}
	l.catchUp()
}

// catchUp does what was kept for a connection. Each step is taken off first, so that a relief goes on with the next one; and it
// keeps what it would do for another errand, if the one before has sent the connection away again.
func (l *loop) catchUp() {
	k := &l.catching
	c := k.conn
	did := func(what kept) bool {
		if k.kept&what == 0 || c.isClosed() {
			return false
		}
		k.kept &^= what
		return true
	}
	if did(keptOpening) && c.service.draining.Load() {
		l.drain(c)
	}
	for len(k.calls) > 0 { // Before what has come: the end of the stream would take them along.
		fns := k.calls
		if !l.offloads(c) && c.duty.Load() == 0 {
			fns = fns[:1]
		}
		k.calls = k.calls[len(fns):]
		l.async(c, fns...)
	}
	if late := k.late; len(late) > 0 && !c.isClosed() {
		k.late = nil
		if r := l.elsewhere(c); r != nil {
			r.late = append(r.late, late...)
		} else {
			l.arrived(c, late)
		}
	}
	if did(keptEnd) {
		l.receivedEnd(c, k.lateEnd)
	}
	if did(keptEvents) {
		l.event(c, k.ready)
	}
	if did(keptAnswer) {
		l.answer(c)
	}
	if did(keptDue) {
		l.due(c)
	}
	if did(keptDrain) {
		l.drain(c)
	}
	l.catching = errand{}
}

// keepReceived keeps what a completer has received, and has it stop when that is much.
func (l *loop) keepReceived(r *errand, ev *poller.Event) {
	if ev.Result <= 0 {
		l.receivedEnd(r.conn, ev.Result)
		return
	}
	r.late = append(r.late, l.completer.Bytes(ev)...)
	l.completer.Recycle(ev)
	if len(r.late) >= len(l.buffer) && r.kept&keptCanceled == 0 {
		r.kept |= keptCanceled
		l.disarm(r.conn)
	}
}

// settlePause is how often settleAway looks.
const settlePause = 50 * time.Microsecond

// settleAway waits for the errands that are away, when the loop ends.
func (l *loop) settleAway() {
	for l.away.Load() > 0 {
		if !l.inner.RunPosts() {
			time.Sleep(settlePause)
		}
	}
}

// keepEvent keeps an event, and sends what is queued if it says that there is room: that need not wait for the callback.
func (l *loop) keepEvent(r *errand, ready poller.Ready) {
	r.kept |= keptEvents
	r.ready |= ready
	if ready&poller.Writable != 0 && r.conn.blocked.Load() {
		l.flushAway(r)
	}
}

// flushAway sends what is queued, while a worker runs a callback.
func (l *loop) flushAway(r *errand) {
	c := r.conn
	c.mu.Lock()
	err := c.flush()
	c.mu.Unlock()
	if err != nil {
		l.destroy(c, err)
	}
}

// answerAway does what was asked for that need not wait for the callback, and keeps the rest.
func (l *loop) answerAway(r *errand) {
	r.kept |= keptAnswer
	c := r.conn
	c.mu.Lock()
	asked := c.asked & askSend
	c.asked &^= askSend | posted
	c.mu.Unlock()
	if c.isClosed() {
		return
	}
	var err error
	if asked&askRetry != 0 {
		l.starve(c)
	}
	if asked&askPoll != 0 && l.completes(c) {
		err = l.completer.AwaitWritable(int(c.fd), c.token)
	}
	if asked&askLaunch != 0 && c.isDirect() {
		err = errors.Join(err, l.attendDirect(c, askLaunch))
	}
	if err != nil {
		l.destroy(c, err)
	}
}
