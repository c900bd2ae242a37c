package host

import (
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
)

// CPU describes the processors.
type CPU struct {
	Model      string
	Hypervisor bool   // the machine is a virtual one
	Online     string // a list as 0-3,8
	Isolated   string // those that the scheduler leaves alone (isolcpus)
	Packages   int
	Cores      int      // physical ones
	Siblings   []string // for each core with several threads, the list of its CPUs
	Nodes      string   // of memory
	CacheLine  int      // in bytes; 0 if unknown
}

// Processors reads the topology from /proc/cpuinfo and /sys.
func Processors() CPU { return processors(os.DirFS("/")) }

func processors(root fs.FS) CPU {
	text := func(format string, args ...any) string {
		b, err := fs.ReadFile(root, fmt.Sprintf(format, args...))
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(b))
	}
	const base = "sys/devices/system/cpu"
	info := text("proc/cpuinfo")
	c := CPU{
		Model:      field(info, "model name"),
		Hypervisor: slices.Contains(strings.Fields(field(info, "flags")), "hypervisor"),
		Online:     text(base + "/online"),
		Isolated:   text(base + "/isolated"),
		Nodes:      text("sys/devices/system/node/online"),
	}
	if c.Model == "" {
		c.Model = field(info, "CPU part") // arm64 has numbers only.
	}
	packages := map[string]bool{}
	var cores []string
	for _, cpu := range ParseList(c.Online) {
		packages[text(base+"/cpu%d/topology/physical_package_id", cpu)] = true
		siblings := text(base+"/cpu%d/topology/thread_siblings_list", cpu)
		if siblings == "" {
			siblings = strconv.Itoa(cpu)
		}
		if slices.Contains(cores, siblings) {
			continue
		}
		cores = append(cores, siblings)
		if len(ParseList(siblings)) > 1 {
			c.Siblings = append(c.Siblings, siblings)
		}
	}
	c.Packages, c.Cores = len(packages), len(cores)
	c.CacheLine, _ = strconv.Atoi(text(base + "/cpu0/cache/index0/coherency_line_size"))
	return c
}
