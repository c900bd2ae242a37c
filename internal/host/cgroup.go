package host

import (
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Quota is a control group's limit of CPU time.
type Quota struct {
	CPUs   float64 // as many CPUs' time; 0: there is no limit
	Source string  // the file that says so
}

// CPUQuota returns the strictest limit among the process's control group and those above it, of version 2 or 1.
func CPUQuota() Quota {
	return cpuQuota(os.DirFS("/"), read("/proc/self/cgroup"), read("/proc/self/mountinfo"))
}

func cpuQuota(root fs.FS, cgroups, mounts string) (strictest Quota) {
	for line := range strings.Lines(mounts) {
		m, ok := parseMount(line)
		if !ok {
			continue
		}
		inside := strings.TrimPrefix(m.group(cgroups), m.root)
		for dir := path.Clean("/" + inside); ; dir = path.Dir(dir) {
			at := path.Join(m.point, dir)
			cpus, file := m.limit(root, at)
			if cpus > 0 && (strictest.CPUs == 0 || cpus < strictest.CPUs) {
				strictest = Quota{cpus, file}
			}
			if dir == "/" {
				break
			}
		}
	}
	return strictest
}

// cgroupMount is a line of mountinfo about a hierarchy that limits CPU time.
type cgroupMount struct {
	root  string // of what is mounted, inside the hierarchy
	point string // where
	v2    bool
}

// parseMount reads a line as
//
//	35 24 0:30 /root /mount/point rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
func parseMount(line string) (m cgroupMount, ok bool) {
	left, right, _ := strings.Cut(line, " - ")
	where, what := strings.Fields(left), strings.Fields(right)
	if len(where) < 5 || len(what) < 3 {
		return m, false
	}
	m = cgroupMount{root: strings.TrimSuffix(where[3], "/"), point: where[4], v2: what[0] == "cgroup2"}
	return m, m.v2 || what[0] == "cgroup" && slices.Contains(strings.Split(what[2], ","), "cpu")
}

// group returns the process's group in the hierarchy, out of lines as 4:cpu,cpuacct:/group and 0::/group.
func (m cgroupMount) group(cgroups string) string {
	for line := range strings.Lines(cgroups) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) < 3 {
			continue
		}
		if m.v2 && parts[0] == "0" && parts[1] == "" || !m.v2 && slices.Contains(strings.Split(parts[1], ","), "cpu") {
			return parts[2]
		}
	}
	return "/"
}

// limit returns what one group allows, as a number of CPUs, and the file that says so; 0 if it does not limit.
func (m cgroupMount) limit(root fs.FS, dir string) (cpus float64, file string) {
	number := func(s string) float64 {
		n, err := strconv.ParseFloat(s, 64)
		if err != nil || n < 0 {
			return 0 // "max" and -1 are no limit.
		}
		return n
	}
	text := func(name string) string {
		b, err := fs.ReadFile(root, strings.TrimPrefix(path.Join(dir, name), "/"))
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(b))
	}
	var quota, period float64
	if m.v2 {
		file = path.Join(dir, "cpu.max")
		first, second, _ := strings.Cut(text("cpu.max"), " ")
		quota, period = number(first), number(second)
	} else {
		file = path.Join(dir, "cpu.cfs_quota_us")
		quota, period = number(text("cpu.cfs_quota_us")), number(text("cpu.cfs_period_us"))
	}
	if quota == 0 || period == 0 {
		return 0, ""
	}
	return quota / period, file
}
