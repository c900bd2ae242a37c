package sys

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Error numbers that callers decide on.
const (
	EACCES        = syscall.EACCES
	EADDRINUSE    = syscall.EADDRINUSE
	EADDRNOTAVAIL = syscall.EADDRNOTAVAIL
	EAFNOSUPPORT  = syscall.EAFNOSUPPORT
	EAGAIN        = syscall.EAGAIN
	EALREADY      = syscall.EALREADY
	EBADF         = syscall.EBADF
	EBADR         = syscall.EBADR
	ECONNABORTED  = syscall.ECONNABORTED
	ECONNREFUSED  = syscall.ECONNREFUSED
	ECONNRESET    = syscall.ECONNRESET
	EEXIST        = syscall.EEXIST
	EINPROGRESS   = syscall.EINPROGRESS
	EINTR         = syscall.EINTR
	EINVAL        = syscall.EINVAL
	EISCONN       = syscall.EISCONN
	EMFILE        = syscall.EMFILE
	ENFILE        = syscall.ENFILE
	EBUSY         = syscall.EBUSY
	ECANCELED     = syscall.ECANCELED
	ENOBUFS       = syscall.ENOBUFS
	ENODEV        = syscall.ENODEV
	ENOENT        = syscall.ENOENT
	ENOMEM        = syscall.ENOMEM
	ENOPROTOOPT   = syscall.ENOPROTOOPT
	ENOSPC        = syscall.ENOSPC
	ENOSYS        = syscall.ENOSYS
	ENOTCONN      = syscall.ENOTCONN
	ENOTSOCK      = syscall.ENOTSOCK
	ENOTTY        = syscall.ENOTTY
	ENOTSUP       = syscall.ENOTSUP
	EPERM         = syscall.EPERM
	ESRCH         = syscall.ESRCH
	EPIPE         = syscall.EPIPE
	EPROTO        = syscall.EPROTO
	ETIME         = syscall.ETIME
	ETIMEDOUT     = syscall.ETIMEDOUT
)

// base returns the address that the kernel is given for p; it accepts an empty p.
//
// SAFETY: callers use the result only in the argument list of a syscall.*Syscall* function, which keeps p alive and in
// place for the call.
func base(p []byte) unsafe.Pointer { return unsafe.Pointer(unsafe.SliceData(p)) }

// transfer runs a call that moves the bytes of p, without telling the scheduler where p is small. The descriptor must
// be in non-blocking mode.
func transfer(trap uintptr, fd int, p []byte, flags uintptr) (int, Errno) {
	for {
		var n uintptr
		var errno Errno
		// SAFETY: see base.
		if len(p) <= rawBytesMax {
			n, _, errno = syscall.RawSyscall6(trap, uintptr(fd), uintptr(base(p)), uintptr(len(p)), flags, 0, 0)
		} else {
			n, _, errno = syscall.Syscall6(trap, uintptr(fd), uintptr(base(p)), uintptr(len(p)), flags, 0, 0)
		}
		if errno == 0 {
			return int(n), 0
		}
		if errno != EINTR {
			return 0, errno
		}
	}
}

// Recv reads from a socket in non-blocking mode, by recvfrom(2). It returns 0 at the end of a stream.
func Recv(fd int, p []byte) (int, Errno) {
	if h := hook.Load(); h != nil {
		var errno Errno
		if p, errno = faultBytes(h, OpRecv, fd, p); errno != 0 {
			return 0, errno
		}
	}
	return transfer(unix.SYS_RECVFROM, fd, p, 0)
}

// Send writes to a socket in non-blocking mode, by sendto(2) with MSG_NOSIGNAL. It may take fewer bytes than len(p).
func Send(fd int, p []byte) (int, Errno) {
	if h := hook.Load(); h != nil {
		var errno Errno
		if p, errno = faultBytes(h, OpSend, fd, p); errno != 0 {
			return 0, errno
		}
	}
	return transfer(unix.SYS_SENDTO, fd, p, unix.MSG_NOSIGNAL)
}

// IovecsMax is the largest number of slices that one [Sendv] hands to the kernel. The kernel takes 1024 (IOV_MAX); so
// many fit on the stack.
const IovecsMax = 64

// Sendv writes the first [IovecsMax] slices of bufs to a socket in non-blocking mode, by sendmsg(2) with MSG_NOSIGNAL.
// It may take fewer bytes than they hold.
func Sendv(fd int, bufs [][]byte) (int, Errno) {
	most := int(^uint(0) >> 1)
	if h := hook.Load(); h != nil {
		f := askAgain(h, OpSend, fd)
		if f.Errno != 0 {
			return 0, f.Errno
		}
		if f.Short > 0 {
			most = f.Short
		}
	}
	var iov [IovecsMax]unix.Iovec
	used, total := 0, 0
	for _, b := range bufs {
		if len(b) == 0 {
			continue
		}
		if used == len(iov) || total == most {
			break
		}
		b = b[:min(len(b), most-total)]
		iov[used].Base = unsafe.SliceData(b)
		iov[used].SetLen(len(b))
		used++
		total += len(b)
	}
	if used == 0 {
		return 0, 0
	}
	msg := unix.Msghdr{Iov: &iov[0]}
	msg.SetIovlen(used)
	for {
		// SAFETY: msg and iov live on this stack, which does not move during the call; they keep the slices alive.
		n, _, errno := syscall.Syscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&msg)), unix.MSG_NOSIGNAL)
		if errno == 0 {
			return int(n), 0
		}
		if errno != EINTR {
			return 0, errno
		}
	}
}

// Read reads from any descriptor in non-blocking mode, by read(2).
func Read(fd int, p []byte) (int, Errno) {
	if h := hook.Load(); h != nil {
		var errno Errno
		if p, errno = faultBytes(h, OpRead, fd, p); errno != 0 {
			return 0, errno
		}
	}
	return transfer(unix.SYS_READ, fd, p, 0)
}

// Write writes to any descriptor in non-blocking mode, by write(2).
func Write(fd int, p []byte) (int, Errno) {
	if h := hook.Load(); h != nil {
		var errno Errno
		if p, errno = faultBytes(h, OpWrite, fd, p); errno != 0 {
			return 0, errno
		}
	}
	return transfer(unix.SYS_WRITE, fd, p, 0)
}

// Close releases fd. The number is free for reuse afterwards whatever the result: Linux releases it before it reports
// EINTR or EIO, so a close is never repeated.
func Close(fd int) Errno {
	if h := hook.Load(); h != nil {
		// An injected failure is reported the way that Linux does it: with the descriptor gone.
		if errno := ask(h, OpClose, fd).Errno; errno != 0 {
			_, _, _ = syscall.Syscall(unix.SYS_CLOSE, uintptr(fd), 0, 0)
			if errno == EINTR {
				return 0
			}
			return errno
		}
	}
	_, _, errno := syscall.Syscall(unix.SYS_CLOSE, uintptr(fd), 0, 0)
	if errno == EINTR {
		return 0
	}
	return errno
}

// fcntl runs fcntl(2).
func fcntl(fd, cmd, arg int) (int, Errno) {
	if h := hook.Load(); h != nil {
		if errno := fault(h, OpFcntl, fd); errno != 0 {
			return 0, errno
		}
	}
	n, _, errno := syscall.Syscall(unix.SYS_FCNTL, uintptr(fd), uintptr(cmd), uintptr(arg))
	return int(n), errno
}

// SetNonblock puts fd into non-blocking mode.
func SetNonblock(fd int) Errno {
	flags, errno := fcntl(fd, unix.F_GETFL, 0)
	if errno != 0 || flags&unix.O_NONBLOCK != 0 {
		return errno
	}
	_, errno = fcntl(fd, unix.F_SETFL, flags|unix.O_NONBLOCK)
	return errno
}

// Dup returns a new descriptor for the file of fd, closed on exec.
func Dup(fd int) (int, Errno) { return fcntl(fd, unix.F_DUPFD_CLOEXEC, 0) }

// SetCloexec makes fd close on exec.
func SetCloexec(fd int) Errno {
	_, errno := fcntl(fd, unix.F_SETFD, unix.FD_CLOEXEC)
	return errno
}
