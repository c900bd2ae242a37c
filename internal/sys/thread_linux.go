package sys

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Gettid returns the calling thread's id.
func Gettid() int {
	id, _, _ := syscall.RawSyscall(unix.SYS_GETTID, 0, 0, 0)
	return int(id)
}

// IsFirstThread tells whether the calling thread is the one that the process began with.
func IsFirstThread() bool { return Gettid() == os.Getpid() }
