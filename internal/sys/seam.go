package sys

import "sync/atomic"

// Op names a kind of system call to a [Hook].
type Op uint8

// The kinds of calls that a [Hook] is asked about.
const (
	OpAccept Op = iota
	OpBind
	OpChmod
	OpClockGettime
	OpClose
	OpConnect
	OpEpollCreate
	OpEpollCtl
	OpEpollWait
	OpEventfd
	OpFcntl
	OpFutex
	OpGetpeername
	OpGetrusage
	OpGetsockname
	OpGetsockopt
	OpIoctl
	OpListen
	OpLstat
	OpMmap
	OpOpen
	OpRead
	OpRecv
	OpSchedSetaffinity
	OpSchedSetattr
	OpSend
	OpSetsockopt
	OpShutdown
	OpSocket
	OpUnlink
	OpUringEnter
	OpUringRegister
	OpUringSetup
	OpWrite
	opCount
)

// Ops is the number of kinds of calls: every Op is below it.
const Ops = int(opCount)

var opNames = [opCount]string{
	"accept4", "bind", "chmod", "clock_gettime", "close", "connect", "epoll_create1", "epoll_ctl", "epoll_wait", "eventfd2", "fcntl",
	"futex", "getpeername", "getrusage", "getsockname", "getsockopt", "ioctl", "listen", "lstat", "mmap", "openat", "read", "recvfrom", "sched_setaffinity",
	"sched_setattr", "sendto", "setsockopt", "shutdown", "socket", "unlink", "io_uring_enter", "io_uring_register",
	"io_uring_setup", "write",
}

// String returns the kernel's name of the call, as os.SyscallError wants it.
func (op Op) String() string {
	if op < opCount {
		return opNames[op]
	}
	return "unknown"
}

// A Fault says what happens to one call instead of, or before, the kernel's answer. The zero Fault changes nothing.
type Fault struct {
	Errno  Errno  // not 0: the call fails with it and never reaches the kernel; EINTR is handled as the kernel's is
	Short  int    // above 0: the kernel is offered at most so many bytes
	Before func() // not nil: runs first, to delay the call or to hold a race window open
}

// A Hook is asked before every call. It runs on the calling goroutine, from any number of them at once.
type Hook func(op Op, fd int) Fault

// hook is nil outside of tests. One load of a global that nobody writes, and one branch that is never taken, is all
// that the seam costs then (BenchmarkSeam).
var hook atomic.Pointer[Hook]

// Inject makes h decide about every call of the process until restore is called. Injections do not nest.
func Inject(h Hook) (restore func()) {
	if !hook.CompareAndSwap(nil, &h) {
		panic("sys: a fault hook is installed already")
	}
	return func() { hook.Store(nil) }
}

// ask asks the hook about one call, and lets it run what comes first.
func ask(h *Hook, op Op, fd int) Fault {
	f := (*h)(op, fd)
	if f.Before != nil {
		f.Before()
	}
	return f
}

// askAgain is ask for calls that are made again when a signal interrupts them: an injected EINTR is met as the kernel's
// is, so the hook is asked again.
func askAgain(h *Hook, op Op, fd int) Fault {
	for {
		if f := ask(h, op, fd); f.Errno != EINTR {
			return f
		}
	}
}

// fault asks the hook about a call without a buffer.
func fault(h *Hook, op Op, fd int) Errno { return askAgain(h, op, fd).Errno }

// faultBytes asks the hook about a call that moves bytes, and shortens p as it says.
func faultBytes(h *Hook, op Op, fd int, p []byte) ([]byte, Errno) {
	f := askAgain(h, op, fd)
	if f.Short > 0 && f.Short < len(p) {
		p = p[:f.Short]
	}
	return p, f.Errno
}

// Injected asks the hook about a call that is not made here, because C makes it. It returns what the call is to fail with;
// EINTR is the caller's to handle.
func Injected(op Op, fd int) Errno {
	if h := hook.Load(); h != nil {
		return ask(h, op, fd).Errno
	}
	return 0
}
