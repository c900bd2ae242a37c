package sys

import (
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Timer makes a timer that is a descriptor, closed on exec. See timerfd_create(2).
func Timer() (int, Errno) {
	if h := hook.Load(); h != nil {
		if errno := fault(h, OpTimerfdCreate, -1); errno != 0 {
			return -1, errno
		}
	}
	fd, _, errno := syscall.Syscall(unix.SYS_TIMERFD_CREATE, unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), 0
}

// SetTimer has the timer expire once after d, whatever it was set to before; 0 is never. It never sleeps, so the scheduler is not
// told: a loop may call it.
func SetTimer(fd int, d time.Duration) Errno {
	if h := hook.Load(); h != nil {
		if errno := fault(h, OpTimerfdSettime, fd); errno != 0 {
			return errno
		}
	}
	ts := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(d))}
	// SAFETY: ts is on this stack, which a raw system call cannot move.
	_, _, errno := syscall.RawSyscall6(unix.SYS_TIMERFD_SETTIME, uintptr(fd), 0, uintptr(unsafe.Pointer(&ts)), 0, 0, 0)
	return errno
}

// WaitTimer sleeps until the timer expires, or has since the last call. It returns 0 for a signal, too.
func WaitTimer(fd int) Errno {
	if h := hook.Load(); h != nil {
		if errno := ask(h, OpRead, fd).Errno; errno != 0 {
			return eintrIsWoken(errno)
		}
	}
	var n uint64
	// SAFETY: n is alive and in place for the call. It sleeps, so the scheduler is told.
	_, _, errno := syscall.Syscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&n)), unsafe.Sizeof(n))
	return eintrIsWoken(errno)
}
