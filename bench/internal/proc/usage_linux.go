package proc

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// tick is the unit of times in /proc: USER_HZ is 100 on every Linux that Go runs on.
const tick = 10 * time.Millisecond

// Usage is the CPU time that a process has used, in all its threads.
type Usage struct {
	// Total is exact to the nanosecond.
	Total time.Duration
	// User and System are how the kernel divides it up, in steps of 10 ms and, on
	// most kernels, by sampling. Trust them over seconds, not over milliseconds.
	User, System time.Duration
}

// Sub is what was used between the reading o and u. The two parts are scaled so
// that they add up to the exact total.
func (u Usage) Sub(o Usage) Usage {
	d := Usage{Total: u.Total - o.Total, User: u.User - o.User, System: u.System - o.System}
	if parts := d.User + d.System; parts > 0 {
		d.User = time.Duration(float64(d.Total) * float64(d.User) / float64(parts))
		d.System = d.Total - d.User
	}
	return d
}

// ReadUsage reads the CPU time of a running process.
func ReadUsage(pid int) (Usage, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return Usage{}, fmt.Errorf("read CPU time: %w", err)
	}
	u, err := parseStat(stat)
	if err != nil {
		return u, fmt.Errorf("/proc/%d/stat: %w", pid, err)
	}
	// The process's CPU clock, as clock_getcpuclockid(3) makes it: the sum of the
	// scheduler's own counts, threads that have ended included.
	const cpuClockSched = 2
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|cpuClockSched), &ts); err != nil {
		return u, fmt.Errorf("read the CPU clock of process %d: %w", pid, err)
	}
	u.Total = time.Duration(ts.Nano())
	return u, nil
}

// parseStat takes utime and stime, fields 14 and 15, out of /proc/PID/stat. The
// second field is the program's name in parentheses and may hold anything.
func parseStat(stat []byte) (Usage, error) {
	_, rest, ok := bytes.Cut(stat[max(0, bytes.LastIndexByte(stat, ')')):], []byte(") "))
	fields := strings.Fields(string(rest))
	if !ok || len(fields) < 13 {
		return Usage{}, fmt.Errorf("not as expected: %q", stat)
	}
	user, errU := strconv.ParseInt(fields[11], 10, 64)
	system, errS := strconv.ParseInt(fields[12], 10, 64)
	if errU != nil || errS != nil {
		return Usage{}, fmt.Errorf("not as expected: %q", stat)
	}
	return Usage{User: time.Duration(user) * tick, System: time.Duration(system) * tick}, nil
}

// RSS is the resident memory of a process in bytes: the exact sum over its
// mappings where the kernel has it (4.14), otherwise VmRSS, which lags behind by
// some pages a CPU.
func RSS(pid int) (int64, error) {
	for _, source := range []struct{ file, key string }{{"smaps_rollup", "Rss:"}, {"status", "VmRSS:"}} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, source.file))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) == 3 && f[0] == source.key {
				kb, err := strconv.ParseInt(f[1], 10, 64)
				if err != nil {
					return 0, fmt.Errorf("resident memory of process %d: %w", pid, err)
				}
				return kb << 10, nil
			}
		}
	}
	return 0, fmt.Errorf("resident memory of process %d: neither smaps_rollup nor status tells", pid)
}

// Descriptors is the number of files that a process has open.
func Descriptors(pid int) (int, error) {
	d, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return 0, fmt.Errorf("count the descriptors: %w", err)
	}
	return len(d), nil
}

// Limit is the limit of a running process on open files.
func Limit(pid int) (int, error) {
	var limit unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &limit); err != nil {
		return 0, fmt.Errorf("read the limit on open files of process %d: %w", pid, err)
	}
	return int(limit.Cur), nil
}

// Threads counts the threads of a process whose name begins with prefix.
func Threads(pid int, prefix string) (int, error) {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return 0, fmt.Errorf("count the threads: %w", err)
	}
	n := 0
	for _, task := range tasks {
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/comm", pid, task.Name()))
		if err == nil && strings.HasPrefix(string(name), prefix) {
			n++
		}
	}
	return n, nil
}

// Switches is how often each thread of a process has gone to sleep by itself since it began, by its id: so often something woke it.
type Switches map[int]int64

// Since is how often that was since the reading o, in threads that still run.
func (s Switches) Since(o Switches) (n int64) {
	for thread, times := range s {
		n += times - o[thread]
	}
	return n
}

// ReadSwitches reads it of a running process.
func ReadSwitches(pid int) (Switches, error) {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return nil, fmt.Errorf("count the sleeps of threads: %w", err)
	}
	s := Switches{}
	for _, task := range tasks {
		thread, err := strconv.Atoi(task.Name())
		if err != nil {
			return nil, fmt.Errorf("count the sleeps of threads: %w", err)
		}
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/status", pid, thread))
		if err != nil {
			continue // It has ended.
		}
		if s[thread], err = parseSwitches(string(text)); err != nil {
			return nil, fmt.Errorf("/proc/%d/task/%d/status: %w", pid, thread, err)
		}
	}
	return s, nil
}

func parseSwitches(text string) (int64, error) {
	const key = "voluntary_ctxt_switches:"
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == key {
			return strconv.ParseInt(f[1], 10, 64)
		}
	}
	return 0, fmt.Errorf("no %s", key)
}

// Memory is what /proc/meminfo says of the machine, in bytes.
type Memory struct {
	Available int64
	// Slab is what the kernel has allocated for its own objects, sockets and requests among them.
	Slab int64
}

// ReadMemory reads /proc/meminfo.
func ReadMemory() (m Memory, err error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return m, fmt.Errorf("read the machine's memory: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		kb, _ := strconv.ParseInt(f[1], 10, 64)
		switch f[0] {
		case "MemAvailable:":
			m.Available = kb << 10
		case "Slab:":
			m.Slab = kb << 10
		}
	}
	if m.Available == 0 || m.Slab == 0 {
		return m, fmt.Errorf("/proc/meminfo has no MemAvailable or no Slab")
	}
	return m, nil
}

// Times is what CPUs have done since boot, in steps of 10 ms.
type Times struct {
	Busy  time.Duration // Busy is everything but idle time, stolen time included.
	Steal time.Duration // Steal is what the hypervisor gave to others.
}

// ReadTimes adds up the times of the CPUs given; none means all.
func ReadTimes(cpus []int) (Times, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return Times{}, fmt.Errorf("read CPU times: %w", err)
	}
	return parseTimes(string(text), cpus), nil
}

func parseTimes(text string, cpus []int) Times {
	var t Times
	for line := range strings.Lines(text) {
		// cpuN user nice system idle iowait irq softirq steal guest guest_nice
		f := strings.Fields(line)
		if len(f) < 9 {
			continue
		}
		n, ok := strings.CutPrefix(f[0], "cpu")
		cpu, err := strconv.Atoi(n)
		if !ok || err != nil || len(cpus) > 0 && !slices.Contains(cpus, cpu) {
			continue
		}
		for _, field := range []int{1, 2, 3, 6, 7, 8} {
			v, _ := strconv.ParseInt(f[field], 10, 64)
			t.Busy += time.Duration(v) * tick
			if field == 8 {
				t.Steal += time.Duration(v) * tick
			}
		}
	}
	return t
}
