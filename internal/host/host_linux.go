// Package host tells what the machine and the sandbox that the process runs in allow it: kernel, limits, seccomp, CPUs
// and their quota. Everything is read anew by each call, from the kernel and from /proc and /sys; nothing is changed.
//
// What cannot be read is missing from the answer, and no error: a sandbox that hides /proc is a host too.
package host

import (
	"strconv"

	"github.com/pollux-go/pollux/internal/sys"
)

// Kernel returns the kernel's release, as 6.18.44-generic, and the machine, as x86_64.
func Kernel() (release, machine string) {
	release, machine, _ = sys.Uname()
	return release, machine
}

// Version returns the first two numbers of the kernel's release.
func Version() (major, minor int) {
	release, _ := Kernel()
	return ParseVersion(release)
}

// Seccomp returns "off", "strict" or "filter", as the calling thread is confined, or "" if that cannot be read.
func Seccomp() string {
	switch field(read("/proc/thread-self/status"), "Seccomp") {
	case "0":
		return "off"
	case "1":
		return "strict"
	case "2":
		return "filter"
	}
	return ""
}

// NoNewPrivs tells whether the thread can gain no privileges, which is how unprivileged sandboxes begin.
func NoNewPrivs() bool { return field(read("/proc/thread-self/status"), "NoNewPrivs") == "1" }

// MayLockMemory tells whether the thread has CAP_IPC_LOCK, so that RLIMIT_MEMLOCK does not count for it.
func MayLockMemory() bool {
	const ipcLock = 14
	caps, err := strconv.ParseUint(field(read("/proc/thread-self/status"), "CapEff"), 16, 64)
	return err == nil && caps&(1<<ipcLock) != 0
}

// UringDisabled returns kernel.io_uring_disabled: "0", "1" or "2", or "" on kernels before 6.6 and where it is hidden.
func UringDisabled() string { return read("/proc/sys/kernel/io_uring_disabled") }

// Somaxconn returns net.core.somaxconn, or "".
func Somaxconn() string { return read("/proc/sys/net/core/somaxconn") }

// Limit is a resource limit, in the resource's unit.
type Limit struct {
	Soft, Hard         uint64
	SoftNone, HardNone bool // there is no limit
	Known              bool
}

// Memlock returns RLIMIT_MEMLOCK, in bytes.
func Memlock() Limit { return limit(sys.RLIMIT_MEMLOCK) }

// Nofile returns RLIMIT_NOFILE. The soft one is what Go's runtime has raised it to.
func Nofile() Limit { return limit(sys.RLIMIT_NOFILE) }

func limit(resource int) Limit {
	soft, hard, errno := sys.Rlimit(resource)
	return Limit{soft, hard, soft == sys.RLIM_INFINITY, hard == sys.RLIM_INFINITY, errno == 0}
}
