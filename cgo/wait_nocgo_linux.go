//go:build !cgo

package cgo

import (
	"time"
	"unsafe"

	"github.com/pollux-go/pollux/internal/sys"
)

// Spins tells whether a cold wait can spin without holding a P. In Go it cannot.
const Spins = false

// EpollWait looks for events of an epoll set for at most spin, and then sleeps until there are some, for at most the timeout
// if that is not below 0. The P serves others only during the sleep. A signal ends it early, with 0 events and no error. It
// returns ENOSYS on kernels before 5.11. events must not be empty.
func EpollWait(epfd int, events []sys.EpollEvent, spin, timeout time.Duration) (int, sys.Errno) {
	if timeout >= 0 {
		spin = min(spin, timeout)
	}
	if spin > 0 {
		if n, errno := EpollPolls(epfd, events, spin); n != 0 || errno != 0 {
			return n, errno
		}
		if timeout >= 0 {
			timeout -= spin
		}
	}
	return sys.EpollWait(epfd, events, timeout, nil)
}

// RingWait submits n entries of an io_uring and waits for a completion: it looks at the ring's memory for at most spin, at no
// system call, and then sleeps as [sys.UringEnter] does. The P serves others only during the sleep. ts is the timeout that
// arg points to, if there is one; it holds for both together, and what the spin has used is taken from it. tail and flags are
// in the ring's mapped memory, head is what was reaped. It returns how often it has entered the kernel, and EINTR too.
//
// SAFETY: arg and what it points to, ts among it, are alive and in place during the call.
func RingWait(fd int, n, enter uint32, arg unsafe.Pointer, size uintptr, ts *Timespec, tail *uint32, head uint32, flags *uint32, spin time.Duration) (calls uint32, errno sys.Errno) {
	return RingPolls(fd, n, enter, arg, size, ts, tail, head, flags, spin, nil)
}
