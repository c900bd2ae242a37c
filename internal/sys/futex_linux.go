package sys

import (
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Operations of futex(2), on words that one process keeps to itself.
const (
	futexWaitPrivate = 0x80
	futexWakePrivate = 0x81
)

// FutexWait sleeps while *addr is val, until [FutexWake] or until the timeout is over, for ever if it is below 0. The
// kernel compares and goes to sleep in one step: a wake that comes after *addr has changed is not lost. It returns EAGAIN
// if *addr is not val, ETIMEDOUT after the timeout, and 0 otherwise, which may be for no reason (a signal, a late wake
// of somebody's who meant an earlier sleep): look at *addr again.
func FutexWait(addr *uint32, val uint32, timeout time.Duration) Errno {
	if h := hook.Load(); h != nil {
		if errno := ask(h, OpFutex, -1).Errno; errno != 0 {
			return eintrIsWoken(errno)
		}
	}
	var ts unix.Timespec
	var at unsafe.Pointer
	if timeout >= 0 {
		ts = unix.NsecToTimespec(int64(timeout))
		at = unsafe.Pointer(&ts)
	}
	// SAFETY: addr and ts are alive and in place for the call. It sleeps, so the scheduler is told.
	_, _, errno := syscall.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(addr)), futexWaitPrivate, uintptr(val),
		uintptr(at), 0, 0)
	return eintrIsWoken(errno)
}

func eintrIsWoken(errno Errno) Errno {
	if errno == EINTR {
		return 0
	}
	return errno
}

// FutexWake wakes at most n of those that sleep on addr and returns how many it has woken. It never sleeps, so the
// scheduler is not told: a loop may call it.
func FutexWake(addr *uint32, n int) (int, Errno) {
	if h := hook.Load(); h != nil {
		if errno := fault(h, OpFutex, -1); errno != 0 {
			return 0, errno
		}
	}
	// SAFETY: addr is alive for the call. The kernel does not read what it points to.
	woken, _, errno := syscall.RawSyscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(addr)), futexWakePrivate, uintptr(n), 0, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(woken), 0
}
