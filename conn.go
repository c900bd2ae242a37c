package pollux

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/poller"
)

// A Conn is a connection whose events a [Handler] gets.
//
// Write, Writev, Flush, CloseWrite, Close, Pause, Resume, Async, SetIdleTimeout, Queued and the addresses may be called
// from any goroutine at any time. Peek, Next, Discard, Buffered, Read, Context, SetContext and Detach belong to the
// callbacks of the connection, functions given to Async included.
type Conn struct {
	// What the loop alone touches, and the callbacks that it runs. The order of the fields is that of the lines of cache
	// that an event needs: one for reading, one for writing, and one that is mostly left alone.
	loop    *loop
	service *Service
	in      inbound
	flags   connFlags
	paused  atomic.Bool
	blocked atomic.Bool   // the last send found the socket full: only an edge can change that
	duty    atomic.Uint32 // see errand; 0: at home

	idle atomic.Int64 // the idle timeout in nanoseconds; 0: none

	// mu protects the fields below, and keeps fd open for who holds it.
	mu    sync.Mutex
	fd    int32 // -1: gone. Changed by the loop alone, which may read it without mu
	asked requests
	local uint16        // with a direct descriptor: the service's number of this end's address; set before the first callback
	state atomic.Uint32 // a connState; others than who holds mu may look at it
	out   *outbound     // what is queued; nil: nothing

	// The loop's again, and what does not change.
	context any
	timer   int64        // the instant of the earliest timer in the loop's heap; 0: none
	active  atomic.Int64 // the instant of the last progress, kept while there is an idle timeout; of the FIN, see flagUnacked
	linger  int64        // the instant at which closing ends; 0: not closing
	reason  error        // what OnClose will get
	token   poller.Token
	remote  sys.Sockaddr // unset for unix sockets
}

// connFlags belong to the loop.
type connFlags uint16

const (
	flagMayRead   connFlags = 1 << iota // the kernel may hold bytes that were not read
	flagAgain                           // in the loop's list of connections that may read
	flagTalkative                       // hung up, failed or urgent: a short read no longer means drained
	flagStream                          // a TCP stream, where it otherwise does
	flagEOF                             // the peer's end of stream was seen
	flagDraining                        // to be closed as soon as nothing is under way
	flagDiscard                         // closing: what still comes is thrown away
	flagQuiet                           // draining, and a read has just found nothing: it may be closed at once
	flagArmed                           // a completer receives for it
	flagDeliver                         // resumed: what is buffered is to be delivered again
	flagBulk                            // much comes: it is read by readiness, into more than a completer's buffer
	flagSmall                           // of those: the last read would have fitted into one
	flagUnacked                         // closing, its FIN is sent: it ends as soon as the peer's kernel has everything
)

// connState says how far a connection's writing direction has come. It only grows.
type connState = uint32

const (
	stateOpen     connState = iota
	stateFinished           // CloseWrite: nothing more may be written; a FIN follows the last queued byte
	stateClosing            // Close: the same, and the connection closes then
	stateClosed             // the descriptor is gone
)

// requests are what other goroutines want of the loop. The first one posts a letter, the others go with it.
type requests uint16

const (
	askClose requests = 1 << iota
	askResume
	askIdle
	askPoll     // the socket is full, and a completer must be asked to say when it is not
	askDrained  // a flush elsewhere has made room that OnWritable is to tell of
	askFinished // the last byte before a FIN was sent
	askLaunch   // bytes are queued that only the loop can send, on a direct descriptor
	askBroken   // a send has failed, for good
	askRetry    // the kernel was out of memory: no edge will come
	askWritable // a Write was refused: OnWritable is wanted when the queue has drained; not answered at once
	posted      // the letter is under way
	spoke       // not a request: this callback has sent something, and so hears of an error
	withWorker  // nor this: a worker runs a callback, and looks here when it returns

	// askSend are those that a callback on a worker does not hold up.
	askSend = askPoll | askLaunch | askRetry
)

// Peek returns the next n bytes without consuming them, or all that are buffered if n is negative. If fewer are there, it
// returns those and io.ErrShortBuffer. The slice is valid until the callback returns, or until the bytes are consumed
// and the buffer is used for others: do not keep it, and do not append to it.
func (c *Conn) Peek(n int) ([]byte, error) {
	c.loop.checkCallback(c)
	return c.in.peek(n)
}

// Next returns the next n bytes, or all that are buffered if n is negative, and consumes them. If fewer are there, it
// consumes nothing and returns those with io.ErrShortBuffer. The slice is valid until the callback returns.
func (c *Conn) Next(n int) ([]byte, error) {
	c.loop.checkCallback(c)
	b, err := c.in.peek(n)
	if err == nil {
		c.in.discard(len(b))
	}
	return b, err
}

// Discard consumes the next n bytes, or all that are buffered if n is negative, and returns how many. If fewer are
// there, it consumes those and returns io.ErrShortBuffer.
func (c *Conn) Discard(n int) (int, error) {
	c.loop.checkCallback(c)
	b, err := c.in.peek(n)
	c.in.discard(len(b))
	return len(b), err
}

// Buffered returns how many bytes Peek(-1) would return.
func (c *Conn) Buffered() int {
	c.loop.checkCallback(c)
	return c.in.len()
}

// Read copies buffered bytes into p and consumes them. It never waits: when nothing is buffered it returns
// [ErrWouldBlock], or io.EOF after the end of the stream.
func (c *Conn) Read(p []byte) (int, error) {
	c.loop.checkCallback(c)
	if len(p) == 0 {
		return 0, nil
	}
	b, _ := c.in.peek(-1)
	if len(b) == 0 {
		if c.flags&flagEOF != 0 {
			return 0, io.EOF
		}
		return 0, ErrWouldBlock
	}
	n := copy(p, b)
	c.in.discard(n)
	return n, nil
}

// Write sends p, or queues what the socket does not take at once. It never waits, and p may be reused when it returns.
// When the queue reaches Config.WriteLimit, it takes what fits, returns that number and [ErrWouldBlock], and OnWritable
// is called once the queue has drained. Writes of several goroutines do not mix.
//
// OnWritable may have been called already when ErrWouldBlock is returned to another goroutine, as a callback of another
// connection is one: who waits for it there must say so first, and then try the Write once more (examples/proxy does).
//
// Inside a callback of the connection that runs on its loop, small writes are gathered and go out in one system call when the
// callback returns; Flush sends them earlier. On a worker they go out at once: see Config.Dispatch, and Writev.
func (c *Conn) Write(p []byte) (int, error) {
	c.mu.Lock()
	n, err := c.write(p)
	c.mu.Unlock()
	return n, err
}

// Writev writes the slices in order, as one Write of them all.
func (c *Conn) Writev(bufs ...[]byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	total := 0
	for _, b := range bufs {
		total += len(b)
	}
	if c.out == nil && c.state.Load() == stateOpen && !c.blocked.Load() && (!c.corked() || total > corkMost) {
		return c.sendv(bufs, total)
	}
	sum := 0
	for _, b := range bufs {
		n, err := c.write(b)
		sum += n
		if err != nil {
			return sum, err
		}
	}
	return sum, nil
}

// Flush sends what writes in this callback have gathered, as far as the socket takes it. On a direct descriptor (see
// Config.DirectDescriptors) that is left to the loop, when the callback has returned.
func (c *Conn) Flush() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state.Load() >= stateClosing {
		return ErrClosed
	}
	return c.flush()
}

// Queued returns how many bytes Write has accepted that the kernel has not taken yet.
func (c *Conn) Queued() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.queued()
}

// Pause stops reading: OnData is not called, and the peer is slowed down once the kernel's buffers are full. A Pause
// inside OnData holds from its return on.
func (c *Conn) Pause() { c.paused.Store(true) }

// Resume ends a Pause. OnData is called again if bytes are buffered.
func (c *Conn) Resume() {
	// Under mu, as leave looks: the end of a callback must not find the pause gone and what was asked for not there yet.
	c.mu.Lock()
	if c.paused.CompareAndSwap(true, false) {
		c.ask(askResume)
	}
	c.mu.Unlock()
}

// CloseWrite sends the peer an end of stream after the last queued byte. The peer's bytes are still read. On a direct
// descriptor it needs io_uring's fixed_fd_install, and is an errors.ErrUnsupported where the kernel lacks it.
func (c *Conn) CloseWrite() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state.Load() != stateOpen {
		return ErrClosed
	}
	if c.isDirect() && !c.loop.direct.installs() {
		return errNoInstall
	}
	c.state.Store(stateFinished)
	if c.queued() > 0 {
		return nil // The flush that sends the last byte sees to it.
	}
	return c.shutdownWrite()
}

// shutdownWrite ends the writing direction. For a direct descriptor the loop does, when it sees what is asked for. mu is
// held.
func (c *Conn) shutdownWrite() error {
	if c.isDirect() {
		c.ask(askFinished)
		return nil
	}
	if errno := sys.Shutdown(int(c.fd), sys.SHUT_WR); errno != 0 && errno != sys.ENOTCONN {
		return os.NewSyscallError(sys.OpShutdown.String(), errno)
	}
	c.ask(askFinished) // The loop knows whether the other direction has ended.
	return nil
}

// Close closes the connection after what is queued has been sent, as long as the peer takes some of it within
// Config.Linger; else what is left is dropped, and the peer sees a reset. Nothing can be written any more, and what still
// arrives is thrown away. OnClose follows. A second Close returns [ErrClosed].
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state.Load() >= stateClosing {
		return ErrClosed
	}
	c.state.Store(stateClosing)
	c.ask(askClose)
	return nil
}

// Async has fn called on the connection's loop, as a callback of the connection and in the order of the calls. It
// returns [ErrClosed] if the connection is closed, and an error that wraps poller.ErrMailboxFull if 65,536 such calls
// wait for the loop already. When the connection closes before its turn comes, fn is not called.
func (c *Conn) Async(fn func(*Conn)) error {
	if c.state.Load() == stateClosed {
		return ErrClosed
	}
	err := c.loop.inner.Post(func() { c.loop.async(c, fn) })
	if errors.Is(err, poller.ErrClosed) {
		return ErrClosed
	}
	return err
}

// SetIdleTimeout makes the connection close with [ErrIdleTimeout] once nothing was read or sent for d. 0 ends that.
func (c *Conn) SetIdleTimeout(d time.Duration) error {
	if d < 0 {
		return errors.New("pollux: an idle timeout must not be negative, it is " + d.String())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state.Load() == stateClosed {
		return ErrClosed
	}
	c.active.Store(poller.Nanotime())
	c.idle.Store(int64(d))
	c.ask(askIdle)
	return nil
}

// SetContext keeps v with the connection.
func (c *Conn) SetContext(v any) { c.context = v }

// Context returns what SetContext has kept.
func (c *Conn) Context() any { return c.context }

// RemoteAddr returns the peer's address.
func (c *Conn) RemoteAddr() net.Addr {
	if c.remote.Family == sys.AF_INET || c.remote.Family == sys.AF_INET6 {
		return tcpAddr(c.remote)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd >= 0 {
		if name, errno := sys.UnixPeerName(int(c.fd)); errno == 0 {
			return unixAddr(name)
		}
	}
	return unixAddr("")
}

// LocalAddr returns the address of this end. After the close it is the listener's, or nil for a dialed connection. With a
// direct descriptor on a listener of every address, it is that listener's where no descriptor was free to ask with.
func (c *Conn) LocalAddr() net.Addr {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.local != 0 {
		return c.service.localAddr(c.local)
	}
	if c.fd >= 0 {
		if a := localAddr(int(c.fd)); a != nil {
			return a
		}
	}
	return c.service.addr()
}

// Detach takes the connection out of its loop and returns it as a net.Conn, which reads first what is buffered here.
// Only a callback may call it, and nothing may be queued: it flushes, and returns [ErrWouldBlock] when that does not
// suffice. OnClose is called with [ErrDetached] when the callback returns.
func (c *Conn) Detach() (net.Conn, error) {
	if c.loop.current.Load() == c {
		if d, err := c.loop.detach(c, true); err != errRelieved {
			return d, err
		}
	}
	if c.duty.Load() == 0 {
		return nil, ErrNotInCallback
	}
	// On a worker: the loop does it, while the callback waits.
	var d net.Conn
	err := ErrClosed
	done := make(chan struct{})
	if c.loop.inner.PostAlways(func() {
		defer close(done)
		d, err = c.loop.detach(c, false)
	}) != nil {
		return nil, ErrClosed
	}
	<-done
	return d, err
}

// ask tells the loop that something is wanted. Inside a callback the loop, or the worker, sees it when the callback returns;
// else the first request posts a letter, and those that come before it is read go with it. mu is held.
func (c *Conn) ask(what requests) {
	if c.state.Load() == stateClosed {
		return
	}
	c.asked |= what
	if c.asked&posted == 0 && !c.corked() && (c.asked&withWorker == 0 || what&askSend != 0) {
		c.asked |= posted
		// Bounded by one letter a connection. It fails only when the loop is gone, and has closed every connection.
		_ = c.loop.inner.PostAlways(func() { c.loop.answer(c) })
	}
}

// corked tells whether a callback of the connection is running on the loop. mu is held.
func (c *Conn) corked() bool { return c.loop.current.Load() == c }

// progress notes that bytes have moved, for the idle timeout.
func (c *Conn) progress() {
	if c.idle.Load() != 0 {
		c.active.Store(poller.Nanotime())
	}
}
