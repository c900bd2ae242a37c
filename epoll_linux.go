package pollux

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pollux-go/pollux/cgo"
	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/poller"
)

// epollBatch is how many events one system call fetches.
const epollBatch = 256

// epollMask is what every descriptor is registered for, once. EPOLLPRI is there because urgent data makes a read stop
// before the end of what has arrived, which the readers must know.
const epollMask = sys.EPOLLIN | sys.EPOLLOUT | sys.EPOLLRDHUP | sys.EPOLLPRI | sys.EPOLLET

// epoll is the backend on epoll(7): edge-triggered, registered once, woken by an eventfd.
//
// Wait is called by one goroutine at a time; its fields are marked "waiter only", and WaitShared uses none of them.
type epoll struct {
	epfd   int
	wakefd int

	mu     sync.Mutex // keeps the descriptors from being closed under a Break, an Add or a Remove
	closed atomic.Bool

	// waking is true from the first Break until a Wait that may block has returned for it, so that Breaks coalesce.
	waking atomic.Bool
	broken bool // waiter only: a Wait with timeout 0 met the wake event and left it for the next one that may block

	events [epollBatch]sys.EpollEvent // waiter only
	old    bool                       // waiter only: the kernel has no epoll_pwait2 (before 5.11)
	hold   *sys.Hold                  // waiter only; nil: a wait gives its P up
	spin   time.Duration              // waiter only
}

// wakeToken cannot be a registration's: generations of a token are not 0.
const wakeToken poller.Token = 0

// newEpoll opens the backend.
func newEpoll() (poller.Backend, error) {
	epfd, errno := sys.EpollCreate()
	if errno != 0 {
		return nil, explain("create an epoll instance", errno)
	}
	wakefd, errno := sys.Eventfd()
	if errno != 0 {
		sys.Close(epfd)
		return nil, explain("create an eventfd", errno)
	}
	// Edge-triggered: every write to the eventfd is a new edge, so that nobody has to read it.
	if errno := sys.EpollCtl(epfd, sys.EpollAdd, wakefd, sys.EPOLLIN|sys.EPOLLET, uint64(wakeToken)); errno != 0 {
		sys.Close(wakefd)
		sys.Close(epfd)
		return nil, explain("add the eventfd to epoll", errno)
	}
	poller.Own(epfd)
	poller.Own(wakefd)
	return &epoll{epfd: epfd, wakefd: wakefd}, nil
}

func (e *epoll) Name() string { return string(KindEpoll) }

// Hold and Spin implement [poller.Holder].
func (e *epoll) Hold(h *sys.Hold)     { e.hold = h }
func (e *epoll) Spin(d time.Duration) { e.spin = d }

// busyPoll implements busyPoller.
func (e *epoll) busyPoll(usecs uint32) sys.Errno { return sys.EpollBusyPoll(e.epfd, usecs) }

func (e *epoll) PollFD() int { return e.epfd }

func (e *epoll) Add(fd int, t poller.Token) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed.Load() {
		return poller.ErrClosed
	}
	switch errno := sys.EpollCtl(e.epfd, sys.EpollAdd, fd, epollMask, uint64(t)); errno {
	case 0:
		return nil
	case sys.EPERM:
		return fmt.Errorf("add fd %d to epoll: %w: %w", fd, errno, poller.ErrNotPollable)
	case sys.EBADF:
		return fmt.Errorf("add fd %d to epoll: %w: it is not open", fd, errno)
	case sys.EEXIST:
		return fmt.Errorf("add fd %d to epoll: %w: it is registered already", fd, errno)
	case sys.ENOSPC:
		return fmt.Errorf("add fd %d to epoll: %w: the limit of fs.epoll.max_user_watches is reached", fd, errno)
	default:
		return fmt.Errorf("add fd %d to epoll: %w", fd, errno)
	}
}

func (e *epoll) Remove(fd int) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed.Load() {
		return poller.ErrClosed
	}
	if errno := sys.EpollCtl(e.epfd, sys.EpollDel, fd, 0, 0); errno != 0 {
		return fmt.Errorf("remove fd %d from epoll: %w", fd, errno)
	}
	return nil
}

func (e *epoll) Wait(events []poller.Event, timeout time.Duration) (int, error) {
	if e.closed.Load() {
		return 0, poller.ErrClosed
	}
	if len(events) == 0 {
		return 0, nil
	}
	raw := e.events[:min(len(events), len(e.events))]
	mayBlock := timeout != 0
	if mayBlock && e.broken {
		timeout = 0
	}
	var n int
	var errno sys.Errno
	if timeout == 0 {
		n, errno = sys.EpollPoll(e.epfd, raw)
	} else {
		n, errno = e.block(raw, timeout)
	}
	if errno != 0 {
		return 0, fmt.Errorf("wait on epoll: %w", errno)
	}
	out, woken := translate(raw[:n], events)
	e.broken = e.broken || woken
	if mayBlock && e.broken {
		// From here on a Break writes again; those before it are answered by this return.
		e.broken = false
		e.waking.Store(false)
	}
	return out, nil
}

// WaitShared implements [poller.Sharer].
func (e *epoll) WaitShared(events []poller.Event, timeout time.Duration) (n int, woken bool, err error) {
	var raw [16]sys.EpollEvent
	size := min(len(events), len(raw))
	got, errno := sys.EpollWait(e.epfd, raw[:size], timeout, nil)
	if errno == sys.ENOSYS {
		got, errno = sys.EpollWaitMillis(e.epfd, raw[:size], timeout, nil)
	}
	if errno != 0 {
		return 0, false, fmt.Errorf("wait on epoll: %w", errno)
	}
	n, woken = translate(raw[:got], events)
	return n, woken, nil
}

// Answer implements [poller.Sharer].
func (e *epoll) Answer() { e.waking.Store(false) }

// AnswerLate implements [poller.Sharer].
func (e *epoll) AnswerLate() {
	if e.broken {
		e.broken = false
		e.waking.Store(false)
	}
}

// Rouse implements [poller.Sharer].
func (e *epoll) Rouse() { _, _ = sys.Write(e.wakefd, one[:]) }

// block waits for events: it looks for them for a while, if it is to, and then sleeps.
func (e *epoll) block(raw []sys.EpollEvent, timeout time.Duration) (n int, errno sys.Errno) {
	spin := e.spin
	if timeout > 0 {
		spin = min(spin, timeout)
	}
	if spin > 0 && cgo.Spins && e.hold == nil && !e.old {
		n, errno = cgo.EpollWait(e.epfd, raw, spin, timeout)
		if errno != sys.ENOSYS {
			return n, errno
		}
	} else {
		if spin > 0 {
			if n, errno = cgo.EpollPolls(e.epfd, raw, spin); n != 0 || errno != 0 {
				return n, errno
			}
			if timeout > 0 {
				timeout -= spin
			}
		}
		if !e.old {
			if n, errno = sys.EpollWait(e.epfd, raw, timeout, e.hold); errno != sys.ENOSYS {
				return n, errno
			}
		}
	}
	e.old = true
	return sys.EpollWaitMillis(e.epfd, raw, timeout, e.hold)
}

// translate turns the kernel's events into ours, and tells whether there was a wake.
func translate(raw []sys.EpollEvent, events []poller.Event) (n int, woken bool) {
	for i := range raw {
		token := poller.Token(sys.EpollData(&raw[i]))
		if token == wakeToken {
			woken = true
			continue
		}
		events[n] = poller.Event{Token: token, Ready: readyOf(raw[i].Events)}
		n++
	}
	return n, woken
}

func readyOf(mask uint32) (r poller.Ready) {
	if mask&sys.EPOLLIN != 0 {
		r |= poller.Readable
	}
	if mask&sys.EPOLLOUT != 0 {
		r |= poller.Writable
	}
	if mask&(sys.EPOLLRDHUP|sys.EPOLLHUP|sys.EPOLLERR|sys.EPOLLPRI) != 0 {
		if mask&sys.EPOLLRDHUP != 0 {
			r |= poller.PeerClosed
		}
		if mask&sys.EPOLLHUP != 0 {
			r |= poller.HungUp
		}
		if mask&sys.EPOLLERR != 0 {
			r |= poller.Failed
		}
		if mask&sys.EPOLLPRI != 0 {
			r |= poller.Urgent
		}
	}
	return r
}

// one is what an eventfd is written: a count of 1.
var one = [8]byte{1}

func (e *epoll) Break() error {
	if e.closed.Load() {
		return poller.ErrClosed
	}
	// Failing to swap says that a wake-up is under way, which nobody has answered yet: ours is answered with it.
	if !e.waking.CompareAndSwap(false, true) {
		return nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed.Load() {
		return poller.ErrClosed
	}
	switch _, errno := sys.Write(e.wakefd, one[:]); errno {
	case 0:
		return nil
	case sys.EAGAIN:
		// 2^64-2 wakes were counted. Reading sets the count back, and the write after it makes the edge.
		var count [8]byte
		_, _ = sys.Read(e.wakefd, count[:])
		if _, errno := sys.Write(e.wakefd, one[:]); errno != 0 {
			return fmt.Errorf("wake epoll: %w", errno)
		}
		return nil
	default:
		e.waking.Store(false)
		return fmt.Errorf("wake epoll: %w", errno)
	}
}

func (e *epoll) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed.Load() {
		return poller.ErrClosed
	}
	e.closed.Store(true)
	poller.Disown(e.wakefd)
	poller.Disown(e.epfd)
	sys.Close(e.wakefd)
	if errno := sys.Close(e.epfd); errno != 0 {
		return fmt.Errorf("close epoll: %w", errno)
	}
	return nil
}
