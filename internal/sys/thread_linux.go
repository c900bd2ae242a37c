package sys

import (
	"os"
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
