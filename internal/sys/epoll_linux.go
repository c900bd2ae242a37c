package sys

import (
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// EpollEvent is the kernel's struct epoll_event: a mask and 64 bits of the caller's, here as two halves because the
// structure is packed on amd64.
type EpollEvent = unix.EpollEvent

// Bits of an epoll mask, and the operations of [EpollCtl].
const (
	EPOLLIN    = unix.EPOLLIN
	EPOLLPRI   = unix.EPOLLPRI
	EPOLLOUT   = unix.EPOLLOUT
	EPOLLERR   = unix.EPOLLERR
	EPOLLHUP   = unix.EPOLLHUP
	EPOLLRDHUP = unix.EPOLLRDHUP
	EPOLLET    = unix.EPOLLET & 0xffffffff

	EpollAdd = unix.EPOLL_CTL_ADD
	EpollDel = unix.EPOLL_CTL_DEL
)

// EpollCreate makes an epoll instance that is closed on exec.
func EpollCreate() (int, Errno) {
	if h := hook.Load(); h != nil {
		if errno := fault(h, OpEpollCreate, -1); errno != 0 {
			return -1, errno
		}
	}
	fd, _, errno := syscall.Syscall(unix.SYS_EPOLL_CREATE1, unix.EPOLL_CLOEXEC, 0, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), 0
}

// EpollCtl changes the interest list of epfd. data comes back in the events of fd.
func EpollCtl(epfd, op, fd int, mask uint32, data uint64) Errno {
	if h := hook.Load(); h != nil {
		if errno := fault(h, OpEpollCtl, fd); errno != 0 {
			return errno
		}
	}
	ev := EpollEvent{Events: mask, Fd: int32(uint32(data)), Pad: int32(uint32(data >> 32))}
	// SAFETY: ev is on this stack, which a raw system call cannot move.
	_, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(epfd), uintptr(op), uintptr(fd),
		uintptr(unsafe.Pointer(&ev)), 0, 0)
	return errno
}

// EpollData returns the 64 bits that [EpollCtl] stored for the event's descriptor.
func EpollData(ev *EpollEvent) uint64 { return uint64(uint32(ev.Fd)) | uint64(uint32(ev.Pad))<<32 }

// EpollPoll fetches what is ready without waiting. events must not be empty.
func EpollPoll(epfd int, events []EpollEvent) (int, Errno) {
	if h := hook.Load(); h != nil {
		if errno := fault(h, OpEpollWait, epfd); errno != 0 {
			return 0, errno
		}
	}
	for {
		// SAFETY: events is alive and in place for the call; it holds no pointers.
		n, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epfd),
			uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), 0, 0, 0)
		if errno == 0 {
			return int(n), 0
		}
		if errno != EINTR {
			return 0, errno
		}
	}
}

// EpollWait waits for events until the timeout is over, for ever if it is below 0, by epoll_pwait2(2) with nanoseconds.
// It returns ENOSYS on kernels before 5.11; [EpollWaitMillis] serves those. A signal ends the wait early, with 0 events
// and no error: only the caller knows what is left of its deadline. events must not be empty.
//
// With hold, Go's scheduler is not told, and the goroutine keeps its P: see [Hold].
func EpollWait(epfd int, events []EpollEvent, timeout time.Duration, hold *Hold) (int, Errno) {
	if h := hook.Load(); h != nil {
		if errno := ask(h, OpEpollWait, epfd).Errno; errno != 0 {
			return eintrIsEmpty(0, errno)
		}
	}
	var ts unix.Timespec
	var at unsafe.Pointer
	if timeout >= 0 {
		ts = unix.NsecToTimespec(int64(timeout))
		at = unsafe.Pointer(&ts)
	}
	// SAFETY: events is alive and in place for the call, and so is ts, on this stack.
	var n uintptr
	var errno Errno
	if hold != nil {
		n, _, errno = syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT2, uintptr(epfd),
			uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), uintptr(at), 0, 0)
		hold.tell(errno)
	} else {
		n, _, errno = syscall.Syscall6(unix.SYS_EPOLL_PWAIT2, uintptr(epfd),
			uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), uintptr(at), 0, 0)
	}
	return eintrIsEmpty(int(n), errno)
}

// EpollWaitMillis is [EpollWait] by epoll_pwait(2), which counts in milliseconds: the timeout is rounded up, so that a
// wait never ends before its time.
func EpollWaitMillis(epfd int, events []EpollEvent, timeout time.Duration, hold *Hold) (int, Errno) {
	if h := hook.Load(); h != nil {
		if errno := ask(h, OpEpollWait, epfd).Errno; errno != 0 {
			return eintrIsEmpty(0, errno)
		}
	}
	millis := -1
	if timeout >= 0 {
		// The limit comes first: rounding the longest timeouts up would overflow.
		millis = int((min(timeout, 1e9*time.Millisecond) + time.Millisecond - 1) / time.Millisecond)
	}
	// SAFETY: events is alive and in place for the call.
	var n uintptr
	var errno Errno
	if hold != nil {
		n, _, errno = syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epfd),
			uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), uintptr(millis), 0, 0)
		hold.tell(errno)
	} else {
		n, _, errno = syscall.Syscall6(unix.SYS_EPOLL_PWAIT, uintptr(epfd),
			uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), uintptr(millis), 0, 0)
	}
	return eintrIsEmpty(int(n), errno)
}

func eintrIsEmpty(n int, errno Errno) (int, Errno) {
	switch errno {
	case 0:
		return n, 0
	case EINTR:
		return 0, 0
	}
	return 0, errno
}

// epollParams is struct epoll_params of the kernel's include/uapi/linux/eventpoll.h.
type epollParams struct {
	usecs  uint32
	budget uint16
	prefer uint8
	_      uint8
}

// setEpollParams is EPIOCSPARAMS, _IOW(0x8a, 1, struct epoll_params).
const setEpollParams = 0x40088a01

// EpollBusyPoll has waits on the set look at the queues of the network cards that its sockets receive from, for usecs microseconds,
// before they sleep; 0 is never. Since Linux 6.9, ENOTTY before.
func EpollBusyPoll(epfd int, usecs uint32) Errno {
	if h := hook.Load(); h != nil {
		if errno := fault(h, OpIoctl, epfd); errno != 0 {
			return errno
		}
	}
	p := epollParams{usecs: usecs, budget: 8, prefer: 1} // The default budget: more needs CAP_NET_ADMIN.
	// SAFETY: p is on this stack, which a raw system call cannot move.
	_, _, errno := syscall.RawSyscall(unix.SYS_IOCTL, uintptr(epfd), setEpollParams, uintptr(unsafe.Pointer(&p)))
	return errno
}

// Eventfd makes an event counter that is closed on exec and does not block.
func Eventfd() (int, Errno) {
	if h := hook.Load(); h != nil {
		if errno := fault(h, OpEventfd, -1); errno != 0 {
			return -1, errno
		}
	}
	fd, _, errno := syscall.Syscall(unix.SYS_EVENTFD2, 0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), 0
}
