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

// Timespec is the kernel's struct __kernel_timespec, on every architecture.
type Timespec struct{ Sec, Nsec int64 }

// Set makes t a duration, which must not be below 0.
func (t *Timespec) Set(d time.Duration) {
	*t = Timespec{int64(d / time.Second), int64(d % time.Second)}
}

func (t *Timespec) duration() time.Duration {
	return time.Duration(t.Sec)*time.Second + time.Duration(t.Nsec)
}

var _ [16]byte = [unsafe.Sizeof(Timespec{})]byte{} // The kernel's ABI fixes the size.

// RingPolls is [RingWait] in Go: its spin holds the P, and so does its sleep with hold.
//
// SAFETY: arg and what it points to, ts among it, are alive and in place during the call.
func RingPolls(fd int, n, enter uint32, arg unsafe.Pointer, size uintptr, ts *Timespec, tail *uint32, head uint32, flags *uint32, spin time.Duration, hold *sys.Hold) (calls uint32, errno sys.Errno) {
	if n > 0 {
		calls++
		done, errno := sys.UringEnter(fd, n, 0, enter&^enterExtArg, nil, 0, nil)
		if errno != 0 {
			return calls, errno
		}
		n -= min(n, uint32(done))
	}
	var timeout, passed time.Duration
	if ts != nil {
		timeout = ts.duration()
		spin = min(spin, timeout)
	}
	for start := time.Now(); ; {
		for range lookRound {
			// The kernel publishes a completion by its tail.
			if atomic.LoadUint32(tail) != head {
				return calls, 0
			}
			// Deferred work makes completions only when its owner enters.
			if atomic.LoadUint32(flags)&(sqTaskrun|sqCQOverflow) != 0 {
				calls++
				if _, errno := sys.UringEnter(fd, 0, 0, enter&^enterExtArg, nil, 0, nil); errno != 0 {
					return calls, errno
				}
			}
		}
		if passed = time.Since(start); passed >= spin {
			break
		}
	}
	if ts != nil {
		ts.Set(max(0, timeout-passed))
	}
	_, errno = sys.UringEnter(fd, n, 1, enter, arg, size, hold)
	return calls + 1, errno
}
