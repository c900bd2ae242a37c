package sys

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// Gettid returns the calling thread's id.
func Gettid() int {
	id, _, _ := syscall.RawSyscall(unix.SYS_GETTID, 0, 0, 0)
	return int(id)
}
