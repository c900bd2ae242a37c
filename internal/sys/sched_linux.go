package sys

import (
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// GetSched returns how the thread tid is scheduled; 0 is the calling one.
func GetSched(tid int) (Sched, Errno) {
	a, err := unix.SchedGetAttr(tid, 0)
	if err != nil {
		return Sched{}, errnoOf(err)
	}
	return Sched{FIFO: a.Policy == unix.SCHED_FIFO, Priority: int(a.Priority), Nice: int(a.Nice), Slice: time.Duration(a.Runtime)}, 0
}

// SetSched changes how the thread tid is scheduled; 0 is the calling one. Kernels before 6.12 take a Slice and ignore it.
func SetSched(tid int, s Sched) Errno {
	if h := hook.Load(); h != nil {
		if errno := fault(h, OpSchedSetattr, tid); errno != 0 {
			return errno
		}
	}
	a := unix.SchedAttr{Policy: unix.SCHED_NORMAL, Nice: int32(s.Nice), Runtime: uint64(s.Slice)}
	if s.FIFO {
		a = unix.SchedAttr{Policy: unix.SCHED_FIFO, Priority: uint32(s.Priority)}
	}
	a.Size = uint32(unsafe.Sizeof(a))
	return errnoOf(unix.SchedSetAttr(tid, &a, 0))
}

// SliceOf returns how long a slice of the thread tid is; 0 is the calling one. It is 0 for one that is not scheduled as
// SCHED_OTHER, and before Linux 6.12.
func SliceOf(tid int) (time.Duration, Errno) {
	a, err := unix.SchedGetAttr(tid, 0)
	if err != nil || a.Policy != unix.SCHED_NORMAL {
		return 0, errnoOf(err)
	}
	return time.Duration(a.Runtime), 0
}

// SetSlice changes the slice of a thread that is scheduled as SCHED_OTHER, and nothing else; 0 is the kernel's own.
func SetSlice(tid int, d time.Duration) Errno {
	if h := hook.Load(); h != nil {
		if errno := fault(h, OpSchedSetattr, tid); errno != 0 {
			return errno
		}
	}
	a, err := unix.SchedGetAttr(tid, 0)
	if err != nil {
		return errnoOf(err)
	}
	if a.Policy != unix.SCHED_NORMAL {
		return EINVAL
	}
	a.Size, a.Runtime = uint32(unsafe.Sizeof(*a)), uint64(d)
	return errnoOf(unix.SchedSetAttr(tid, a, 0))
}

// AffinityOf returns the CPUs that the thread tid may run on, in ascending order; 0 is the calling one.
func AffinityOf(tid int) ([]int, Errno) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(tid, &set); err != nil {
		return nil, errnoOf(err)
	}
	var cpus []int
	for cpu := range len(set) * 64 {
		if set.IsSet(cpu) {
			cpus = append(cpus, cpu)
		}
	}
	return cpus, 0
}

// SetAffinity confines the thread tid to the CPUs; 0 is the calling one. EINVAL says that it may run on none of them.
func SetAffinity(tid int, cpus []int) Errno {
	if h := hook.Load(); h != nil {
		if errno := fault(h, OpSchedSetaffinity, tid); errno != 0 {
			return errno
		}
	}
	var set unix.CPUSet
	for _, cpu := range cpus {
		set.Set(cpu)
	}
	return errnoOf(unix.SchedSetaffinity(tid, &set))
}

// SetThreadName names the calling thread, in at most 15 bytes, as ps and top show it.
func SetThreadName(name string) Errno {
	b := make([]byte, 16)
	copy(b[:15], name)
	// SAFETY: the kernel copies 16 bytes during the call, for which b is kept alive.
	_, _, errno := syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_NAME, uintptr(unsafe.Pointer(&b[0])), 0, 0, 0, 0)
	runtime.KeepAlive(b)
	return errno
}

// SetTimerSlack says how much later than asked for, in nanoseconds, the kernel may end the sleeps of the calling thread.
// It is 50,000 where nobody has said. A thread of a realtime policy has none.
func SetTimerSlack(ns int) Errno {
	_, _, errno := syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_TIMERSLACK, uintptr(ns), 0, 0, 0, 0)
	return errno
}

// CPUsMax is how many CPUs a mask has room for.
const CPUsMax = len(unix.CPUSet{}) * 64
