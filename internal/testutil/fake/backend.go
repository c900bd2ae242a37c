// Package fake is a kernel that a test steers by hand: a [poller.Backend] in memory, streams whose descriptors are
// numbers, and a clock that stands still until it is moved. Only tests import it.
//
// The backend reports what epoll would. A change makes an edge; an edge waits in a queue, where it meets with later
// edges of the same descriptor; what it says is looked up when it is delivered, and an edge about nothing is dropped.
// Beyond that a test can hold edges back ([Backend.Hold], [Backend.Step]) and deliver events that never happened
// ([Backend.Inject]): doubled, spurious, or about a descriptor that has left.
//
// A descriptor is one of two things. The ends of a [Pair] live in memory. A real descriptor, which a [poller.Desc] needs
// for its system calls, can be added as well: the test then says when it has changed, by [Backend.Kick].
package fake

import (
	"fmt"
	"sync"
	"time"

	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/poller"
)

// Backend is the fake. All its methods may be called from any goroutine, Wait from one at a time.
type Backend struct {
	mu     sync.Mutex // protects the fields below, and every End
	moved  sync.Cond  // something below has changed
	regs   map[int]*registration
	ends   map[int]*End
	queue  []item // what Wait will return, oldest first
	held   bool
	steps  int // how many items may pass while held
	broken bool
	closed bool

	waiting  bool          // a Wait sleeps
	waits    int           // how many Waits have begun
	timeouts time.Duration // what the last Wait was given
}

type registration struct {
	fd     int
	token  poller.Token
	queued bool
}

// item is an edge of a registration, or an event that was injected.
type item struct {
	reg   *registration
	event poller.Event
}

// firstEnd is the first descriptor in memory: far above what the kernel gives out.
const firstEnd = 1 << 30

// New makes a fake.
func New() *Backend {
	b := &Backend{regs: map[int]*registration{}, ends: map[int]*End{}}
	b.moved.L = &b.mu
	return b
}

// Name implements [poller.Backend].
func (b *Backend) Name() string { return "fake" }

// Add implements [poller.Backend].
func (b *Backend) Add(fd int, t poller.Token) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch _, errno := b.level(fd); {
	case b.closed:
		return poller.ErrClosed
	case b.regs[fd] != nil:
		return fmt.Errorf("add fd %d to the fake: %w", fd, sys.EEXIST)
	case errno == sys.EPERM:
		return fmt.Errorf("add fd %d to the fake: %w: %w", fd, errno, poller.ErrNotPollable)
	case errno != 0:
		return fmt.Errorf("add fd %d to the fake: %w", fd, errno)
	}
	b.regs[fd] = &registration{fd: fd, token: t}
	b.edge(fd)
	return nil
}

// Remove implements [poller.Backend].
func (b *Backend) Remove(fd int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return poller.ErrClosed
	}
	if b.regs[fd] == nil {
		return fmt.Errorf("remove fd %d from the fake: %w", fd, sys.ENOENT)
	}
	b.forget(fd)
	return nil
}

// forget ends a registration; its edges leave the queue, as in the kernel. mu is held.
func (b *Backend) forget(fd int) {
	reg := b.regs[fd]
	if reg == nil {
		return
	}
	delete(b.regs, fd)
	kept := b.queue[:0]
	for _, it := range b.queue {
		if it.reg != reg {
			kept = append(kept, it)
		}
	}
	b.queue = kept
}

// Wait implements [poller.Backend]. A timeout is measured in real time.
func (b *Backend) Wait(events []poller.Event, timeout time.Duration) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.waits++
	b.timeouts = timeout
	over := timeout == 0
	if timeout > 0 {
		t := time.AfterFunc(timeout, func() {
			b.mu.Lock()
			over = true
			b.mu.Unlock()
			b.moved.Broadcast()
		})
		defer t.Stop()
	}
	for {
		if b.closed {
			return 0, poller.ErrClosed
		}
		n := b.deliver(events)
		// A poll leaves the break for the next wait that may sleep.
		if b.broken && timeout != 0 {
			b.broken = false
			return n, nil
		}
		if n > 0 || over {
			return n, nil
		}
		b.waiting = true
		b.moved.Broadcast()
		b.moved.Wait()
		b.waiting = false
	}
}

// deliver moves what may pass from the queue to events. mu is held.
func (b *Backend) deliver(events []poller.Event) (n int) {
	for n < len(events) && b.passable() {
		it := b.queue[0]
		b.queue = b.queue[1:]
		if b.held {
			b.steps--
		}
		if it.reg == nil {
			events[n] = it.event
			n++
			continue
		}
		it.reg.queued = false
		if ready, _ := b.level(it.reg.fd); ready != 0 {
			events[n] = poller.Event{Token: it.reg.token, Ready: ready}
			n++
		}
	}
	return n
}

func (b *Backend) passable() bool { return len(b.queue) > 0 && (!b.held || b.steps > 0) }

// Break implements [poller.Backend].
func (b *Backend) Break() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return poller.ErrClosed
	}
	b.broken = true
	b.moved.Broadcast()
	return nil
}

// Close implements [poller.Backend].
func (b *Backend) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return poller.ErrClosed
	}
	if b.waiting {
		panic("fake: Close during a Wait")
	}
	b.closed = true
	b.moved.Broadcast()
	return nil
}

// edge queues an edge of fd, unless one waits already. mu is held.
func (b *Backend) edge(fd int) {
	if reg := b.regs[fd]; reg != nil && !reg.queued {
		reg.queued = true
		b.queue = append(b.queue, item{reg: reg})
		b.moved.Broadcast()
	}
}

// Kick says that the real descriptor fd has changed. A kick too many is a spurious edge.
func (b *Backend) Kick(fd int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.edge(fd)
}

// Inject makes Wait return these events, in their turn, whatever the state of what they name.
func (b *Backend) Inject(events ...poller.Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, ev := range events {
		b.queue = append(b.queue, item{event: ev})
	}
	b.moved.Broadcast()
}

// Hold keeps edges and injected events back until Release.
func (b *Backend) Hold() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.held, b.steps = true, 0
}

// Release ends what Hold began.
func (b *Backend) Release() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.held = false
	b.moved.Broadcast()
}

// Step lets n of what is held back pass, and returns once a Wait after theirs sleeps: what they caused has been done.
// Those of one step may share a batch.
func (b *Backend) Step(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.steps += n
	b.moved.Broadcast()
	for !b.idle() {
		b.moved.Wait()
	}
}

// Settle returns once a Wait sleeps and nothing is left that could pass: what was delivered has been done.
func (b *Backend) Settle() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for !b.idle() {
		b.moved.Wait()
	}
}

func (b *Backend) idle() bool {
	return b.closed || b.waiting && !b.passable() && !b.broken
}

// Queued returns how many edges and injected events wait.
func (b *Backend) Queued() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.queue)
}

// LastWait returns how many Waits have begun, and the timeout of the last one.
func (b *Backend) LastWait() (count int, timeout time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.waits, b.timeouts
}

// Token returns what fd was registered under; ok is false if it is not registered.
func (b *Backend) Token(fd int) (t poller.Token, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	reg := b.regs[fd]
	if reg == nil {
		return 0, false
	}
	return reg.token, true
}

// level returns what fd is ready for now. mu is held.
func (b *Backend) level(fd int) (poller.Ready, sys.Errno) {
	if fd >= firstEnd {
		if e := b.ends[fd]; e != nil {
			return e.level(), 0
		}
		return 0, sys.EBADF
	}
	return levelOf(fd)
}

// levelOf asks the kernel about a real descriptor, by an epoll instance of its own.
func levelOf(fd int) (r poller.Ready, errno sys.Errno) {
	epfd, errno := sys.EpollCreate()
	if errno != 0 {
		return 0, errno
	}
	defer sys.Close(epfd)
	const all = sys.EPOLLIN | sys.EPOLLOUT | sys.EPOLLRDHUP | sys.EPOLLPRI
	if errno := sys.EpollCtl(epfd, sys.EpollAdd, fd, all, 0); errno != 0 {
		return 0, errno
	}
	var events [1]sys.EpollEvent
	n, errno := sys.EpollPoll(epfd, events[:])
	if n == 0 || errno != 0 {
		return 0, errno
	}
	for _, bit := range []struct {
		mask  uint32
		ready poller.Ready
	}{
		{sys.EPOLLIN, poller.Readable}, {sys.EPOLLOUT, poller.Writable}, {sys.EPOLLRDHUP, poller.PeerClosed},
		{sys.EPOLLHUP, poller.HungUp}, {sys.EPOLLERR, poller.Failed}, {sys.EPOLLPRI, poller.Urgent},
	} {
		if events[0].Events&bit.mask != 0 {
			r |= bit.ready
		}
	}
	return r, 0
}
