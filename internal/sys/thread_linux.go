package sys

import (
	"bytes"
	"os"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Gettid returns the calling thread's id.
func Gettid() int {
	id, _, _ := syscall.RawSyscall(unix.SYS_GETTID, 0, 0, 0)
	return int(id)
}

// CPU returns the number of the CPU that the caller runs on, which it may leave at any time; -1 if the kernel does not tell.
func CPU() int {
	var cpu uint32
	// SAFETY: the kernel writes 4 bytes during the call.
	if _, _, errno := syscall.RawSyscall(unix.SYS_GETCPU, uintptr(unsafe.Pointer(&cpu)), 0, 0); errno != 0 {
		return -1
	}
	return int(cpu)
}

// IsFirstThread tells whether the calling thread is the one that the process began with.
func IsFirstThread() bool { return Gettid() == os.Getpid() }

// cpuClock returns the number of the clock of a thread's CPU time; 0 is the calling one's. See include/linux/posix-timers_types.h.
func cpuClock(tid int) uintptr {
	const perThread, sched = 4, 2
	return uintptr(uint32(^tid<<3 | perThread | sched))
}

// CPUTime returns for how many nanoseconds the thread tid of this process has had a CPU; 0 is the calling one. The kernel
// counts them exactly, unlike those of getrusage, which may miss what came after the last tick.
func CPUTime(tid int) (int64, Errno) {
	if h := hook.Load(); h != nil {
		if errno := fault(h, OpClockGettime, tid); errno != 0 {
			return 0, errno
		}
	}
	var t unix.Timespec
	// SAFETY: the kernel writes a timespec during the call.
	_, _, errno := syscall.RawSyscall(unix.SYS_CLOCK_GETTIME, cpuClock(tid), uintptr(unsafe.Pointer(&t)), 0)
	return t.Nano(), errno
}

// Waits returns how often the calling thread has given up its CPU by itself, to wait for something.
func Waits() (int64, Errno) {
	if h := hook.Load(); h != nil {
		if errno := fault(h, OpGetrusage, 0); errno != 0 {
			return 0, errno
		}
	}
	var u unix.Rusage
	const thread = 1 // RUSAGE_THREAD, include/uapi/linux/resource.h.
	// SAFETY: the kernel writes a rusage during the call.
	_, _, errno := syscall.RawSyscall(unix.SYS_GETRUSAGE, thread, uintptr(unsafe.Pointer(&u)), 0)
	return int64(u.Nvcsw), errno
}

// IsRunnable tells whether the thread tid of this process runs, or would if it had a CPU. It reads /proc.
func IsRunnable(tid int) (bool, Errno) {
	if h := hook.Load(); h != nil {
		if errno := fault(h, OpOpen, tid); errno != 0 {
			return false, errno
		}
	}
	fd, err := unix.Open("/proc/self/task/"+strconv.Itoa(tid)+"/stat", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, errnoOf(err)
	}
	defer unix.Close(fd)
	var b [128]byte // Of which a name in parentheses takes 15 at most.
	n, err := unix.Read(fd, b[:])
	if err != nil {
		return false, errnoOf(err)
	}
	_, state, ok := bytes.Cut(b[max(0, bytes.LastIndexByte(b[:n], ')')):n], []byte(") "))
	if !ok || len(state) == 0 {
		return false, EINVAL
	}
	return state[0] == 'R', 0
}
