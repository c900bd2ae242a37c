package poller

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"
)

// A Backend tells which file descriptors are ready. One goroutine at a time calls Wait; every other method may be
// called while it runs, from any goroutine. After Close, every method fails with [ErrClosed].
//
// It is the contract that runtime/netpoll.go writes in prose for its platform files.
type Backend interface {
	// Add registers fd, edge-triggered, for reading, writing, urgent data and the peer's half-close, once for its
	// lifetime. What is ready already is reported as the first edge. A descriptor that cannot be polled gives an error
	// that wraps [ErrNotPollable].
	Add(fd int, t Token) error

	// Remove ends the registration of fd. It must be called before fd is closed: a copy of fd (after dup or fork) would
	// keep it alive otherwise. Events that Wait has not returned yet may still come.
	Remove(fd int) error

	// Wait fills events with what is ready and returns their number. It waits until there is something, for at most the
	// timeout: not at all if it is 0, for ever if it is below 0. It may return 0 early, after a Break or a signal. It
	// never allocates and never calls back.
	Wait(events []Event, timeout time.Duration) (int, error)

	// Break makes a Wait that blocks return, or the next one that would block. Calls between two such returns are
	// coalesced into one. A Wait with timeout 0 does not use a Break up.
	Break() error

	// Close releases the backend's own descriptors, which it has declared by [Own]. No Wait may be in progress.
	Close() error

	// Name returns "epoll", for instance.
	Name() string
}

// Pollable is a [Backend] whose readiness shows as readability of a descriptor of its own, so that another poller can
// wait for it.
type Pollable interface {
	Backend
	// PollFD returns that descriptor. It belongs to the backend.
	PollFD() int
}

// Ready says what an [Event] is about.
type Ready uint32

// Each bit is a change that the kernel reported. Hang-ups and errors concern both directions.
const (
	Readable   Ready = 1 << iota // bytes, a connection to accept, or an end can be read
	Writable                     // there is room for bytes again, or a connect has ended
	PeerClosed                   // the peer has shut down its writing direction
	HungUp                       // both directions are gone
	Failed                       // an error is pending
	Urgent                       // urgent data: a short read no longer means that all was read
)

// An Event says that the descriptor registered under Token has changed.
type Event struct {
	Token Token
	Ready Ready
}

// Errors that callers decide on.
var (
	// ErrClosed is returned by operations on what is closed, and by those that a close ended.
	ErrClosed = fmt.Errorf("poller: closed: %w", net.ErrClosed)

	// ErrTimeout is returned when a deadline has passed. It is os.ErrDeadlineExceeded.
	ErrTimeout = os.ErrDeadlineExceeded

	// ErrNotPollable is returned for a descriptor that the kernel cannot poll, as a regular file or a directory.
	ErrNotPollable = errors.New("the descriptor cannot be polled (a regular file or a directory?)")

	// ErrOwnDescriptor is returned for a descriptor that belongs to a backend.
	ErrOwnDescriptor = errors.New("the descriptor belongs to a poller")

	// ErrBusy is returned to a second goroutine that wants to wait for the same direction of a Desc.
	ErrBusy = errors.New("poller: another goroutine waits for this direction")

	// ErrMailboxFull is returned when a loop has too much foreign work waiting.
	ErrMailboxFull = errors.New("poller: the loop's mailbox is full")
)

// own holds the descriptors that backends use themselves.
var own sync.Map

// Own declares fd as one that a backend uses itself; nobody can open it as a [Desc] then. Disown takes it back, before
// fd is closed.
func Own(fd int) { own.Store(fd, struct{}{}) }

// Disown ends what [Own] began.
func Disown(fd int) { own.Delete(fd) }

// IsPollDescriptor tells whether fd is one that a backend uses itself: an epoll descriptor, for instance.
func IsPollDescriptor(fd int) bool {
	_, ok := own.Load(fd)
	return ok
}
