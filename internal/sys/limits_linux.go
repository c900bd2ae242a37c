package sys

import (
	"golang.org/x/sys/unix"
)

// Resources that [Rlimit] knows.
const (
	RLIMIT_MEMLOCK = unix.RLIMIT_MEMLOCK
	RLIMIT_NOFILE  = unix.RLIMIT_NOFILE

	// RLIM_INFINITY says that there is no limit.
	RLIM_INFINITY = ^uint64(0)
)

// Rlimit returns the limits of the process for a resource.
func Rlimit(resource int) (soft, hard uint64, errno Errno) {
	var l unix.Rlimit
	if err := unix.Getrlimit(resource, &l); err != nil {
		return 0, 0, errnoOf(err)
	}
	return l.Cur, l.Max, 0
}

// Uname returns the kernel's release, as 6.18.44-generic, and the machine, as x86_64.
func Uname() (release, machine string, errno Errno) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", "", errnoOf(err)
	}
	return unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Machine[:]), 0
}

// Affinity returns the CPUs that the calling thread may run on, in ascending order.
func Affinity() ([]int, Errno) { return AffinityOf(0) }
