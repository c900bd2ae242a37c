package pollux

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/pollux-go/pollux/internal/sys"
)

// Errors that callers decide on. Compare with errors.Is.
var (
	// ErrClosed is returned by operations on a closed connection, listener or engine. It is a net.ErrClosed.
	ErrClosed = fmt.Errorf("pollux: %w", net.ErrClosed)

	// ErrWouldBlock is returned by Write when the queue is at its limit, and by Read when nothing is buffered.
	ErrWouldBlock = errors.New("pollux: the operation would block")

	// ErrIdleTimeout is given to OnClose when nothing was read or written for the idle timeout. It is an
	// os.ErrDeadlineExceeded.
	ErrIdleTimeout = fmt.Errorf("pollux: idle timeout: %w", os.ErrDeadlineExceeded)

	// ErrLinger is given to OnClose when queued bytes could not be sent within the linger time after a Close. It is an
	// os.ErrDeadlineExceeded.
	ErrLinger = fmt.Errorf("pollux: linger timeout with bytes unsent: %w", os.ErrDeadlineExceeded)

	// ErrReadLimit is given to OnClose when a handler left more bytes unread than Config.ReadLimit allows.
	ErrReadLimit = errors.New("pollux: the handler left more unread than the read limit")

	// ErrDetached is given to OnClose after Detach.
	ErrDetached = errors.New("pollux: the connection was detached")

	// ErrShutdown is given to OnClose when a shutdown ran out of time, or when the engine was closed. It is an ErrClosed.
	ErrShutdown = fmt.Errorf("pollux: shut down: %w", net.ErrClosed)

	// ErrGoexit is given to OnClose of the connection whose handler has called runtime.Goexit, as t.FailNow does.
	ErrGoexit = errors.New("pollux: a handler has called runtime.Goexit")

	// ErrInHandler is returned by calls that would wait for the event loop that makes them.
	ErrInHandler = errors.New("pollux: the call waits for an event loop and was made by a handler on one: make it from another goroutine")

	// ErrNotInCallback is returned by calls that only a callback of the connection may make.
	ErrNotInCallback = errors.New("pollux: the call is allowed only inside a callback of the connection")
)

// A PanicError is given to OnClose of the connection whose handler has panicked.
type PanicError struct {
	Value any    // what was given to panic
	Stack []byte // of the handler, as runtime/debug.Stack prints it
}

// Error returns the value of the panic, without the stack.
func (e *PanicError) Error() string { return fmt.Sprintf("pollux: a handler panicked: %v", e.Value) }

// Unwrap returns the value of the panic if it is an error.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

// explainDirect says why nothing is accepted where every table of direct descriptors is full.
func explainDirect(most int) error {
	return fmt.Errorf("accept a connection: %w: every loop has %d connections, as DirectDescriptors allows (POLLUX_DIRECT)", sys.ENFILE, most)
}

// explain turns an error number of a set-up call into a sentence with its likely cause.
func explain(what string, errno sys.Errno) error {
	cause := ""
	switch errno {
	case sys.EMFILE:
		cause = ": the process has as many files open as RLIMIT_NOFILE allows (ulimit -n)"
	case sys.ENFILE:
		cause = ": the system has as many files open as fs.file-max allows"
	case sys.ENOMEM:
		cause = ": the kernel is out of memory, or the control group is"
	case sys.EPERM, sys.EACCES:
		cause = ": a security policy refuses it (seccomp, as in containers?)"
	case sys.ENOSYS:
		cause = ": the kernel does not have the call, or a sandbox hides it"
	default:
		return fmt.Errorf("%s: %w", what, errno)
	}
	return fmt.Errorf("%s: %w%s", what, errno, cause)
}
