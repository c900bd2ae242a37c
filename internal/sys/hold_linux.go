package sys

import (
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// tell is told how a wait has ended. Neither it nor what it calls can be preempted.
//
//go:nosplit
func (h *Hold) tell(errno Errno) {
	if errno == EINTR || preemptAsked() {
		h.Asks++
		h.Ask()
	}
}

// Ask is for who gives the P up of its own accord, before it does, and does what the end of a wait does for which the runtime has asked:
// it counts Asked up and wakes who sleeps on it. Without Asked it does nothing. Neither it nor what it calls can be preempted.
//
//go:nosplit
func (h *Hold) Ask() {
	if h.Asked == nil {
		return
	}
	atomic.AddUint32(h.Asked, 1)
	// SAFETY: the word outlives the wait. The kernel does not read what it points to.
	_, _, _ = syscall.RawSyscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(h.Asked)), futexWakePrivate, 1, 0, 0, 0)
}
