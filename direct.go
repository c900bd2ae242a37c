package pollux

import (
	"errors"
	"fmt"
	"os"

	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/poller"
)

// This file is what is different for a connection with a direct descriptor: an entry of the table of files of its loop's
// ring, which the process's limit on open files does not count. Only requests of the ring can name it, so every
// operation on it is the loop's: who writes elsewhere queues, and asks the loop to send.
//
// As its descriptor, such a connection has the index in the table with directBit. A system call that got it by mistake
// would fail with EBADF, and never touch a descriptor of somebody else's. It counts as blocked for ever, which is what
// keeps send(2) away from it.

// directBit marks the index of a direct descriptor. No process has so many ordinary ones.
const directBit = 1 << 30

// directMax is the largest table that the kernel allows.
const directMax = 1 << 20

// directory is a completer with a table of direct descriptors. Descriptors that it takes and returns carry directBit. What
// is called a now waits for the kernel's answer, which comes at once; events that come meanwhile are kept for Wait.
type directory interface {
	poller.Completer

	// room returns how many connections still fit into the table. Anybody may ask.
	room() int

	// acceptDirect begins to accept one connection into the table. It fails with ENFILE where there is no room. The event is
	// that of Accept, and peer returns the address of the connection until the next acceptDirect.
	acceptDirect(fd int, t poller.Token) error
	peer(t poller.Token) sys.Sockaddr

	// closeDirect takes a file out of the table. The peer is told when the last request on it has ended.
	closeDirect(fd int)

	// sentNow returns the result of the Send under way if it has ended, whose event does not come any more then.
	sentNow(t poller.Token) (result int32, ok bool)

	// receiveNow is recv(2), and errorNow reads SO_ERROR.
	receiveNow(fd int, b []byte) (int, sys.Errno)
	errorNow(fd int) sys.Errno

	// install makes an ordinary descriptor of a direct one, which the caller closes. installs tells whether the kernel can;
	// anybody may ask.
	installs() bool
	install(fd int) (int, error)
}

// errNoInstall says what a kernel cannot do.
var errNoInstall = fmt.Errorf("pollux: a direct descriptor needs io_uring's fixed_fd_install for this, which came with Linux 6.8: %w",
	errors.ErrUnsupported)

// checkDirect says of direct descriptors, where the configuration asks for them, what they clash with.
func (c *Config) checkDirect(clash func(err error, names ...string)) {
	if c.DirectDescriptors == 0 {
		return
	}
	if c.Backend != KindUring {
		clash(fmt.Errorf("config: DirectDescriptors is %d: only the backend io_uring has them, and Backend is %s: set it to io_uring "+
			"(POLLUX_BACKEND), or DirectDescriptors to 0 (POLLUX_DIRECT)", c.DirectDescriptors, c.Backend), "POLLUX_DIRECT", "POLLUX_BACKEND")
	}
	if c.MaxConns > 0 {
		clash(fmt.Errorf("config: DirectDescriptors is %d and MaxConns %d: a loop that accepts for itself keeps to its table alone, "+
			"so one of them must be 0", c.DirectDescriptors, c.MaxConns), "POLLUX_DIRECT", "POLLUX_MAX_CONNS")
	}
}

// isDirect tells whether the connection has a direct descriptor. It holds for one that is open: mu is held, or it is asked
// on the loop.
func (c *Conn) isDirect() bool { return c.fd >= directBit }

// recv receives, as far as there is something.
func (l *loop) recv(c *Conn, b []byte) (int, sys.Errno) {
	if c.isDirect() {
		return l.direct.receiveNow(int(c.fd), b)
	}
	return sys.Recv(int(c.fd), b)
}

// pending returns the connection's error, and clears it.
func (l *loop) pending(c *Conn) sys.Errno {
	if c.isDirect() {
		return l.direct.errorNow(int(c.fd))
	}
	errno, _ := sys.GetsockoptInt(int(c.fd), sys.SOL_SOCKET, sys.SO_ERROR)
	return sys.Errno(errno)
}

// closeFD closes a descriptor that nothing is under way for.
func (l *loop) closeFD(fd int) {
	if fd >= directBit {
		l.direct.closeDirect(fd)
		return
	}
	sys.Close(fd)
}

// shutdownNow ends the writing direction, on the loop.
func (l *loop) shutdownNow(c *Conn) error {
	if c.isDirect() {
		return l.shutdownDirect(c)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.shutdownWrite()
}

// shutdownDirect is shutdown(2) through an ordinary descriptor that lives as long as the call. The ring's own operation
// for it would run in a kernel thread.
func (l *loop) shutdownDirect(c *Conn) error {
	fd, err := l.direct.install(int(c.fd))
	if err != nil {
		return fmt.Errorf("end the writing direction: %w", err)
	}
	errno := sys.Shutdown(fd, sys.SHUT_WR)
	sys.Close(fd)
	if errno != 0 && errno != sys.ENOTCONN {
		return os.NewSyscallError(sys.OpShutdown.String(), errno)
	}
	return nil
}

// attendDirect does what only the loop can do for a direct descriptor: others have written, or closed their direction.
func (l *loop) attendDirect(c *Conn, asked requests) error {
	if asked&askLaunch != 0 {
		c.mu.Lock()
		err := l.launchDirect(c)
		c.mu.Unlock()
		if err != nil {
			return err
		}
	}
	if asked&askFinished != 0 && c.finished() {
		return l.shutdownDirect(c)
	}
	return nil
}

// flushDirect has the loop send what is queued. A callback's return does it anyway, and so does the end of a send that is
// under way. mu is held.
func (c *Conn) flushDirect() {
	if c.out.len() > 0 && c.out.flight == nil && !c.corked() {
		c.ask(askLaunch)
	}
}

// launchDirect gives what is queued to the ring, however much it is. mu is held, on the loop.
func (l *loop) launchDirect(c *Conn) error {
	o := c.out
	if o.len() == 0 || o.flight != nil {
		return nil
	}
	if o == &l.cork {
		o = l.flightOf()
		o.store = append(o.store[:0], l.cork.buf[l.cork.head:]...)
		o.flight = o.store
		l.cork.buf, l.cork.head = l.cork.buf[:0], 0
		c.out = o
	} else {
		// Two pieces of memory take turns: one is sent, the other gathers.
		o.flight = o.buf[o.head:]
		o.buf, o.store, o.head = o.store[:0], o.buf, 0
	}
	return l.completer.Send(int(c.fd), c.token, o.flight)
}

// landedDirect handles the result of a send. It may be short, so that a peer which reads slowly is seen to read.
func (l *loop) landedDirect(c *Conn, result int32) {
	c.mu.Lock()
	o := c.out
	var err error
	short := false
	switch errno := sys.Errno(-result); {
	case result >= 0 && int(result) < len(o.flight):
		l.sends.note(sendShort, false)
		o.flight = o.flight[result:]
		err = l.completer.Send(int(c.fd), c.token, o.flight)
	case result >= 0:
		o.flight = nil
		if o.len() > 0 {
			err = l.launchDirect(c)
			break
		}
		c.out = nil
		o.buf, o.head = o.buf[:0], 0
		if cap(o.store) > 2*corkSize {
			o.store = nil
		}
		l.keepFlight(o)
		if c.state.Load() == stateFinished {
			err = c.shutdownWrite()
		}
	case errno == sys.ENOBUFS || errno == sys.ENOMEM || errno == sys.EINTR:
		// The kernel has no memory at the moment: it is queued again, and the loop's timer tries again.
		o.unsend(o.flight)
		short = true
	default:
		err = os.NewSyscallError(sys.OpSend.String(), errno)
	}
	c.progress()
	idle := c.out == nil && c.asked&askWritable == 0 && c.state.Load() == stateOpen && c.flags&flagDraining == 0
	c.mu.Unlock()
	switch {
	case err != nil:
		l.destroy(c, err)
	case short:
		l.starve(c)
	case !idle:
		if c.linger != 0 {
			c.linger = l.lingerEnd() // The peer reads: it may go on.
		}
		l.drainQueue(c)
	}
}

// aliveDirect looks for the error that a poll has told of, which the receive that is armed may have missed: see alive. It is
// false when the connection is gone.
func (l *loop) aliveDirect(c *Conn) bool {
	if c.flags&flagArmed == 0 {
		return true // The next read finds it, behind the last bytes.
	}
	errno := l.pending(c)
	if errno == 0 {
		return true
	}
	l.failed(c, os.NewSyscallError(sys.OpRecv.String(), errno))
	return false
}

// landNow ends the send that is under way, if it has ended, and puts what it has not sent back in front of the queue. It is
// ErrWouldBlock if it goes on. mu is held, in a callback.
func (l *loop) landNow(c *Conn) error {
	result, ok := int32(0), false
	for i := l.next; i < len(l.batch) && !ok; i++ {
		if ev := &l.batch[i]; ev.Token == c.token && ev.Ready&poller.Sent != 0 {
			result, ok = ev.Result, true
			*ev = poller.Event{}
		}
	}
	if !ok {
		if result, ok = l.direct.sentNow(c.token); !ok {
			return ErrWouldBlock
		}
	}
	if result < 0 {
		result = 0 // The next send finds out.
	}
	o := c.out
	o.unsend(o.flight[result:])
	return nil
}

// unsend puts what a flight has not brought home back in front of the queue.
func (o *outbound) unsend(rest []byte) {
	o.buf, o.head = append(append([]byte(nil), rest...), o.buf[o.head:]...), 0
	o.flight = nil
}

// detachDirect takes the queue and the descriptor of a connection out of the ring: it sends the one and returns the other
// as an ordinary one. Nothing has changed when it fails, but for what was sent. mu is held, in a callback.
func (l *loop) detachDirect(c *Conn) (fd int, err error) {
	if c.out != nil && c.out.flight != nil {
		if err := l.landNow(c); err != nil {
			return -1, err
		}
	}
	if fd, err = l.direct.install(int(c.fd)); err != nil {
		return -1, fmt.Errorf("detach a connection: %w", err)
	}
	for o := c.out; o.len() > 0; {
		n, errno := sys.Send(fd, o.buf[o.head:])
		o.head += n
		if errno != 0 {
			sys.Close(fd)
			if errno == sys.EAGAIN {
				return -1, ErrWouldBlock
			}
			return -1, os.NewSyscallError(sys.OpSend.String(), errno)
		}
	}
	if o := c.out; o != nil {
		o.buf, o.head = o.buf[:0], 0
		c.out = nil
	}
	return fd, nil
}
