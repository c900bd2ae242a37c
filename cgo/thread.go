package cgo

import (
	"fmt"
	"slices"

	"github.com/pollux-go/pollux/internal/host"
	"github.com/pollux-go/pollux/internal/sys"
)

// A Thread says what a thread is to be like. The zero Thread is left as it is, but for its timer slack.
type Thread struct {
	Name  string // as ps and top show it, in at most 15 bytes; empty: left alone
	CPU   int    // to be pinned to; below 0: not pinned
	Sched Sched
}

// Sched is how a thread is scheduled. The zero Sched is left alone.
type Sched struct {
	sys.Sched
	Set bool
}

// slackNanos is the timer slack of a loop's thread: its waits end when they are to, and not up to 50 us later.
const slackNanos = 1

// Pin makes the calling thread like t. The goroutine must be locked to it, for good: nothing is undone.
//
// Each setting that is refused is one of the errors, which says what is lacking. The others are in force.
func (t Thread) Pin() []error {
	var errs []error
	if t.Name != "" {
		_ = sys.SetThreadName(t.Name) // For people only.
	}
	_ = sys.SetTimerSlack(slackNanos)
	if t.CPU >= 0 {
		if err := PinTo(0, t.CPU); err != nil {
			errs = append(errs, err)
		}
	}
	if t.Sched.Set {
		if errno := sys.SetSched(0, t.Sched.Sched); errno != 0 {
			errs = append(errs, fmt.Errorf("schedule the thread as %v: %w%s", t.Sched, errno, remedy(t.Sched, errno)))
		}
	}
	return errs
}

// PinTo confines a thread to one CPU, which must be one of those that it may run on; 0 is the calling thread.
func PinTo(tid, cpu int) error {
	allowed, errno := sys.AffinityOf(tid)
	if errno == 0 && !slices.Contains(allowed, cpu) {
		return fmt.Errorf("pin the thread to CPU %d: it may run on %s only", cpu, host.FormatList(allowed))
	}
	if errno == 0 {
		errno = sys.SetAffinity(tid, []int{cpu})
	}
	if errno != 0 {
		return fmt.Errorf("pin the thread to CPU %d: %w", cpu, errno)
	}
	return nil
}

// remedy says what a refusal is likely to mean.
func remedy(s Sched, errno sys.Errno) string {
	switch errno {
	case sys.EPERM, sys.EACCES:
		what := "RLIMIT_NICE"
		if s.FIFO {
			what = fmt.Sprintf("RLIMIT_RTPRIO of %d", s.Priority+1)
		}
		return ": it needs CAP_SYS_NICE, or " + what + ", and a sandbox that allows sched_setattr"
	case sys.ENOSYS:
		return ": the kernel or a sandbox has no sched_setattr"
	case sys.EINVAL:
		return ": the kernel does not know it, or a cgroup has no realtime budget (cpu.rt_runtime_us)"
	}
	return ""
}

// String returns the setting as [ParseSched] reads it.
func (s Sched) String() string {
	switch {
	case !s.Set:
		return "other"
	case s.FIFO:
		return fmt.Sprintf("fifo:%d", s.Priority)
	case s.Slice != 0:
		return fmt.Sprintf("slice:%v", s.Slice)
	}
	return fmt.Sprintf("nice:%d", s.Nice)
}
