package uring

import (
	"errors"
	"fmt"

	"github.com/pollux-go/pollux/internal/host"
	"github.com/pollux-go/pollux/internal/sys"
)

// Explain adds to an error of a ring's set-up or first use what is likely to be behind it, and what helps. The error it
// returns wraps err; one without a known error number is returned as it is.
func Explain(err error) error {
	var errno sys.Errno
	if !errors.As(err, &errno) {
		return err
	}
	release, _ := host.Kernel()
	if cause := explanation(errno, surroundings{release, host.UringDisabled(), host.Seccomp(), memlock()}); cause != "" {
		return fmt.Errorf("%w: %s", err, cause)
	}
	return err
}

// profile is how to get around a filter.
const profile = "Docker's and containerd's default profiles, and so Kubernetes' RuntimeDefault, refuse io_uring: allow " +
	"io_uring_setup, io_uring_enter and io_uring_register in a profile of your own (docker run --security-opt " +
	"seccomp=FILE, securityContext.seccompProfile), or set POLLUX_BACKEND=epoll"

// surroundings are what a refusal may come from.
type surroundings struct {
	release  string
	disabled string // kernel.io_uring_disabled
	seccomp  string // off, strict, filter or not known
	memlock  string
}

func explanation(errno sys.Errno, here surroundings) string {
	switch errno {
	case sys.EPERM, sys.EACCES:
		switch here.disabled {
		case "1":
			return "kernel.io_uring_disabled is 1, so that only CAP_SYS_ADMIN and the group kernel.io_uring_group may use " +
				"io_uring: sysctl kernel.io_uring_disabled=0, or join the group"
		case "2":
			return "kernel.io_uring_disabled is 2, so that nobody may use io_uring: sysctl kernel.io_uring_disabled=0"
		}
		if here.seccomp == "off" {
			return "a security module (SELinux, AppArmor) refuses it: allow io_uring there, or set POLLUX_BACKEND=epoll"
		}
		return "a seccomp filter refuses it. " + profile
	case sys.ENOSYS:
		if here.seccomp == "filter" {
			return "the kernel, Linux " + here.release + ", has no io_uring (it came with 5.1), or a seccomp filter hides it. " + profile
		}
		return "the kernel, Linux " + here.release + ", has no io_uring (it came with 5.1), or a sandbox as gVisor hides it: " +
			"run on Linux 6.1 or newer, or set POLLUX_BACKEND=epoll"
	case sys.ENOTSUP:
		return "the kernel, Linux " + here.release + ", or a sandbox does not support what is needed: pollux uses io_uring " +
			"from Linux 6.1 on; set POLLUX_BACKEND=epoll"
	case sys.EINVAL:
		return "the kernel, Linux " + here.release + ", is likely too old for what is needed, or a sandbox rejects it: pollux uses " +
			"io_uring from Linux 6.1 on, and at the least 5.11; set POLLUX_BACKEND=epoll"
	case sys.ENOMEM:
		return "rings are charged to RLIMIT_MEMLOCK, " + here.memlock + " here for everything that the user runs: raise it " +
			"(ulimit -l, LimitMEMLOCK=, CAP_IPC_LOCK), or lower POLLUX_LOOPS, POLLUX_RING_ENTRIES or POLLUX_BUFFERS; " +
			"else the control group is out of memory"
	case sys.EMFILE:
		return "the process has as many files open as RLIMIT_NOFILE allows (ulimit -n)"
	case sys.ENFILE:
		return "the system has as many files open as fs.file-max allows"
	}
	return ""
}

func memlock() string {
	switch l := host.Memlock(); {
	case !l.Known:
		return "which is not known"
	case l.SoftNone:
		return "which has no limit"
	default:
		return fmt.Sprintf("%d KiB", l.Soft>>10)
	}
}
