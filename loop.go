package pollux

import (
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/pollux-go/pollux/cgo"
	"github.com/pollux-go/pollux/internal/invariants"
	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/internal/tally"
	"github.com/pollux-go/pollux/poller"
)

// loop is an event loop: a goroutine on a thread of its own, with a backend, the connections that it alone closes and
// reads, and one read buffer for them all. It runs the handlers.
//
// What is not marked otherwise belongs to its goroutine.
type loop struct {
	engine    *Engine
	backend   poller.Backend
	completer poller.Completer // the same, if it takes the input itself
	direct    directory        // the same, if it has direct descriptors
	inner     *poller.Loop

	sources poller.Table[source]
	again   []poller.Token // connections that may have unread bytes: the next turn reads them without an event
	flights []*outbound    // free queues for sends of the completer
	starved []*Conn        // connections that the kernel had no memory for
	buffer  []byte         // what reads go to

	// current is the connection whose callback runs; nil between callbacks. It is set and cleared by the loop; others
	// load it under the connection's mutex to know whether the loop will look at the connection soon anyway.
	current atomic.Pointer[Conn]
	cork    outbound // belongs to the current connection, under its mutex

	movable  bool          // another thread can become the loop: see reliefs
	errands  *errands      // nil: no callback goes to a worker
	index    int           // of the engine's loops
	away     atomic.Int64  // errands that workers have
	ending   bool          // no errand begins any more
	timing   timing        // of callbacks, one by one
	tenure   atomic.Uint32 // how often the loop was taken over
	opening  *Conn         // whose OnOpen runs
	leaving  leaving       // what is left of removeAcceptor
	catching errand        // what is left of catchUp
	turnAt   int64         // the instant at which this turn began
	callAt   atomic.Int64  // the instant at which the callback began; 0: not measured
	spent    spent         // where callbacks are measured: at the beginning of the turn, or after the last one that took long
	lookout  lookout
	backlog  backlog
	unbroken int // callbacks since the turn began, or was interrupted: see poller.Loop.Between

	held   poller.Event   // with Received: its bytes are being handled
	silent bool           // the last callback has sent nothing
	single int            // turns with one event, in a row
	alone  bool           // the event is the turn's only one, and it was so lately: see launch
	batch  []poller.Event // what Ready was given
	next   int            // of batch; kept here so that a panic loses no event

	count      atomic.Int64  // connections, those on their way here included
	calls      atomic.Uint64 // callbacks that have begun; written by the loop
	pin        cgo.Thread    // what its thread is to be like
	cpu        atomic.Int32  // it is pinned to; -1: none
	thread     atomic.Int64  // the thread's id while it runs
	attendance attendance
	standing   atomic.Int32 // on its CPU, with Isolate
	sharing    bool         // its CPU, when restand last looked
	plain      bool         // its thread is an ordinary one, though it is to be realtime
	displaced  bool         // from its CPU, which the process may not use: see repin
	stale      atomic.Uint64
	accepts    tally.Counter
	offloaded  tally.Counter
	sends      sendCounts
	times      tally.Times   // of callbacks that were measured here
	timesAway  tally.Times   // and elsewhere
	begun      chan struct{} // closed when the thread is its own
	done       chan struct{}
}

// source is what a token of a loop names: a connection or a listener.
type source struct {
	conn     *Conn
	acceptor *acceptor
}

// retryToken is the timer of the starved; a registration's token is not 0.
const retryToken poller.Token = 0

// retryDelay is how long a send waits that the kernel had no memory for.
const retryDelay = 5 * time.Millisecond

func newLoop(e *Engine, b poller.Backend) *loop {
	l := &loop{
		engine:  e,
		backend: b,
		buffer:  make([]byte, e.config.BufferSize),
		cork:    outbound{buf: make([]byte, 0, corkSize)},
		begun:   make(chan struct{}),
		done:    make(chan struct{}),
	}
	l.completer, _ = b.(poller.Completer)
	if e.config.DirectDescriptors > 0 {
		l.direct, _ = b.(directory)
	}
	l.inner = poller.NewLoop(b, l)
	if e.config.Procs != ProcsKeep {
		l.inner.Heat(max(0, e.config.Hot))
	}
	l.inner.Spin(l.spin())
	if e.config.Dispatch != DispatchInline {
		l.errands = new(errands)
	}
	_, l.movable = b.(poller.Sharer)
	l.movable = l.movable && e.config.Dispatch == DispatchSteal
	l.lookout.threads.Store(1)
	l.lookout.spares.turns = make(chan struct{}, sparesMost)
	return l
}

// run is the loop's goroutine.
func (l *loop) run() {
	// A thread of its own, for good: the goroutine ends without unlocking, and the thread with it.
	runtime.LockOSThread()
	if sys.IsFirstThread() {
		// Not this one: it lives as long as the process does, and would stay pinned. It is kept busy until another one is found.
		go l.run()
		<-l.begun
		runtime.UnlockOSThread()
		return
	}
	l.lookout.usual = l.usualCPUs()
	l.thread.Store(int64(sys.Gettid()))
	l.settle()
	dog.add(l)
	close(l.begun)
	l.man(l.inner.Run)
}

// join makes the calling thread like the loop's, which may have been kept off the loop's CPU.
func (l *loop) join() {
	l.lookout.spares.setMember(sys.Gettid(), true)
	if l.pin.CPU >= 0 {
		_ = sys.SetAffinity(0, []int{l.pin.CPU}) // settle says what is wrong.
	}
	l.settle()
}

// settle makes the loop's first thread what it is to be.
func (l *loop) settle() {
	l.lookout.spares.setMember(sys.Gettid(), true)
	l.beAttended()
	pin := l.pin
	if l.plain {
		pin.Sched = cgo.Sched{}
	}
	errs := pin.Pin()
	for _, err := range errs {
		l.engine.refused(err)
	}
	if len(errs) != 0 && pin.Sched.FIFO && !isRealtime() {
		l.pin.Sched = cgo.Sched{}
		l.dismiss()
	}
	l.cpu.Store(int32(l.pin.CPU))
	l.label()
}

// serve has the calling thread run the loop until the engine closes. It is true if the thread is free again before that: it was
// relieved in a callback that has ended now, or is not needed. A handler that ends the goroutine by runtime.Goexit (as
// t.FailNow does) does not end the loop: another goroutine goes on.
func (l *loop) serve(run func() error) (again bool) {
	ended := false
	defer func() {
		if ended {
			return
		}
		v := recover()
		if _, again = v.(unwinding); again {
			return
		}
		if v != nil {
			panic(v) // A bug of ours, which must be seen.
		}
		if _, relieved := l.claim(); relieved {
			l.endStuck(ErrGoexit)
			l.engine.reliefs.crew.Done()
			return
		}
		go l.replace()
	}()
	err := run()
	ended = true
	if errors.Is(err, poller.ErrElsewhere) {
		l.left(err)
		return true
	}
	l.end(err)
	return false
}

// replace takes the loop over from a goroutine that a handler has ended, and closes the connection that it was called for.
// A ring belongs to its thread, which has ended too: then the engine closes.
func (l *loop) replace() { onOwnThread(l.takeOver) }

// onOwnThread runs f on a thread of its own, which ends with it. It is not the process's first one, which lives as long as the process
// does, and would stay pinned.
func onOwnThread(f func()) {
	runtime.LockOSThread()
	if !sys.IsFirstThread() {
		f()
		return
	}
	begun := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		close(begun)
		f()
	}()
	<-begun // It is kept busy until another one is found.
	runtime.UnlockOSThread()
}

func (l *loop) takeOver() {
	l.thread.Store(int64(sys.Gettid()))
	l.join()
	l.engine.log.Error("pollux: a handler has ended its goroutine by runtime.Goexit; its connection is closed")
	if l.engine.Backend() == string(KindUring) {
		l.current.Store(nil)
		l.end(fmt.Errorf("%w, and with it the thread that its io_uring belonged to", ErrGoexit))
		return
	}
	l.man(func() error {
		l.opening = nil
		if c := l.current.Load(); c != nil {
			l.leave(c)
			if c.fd < 0 {
				l.closed(c, ErrGoexit) // Detach has taken the descriptor before.
			} else {
				l.destroy(c, ErrGoexit)
			}
		}
		l.resumeStarved()
		l.resumeLeaving()
		for l.next < len(l.batch) {
			l.dispatch()
		}
		return l.inner.Run()
	})
}

// end closes what is open. err is why the loop has ended, nil when the engine closes.
func (l *loop) end(err error) {
	defer close(l.done)
	defer dog.remove(l)
	if err != nil {
		l.engine.log.Error("pollux: an event loop has failed: the engine closes", "error", err)
		go l.engine.Close()
	}
	l.ending = true
	defer func() {
		if err := l.backend.Close(); err != nil {
			l.engine.log.Error("pollux: an event loop could not close its backend", "error", err)
		}
		l.dismiss()
		l.thread.Store(0)
	}()
	defer l.insist(l.closeAll)
	defer l.endShare()
	l.insist(l.settleAway)
}

// insist calls f until it is through. A callback that ends the goroutine (runtime.Goexit) leaves it in the middle; what is
// deferred is still run then, on the same thread, to which a ring belongs: so f is called again from there, one level deeper
// for each time.
func (l *loop) insist(f func()) {
	through := false
	defer func() {
		if v := recover(); v != nil {
			panic(v) // A bug of ours, which must be seen.
		}
		if !through {
			l.insist(f)
		}
	}()
	f()
	through = true
}

// closeAll closes what the loop has, and what is on its way here.
func (l *loop) closeAll() {
	for _, s := range l.sources.All {
		l.closeSource(s, ErrShutdown)
	}
	l.inner.Drain() // Connections on their way here find the engine closed, and close.
	for _, s := range l.sources.All {
		l.closeSource(s, ErrShutdown)
	}
}

func (l *loop) closeSource(s source, reason error) {
	if s.acceptor != nil {
		l.removeAcceptor(s.acceptor, nil)
		return
	}
	l.destroy(s.conn, reason)
}

// checkCallback finds calls that only a callback of c may make, in builds that look for such mistakes.
func (l *loop) checkCallback(c *Conn) {
	if invariants.Enabled && l.current.Load() != c && c.duty.Load() == 0 {
		panic("pollux: a method that belongs to the callbacks of a connection was called outside of them")
	}
}

// Ready implements [poller.Sink].
func (l *loop) Ready(events []poller.Event) {
	if l.errands != nil {
		l.beginTurn(len(events))
	}
	l.batch, l.next, l.unbroken = events, 0, 0
	switch n := len(events); {
	case n > 1:
		l.single = 0
	case n == 1:
		l.single++
	}
	l.alone = l.single >= singleLeast
	for l.next < len(l.batch) {
		l.dispatch()
	}
	l.alone = false
}

// dispatch handles events until the batch is through, or a handler panics. One recover for many events costs nothing an
// event.
func (l *loop) dispatch() {
	defer l.contain(l.tenure.Load())
	for l.next < len(l.batch) {
		l.unbroken = l.inner.Between(l.unbroken)
		ev := &l.batch[l.next]
		l.next++
		s, ok := l.sources.Get(ev.Token)
		switch {
		case !ok:
			l.stale.Add(1) // A handler has closed it earlier in this batch.
			l.discardEvent(ev)
		case ev.Ready&poller.Received != 0:
			l.received(s.conn, ev)
		case ev.Ready&poller.Sent != 0:
			l.landed(s.conn, ev.Result)
		case s.conn != nil:
			l.event(s.conn, ev.Ready)
		case ev.Ready&poller.Accepted != 0:
			s.acceptor.accepted(ev.Result)
		default:
			s.acceptor.ready()
		}
	}
}

// contain ends the panic of a handler, and with it the connection that it was called for.
func (l *loop) contain(tenure uint32) {
	v := recover()
	if v == nil {
		return
	}
	if _, ok := v.(unwinding); ok {
		panic(v) // On to serve.
	}
	err := &PanicError{Value: v, Stack: debug.Stack()}
	if l.tenure.Load() != tenure {
		l.lost(err)
	}
	c, relieved := l.claim()
	switch {
	case relieved:
		l.lost(err)
	case c == nil:
		panic(v) // Not a handler: a bug of ours, which must be seen.
	}
	l.leave(c)
	l.engine.log.Error("pollux: a handler panicked; its connection is closed", "panic", v, "stack", string(err.Stack))
	l.recycle()
	if c.fd < 0 {
		l.closed(c, err) // Detach has taken the descriptor before the panic.
		return
	}
	l.destroy(c, err)
}

// EndTurn implements [poller.Sink]: it reads for those that had more than one turn's worth.
func (l *loop) EndTurn() (more, lent bool) {
	if l.errands != nil {
		l.endBacklog()
	}
	// Those that are added from here on have their turn in the next one, after the events that have come meanwhile.
	for n := len(l.again); n > 0; {
		n = l.readAgain(n)
	}
	if l.errands != nil {
		l.endTurn()
	}
	return len(l.again) > 0, l.away.Load() > 0
}

// readAgain reads for the first n of the list, until it is through or a handler panics; it returns how many are left.
func (l *loop) readAgain(n int) (left int) {
	left = n
	tenure := l.tenure.Load()
	defer func() {
		if l.tenure.Load() != tenure {
			return // Who is the loop now goes through them once more.
		}
		if left > 0 { // A callback has not returned.
			if _, relieved := l.claim(); relieved {
				return
			}
		}
		l.again = l.again[:copy(l.again, l.again[n-left:])]
	}()
	defer l.contain(l.tenure.Load())
	for left > 0 {
		l.unbroken = l.inner.Between(l.unbroken)
		token := l.again[n-left]
		left--
		if s, ok := l.sources.Get(token); ok {
			if c := s.conn; c != nil {
				if r := l.elsewhere(c); r != nil {
					r.kept |= keptAgain
					continue
				}
				c.flags &^= flagAgain
				l.read(c)
			} else {
				s.acceptor.again = false
				s.acceptor.ready()
			}
		}
	}
	return left
}

// later has the connection read in the next turn.
func (l *loop) later(c *Conn) {
	if c.flags&flagAgain == 0 {
		c.flags |= flagAgain
		l.again = append(l.again, c.token)
	}
}

// event handles one event of a connection.
func (l *loop) event(c *Conn, ready poller.Ready) {
	const both = poller.HungUp | poller.Failed
	if r := l.elsewhere(c); r != nil {
		l.keepEvent(r, ready)
		return
	}
	if ready&(poller.PeerClosed|poller.Urgent|both) != 0 {
		c.flags |= flagTalkative
	}
	if ready&(poller.Writable|both) != 0 && c.blocked.Load() {
		if !l.writable(c) {
			return
		}
		if r := l.elsewhere(c); r != nil {
			l.keepEvent(r, ready)
			return
		}
	}
	if ready&both != 0 && (c.flags&flagEOF != 0 || c.paused.Load()) && c.linger == 0 {
		l.hungUp(c, ready)
		return
	}
	if ready&both != 0 && c.isDirect() && !l.aliveDirect(c) {
		return
	}
	if ready&(poller.Readable|poller.PeerClosed|poller.Urgent|both) != 0 {
		c.flags |= flagMayRead
		if c.flags&flagAgain == 0 {
			l.read(c)
		}
	}
}

// finished tells whether the writing direction has ended: after CloseWrite, once everything is sent.
func (c *Conn) finished() bool {
	if c.state.Load() != stateFinished {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.queued() == 0
}

// hungUp ends a connection that no read will find out about, because its end of stream was seen already or because it is
// paused: after an error, or when its own writing direction is finished as well.
func (l *loop) hungUp(c *Conn, ready poller.Ready) {
	errno := l.pending(c)
	switch {
	case errno != 0:
		l.destroy(c, os.NewSyscallError("getsockopt", errno))
	case c.flags&flagEOF != 0 && ready&poller.HungUp != 0:
		l.destroy(c, nil)
	default:
		c.flags |= flagMayRead // For Resume.
	}
}

// doubtsMost is how often an EAGAIN is not believed where urgent data may be: at its mark, the kernel says EAGAIN to a
// call that finds a signal pending, though bytes are behind the mark and no edge will come for them. The signal is
// delivered when the call returns. See poller.Desc.
const doubtsMost = 2

// read reads once, at most a buffer full, and calls the handler. What is left has its turn after the others.
func (l *loop) read(c *Conn) {
	if c.flags&flagDiscard != 0 {
		l.discard(c)
		return
	}
	if c.paused.Load() || c.state.Load() >= stateClosing {
		return // Resume looks again; a close does not.
	}
	if c.flags&flagDeliver != 0 {
		c.flags &^= flagDeliver
		if len(c.in.view) > 0 {
			l.later(c)
			l.call(c, onData)
			return
		}
	}
	if c.flags&flagMayRead == 0 || c.flags&(flagEOF|flagArmed) != 0 {
		return // While a completer receives, a read would overtake what is under way.
	}
	if c.isDirect() && c.flags&(flagDraining|flagBulk) == 0 {
		c.flags &^= flagMayRead
		l.rearm(c) // The receive finds what is there.
		return
	}
	space := c.in.space(l.buffer)
	n, errno := l.recv(c, space)
	for doubts := 0; errno == sys.EAGAIN && c.flags&flagTalkative != 0 && doubts < doubtsMost; doubts++ {
		n, errno = l.recv(c, space)
	}
	switch {
	case errno == sys.EAGAIN:
		c.flags &^= flagMayRead
		if l.drained(c) {
			c.flags |= flagQuiet
			l.beginClose(c, nil)
		}
		l.rearm(c)
	case errno != 0:
		l.failed(c, os.NewSyscallError(sys.OpRecv.String(), errno))
	case n == 0:
		c.flags &^= flagMayRead
		l.ended(c)
	default:
		c.in.filled(l.buffer, n)
		if n < len(space) && c.flags&(flagStream|flagTalkative|flagDraining) == flagStream && (c.flags&flagBulk != 0 || !l.completes(c)) {
			// A TCP stream that gave less than it was asked for is empty; what comes next makes an edge.
			c.flags &^= flagMayRead
		} else {
			l.later(c)
		}
		bulk := c.flags&(flagBulk|flagMayRead) == flagBulk
		away := l.offloads(c) || l.shares()
		if bulk && away {
			l.readBulk(c, n)
			l.rearm(c)
			bulk = false
		}
		l.data(c, away)
		if bulk {
			l.readBulk(c, n)
			l.rearm(c)
		}
	}
}

// data tells the handler that bytes have come.
func (l *loop) data(c *Conn, away bool) {
	if c.idle.Load() != 0 {
		c.active.Store(l.inner.Now())
	}
	l.callOn(c, onData, away)
}

// call runs a callback of c, here or on a worker.
func (l *loop) call(c *Conn, what callback) { l.callOn(c, what, l.offloads(c)) }

// callOn is call for one who has asked offloads already: another loop may change the answer at any time.
func (l *loop) callOn(c *Conn, what callback, away bool) {
	if away && l.sendAway(c, what, nil) {
		return
	}
	l.enter(c)
	err := c.handle(what)
	l.finish(c, err)
}

// handle calls the handler, for a callback that may fail.
func (c *Conn) handle(what callback) error {
	switch h := c.service.handler; what {
	case onOpen:
		if opened := c.service.opened; opened != nil {
			defer opened()
		}
		return h.OnOpen(c)
	case onData:
		return h.OnData(c)
	case onEOF:
		return h.OnEOF(c)
	default:
		return h.OnWritable(c)
	}
}

// ended tells the handler of the end of the stream.
func (l *loop) ended(c *Conn) {
	switch {
	case c.flags&flagDiscard != 0:
		l.destroy(c, c.reason)
	case c.flags&flagEOF == 0:
		c.flags |= flagEOF
		if c.state.Load() < stateClosing {
			l.call(c, onEOF)
		}
		if !c.isClosed() {
			l.watch(c)
		}
	}
}

// failed closes a connection that reading has failed on.
func (l *loop) failed(c *Conn, err error) {
	if c.linger != 0 && c.queued() == 0 {
		err = c.reason // It was closing in good order.
	}
	l.destroy(c, err)
}

// enter begins a callback.
func (l *loop) enter(c *Conn) {
	if l.timing.turns > 0 || l.lookout.turns > 0 {
		l.callAt.Store(poller.Nanotime())
	}
	l.calls.Store(l.calls.Load() + 1)
	l.backlog.ran++
	l.unbroken++
	// Publishes that the loop will look at c when the callback returns; pairs with the load in corked. From here on the loop may be
	// taken over: see reliefs.
	l.current.Store(c)
	dog.rouse()
}

// finish ends a callback: it sends what was gathered, keeps what was not read, and does what was asked for. err is what
// the handler returned.
func (l *loop) finish(c *Conn, err error) {
	asked, paused, failed, ok := l.leave(c)
	if !ok {
		l.lost(err)
	}
	if l.callAt.Load() != 0 {
		l.measured(c)
	}
	if failed != nil && c.fd >= 0 {
		l.destroy(c, failed) // The peer is gone: nobody is left to linger for.
		return
	}
	l.conclude(c, err, asked, paused)
}

// conclude is the end of finish, wherever the callback has run.
func (l *loop) conclude(c *Conn, err error, asked requests, paused bool) {
	if paused && c.flags&(flagArmed|flagBulk) != 0 {
		l.pauseInput(c)
	}
	if c.fd < 0 {
		l.closed(c, ErrDetached)
		return
	}
	c.in.keep()
	// What came during a pause is not what the handler has left: it is delivered first.
	resumed := asked&askResume != 0 || c.flags&flagDeliver != 0
	if err == nil && len(c.in.view) > c.service.readLimit && !paused && !resumed && c.linger == 0 {
		err = ErrReadLimit
	}
	if err == nil && asked == 0 && c.flags&(flagDraining|flagEOF) == 0 {
		return // The common case.
	}
	l.attend(c, asked, err)
}

// leave ends the callback for the other goroutines: from here on they post letters. It sends what was gathered. ok is false if
// another thread is the loop now: see reliefs.
func (l *loop) leave(c *Conn) (asked requests, paused bool, err error, ok bool) {
	c.mu.Lock()
	if !l.current.CompareAndSwap(c, nil) {
		c.mu.Unlock()
		return 0, false, nil, false
	}
	paused = c.paused.Load()
	l.silent = c.out == nil && c.asked&spoke == 0
	if c.out != nil && !c.isClosed() {
		if c.blocked.Load() {
			if c.isDirect() {
				err = l.launchDirect(c)
			}
		} else if !l.launch(c) {
			err = c.flush()
		}
		if c.out == &l.cork {
			c.out = nil
			if l.cork.len() > 0 {
				c.out = &outbound{buf: append([]byte(nil), l.cork.buf[l.cork.head:]...)}
			}
		}
	}
	l.cork.head = 0
	if l.cork.buf = l.cork.buf[:0]; cap(l.cork.buf) > 4*corkSize {
		l.cork.buf = make([]byte, 0, corkSize)
	}
	if c.asked&^(posted|askWritable) != 0 {
		asked = c.asked &^ (posted | askWritable | spoke)
		c.asked &= posted | askWritable
	}
	c.mu.Unlock()
	return asked, paused, err, true
}

// answer does what other goroutines have asked for.
func (l *loop) answer(c *Conn) {
	if r := l.elsewhere(c); r != nil {
		l.answerAway(r)
		return
	}
	c.mu.Lock()
	asked := c.asked &^ (posted | askWritable | spoke)
	c.asked &= askWritable
	c.mu.Unlock()
	if !c.isClosed() {
		l.guard(func() { l.attend(c, asked, nil) })
	}
}

// guard runs f, which may call handlers.
func (l *loop) guard(f func()) {
	defer l.contain(l.tenure.Load())
	f()
}

// async runs functions that Async was given.
func (l *loop) async(c *Conn, fns ...func(*Conn)) {
	if c.isClosed() {
		return
	}
	if r := l.elsewhere(c); r != nil {
		r.calls = append(r.calls, fns...)
		return
	}
	if c.linger != 0 || l.offloads(c) && l.sendAway(c, onAsync, nil, fns...) {
		return
	}
	for i, fn := range fns {
		if i > 0 && (c.isClosed() || c.linger != 0 || c.duty.Load() != 0) {
			l.async(c, fns[i:]...) // What the one before has done comes first.
			return
		}
		l.guard(func() {
			l.enter(c)
			fn(c)
			l.finish(c, nil)
		})
	}
}

func (c *Conn) isClosed() bool { return c.state.Load() == stateClosed }

// attend does what was asked for, and begins to close a connection whose handler has failed.
func (l *loop) attend(c *Conn, asked requests, err error) {
	if asked&askRetry != 0 {
		l.starve(c)
	}
	if asked&askBroken != 0 {
		l.disarm(c) // The read that follows finds the end.
	}
	if asked&askPoll != 0 && l.completes(c) {
		if e := l.completer.AwaitWritable(int(c.fd), c.token); e != nil && err == nil {
			err = e
		}
	}
	if asked&(askLaunch|askFinished) != 0 && c.isDirect() {
		if e := l.attendDirect(c, asked); e != nil && err == nil {
			err = e
		}
	}
	if asked&askIdle != 0 {
		l.schedule(c)
	}
	if err != nil || asked&askClose != 0 {
		l.beginClose(c, err)
		return
	}
	if c.flags&flagEOF != 0 && c.linger == 0 && c.finished() {
		l.destroy(c, nil) // Both directions have ended.
		return
	}
	if asked&askResume != 0 {
		// In the next turn and not here: a handler that pauses and resumes each time must not call itself.
		c.flags |= flagMayRead | flagDeliver
		l.later(c)
	}
	if asked&askDrained != 0 && !l.writable(c) {
		return
	}
	if r := l.elsewhere(c); r != nil {
		return // It is looked at again when that callback has ended.
	}
	l.maybeDrained(c)
}

// writable sends what is queued, now that there is room. It is false when the connection is gone.
func (l *loop) writable(c *Conn) bool {
	c.mu.Lock()
	before := c.queued()
	err := c.flushQueue()
	left := c.queued()
	tell := c.asked&askWritable != 0 && left <= c.service.writeLow && c.state.Load() == stateOpen
	if tell {
		c.asked &^= askWritable
	}
	c.mu.Unlock()
	switch {
	case err != nil:
		l.destroy(c, err)
		return false
	case c.linger != 0:
		if left == 0 && c.flags&flagDiscard == 0 {
			l.endClose(c)
		} else if left < before {
			c.linger = l.lingerEnd() // The peer reads: it may go on.
		}
		return !c.isClosed()
	case tell:
		l.call(c, onWritable)
		return !c.isClosed()
	}
	l.maybeDrained(c)
	return !c.isClosed()
}

// starve has the loop try again to send for a connection that the kernel had no memory for.
func (l *loop) starve(c *Conn) {
	if len(l.starved) == 0 {
		l.inner.Schedule(l.inner.Now()+int64(retryDelay), retryToken)
	}
	l.starved = append(l.starved, c)
}

// resumeStarved sees to it that all of the starved have their try, where a callback of one of them has not returned.
func (l *loop) resumeStarved() {
	if len(l.starved) > 0 {
		l.inner.Schedule(l.inner.Now()+int64(retryDelay), retryToken)
	}
}

// schedule puts the connection's next deadline into the loop's heap. Each connection has one timer there, which is moved
// only when it fires; a deadline that has come nearer gets a second one, and the first finds nothing to do.
func (l *loop) schedule(c *Conn) {
	at := c.due()
	if at != 0 && (c.timer == 0 || at < c.timer) {
		c.timer = at
		l.inner.Schedule(at, c.token)
	}
}

// due returns the instant of the connection's next deadline, or 0.
func (c *Conn) due() int64 {
	if c.linger != 0 {
		return c.linger
	}
	if idle := c.idle.Load(); idle != 0 {
		if at := c.active.Load() + idle; at > 0 {
			return at
		}
	}
	return 0
}

// Due implements [poller.Sink].
func (l *loop) Due(token poller.Token) {
	if token == retryToken {
		for range len(l.starved) {
			c := l.starved[0]
			if l.starved = l.starved[1:]; len(l.starved) == 0 {
				l.starved = nil
			}
			if c.isClosed() {
				continue
			}
			if r := l.elsewhere(c); r != nil {
				l.keepEvent(r, poller.Writable)
				continue
			}
			l.guard(func() { l.writable(c) })
		}
		return
	}
	s, ok := l.sources.Get(token)
	if !ok {
		return
	}
	if s.acceptor != nil {
		s.acceptor.resume()
		return
	}
	l.due(s.conn)
}

// due looks at the deadlines of a connection.
func (l *loop) due(c *Conn) {
	if r := l.elsewhere(c); r != nil {
		r.kept |= keptDue
		return
	}
	now := l.inner.Now()
	if c.timer > now {
		return // An older timer of a deadline that has come nearer, and has been met.
	}
	c.timer = 0
	at := c.due()
	switch {
	case c.flags&flagUnacked != 0 && at > now && l.unacked(c):
		l.lookLater(c)
	case c.flags&flagUnacked != 0:
		l.guard(func() { l.destroy(c, c.reason) })
	case at == 0:
	case at > now:
		l.schedule(c)
	case c.linger != 0:
		err := c.reason
		if c.flags&flagDiscard == 0 && err == nil {
			err = ErrLinger
		}
		l.guard(func() { l.destroy(c, err) })
	default:
		l.guard(func() { l.destroy(c, ErrIdleTimeout) })
	}
}

// beginClose begins to close a connection: nothing is read for the handler any more, and what is queued is sent within
// the linger time. err is why, nil for an orderly end.
func (l *loop) beginClose(c *Conn, err error) {
	if c.linger != 0 {
		return
	}
	c.reason = err
	c.in = inbound{}
	c.mu.Lock()
	if c.isClosed() {
		c.mu.Unlock()
		return
	}
	c.state.Store(stateClosing)
	left := c.queued()
	c.mu.Unlock()
	linger := l.engine.config.Linger
	if linger < 0 {
		if left > 0 && err == nil {
			err = ErrLinger
		}
		l.destroy(c, err)
		return
	}
	c.linger = l.lingerEnd()
	if left == 0 {
		l.endClose(c)
		return
	}
	c.flags &^= flagQuiet // Until that is sent, more may come.
	l.schedule(c)
}

// lingerEnd returns the instant at which a connection that lingers from now on is given up.
func (l *loop) lingerEnd() int64 {
	now, linger := l.inner.Now(), int64(l.engine.config.Linger)
	if linger > math.MaxInt64-now {
		return math.MaxInt64
	}
	return max(now+linger, 1)
}

// endClose closes a connection whose queue has been sent. A close(2) answers bytes of the peer's that are unread, and all that
// still come, with a reset, which destroys what was just sent on its way. So as long as the peer may send, and its kernel has
// not acknowledged everything, it sends a FIN instead, and reads until the peer's.
func (l *loop) endClose(c *Conn) {
	if c.flags&flagEOF != 0 {
		l.destroy(c, c.reason) // The peer has sent everything.
		return
	}
	n, errno := 0, sys.EAGAIN
	if c.flags&flagQuiet == 0 { // Else a read has just found nothing.
		n, errno = l.recv(c, l.buffer)
	}
	unacked := errno == sys.EAGAIN && l.unacked(c)
	if !unacked && (errno != 0 || n == 0) {
		l.destroy(c, c.reason)
		return
	}
	if err := l.shutdownNow(c); err != nil {
		l.destroy(c, c.reason)
		return
	}
	c.flags |= flagDiscard
	if unacked {
		c.flags = c.flags&^flagMayRead | flagUnacked
		c.active.Store(l.inner.Now())
		l.lookLater(c)
		l.rearm(c)
		return
	}
	c.flags |= flagMayRead
	l.schedule(c)
	l.later(c)
}

// unacked tells whether bytes of a connection are on their way. What a direct descriptor has sent is not asked for, nor is there a
// way to lose anything on a unix socket.
func (l *loop) unacked(c *Conn) bool {
	if c.flags&flagStream == 0 || c.isDirect() {
		return false
	}
	n, errno := sys.Unacknowledged(int(c.fd))
	return errno == 0 && n > 0
}

// The least and the longest time between two looks whether the peer's kernel has everything. A peer that closes when it reads the
// FIN, as most do, ends the wait sooner.
const (
	lookLeast = int64(4 * time.Millisecond)
	lookMost  = int64(250 * time.Millisecond)
)

// lookLater has Due look again whether the peer's kernel has everything, after as long as it has taken already.
func (l *loop) lookLater(c *Conn) {
	now := l.inner.Now()
	at := min(c.linger, now+min(max(now-c.active.Load(), lookLeast), lookMost))
	if c.timer == 0 || at < c.timer {
		c.timer = at
		l.inner.Schedule(at, c.token)
	}
}

// discard throws away what a closing connection still gets, until its end.
func (l *loop) discard(c *Conn) {
	n, errno := l.recv(c, l.buffer)
	switch {
	case errno == sys.EAGAIN:
		c.flags &^= flagMayRead
		l.rearm(c) // It may have been paused.
	case errno != 0 || n == 0:
		l.destroy(c, c.reason)
	default:
		l.later(c)
	}
}

// destroy closes a connection now, and tells the handler.
func (l *loop) destroy(c *Conn, reason error) {
	if r := l.elsewhere(c); r != nil {
		if r.kept&keptClose == 0 {
			r.kept |= keptClose
			r.toReason = reason
		}
		return
	}
	c.mu.Lock()
	if c.isClosed() {
		c.mu.Unlock()
		return
	}
	c.state.Store(stateClosed)
	fd := int(c.fd)
	reset := c.queued() > 0 // Bytes are dropped: the peer must not take what it got for all.
	if reset && !c.isDirect() {
		sys.SetLinger(fd, 0)
	}
	c.fd = -1
	c.out = nil // The completer holds on to what it sends.
	c.mu.Unlock()
	c.in = inbound{}
	// Later events of it are stale.
	l.sources.Delete(c.token)
	if l.completes(c) {
		l.completer.Release(fd, c.token, reset)
	} else {
		// Before the close: a copy of the descriptor, as a child process has, would keep the registration alive. It fails
		// only for a connection that never was registered.
		_ = l.backend.Remove(fd)
		sys.Close(fd)
	}
	l.closed(c, reason)
}

// closed tells the handler of the end of a connection, and counts it.
func (l *loop) closed(c *Conn, reason error) {
	if l.offloadsClose(c) && l.sendAway(c, onClose, reason) {
		return
	}
	defer c.service.leave(l)
	defer func() {
		v := recover()
		l.current.Store(nil) // Here, so that it is so also after runtime.Goexit.
		if l.callAt.Load() != 0 {
			l.measured(c)
		}
		if v != nil {
			l.engine.log.Error("pollux: OnClose panicked", "panic", v, "stack", string(debug.Stack()))
		}
	}()
	l.enter(c)
	c.service.handler.OnClose(c, reason)
}

// register begins the life of a connection here. It runs on the loop.
func (l *loop) register(c *Conn) {
	token, err := l.sources.Put(source{conn: c})
	if err != nil {
		l.closeFD(int(c.fd))
		c.mu.Lock()
		c.state.Store(stateClosed)
		c.fd = -1
		c.mu.Unlock()
		c.service.leave(l)
		l.engine.log.Error("pollux: a connection was refused", "error", err)
		return
	}
	c.token = token
	if l.offloads(c) {
		// What comes is kept until OnOpen has returned.
		err := l.arm(c)
		l.guard(func() { l.callOn(c, onOpen, true) })
		if err != nil && !c.isClosed() {
			l.destroy(c, err)
			return
		}
	} else {
		l.opening = c
		l.guard(func() { l.callOn(c, onOpen, false) })
		l.opening = nil
		if c.isClosed() {
			return
		}
		// Only now, so that no event comes before OnOpen has returned: what is there already makes the first edge.
		if err := l.arm(c); err != nil {
			l.destroy(c, err)
			return
		}
	}
	if c.service.draining.Load() {
		l.drain(c)
	}
}

// drain has a connection closed as soon as nothing is under way: once the kernel has no byte for it, the handler has
// consumed everything, nothing is queued, and it is not paused.
func (l *loop) drain(c *Conn) {
	if r := l.elsewhere(c); r != nil {
		r.kept |= keptDrain
		return
	}
	c.flags |= flagDraining
	if c.flags&flagArmed != 0 {
		l.disarm(c) // What is under way comes first; then it is read until nothing is there.
		return
	}
	if c.flags&flagEOF == 0 {
		c.flags |= flagMayRead // Bytes whose event has not been seen count as accepted.
		l.later(c)
		return
	}
	l.maybeDrained(c)
}

// maybeDrained has a draining connection looked at once more if nothing is under way for it as far as is known here.
func (l *loop) maybeDrained(c *Conn) {
	if l.drained(c) {
		if c.flags&flagArmed != 0 {
			l.disarm(c) // What is under way comes first.
			return
		}
		if c.flags&flagEOF != 0 {
			l.beginClose(c, nil)
			return
		}
		c.flags |= flagMayRead // The read that finds nothing closes it.
		l.later(c)
	}
}

// drained tells whether nothing is under way for a draining connection but what the kernel may hold.
func (l *loop) drained(c *Conn) bool {
	if c.flags&flagDraining == 0 || c.linger != 0 || len(c.in.view) > 0 || c.paused.Load() || c.state.Load() >= stateClosing {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.queued() == 0
}

// errRelieved says that the loop goes on elsewhere.
var errRelieved = errors.New("pollux: the loop was taken over")

// detach is Detach. here says that the callback does it, which runs on the loop, unless that is taken over meanwhile.
func (l *loop) detach(c *Conn, here bool) (net.Conn, error) {
	p, err := l.engine.netPoller()
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if here && l.current.Load() != c {
		return nil, errRelieved
	}
	if c.state.Load() >= stateClosing {
		return nil, ErrClosed
	}
	fd := int(c.fd)
	kept := fd // What the connection goes on with.
	if c.isDirect() {
		if kept, err = l.detachDirect(c); err != nil {
			return nil, err
		}
	} else if err := c.flush(); err != nil {
		return nil, err
	}
	if c.queued() > 0 {
		return nil, ErrWouldBlock
	}
	rest := append([]byte(nil), c.in.view...)
	if l.catching.conn == c { // This callback comes before them.
		rest = append(rest, l.catching.late...)
		l.catching.late = nil
	}
	if r := l.elsewhere(c); r != nil {
		rest = append(rest, r.late...)
		r.late = r.late[:0]
	}
	c.in = inbound{}
	c.fd = -1
	c.state.Store(stateClosed)
	l.takeOut(c, fd, func(b []byte) { rest = append(rest, b...) })
	if kept != fd {
		l.direct.closeDirect(fd)
	}
	d, err := p.OpenStream(kept, c.flags&flagStream != 0)
	if err != nil {
		sys.Close(kept)
		return nil, fmt.Errorf("detach a connection, which is closed now: %w", err)
	}
	return l.engine.newNetConn(d, rest), nil
}
