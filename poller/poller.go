package poller

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"github.com/pollux-go/pollux/internal/sys"
)

// batchMost is how many events one Wait returns at most.
const batchMost = 256

// A Poller serves goroutines that block, on one backend: the descriptors it opens wait without a thread each. All its
// methods may be called from any number of goroutines at once.
//
// Its loop is cooperative: an ordinary goroutine, which is not locked to a thread. Where the backend is [Pollable] it
// sleeps in Go's own netpoller, on the backend's descriptor, so that it parks as every goroutine does; when the runtime
// wakes it, it harvests without blocking and readies everybody who waited in one go, and the same thread runs them. A
// loop that is locked to its thread must never ready goroutines: it strands them on a P that it does not give up.
type Poller struct {
	backend Backend
	clock   Clock
	file    *os.File // the backend's descriptor in Go's netpoller; nil if it has none

	mu     sync.Mutex // protects table, closed and failed
	table  Table[*Desc]
	closed bool
	failed error // why the loop has ended before Close

	events []Event // owner: the loop
	ready  []*Desc // owner: the loop; parallel to events
	crowd  crowd   // owner: the loop
	relay  relay
	ended  chan struct{}
	stale  atomic.Uint64
}

// New starts a poller on a backend, which belongs to it from then on, whatever the result.
func New(b Backend) (*Poller, error) { return newPoller(b, systemClock{}) }

// NewWithClock is [New] with another clock for the deadlines.
func NewWithClock(b Backend, c Clock) (*Poller, error) { return newPoller(b, c) }

func newPoller(b Backend, c Clock) (*Poller, error) {
	p := &Poller{
		backend: b,
		clock:   c,
		events:  make([]Event, batchMost),
		ready:   make([]*Desc, batchMost),
		ended:   make(chan struct{}),
	}
	if pb, ok := b.(Pollable); ok {
		if err := p.nest(pb.PollFD()); err != nil {
			b.Close()
			return nil, err
		}
		go p.cooperate()
	} else {
		go p.block()
	}
	return p, nil
}

// nest registers a copy of the backend's descriptor with Go's netpoller. A copy, because os.File closes what it holds.
func (p *Poller) nest(fd int) error {
	copied, errno := sys.Dup(fd)
	if errno == 0 {
		if errno = sys.SetNonblock(copied); errno != 0 {
			sys.Close(copied)
		}
	}
	if errno != 0 {
		return fmt.Errorf("copy the descriptor of the %s backend: %w", p.backend.Name(), errno)
	}
	Own(copied)
	p.file = os.NewFile(uintptr(copied), "pollux")
	return nil
}

// cooperate is the loop on a backend that can be nested.
func (p *Poller) cooperate() {
	defer close(p.ended)
	conn, err := p.file.SyscallConn()
	if err != nil {
		p.fail(err)
		return
	}
	// One call for the poller's lifetime: returning false parks the goroutine until the descriptor is readable again.
	// The edge-triggered registration in the runtime loses nothing, because the harvest goes on until the backend had
	// less than it could have returned.
	var failed error
	err = conn.Read(func(uintptr) bool {
		failed = p.harvest()
		return failed != nil
	})
	p.fail(errors.Join(failed, err))
}

// fail runs when the loop ends. Unless Close has ended it, nobody would hear of an event any more: so whoever waits is
// told now, and whoever opens a descriptor later is told why not.
func (p *Poller) fail(err error) {
	p.mu.Lock()
	closed := p.closed
	if !closed {
		p.failed = err
	}
	p.mu.Unlock()
	if !closed {
		p.Unblock()
	}
}

// harvest delivers everything that is ready.
func (p *Poller) harvest() error {
	for {
		n, err := p.backend.Wait(p.events, 0)
		p.dispatch(p.events[:n])
		if err != nil || n < len(p.events) {
			return err
		}
	}
}

// block is the loop on a backend that has no descriptor.
func (p *Poller) block() {
	defer close(p.ended)
	for {
		n, err := p.backend.Wait(p.events, -1)
		p.dispatch(p.events[:n])
		p.mu.Lock()
		closed := p.closed
		p.mu.Unlock()
		if closed {
			return
		}
		if err != nil {
			p.fail(err)
			return
		}
	}
}

// dispatch delivers one batch. The lock is held to find the descriptors and not while they are told.
func (p *Poller) dispatch(events []Event) {
	if len(events) == 0 {
		return
	}
	p.mu.Lock()
	for i := range events {
		d, ok := p.table.Get(events[i].Token)
		if !ok {
			// The kernel queued it before the descriptor left: the slot has another owner now, or none.
			p.stale.Add(1)
		}
		p.ready[i] = d
	}
	p.mu.Unlock()
	p.relay.finish()
	if len(events) > 1 && p.crowd.is() {
		p.relay.begin(events, p.ready)
		return
	}
	for i := range events {
		if d := p.ready[i]; d != nil {
			d.deliver(events[i].Ready)
			p.ready[i] = nil
		}
	}
}

// Open puts fd into non-blocking mode and registers it. The Desc owns fd from then on; when Open fails, it still
// belongs to the caller. A descriptor that an os.File or a net.Conn holds must be copied first, or both would close it.
//
// It fails with [ErrNotPollable] on regular files and directories, and with [ErrOwnDescriptor] on a poller's own.
func (p *Poller) Open(fd int) (*Desc, error) {
	if fd < 0 {
		return nil, fmt.Errorf("open fd %d: a file descriptor is 0 or more", fd)
	}
	if IsPollDescriptor(fd) {
		return nil, fmt.Errorf("open fd %d: %w", fd, ErrOwnDescriptor)
	}
	if errno := sys.SetNonblock(fd); errno != 0 {
		return nil, fmt.Errorf("open fd %d: %w", fd, os.NewSyscallError(sys.OpFcntl.String(), errno))
	}
	d := &Desc{fd: fd, poller: p, gone: make(chan struct{})}
	if _, errno := sys.GetsockoptInt(fd, sys.SOL_SOCKET, sys.SO_TYPE); errno == 0 {
		d.socket = true
	}
	return p.add(d)
}

// OpenStream is [Poller.Open] for a stream socket that is in non-blocking mode already. tcp says that it is a TCP
// socket, on which a short read has drained what was there.
func (p *Poller) OpenStream(fd int, tcp bool) (*Desc, error) {
	return p.add(&Desc{fd: fd, poller: p, socket: true, stream: tcp, gone: make(chan struct{})})
}

func (p *Poller) add(d *Desc) (*Desc, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, ErrClosed
	}
	if p.failed != nil {
		return nil, fmt.Errorf("open fd %d: the poller's loop has failed: %w", d.fd, p.failed)
	}
	token, err := p.table.Put(d)
	if err != nil {
		return nil, err
	}
	d.token = token
	// The loop may get the first event at once; it finds the descriptor when this lock is free.
	if err := p.backend.Add(d.fd, token); err != nil {
		p.table.Delete(token)
		return nil, err
	}
	return d, nil
}

// remove ends the registration of a descriptor that nobody uses any more. Later events of it are stale.
func (p *Poller) remove(d *Desc) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.table.Delete(d.token)
	if !p.closed {
		// It cannot fail but for a descriptor that somebody else has closed, which is gone from the backend then.
		_ = p.backend.Remove(d.fd)
	}
}

// Len returns how many descriptors are open.
func (p *Poller) Len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.table.Len()
}

// Stale returns how many events were dropped because their descriptor had left.
func (p *Poller) Stale() uint64 { return p.stale.Load() }

// Backend returns the name of the backend.
func (p *Poller) Backend() string { return p.backend.Name() }

// Unblock ends all operations on all descriptors with [ErrClosed], without closing them.
func (p *Poller) Unblock() {
	p.mu.Lock()
	all := make([]*Desc, 0, p.table.Len())
	for _, d := range p.table.All {
		all = append(all, d)
	}
	p.mu.Unlock()
	for _, d := range all {
		d.Unblock()
	}
}

// Close ends all operations on all descriptors with [ErrClosed] and stops the loop. The descriptors stay open until each
// is closed. A second Close returns [ErrClosed].
func (p *Poller) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return ErrClosed
	}
	p.closed = true
	p.mu.Unlock()
	p.Unblock()
	var err error
	if p.file != nil {
		raw, rawErr := p.file.SyscallConn()
		if rawErr == nil {
			_ = raw.Control(func(fd uintptr) { Disown(int(fd)) })
		}
		err = p.file.Close()
	} else {
		err = p.backend.Break()
	}
	<-p.ended
	return errors.Join(err, p.backend.Close())
}
