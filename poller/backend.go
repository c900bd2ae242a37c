package poller

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/pollux-go/pollux/internal/sys"
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

// A Hold is how a Wait keeps its P.
type Hold = sys.Hold

// Holder is a [Backend] that can wait without giving up the P, which is what a goroutine needs to run Go, and without
// sleeping. Its methods belong to the goroutine that calls Wait.
type Holder interface {
	Backend

	// Hold says how a Wait that blocks does so from now on. With a Hold, Go's scheduler is not told: when the event comes, the
	// goroutine runs at once, whatever else wants to run; until then its P serves nobody. Timeouts must be some milliseconds
	// at most then, since stopping the world may have to wait for them. nil is how a backend begins.
	Hold(h *Hold)

	// Spin says for how long a Wait that would sleep looks for events before it does. Without Hold, the P serves others
	// meanwhile where there is cgo.
	Spin(d time.Duration)
}

// Completer is a [Backend] that takes the input itself: it accepts and receives, and its events say what has come rather
// than that something has. A loop finds out by a type assertion. Its methods belong to the goroutine that calls Wait,
// which must stay on one thread.
//
// Requests end by themselves with an error or the end of a stream, and by Cancel and Release; whatever else ends one
// (buffers that ran out, an overflow) is the backend's to mend.
type Completer interface {
	Backend

	// Accept begins to accept on a listening socket. Each connection is an event with Accepted, whose Result is its
	// descriptor; below 0 it is an error number, and the request has ended.
	Accept(fd int, t Token) error

	// Receive begins to receive on a stream socket. Each piece is an event with Received, whose Result is its length and
	// whose bytes Bytes returns; 0 is the end of the stream. 0 and a negative error number end the request; ECANCELED is
	// the answer to Cancel.
	Receive(fd int, t Token) error

	// Send sends b, with the next Wait. There is at most one Send under way for a token; its event has Sent, and how much
	// was sent or an error number below 0 as its Result. b belongs to the backend until then, or until it has let go of
	// the descriptor after Release.
	Send(fd int, t Token, b []byte) error

	// AwaitWritable asks for one event with Writable as soon as the socket has room.
	AwaitWritable(fd int, t Token) error

	// AwaitReadable asks for one event with Readable as soon as a read would find something.
	AwaitReadable(fd int, t Token) error

	// AwaitHangUp asks for one event with Failed or HungUp, for a socket that nothing is received on.
	AwaitHangUp(fd int, t Token) error

	// Cancel ends what Receive or Accept has begun. Events that are under way still come, the last one is ECANCELED.
	Cancel(t Token)

	// Stop is Cancel that waits for the end: f is given what had come meanwhile, in order. The caller has looked at every
	// event that Wait has returned before.
	Stop(t Token, f func(*Event))

	// Release ends everything that concerns fd, and closes it when the kernel has let go of it. The peer sees the end of
	// the stream at once; with reset, which wants SO_LINGER to be 0 seconds, it sees a reset instead, with the next Wait.
	// Events that are under way carry a token that the caller has forgotten by then.
	Release(fd int, t Token, reset bool)

	// Disarm ends everything that concerns t, without closing its descriptor.
	Disarm(t Token)

	// BufferSize is the most that one event with Received brings.
	BufferSize() int

	// Bytes returns what came with an event that has Received. They are the caller's until Recycle, which must follow.
	Bytes(ev *Event) []byte

	// Recycle gives an event's bytes back.
	Recycle(ev *Event)
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

	Accepted // of a [Completer]: Result is a new connection
	Received // of a [Completer]: Result bytes have come
	Sent     // of a [Completer]: Result bytes were sent
	Emptied  // of a [Completer], with Received: nothing was left, and an error that came before goes unreported

	bufferShift = 16 // above: the id of a Completer's buffer
)

// An Event says that the descriptor registered under Token has changed, or, with Accepted or Received, what has come.
type Event struct {
	Token  Token
	Ready  Ready
	Result int32
}

// WithBuffer joins the id of a Completer's buffer to r, and Buffer returns it.
func (r Ready) WithBuffer(id uint16) Ready { return r | Ready(id)<<bufferShift }

// Buffer returns the id of the buffer that the event's bytes are in.
func (r Ready) Buffer() uint16 { return uint16(r >> bufferShift) }

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
