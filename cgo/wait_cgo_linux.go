//go:build cgo

package cgo

/*
#cgo noescape pollux_epoll_spin
#cgo nocallback pollux_epoll_spin
#cgo noescape pollux_ring_spin
#cgo nocallback pollux_ring_spin

#include "wait.h"
*/
import "C"

import (
	"time"
	"unsafe"

	"github.com/pollux-go/pollux/internal/sys"
)

// Spins tells whether a cold wait can spin without holding a P: it does so in C.
const Spins = true

// What both sides declare is the same on both. In Go, the data of an event are two halves.
var (
	_ [C.POLLUX_EPOLL_EVENT_SIZE]byte      = [unsafe.Sizeof(sys.EpollEvent{})]byte{}
	_ [C.POLLUX_EPOLL_EVENT_EVENTS]byte    = [unsafe.Offsetof(sys.EpollEvent{}.Events)]byte{}
	_ [C.POLLUX_EPOLL_EVENT_DATA]byte      = [unsafe.Offsetof(sys.EpollEvent{}.Fd)]byte{}
	_ [C.POLLUX_EPOLL_EVENT_DATA + 4]byte  = [unsafe.Offsetof(sys.EpollEvent{}.Pad)]byte{}
	_ [C.POLLUX_EPOLL_EVENT_DATA_SIZE]byte = [unsafe.Sizeof(sys.EpollEvent{}.Fd) + unsafe.Sizeof(sys.EpollEvent{}.Pad)]byte{}

	_ [C.POLLUX_TIMESPEC_SIZE]byte = [unsafe.Sizeof(Timespec{})]byte{}
	_ [C.POLLUX_TIMESPEC_SEC]byte  = [unsafe.Offsetof(Timespec{}.Sec)]byte{}
	_ [C.POLLUX_TIMESPEC_NSEC]byte = [unsafe.Offsetof(Timespec{}.Nsec)]byte{}
)

// EpollWait looks for events of an epoll set for at most spin, and then sleeps until there are some, for at most the timeout
// if that is not below 0; all in one call, during which the P serves others. A signal ends it early, with 0 events and no
// error. It returns ENOSYS on kernels before 5.11. events must not be empty, and lie in memory that Go does not move.
func EpollWait(epfd int, events []sys.EpollEvent, spin, timeout time.Duration) (int, sys.Errno) {
	if errno := sys.Injected(sys.OpEpollWait, epfd); errno != 0 {
		if errno == sys.EINTR {
			return 0, 0
		}
		return 0, errno
	}
	// SAFETY: the kernel writes len(events) events at most, during the call; an address as a number needs no pointer check,
	// and C keeps none.
	n := C.pollux_epoll_spin(C.int(epfd), C.uintptr_t(uintptr(unsafe.Pointer(unsafe.SliceData(events)))), C.int(len(events)),
		C.int64_t(spin), C.int64_t(timeout))
	switch {
	case n >= 0:
		return int(n), 0
	case sys.Errno(-n) == sys.EINTR:
		return 0, 0
	}
	return 0, sys.Errno(-n)
}

// RingWait submits n entries of an io_uring and waits for a completion: it looks at the ring's memory for at most spin, at no
// system call, and then sleeps as [sys.UringEnter] does; all in one call, during which the P serves others. ts is the timeout
// that arg points to, if there is one; it holds for both together, and what the spin has used is taken from it. tail and flags
// are in the ring's mapped memory, head is what was reaped. It returns how often it has entered the kernel, and EINTR too.
//
// SAFETY: arg and what it points to, ts among it, are alive and in place during the call.
func RingWait(fd int, n, enter uint32, arg unsafe.Pointer, size uintptr, ts *Timespec, tail *uint32, head uint32, flags *uint32, spin time.Duration) (calls uint32, errno sys.Errno) {
	if errno := sys.Injected(sys.OpUringEnter, fd); errno != 0 {
		return 1, errno
	}
	e := C.pollux_ring_spin(C.int(fd), C.uint32_t(n), C.uint32_t(enter), C.uintptr_t(uintptr(arg)), C.size_t(size),
		C.uintptr_t(uintptr(unsafe.Pointer(ts))), C.uintptr_t(uintptr(unsafe.Pointer(tail))), C.uint32_t(head), C.uintptr_t(uintptr(unsafe.Pointer(flags))),
		C.int64_t(spin))
	return uint32(e.calls), sys.Errno(e.error)
}
