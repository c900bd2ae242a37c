// Package proc pins processes to CPUs, starts the servers there, and reads what
// the kernel counts for them.
package proc

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// ParseCPUs reads a list as in cpuset files: "0", "0-3", "0,2-3". Empty is nil.
func ParseCPUs(s string) ([]int, error) {
	var cpus []int
	for part := range strings.SplitSeq(s, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		a, errA := strconv.Atoi(from)
		b, errB := strconv.Atoi(to)
		if errA != nil || errB != nil || a < 0 || b < a || b >= 1024 {
			return nil, fmt.Errorf("CPU list %q: %q is neither a CPU number nor a range of them", s, part)
		}
		for cpu := a; cpu <= b; cpu++ {
			cpus = append(cpus, cpu)
		}
	}
	slices.Sort(cpus)
	return slices.Compact(cpus), nil
}

// FormatCPUs is the short form of a list of CPUs.
func FormatCPUs(cpus []int) string {
	parts := make([]string, len(cpus))
	for i, cpu := range cpus {
		parts[i] = strconv.Itoa(cpu)
	}
	return strings.Join(parts, ",")
}

// AllowedCPUs is what this process may run on.
func AllowedCPUs() ([]int, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, fmt.Errorf("read the CPU affinity: %w", err)
	}
	var cpus []int
	for cpu := range 1024 {
		if set.IsSet(cpu) {
			cpus = append(cpus, cpu)
		}
	}
	return cpus, nil
}

func cpuSet(cpus []int) *unix.CPUSet {
	var set unix.CPUSet
	for _, cpu := range cpus {
		set.Set(cpu)
	}
	return &set
}

// Pin confines every thread of this process to cpus; threads made later inherit
// it. Garbage collection and the runtime's own threads are so kept off the servers'
// CPUs as well.
func Pin(cpus []int) error {
	set := cpuSet(cpus)
	err := EachThread(func(tid int) error { return unix.SchedSetaffinity(tid, set) })
	if err != nil {
		return fmt.Errorf("pin to CPU %s: %w", FormatCPUs(cpus), err)
	}
	return nil
}

// EachThread calls do for every thread of this process, and for those that are made
// meanwhile. A thread that has ended is no error.
func EachThread(do func(tid int) error) error {
	done := map[int]bool{}
	for {
		// A thread whose turn has not come may make another one meanwhile: go on until a
		// pass finds nothing new.
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return fmt.Errorf("list the threads: %w", err)
		}
		news := false
		for _, t := range tasks {
			tid, err := strconv.Atoi(t.Name())
			if err != nil || done[tid] {
				continue
			}
			news = true
			done[tid] = true
			if err := do(tid); err != nil && err != unix.ESRCH {
				return fmt.Errorf("thread %d: %w", tid, err)
			}
		}
		if !news {
			return nil
		}
	}
}

// Launcher starts processes that are confined to given CPUs from their first
// instruction on: it owns a thread that is, and a process inherits it.
//
// Start is safe for concurrent use. The processes die with this one, however it
// ends, because their parent thread lives as long as it does.
type Launcher struct {
	requests chan launch
}

type launch struct {
	cmd  *exec.Cmd
	done chan error
}

// NewLauncher makes a launcher. No cpus means that processes are not confined to
// fewer than this process was when its threads were made. Processes that are plain
// have no CAP_SYS_NICE, whoever they belong to: they can neither be realtime nor
// come before others.
func NewLauncher(cpus []int, plain bool) (*Launcher, error) {
	l := &Launcher{requests: make(chan launch)}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // Never unlocked: the affinity must not leak.
		if len(cpus) > 0 {
			if err := unix.SchedSetaffinity(0, cpuSet(cpus)); err != nil {
				ready <- fmt.Errorf("pin to CPU %s: %w", FormatCPUs(cpus), err)
				return
			}
		}
		if plain {
			// What is not in the bounding set is lost in exec. Who may not drop it has none to give.
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_SYS_NICE, 0, 0, 0); err != nil && err != unix.EPERM {
				ready <- fmt.Errorf("drop CAP_SYS_NICE: %w", err)
				return
			}
		}
		ready <- nil
		for r := range l.requests {
			r.done <- r.cmd.Start()
		}
	}()
	if err := <-ready; err != nil {
		return nil, err
	}
	return l, nil
}

// Start starts cmd on the launcher's CPUs, in a process group of its own.
func (l *Launcher) Start(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	r := launch{cmd, make(chan error)}
	l.requests <- r
	return <-r.done
}
