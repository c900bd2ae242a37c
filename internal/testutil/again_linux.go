package testutil

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Refused runs the calling test in a process of its own, in which the kernel refuses some system calls with errno by a
// seccomp filter, as a container's would. There it returns true, and the test goes on; in the process that has called it
// first it returns false when that has ended, and the test must return.
//
//	if !testutil.Refused(t, syscall.EPERM, unix.SYS_IO_URING_SETUP) {
//		return
//	}
func Refused(t *testing.T, errno syscall.Errno, calls ...uintptr) bool {
	t.Helper()
	if !again(t, fmt.Sprintf("seccomp %d %v", int(errno), calls), nil) {
		return false
	}
	if err := refuse(errno, calls); err != nil {
		t.Skipf("the kernel does not take a seccomp filter: %v", err)
	}
	return true
}

// Memlock does what [Refused] does, in a process that may lock no more than so many bytes of memory, as an unprivileged
// user.
func Memlock(t *testing.T, bytes uint64) bool {
	t.Helper()
	// In a user namespace of its own, the process has the same user and none of root's privileges outside of it.
	attr := &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: os.Getuid(), HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: os.Getgid(), HostID: os.Getgid(), Size: 1}},
	}
	if !again(t, fmt.Sprintf("memlock %d", bytes), attr) {
		return false
	}
	switch err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: bytes, Max: bytes}); err {
	case nil:
	case unix.EPERM:
		t.Skipf("the hard limit is below %d bytes, which kernels before 5.16 begin with", bytes)
	default:
		t.Fatal(err)
	}
	return true
}

// againEnv tells a process what was done to it, or must be.
const againEnv = "POLLUX_TEST_AGAIN"

// again runs the calling test, and no other one, in a process of its own. It returns true there.
func again(t *testing.T, what string, attr *syscall.SysProcAttr) bool {
	t.Helper()
	switch os.Getenv(againEnv) {
	case "":
	case what:
		return true
	default:
		t.Skip("another test's process")
	}
	var pattern []string
	for part := range strings.SplitSeq(t.Name(), "/") {
		pattern = append(pattern, "^"+regexp.QuoteMeta(part)+"$")
	}
	c := exec.CommandContext(t.Context(), os.Args[0], "-test.run="+strings.Join(pattern, "/"), "-test.v", "-test.timeout=2m")
	// The race detector would sleep for a second at its end.
	c.Env = append(os.Environ(), againEnv+"="+what, "GORACE=atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	c.SysProcAttr = attr
	out, err := c.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case err != nil && !errors.As(err, &exit):
		t.Skipf("a process with %s cannot be started here: %v", what, err)
	case err != nil:
		t.Errorf("with %s: %v\n%s", what, err, out)
	case strings.Contains(string(out), "--- SKIP: "+t.Name()):
		t.Skipf("with %s:\n%s", what, out)
	case !strings.Contains(string(out), "--- PASS: "+t.Name()):
		t.Errorf("the test did not run with %s:\n%s", what, out)
	default:
		t.Logf("with %s:\n%s", what, out)
	}
	return false
}

// Offsets in the kernel's struct seccomp_data.
const (
	seccompNumber = 0
	seccompArch   = 4
)

// refuse installs the filter, for good and for every thread.
func refuse(errno syscall.Errno, calls []uintptr) error {
	var arch uint32
	switch runtime.GOARCH {
	case "amd64":
		arch = unix.AUDIT_ARCH_X86_64
	case "arm64":
		arch = unix.AUDIT_ARCH_AARCH64
	default:
		return fmt.Errorf("no filter is written for %s", runtime.GOARCH)
	}
	const (
		load   = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		answer = unix.BPF_RET | unix.BPF_K
	)
	program := []unix.SockFilter{
		{Code: load, K: seccompArch},
		{Code: equal, K: arch, Jt: 1},
		{Code: answer, K: unix.SECCOMP_RET_ALLOW}, // Numbers mean something else there.
		{Code: load, K: seccompNumber},
	}
	for _, call := range calls {
		program = append(program,
			unix.SockFilter{Code: equal, K: uint32(call), Jf: 1},
			unix.SockFilter{Code: answer, K: unix.SECCOMP_RET_ERRNO | uint32(errno)},
		)
	}
	program = append(program, unix.SockFilter{Code: answer, K: unix.SECCOMP_RET_ALLOW})
	fprog := &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}

	// The filter counts for the threads that TSYNC finds, and for those that they start. The calling one must not change
	// between the two calls.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	// SAFETY: fprog and what it points to are alive and in place during the call.
	thread, _, e := syscall.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(fprog)))
	if e != 0 {
		return e
	}
	if thread != 0 {
		return fmt.Errorf("thread %d has a filter of its own", thread)
	}
	return nil
}
