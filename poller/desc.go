package poller

import (
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pollux-go/pollux/internal/invariants"
	"github.com/pollux-go/pollux/internal/sys"
)

// A Mode is a direction of a [Desc].
type Mode uint8

// The directions. Their bits can be joined for [Desc.Reset].
const (
	ModeRead Mode = 1 << iota
	ModeWrite
)

// A Desc is a file descriptor whose readiness goroutines wait for. It owns the descriptor. All its methods may be
// called from any number of goroutines at once; Reads are serialised among themselves, and so are Writes, whole call by
// whole call, while one direction never waits for the other.
//
// It gives what runtime/netpoll.go and internal/poll give to package net. Errors are [ErrClosed] once it is closed,
// [ErrTimeout] when a deadline has passed, io.EOF at the end of a stream, and otherwise an os.SyscallError.
type Desc struct {
	// What reads, writes and deliveries touch: 64 bytes, which are one line of cache.
	mutex   fdMutex
	fd      int
	flags   atomic.Uint32
	socket  bool // recv and send work on it
	stream  bool // a TCP stream: a read that comes back short has drained it
	drained bool // see below
	r, w    waiter

	token  Token
	poller *Poller
	gone   chan struct{} // closed when the descriptor is

	timing    sync.Mutex // protects what follows
	timer     ClockTimer // made with the first deadline
	armed     int64      // when the timer fires; 0: it is not set
	deadlines [2]int64   // for reading and for writing: instants of the poller's clock, 0: none

	// With this the size is three lines, a size class of the allocator, so that a Desc begins with a line.
	_ [56]byte
}

// drained says that a read has found the end of what had arrived, so that the next one begins with waiting and saves the
// call that would say EAGAIN. Its owner is who holds the read lock.

// Bits of Desc.flags. They are set before a waiter is woken, and read by it afterwards.
const (
	flagClosing   = 1 << iota // Close has begun, or the poller is gone
	flagRExpired              // the read deadline has passed
	flagWExpired              // the write deadline has passed
	flagTalkative             // hung up, failed or urgent: a short read no longer means drained; never cleared
)

// waiter is the state of one direction, as rg and wg are in runtime/netpoll.go.
//
// Roles: one goroutine waits, whoever holds the direction's lock; any goroutine delivers, cancels, or moves a deadline.
// The state:
//
//	idle     nothing has happened. deliver makes it ready; a waiter makes it waiting
//	ready    an edge is latched. The waiter takes it and makes it idle
//	waiting  a goroutine sleeps on wake or is about to. deliver makes it ready, cancel makes it idle; whoever changes
//	         it must send on wake, exactly once
//
// No edge is lost between EAGAIN and the sleep: an edge that comes first is latched and the waiter's swap from idle to
// waiting fails; one that comes later finds waiting.
type waiter struct {
	wake  chan struct{} // capacity 1; made by the first waiter, before it publishes waiting
	state atomic.Uint32
}

const (
	stateIdle = iota
	stateReady
	stateWaiting
)

// Fd returns the descriptor's number, which stays valid until Close returns.
func (d *Desc) Fd() int { return d.fd }

// IsSocket tells whether the descriptor is a socket.
func (d *Desc) IsSocket() bool { return d.socket }

// check returns why an operation of that direction must not go on, or nil. Closing comes before expired.
func (d *Desc) check(expired uint32) error {
	flags := d.flags.Load()
	if flags&(flagClosing|expired) == 0 {
		return nil
	}
	if flags&flagClosing != 0 {
		return ErrClosed
	}
	return ErrTimeout
}

// wait sleeps until an edge of the direction is delivered, takes it, and returns nil; or returns why it cannot come.
func (d *Desc) wait(w *waiter, expired uint32) error {
	for {
		if err := d.check(expired); err != nil {
			return err
		}
		if w.state.CompareAndSwap(stateReady, stateIdle) {
			return nil // The edge was latched.
		}
		if w.wake == nil {
			w.wake = make(chan struct{}, 1)
		}
		// Publish the wish to sleep, and wake with it; pairs with the swaps in deliver and cancel.
		if !w.state.CompareAndSwap(stateIdle, stateWaiting) {
			if w.state.Load() == stateWaiting {
				invariants.Broken("two goroutines wait for one direction of a descriptor")
			}
			continue
		}
		// The flags are read again after that: who set one before could not see the sleeper, who sets one from now on does.
		if err := d.check(expired); err == nil || !w.state.CompareAndSwap(stateWaiting, stateIdle) {
			<-w.wake
			d.poller.relay.pass() // First: others may wait for it.
		}
		// A wake without an edge is a cancel, whose reason may be gone again, as when the deadline was moved.
		if w.state.Swap(stateIdle) == stateReady {
			return nil
		}
	}
}

// deliver latches an edge, or hands it to who waits. It is true if somebody was woken.
func (w *waiter) deliver() (woke bool) {
	for {
		old := w.state.Load()
		if old == stateReady {
			return false // Edges coalesce.
		}
		if w.state.CompareAndSwap(old, stateReady) {
			if woke = old == stateWaiting; woke {
				w.wake <- struct{}{}
			}
			return woke
		}
	}
}

// cancel wakes who waits, without an edge. A latched edge stays.
func (w *waiter) cancel() {
	if w.state.CompareAndSwap(stateWaiting, stateIdle) {
		w.wake <- struct{}{}
	}
}

// deliver tells both directions what an event means to them. Hang-ups and errors concern both. It is true if somebody was woken.
func (d *Desc) deliver(ready Ready) (woke bool) {
	if ready&(PeerClosed|HungUp|Failed|Urgent) != 0 {
		// Before the edge is published: who takes the edge must see it.
		d.flags.Or(flagTalkative)
	}
	if ready&(Readable|PeerClosed|HungUp|Failed|Urgent) != 0 {
		woke = d.r.deliver()
	}
	if ready&(Writable|HungUp|Failed) != 0 {
		woke = d.w.deliver() || woke
	}
	return woke
}

// WaitRead waits until the descriptor may be read: until the next edge, or not at all if one came since the last wait.
// It may return early; whoever reads must expect EAGAIN. While another goroutine reads or waits to read it returns
// [ErrBusy].
func (d *Desc) WaitRead() error {
	if err := d.tryLock(ModeRead); err != nil {
		return err
	}
	defer d.unlock(true)
	d.drained = false // The caller takes the edge: a Read cannot wait for it any more.
	return d.wait(&d.r, flagRExpired)
}

// WaitWrite waits until the descriptor may be written, as WaitRead does for reading.
func (d *Desc) WaitWrite() error {
	if err := d.tryLock(ModeWrite); err != nil {
		return err
	}
	defer d.unlock(false)
	return d.wait(&d.w, flagWExpired)
}

func (d *Desc) tryLock(mode Mode) error {
	switch ok, held := d.mutex.tryLock(mode == ModeRead); {
	case ok:
		return nil
	case held:
		return ErrBusy
	}
	return ErrClosed
}

func (d *Desc) mode(mode Mode) (*waiter, uint32) {
	if mode == ModeRead {
		return &d.r, flagRExpired
	}
	return &d.w, flagWExpired
}

// Reset forgets a latched edge, so that the next wait is for a new one: after everything was read, or before a call that
// will say what is there. It fails where waiting would.
func (d *Desc) Reset(mode Mode) error {
	for _, m := range [...]Mode{ModeRead, ModeWrite} {
		if mode&m == 0 {
			continue
		}
		if err := d.tryLock(m); err != nil {
			return err
		}
		w, expired := d.mode(m)
		err := d.check(expired)
		if err == nil {
			w.state.CompareAndSwap(stateReady, stateIdle)
			if m == ModeRead {
				d.drained = false
			}
		}
		d.unlock(m == ModeRead)
		if err != nil {
			return err
		}
	}
	return nil
}

// readMost is the most that one system call is asked for: larger reads and writes are cut in pieces.
const readMost = 1 << 30

// doubtsMost is how often an EAGAIN is not believed where urgent data has been seen. A signal met 1 of 1,000 such calls
// in a storm of them, so that two in a row are enough to doubt.
const doubtsMost = 2

// Read reads into p once, waiting for bytes if there are none. At the end of a stream it returns 0 and io.EOF. A
// deadline that has passed fails it even where bytes are there, and consumes none.
func (d *Desc) Read(p []byte) (int, error) {
	if !d.mutex.lock(true) {
		return 0, ErrClosed
	}
	n, err := d.read(p)
	d.unlock(true)
	return n, err
}

func (d *Desc) read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := d.check(flagRExpired); err != nil {
		return 0, err
	}
	if len(p) > readMost {
		p = p[:readMost]
	}
	if d.drained {
		if err := d.wait(&d.r, flagRExpired); err != nil {
			return 0, err
		}
		d.drained = false
	} else {
		d.r.state.CompareAndSwap(stateReady, stateIdle) // What that edge told is about to be read.
	}
	doubts := 0
	for {
		var n int
		var errno sys.Errno
		if d.socket {
			n, errno = sys.Recv(d.fd, p)
		} else {
			n, errno = sys.Read(d.fd, p)
		}
		switch errno {
		case 0:
			if n == 0 {
				return 0, io.EOF
			}
			// On a TCP stream everything that comes after a short read makes a new edge, unless the end, an error or an
			// urgent mark may be what cut it short.
			d.drained = n < len(p) && d.stream && d.flags.Load()&flagTalkative == 0
			return n, nil
		case sys.EAGAIN:
			// At an urgent mark the kernel says EAGAIN to a call that finds a signal pending, though bytes or the end are
			// behind the mark and no edge will come for them (tcp_recvmsg_locked). The Go runtime sends signals all the
			// time. They are delivered when the call returns, so another call tells the truth.
			if doubts < doubtsMost && d.flags.Load()&flagTalkative != 0 {
				doubts++
				continue
			}
			doubts = 0
			d.drained = true
			if err := d.wait(&d.r, flagRExpired); err != nil {
				return 0, err
			}
			d.drained = false
		default:
			return 0, callError(sys.OpRead, errno)
		}
	}
}

// Write writes all of p, waiting for room as often as it must. When it fails, n says how much the kernel has taken.
// Concurrent Writes do not mix.
func (d *Desc) Write(p []byte) (n int, err error) {
	if !d.mutex.lock(false) {
		return 0, ErrClosed
	}
	n, err = d.write(p)
	d.unlock(false)
	return n, err
}

func (d *Desc) write(p []byte) (n int, err error) {
	if err := d.check(flagWExpired); err != nil {
		return 0, err
	}
	for n < len(p) {
		var m int
		var errno sys.Errno
		piece := p[n:min(len(p), n+readMost)]
		if d.socket {
			m, errno = sys.Send(d.fd, piece)
		} else {
			m, errno = sys.Write(d.fd, piece)
		}
		switch errno {
		case 0:
			if m == 0 {
				return n, io.ErrUnexpectedEOF
			}
			n += m
			if n == len(p) {
				return n, nil
			}
		case sys.EAGAIN:
			// The latch may be of an edge from before: then this wait is over at once and the next one is real.
			if err := d.wait(&d.w, flagWExpired); err != nil {
				return n, err
			}
		default:
			return n, callError(sys.OpWrite, errno)
		}
		if err := d.check(flagWExpired); err != nil {
			return n, err
		}
	}
	return n, nil
}

// Writev writes the bytes of all slices in order, as one Write.
func (d *Desc) Writev(bufs [][]byte) (n int64, err error) {
	if !d.mutex.lock(false) {
		return 0, ErrClosed
	}
	defer d.unlock(false)
	if err := d.check(flagWExpired); err != nil {
		return 0, err
	}
	rest := append([][]byte(nil), bufs...)
	for {
		for len(rest) > 0 && len(rest[0]) == 0 {
			rest = rest[1:]
		}
		if len(rest) == 0 {
			return n, nil
		}
		var m int
		var errno sys.Errno
		if d.socket {
			m, errno = sys.Sendv(d.fd, rest)
		} else {
			m, errno = sys.Write(d.fd, rest[0])
		}
		switch errno {
		case 0:
			if m == 0 {
				return n, io.ErrUnexpectedEOF
			}
			n += int64(m)
			for m > 0 {
				used := min(m, len(rest[0]))
				m -= used
				if rest[0] = rest[0][used:]; len(rest[0]) == 0 {
					rest = rest[1:]
				}
			}
		case sys.EAGAIN:
			if err := d.wait(&d.w, flagWExpired); err != nil {
				return n, err
			}
		default:
			return n, callError(sys.OpWrite, errno)
		}
		if err := d.check(flagWExpired); err != nil {
			return n, err
		}
	}
}

// callError names the call as package net does, whose texts programs look for: "write: broken pipe", although on a
// socket it was a sendto.
func callError(op sys.Op, errno sys.Errno) error { return os.NewSyscallError(op.String(), errno) }

// Accept takes a connection from a listening socket, waiting for one. The read deadline concerns it. Connections that
// were reset while they waited are passed over.
func (d *Desc) Accept() (fd int, from sys.Sockaddr, err error) {
	if !d.mutex.lock(true) {
		return -1, from, ErrClosed
	}
	defer d.unlock(true)
	if err := d.check(flagRExpired); err != nil {
		return -1, from, err
	}
	d.r.state.CompareAndSwap(stateReady, stateIdle)
	for {
		fd, from, errno := sys.Accept(d.fd)
		switch errno {
		case 0:
			return fd, from, nil
		case sys.EAGAIN:
			if err := d.wait(&d.r, flagRExpired); err != nil {
				return -1, from, err
			}
		case sys.ECONNABORTED, sys.EPROTO:
			// The peer has gone already; accept(2) lists the errors of a new socket that are no fault of the listener's.
		default:
			return -1, from, os.NewSyscallError(sys.OpAccept.String(), errno)
		}
	}
}

// Use calls f with the descriptor while nobody can close it. With [ModeRead] or [ModeWrite] it holds that direction's
// lock and calls f again after each wait, until f returns true; with 0 it calls f once.
func (d *Desc) Use(mode Mode, f func(fd int) (done bool)) error {
	if mode == 0 {
		if !d.mutex.incref() {
			return ErrClosed
		}
		f(d.fd)
		d.decref()
		return nil
	}
	read := mode == ModeRead
	if !d.mutex.lock(read) {
		return ErrClosed
	}
	defer d.unlock(read)
	w, expired := d.mode(mode)
	if err := d.check(expired); err != nil {
		return err
	}
	if read {
		d.drained = false // f may leave bytes behind: the next Read has to look.
	}
	for {
		w.state.CompareAndSwap(stateReady, stateIdle)
		if f(d.fd) {
			return nil
		}
		if err := d.wait(w, expired); err != nil {
			return err
		}
	}
}

// SetDeadline sets the read and the write deadline.
func (d *Desc) SetDeadline(t time.Time) error { return d.setDeadline(t, ModeRead|ModeWrite) }

// SetReadDeadline makes reads, waits for reading and accepts fail with [ErrTimeout] from t on, those in progress too. A
// past time fails them at once, the zero time never. It costs no system call and, where the deadline moves further
// away, as one that is set for each request does, no timer either.
func (d *Desc) SetReadDeadline(t time.Time) error { return d.setDeadline(t, ModeRead) }

// SetWriteDeadline is SetReadDeadline for writes and waits for writing.
func (d *Desc) SetWriteDeadline(t time.Time) error { return d.setDeadline(t, ModeWrite) }

func (d *Desc) setDeadline(t time.Time, mode Mode) error {
	if !d.mutex.incref() {
		return ErrClosed
	}
	clock := d.poller.clock
	var at, now int64
	if !t.IsZero() {
		now = clock.Now()
		at = max(clock.Instant(t), 1) // 0 is for no deadline.
	}
	passed := at != 0 && at <= now
	var expired uint32
	d.timing.Lock()
	if mode&ModeRead != 0 {
		d.deadlines[0] = at
		expired |= flagRExpired
	}
	if mode&ModeWrite != 0 {
		d.deadlines[1] = at
		expired |= flagWExpired
	}
	if passed {
		d.flags.Or(expired)
	} else if d.flags.Load()&expired != 0 {
		d.flags.And(^expired)
	}
	if at > now && d.flags.Load()&flagClosing == 0 && (d.armed == 0 || at < d.armed) {
		d.arm(at, now)
	}
	d.timing.Unlock()
	if passed {
		if mode&ModeRead != 0 {
			d.r.cancel()
		}
		if mode&ModeWrite != 0 {
			d.w.cancel()
		}
	}
	d.decref()
	return nil
}

// arm sets the timer. timing is held.
//
// The timer is lazy: a deadline that moves away leaves it where it is, and when it fires too early it is set again. So
// a service that sets a deadline for each request touches the timer once a deadline's length and not once a request.
func (d *Desc) arm(at, now int64) {
	if d.timer == nil {
		d.timer = d.poller.clock.AfterFunc(d.expire)
	}
	d.armed = at
	d.timer.Set(time.Duration(at - now))
}

// expire runs when the timer fires. It believes the clock and not the timer: one that fires late, for a deadline that
// has been moved or cleared meanwhile, finds that nothing is due.
func (d *Desc) expire() {
	d.timing.Lock()
	d.armed = 0
	if d.flags.Load()&flagClosing != 0 {
		d.timing.Unlock()
		return
	}
	now := d.poller.clock.Now()
	next := int64(0)
	due := uint32(0)
	for i, expired := range [...]uint32{flagRExpired, flagWExpired} {
		switch at := d.deadlines[i]; {
		case at == 0 || d.flags.Load()&expired != 0:
		case at <= now:
			due |= expired
		case next == 0 || at < next:
			next = at
		}
	}
	d.flags.Or(due)
	if next != 0 {
		d.arm(next, now)
	}
	d.timing.Unlock()
	if due&flagRExpired != 0 {
		d.r.cancel()
	}
	if due&flagWExpired != 0 {
		d.w.cancel()
	}
}

// Unblock makes all operations that wait, and all later ones, fail with [ErrClosed]. The descriptor stays open until
// Close.
func (d *Desc) Unblock() {
	d.timing.Lock()
	d.flags.Or(flagClosing)
	if d.timer != nil {
		d.timer.Stop()
	}
	d.armed = 0
	d.timing.Unlock()
	d.r.cancel()
	d.w.cancel()
}

// Close ends all operations with [ErrClosed], waits until the last of them has left the descriptor, takes it out of the
// poller and closes it. So the number cannot come back as another file under a call that is still running. A second
// Close returns [ErrClosed] at once.
func (d *Desc) Close() error {
	if !d.mutex.close() {
		return ErrClosed
	}
	d.Unblock()
	d.decref()
	<-d.gone
	return nil
}

func (d *Desc) decref() {
	if d.mutex.decref() {
		d.destroy()
	}
}

func (d *Desc) unlock(read bool) {
	if d.mutex.unlock(read) {
		d.destroy()
	}
}

// destroy runs once, after the last user has left.
func (d *Desc) destroy() {
	d.poller.remove(d)
	sys.Close(d.fd)
	close(d.gone)
}

// Release takes the descriptor out of the poller without closing it and returns its number, which belongs to the
// caller then. Operations in progress fail with [ErrClosed] and have left it when Release returns.
func (d *Desc) Release() (fd int, err error) {
	if !d.mutex.incref() {
		return -1, ErrClosed
	}
	copied, errno := sys.Dup(d.fd)
	d.decref()
	if errno != 0 {
		return -1, os.NewSyscallError(sys.OpFcntl.String(), errno)
	}
	if err := d.Close(); err != nil {
		sys.Close(copied)
		return -1, err
	}
	return copied, nil
}
