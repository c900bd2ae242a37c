package pollux

import (
	"os"

	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/poller"
)

// This file is what the loop does with a poller.Completer: how a connection's input is taken by the kernel and handed to
// the handler, and how its answers go out with the loop's next wait.

// completes tells whether a completer does the connection's input. For unix sockets it does not: when bytes and the end
// come together, the kernel's multishot receive may take the bytes and never tell of the end (liburing#1549).
func (l *loop) completes(c *Conn) bool { return l.completer != nil && c.flags&flagStream != 0 }

// arm begins to take the connection's input.
func (l *loop) arm(c *Conn) error {
	if !l.completes(c) {
		return l.backend.Add(int(c.fd), c.token)
	}
	c.flags |= flagArmed
	return l.completer.Receive(int(c.fd), c.token)
}

// disarm has a completer stop receiving for the connection. It answers with ECANCELED, after what is under way.
func (l *loop) disarm(c *Conn) {
	if c.flags&flagArmed != 0 {
		l.completer.Cancel(c.token)
	}
}

// pauseInput stops the input of a connection that is paused. Its end is told all the same.
func (l *loop) pauseInput(c *Conn) {
	if c.flags&flagArmed != 0 {
		l.disarm(c) // The watch begins when that is through.
	} else if c.fd >= 0 {
		l.watch(c)
	}
}

// rearm begins again to receive, once a read has found nothing.
func (l *loop) rearm(c *Conn) {
	if !l.completes(c) || c.flags&(flagArmed|flagEOF|flagMayRead) != 0 || c.isClosed() {
		return
	}
	if (c.paused.Load() || c.linger != 0) && c.flags&flagDiscard == 0 {
		return
	}
	var err error
	if c.flags&flagBulk != 0 {
		err = l.completer.AwaitReadable(int(c.fd), c.token)
	} else {
		err = l.arm(c)
	}
	if err != nil {
		l.destroy(c, err)
	}
}

// goBulk has a connection read by readiness from now on, into the loop's buffer, because more comes than fits into one of
// the completer's: a call for each buffer of the handler, and of send(2) for each of its answers, costs more than a call
// of recv(2) for many of them.
func (l *loop) goBulk(c *Conn) {
	if c.flags&(flagBulk|flagArmed) == flagArmed && !c.isClosed() {
		c.flags |= flagBulk
		l.disarm(c)
	}
}

// readBulk handles a read of n bytes, shorter than it might have been, on such a connection. Two in a row that would have
// fitted into a buffer of the completer's end it.
func (l *loop) readBulk(c *Conn, n int) {
	switch {
	case n > l.completer.BufferSize():
		c.flags &^= flagSmall
	case c.flags&flagSmall == 0:
		c.flags |= flagSmall
	default:
		c.flags &^= flagBulk | flagSmall
	}
}

// watch has a completer tell of the end of a connection on which nothing is received.
func (l *loop) watch(c *Conn) {
	if l.completes(c) {
		_ = l.completer.AwaitHangUp(int(c.fd), c.token) // Without it, the next send finds out.
	}
}

// received handles what a completer has received for a connection.
func (l *loop) received(c *Conn, ev *poller.Event) {
	if r := l.elsewhere(c); r != nil {
		l.keepReceived(r, ev)
		return
	}
	switch {
	case ev.Result > 0:
		l.held = *ev
		l.silent = true
		l.arrived(c, l.completer.Bytes(ev))
		l.recycle()
		if c.duty.Load() != 0 {
			return // The rest is done when it is home.
		}
		if ev.Ready&poller.Emptied != 0 && l.silent && c.flags&flagArmed != 0 && !c.isClosed() && !l.alive(c) {
			return
		}
		if ev.Ready&poller.Emptied == 0 && int(ev.Result) >= l.completer.BufferSize() {
			l.goBulk(c)
		}
		if c.flags&flagDraining != 0 && !c.isClosed() {
			l.disarm(c) // Only a read that finds nothing says that nothing is under way.
		}
	default:
		l.receivedEnd(c, ev.Result)
	}
}

// receivedEnd handles the end of a receive: 0 for the end of the stream, or an error number below 0.
func (l *loop) receivedEnd(c *Conn, result int32) {
	if r := l.elsewhere(c); r != nil {
		r.kept |= keptEnd
		r.lateEnd = result
		return
	}
	errno := sys.Errno(-result)
	switch {
	case result == 0 && !c.paused.Load() && c.flags&flagDeliver == 0:
		c.flags &^= flagArmed | flagMayRead
		l.ended(c)
	case result == 0 || errno == sys.ECANCELED:
		// From here on it is read as a ready descriptor is, until it is armed again. What came during a pause is delivered
		// before the end is.
		c.flags = c.flags&^flagArmed | flagMayRead
		l.later(c)
		if c.paused.Load() {
			l.watch(c)
		}
	default:
		c.flags &^= flagArmed
		l.failed(c, os.NewSyscallError(sys.OpRecv.String(), errno))
	}
}

// alive looks for an error that has come together with the last bytes, where nothing was sent that would have found it,
// and ends the connection then.
//
// The kernel's multishot receive (since 6.5 or so; io_recv_finish in io_uring/net.c) does not look again after a receive
// that leaves the socket empty, but waits for the next wake-up. A reset that had come by then has woken it already: none
// follows. For an end of stream the kernel makes an exception (tcp_inq_hint), for errors it does not.
func (l *loop) alive(c *Conn) bool {
	if c.isDirect() {
		l.watch(c) // A poll tells, now or later; that is less than to ask each time.
		return true
	}
	errno := l.pending(c)
	if errno == 0 {
		return true
	}
	l.failed(c, os.NewSyscallError(sys.OpRecv.String(), errno))
	return false
}

// arrived hands bytes that lie in b to the handler.
func (l *loop) arrived(c *Conn, b []byte) {
	if c.state.Load() >= stateClosing {
		return
	}
	c.in.push(l.buffer, b)
	if c.paused.Load() {
		c.flags |= flagDeliver
		c.in.keep()
		return
	}
	l.data(c, l.offloads(c) || l.shares())
}

// discardEvent gives back what came for somebody who has left.
func (l *loop) discardEvent(ev *poller.Event) {
	switch {
	case ev.Ready&poller.Received != 0 && ev.Result > 0:
		l.completer.Bytes(ev)
		l.completer.Recycle(ev)
	case ev.Ready&poller.Accepted != 0 && ev.Result >= 0:
		l.closeFD(int(ev.Result))
	}
}

// recycle gives the bytes back that were being handled.
func (l *loop) recycle() {
	if l.held.Ready&poller.Received != 0 {
		l.completer.Recycle(&l.held)
		l.held = poller.Event{}
	}
}

// takeOut takes a connection out of the loop and leaves its descriptor open. f is given the bytes that were under way.
func (l *loop) takeOut(c *Conn, fd int, f func([]byte)) {
	if !l.completes(c) {
		l.sources.Delete(c.token)
		_ = l.backend.Remove(fd)
		return
	}
	take := func(ev *poller.Event) {
		if ev.Ready&poller.Received != 0 && ev.Result > 0 {
			f(l.completer.Bytes(ev))
			l.completer.Recycle(ev)
		}
	}
	l.takeBatch(c.token, take)
	l.completer.Stop(c.token, take)
	l.completer.Disarm(c.token)
	l.sources.Delete(c.token)
}

// takeBatch gives f what is left of the batch for a token.
func (l *loop) takeBatch(t poller.Token, f func(*poller.Event)) {
	for i := l.next; i < len(l.batch); i++ {
		if ev := &l.batch[i]; ev.Token == t {
			f(ev)
			*ev = poller.Event{}
		}
	}
}

const (
	// flightMost is the largest send that is left to a completer: it goes out with the loop's next wait, at no system call
	// of its own, for a copy. It is what a callback gathers.
	flightMost = corkSize

	// flightSmall is how much memory for flights is kept in any number, and flightsLarge how often more is kept.
	flightSmall  = 2 << 10
	flightsLarge = 64

	// singleLeast is after how many turns with one event each an answer is sent at once. Where turns have several now and then,
	// one that has not begins to wait for the next ones, and is more likely to have several itself.
	singleLeast = 4
)

// launch gives what is queued to the completer. It is false where that is not the way: flush is then. mu is held, on the
// loop.
//
// An answer that is alone in its turn gains nothing by going out with the wait. The completion of its send ends that wait at
// once, and takes another turn: two calls, as with a send and a wait, and it leaves later, behind what the loop does between
// a callback and a wait.
func (l *loop) launch(c *Conn) bool {
	o := c.out
	n := o.len()
	if l.alone || !l.completes(c) || n == 0 || n > flightMost || o.flight != nil {
		return false
	}
	queue := o
	if o == &l.cork {
		o = l.flightOf()
	}
	if cap(o.store) < n {
		o.store = make([]byte, 0, max(flightSmall, roundUp(n)))
	}
	o.flight = append(o.store[:0], queue.buf[queue.head:]...)
	if l.completer.Send(int(c.fd), c.token, o.flight) != nil {
		o.flight = nil
		return false
	}
	queue.buf, queue.head = queue.buf[:0], 0
	c.out = o
	c.blocked.Store(true) // What is written meanwhile is queued behind it.
	return true
}

// flightOf returns an empty queue, with memory for a flight if there is any.
func (l *loop) flightOf() *outbound {
	if n := len(l.flights); n > 0 {
		o := l.flights[n-1]
		l.flights = l.flights[:n-1]
		return o
	}
	return new(outbound)
}

// keepFlight keeps an empty queue for others.
func (l *loop) keepFlight(o *outbound) {
	if cap(o.buf) > flightSmall {
		o.buf = nil
	}
	if cap(o.store) > flightSmall && len(l.flights) > flightsLarge {
		o.store = nil
	}
	l.flights = append(l.flights, o)
}

// landed handles the result of a send of the completer's.
func (l *loop) landed(c *Conn, result int32) {
	if c.isDirect() {
		l.landedDirect(c, result)
		return
	}
	c.mu.Lock()
	o := c.out
	var err error
	switch errno := sys.Errno(-result); {
	case result < 0 && (errno == sys.ENOBUFS || errno == sys.ENOMEM || errno == sys.EINTR):
		// The kernel has no memory at the moment: the loop's timer tries again.
		o.buf, o.head, o.flight = append(append([]byte(nil), o.flight...), o.buf[o.head:]...), 0, nil
		c.mu.Unlock()
		l.starve(c)
		return
	case result < 0:
		err = os.NewSyscallError(sys.OpSend.String(), errno)
	case int(result) < len(o.flight):
		l.sends.note(sendShort, false)
		o.flight = o.flight[result:]
		if err = l.completer.Send(int(c.fd), c.token, o.flight); err == nil {
			c.mu.Unlock()
			return
		}
	default:
		o.flight = nil
		c.blocked.Store(false)
		if o.len() == 0 {
			c.out = nil
			l.keepFlight(o)
			if c.state.Load() == stateFinished {
				err = c.shutdownWrite()
			}
		}
	}
	c.progress()
	idle := c.out == nil && c.asked&askWritable == 0 && c.state.Load() == stateOpen && c.flags&flagDraining == 0
	c.mu.Unlock()
	switch {
	case err != nil:
		l.destroy(c, err)
	case !idle:
		l.drainQueue(c)
	}
}

// drainQueue is writable for a connection whose callback may be away.
func (l *loop) drainQueue(c *Conn) {
	if r := l.elsewhere(c); r != nil {
		l.flushAway(r)
		return
	}
	l.writable(c)
}
