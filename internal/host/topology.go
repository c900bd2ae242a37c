package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/pollux-go/pollux/internal/sys"
)

// Siblings returns the CPUs that share a core with cpu, itself included; nothing where that cannot be read.
func Siblings(cpu int) []int {
	b, err := os.ReadFile(fmt.Sprintf("/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu))
	if err != nil {
		return nil
	}
	return ParseList(strings.TrimSpace(string(b)))
}

// CacheSharers returns the CPUs that share their last-level cache with cpu, itself included; nothing where that cannot be read.
func CacheSharers(cpu int) []int { return cacheSharers(os.DirFS("/"), cpu) }

func cacheSharers(root fs.FS, cpu int) (cpus []int) {
	last := 0
	for index := 0; ; index++ {
		read := func(name string) string {
			b, _ := fs.ReadFile(root, fmt.Sprintf("sys/devices/system/cpu/cpu%d/cache/index%d/%s", cpu, index, name))
			return strings.TrimSpace(string(b))
		}
		level, err := strconv.Atoi(read("level"))
		if err != nil {
			return cpus
		}
		if level > last {
			last, cpus = level, ParseList(read("shared_cpu_list"))
		}
	}
}

// Threads returns the ids of the threads of the process.
func Threads() (tids []int) {
	dir, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return nil
	}
	for _, entry := range dir {
		if tid, err := strconv.Atoi(entry.Name()); err == nil {
			tids = append(tids, tid)
		}
	}
	return tids
}

// TimerSlack returns by how much a thread of the process may sleep too long. The kernel tells it of other threads only who has
// CAP_SYS_NICE.
func TimerSlack(tid int) (time.Duration, sys.Errno) {
	if errno := sys.Injected(sys.OpSchedSetattr, tid); errno != 0 {
		return 0, errno
	}
	b, err := os.ReadFile(slackFile(tid))
	if err != nil {
		return 0, errnoOf(err)
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0, sys.EINVAL
	}
	return time.Duration(n), 0
}

// SetTimerSlack changes it; 0 is what the thread began with, which was its maker's.
func SetTimerSlack(tid int, d time.Duration) sys.Errno {
	if errno := sys.Injected(sys.OpSchedSetattr, tid); errno != 0 {
		return errno
	}
	return errnoOf(os.WriteFile(slackFile(tid), strconv.AppendInt(nil, int64(d), 10), 0))
}

// slackFile is there for every thread, though /proc shows only the first of each process.
func slackFile(tid int) string { return fmt.Sprintf("/proc/%d/timerslack_ns", tid) }

func errnoOf(err error) sys.Errno {
	var errno sys.Errno
	if err != nil && !errors.As(err, &errno) {
		return sys.EINVAL
	}
	return errno
}

// Affinity returns the CPUs that the calling thread may run on, which is what cpusets, taskset and the like have left.
func Affinity() []int {
	cpus, _ := sys.Affinity()
	return cpus
}
