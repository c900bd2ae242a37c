package sys

import (
	"errors"
	"syscall"
	"unsafe"

	iouring "github.com/iceber/iouring-go/syscall"
	"golang.org/x/sys/unix"
)

// UringParams is the kernel's struct io_uring_params.
type UringParams = iouring.IOURingParams

// UringSetup makes an io_uring with room for entries submissions, by io_uring_setup(2). The kernel fills p.
func UringSetup(entries uint32, p *UringParams) (int, Errno) {
	if h := hook.Load(); h != nil {
		if errno := fault(h, OpUringSetup, -1); errno != 0 {
			return -1, errno
		}
	}
	fd, err := iouring.IOURingSetup(uint(entries), p)
	if err != nil {
		return -1, errnoOf(err)
	}
	return fd, 0
}

// UringRegister runs io_uring_register(2). fd may be -1 for what needs no ring.
//
// SAFETY: arg points to memory of the kind that the operation wants, for n of them; it is used during the call only.
func UringRegister(fd int, op uint8, arg unsafe.Pointer, n uint32) Errno {
	if h := hook.Load(); h != nil {
		if errno := fault(h, OpUringRegister, fd); errno != 0 {
			return errno
		}
	}
	return errnoOf(iouring.IOURingRegister(fd, op, arg, n))
}

// errnoOf digs the error number out of what the library returns.
func errnoOf(err error) Errno {
	if err == nil {
		return 0
	}
	var errno Errno
	if errors.As(err, &errno) {
		return errno
	}
	return EINVAL
}

// UringEnter submits n entries and, with IORING_ENTER_GETEVENTS, waits for wait completions, by io_uring_enter(2). arg is
// what the flags say. It tells the scheduler only if it may sleep. EINTR is returned: only the caller knows what was
// submitted. With hold, the scheduler is not told of a sleep either: see [Hold].
//
// SAFETY: arg is alive and in place during the call.
func UringEnter(fd int, n, wait, flags uint32, arg unsafe.Pointer, size uintptr, hold *Hold) (int, Errno) {
	if h := hook.Load(); h != nil {
		if f := ask(h, OpUringEnter, fd); f.Errno != 0 {
			return 0, f.Errno
		}
	}
	var done uintptr
	var errno Errno
	if wait == 0 || hold != nil {
		done, _, errno = syscall.RawSyscall6(iouring.SYS_IO_URING_ENTER, uintptr(fd), uintptr(n), uintptr(wait), uintptr(flags), uintptr(arg), size)
		if hold != nil {
			hold.tell(errno)
		}
	} else {
		done, _, errno = syscall.Syscall6(iouring.SYS_IO_URING_ENTER, uintptr(fd), uintptr(n), uintptr(wait), uintptr(flags), uintptr(arg), size)
	}
	if errno != 0 {
		return 0, errno
	}
	return int(done), 0
}

// MapRing maps length bytes of a ring's memory at an offset that its set-up has told, shared with the kernel. A fork does
// not get it: two processes would work on one ring.
func MapRing(fd int, offset int64, length int) ([]byte, Errno) {
	b, errno := mmap(fd, offset, length, unix.MAP_SHARED|unix.MAP_POPULATE)
	if errno == 0 {
		_ = unix.Madvise(b, unix.MADV_DONTFORK)
	}
	return b, errno
}

// MapMemory maps length bytes of zeroed memory that Go's collector neither moves, scans nor frees, and that a fork does
// not copy.
func MapMemory(length int) ([]byte, Errno) {
	b, errno := mmap(-1, 0, length, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if errno == 0 {
		_ = unix.Madvise(b, unix.MADV_DONTFORK)
	}
	return b, errno
}

func mmap(fd int, offset int64, length, flags int) ([]byte, Errno) {
	if h := hook.Load(); h != nil {
		if errno := fault(h, OpMmap, fd); errno != 0 {
			return nil, errno
		}
	}
	b, err := unix.Mmap(fd, offset, length, unix.PROT_READ|unix.PROT_WRITE, flags)
	return b, errnoOf(err)
}

// Unmap ends a mapping of MapRing or MapMemory.
func Unmap(b []byte) Errno { return errnoOf(unix.Munmap(b)) }
