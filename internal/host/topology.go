package host

import (
	"fmt"
	"os"
	"strconv"
	"strings"

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

// Affinity returns the CPUs that the calling thread may run on, which is what cpusets, taskset and the like have left.
func Affinity() []int {
	cpus, _ := sys.Affinity()
	return cpus
}
