package cgo

import (
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/pollux-go/pollux/internal/sys"
)

// pollRound and lookRound are how often a spin in Go looks between two readings of the clock, which are dearer than a look at memory: by
// a system call, or at memory.
const (
	pollRound = 16
	lookRound = 128
)

// EpollPolls looks for events of an epoll set again and again until there are some, for at most spin, with the P held. It
// is the spin of a hot wait, and where there is no cgo that of a cold one.
func EpollPolls(epfd int, events []sys.EpollEvent, spin time.Duration) (int, sys.Errno) {
	for start := time.Now(); ; {
		for range pollRound {
			if n, errno := sys.EpollPoll(epfd, events); n != 0 || errno != 0 {
				return n, errno
			}
		}
		if time.Since(start) >= spin {
			return 0, 0
		}
	}
}

// Bits of an enter and of a ring's flags, from linux/io_uring.h.
const (
	enterExtArg  = 1 << 3
	sqCQOverflow = 1 << 1
	sqTaskrun    = 1 << 2
)

// RingPolls is [RingWait] in Go: its spin holds the P, and so does its sleep with hold.
//
// SAFETY: arg is alive and in place during the call.
func RingPolls(fd int, n, enter uint32, arg unsafe.Pointer, size uintptr, tail *uint32, head uint32, flags *uint32, spin time.Duration, hold *sys.Hold) sys.Errno {
	if n > 0 {
		done, errno := sys.UringEnter(fd, n, 0, enter&^enterExtArg, nil, 0, nil)
		if errno != 0 {
			return errno
		}
		n -= min(n, uint32(done))
	}
	for start := time.Now(); ; {
		for range lookRound {
			// The kernel publishes a completion by its tail.
			if atomic.LoadUint32(tail) != head {
				return 0
			}
			// Deferred work makes completions only when its owner enters.
			if atomic.LoadUint32(flags)&(sqTaskrun|sqCQOverflow) != 0 {
				if _, errno := sys.UringEnter(fd, 0, 0, enter&^enterExtArg, nil, 0, nil); errno != 0 {
					return errno
				}
			}
		}
		if time.Since(start) >= spin {
			break
		}
	}
	_, errno := sys.UringEnter(fd, n, 1, enter, arg, size, hold)
	return errno
}
