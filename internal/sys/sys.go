// Package sys makes every system call of the project, typed, with EINTR handled, and behind one seam through which a
// test can make any call fail, come back short or be delayed.
//
// Calls that the event path makes return (n, Errno) and not an error: an Errno is a number, so nothing is converted to
// an interface until somebody wants to print it. Errno 0 means that the call succeeded. EAGAIN is a result that callers
// must expect; EINTR never leaves this package.
//
// Calls on descriptors that are in non-blocking mode and on small buffers enter the kernel without telling the Go
// scheduler (RawSyscall): they cannot block, and the hand-shake costs more than it gives. Everything that may sleep or
// that copies much tells it.
//
// On systems other than Linux the package builds, and every call answers ENOSYS.
package sys

import (
	"syscall"
	"time"
)

// Errno is a kernel error number; 0 is success. It is an alias, so that errors.Is works with the constants of package
// syscall.
type Errno = syscall.Errno

// rawBytesMax is the largest buffer that is given to the kernel without telling the scheduler: copying it takes a few
// microseconds, for which a stop-the-world can wait.
const rawBytesMax = 64 << 10

// Sockaddr is the address of a socket, by value and without pointers for the Internet families, so that a connection
// can hold one for its lifetime at no cost to the collector.
type Sockaddr struct {
	Family uint16
	Port   uint16
	Scope  uint32 // IPv6 zone, as an interface index
	IP     [16]byte
}

// UnixAddr is the address of a socket of the family AF_UNIX. An abstract name starts with "@".
type UnixAddr string

// Sched says how a thread is scheduled: by the fair scheduler, with a nice value and a slice, or as SCHED_FIFO.
type Sched struct {
	FIFO     bool
	Priority int           // of SCHED_FIFO, 1 to 99
	Nice     int           // -20 to 19
	Slice    time.Duration // 0: the kernel's
}
