package pollux

import (
	"fmt"
	"slices"

	"github.com/pollux-go/pollux/cgo"
	"github.com/pollux-go/pollux/internal/host"
	"github.com/pollux-go/pollux/internal/sys"
)

// threads says what the loops' threads are to be like.
func (c *Config) threads() ([]cgo.Thread, error) {
	sched, err := cgo.ParseSched(c.Sched)
	if err != nil {
		return nil, err
	}
	threads := make([]cgo.Thread, c.Loops)
	for i := range threads {
		threads[i] = cgo.Thread{Name: fmt.Sprintf("pollux-loop-%d", i), CPU: -1, Sched: sched}
	}
	if c.CPUs == cpusNone {
		return threads, nil
	}
	allowed, errno := sys.Affinity()
	if errno != 0 {
		return nil, fmt.Errorf("ask for the CPUs that the process may use: %w", errno)
	}
	cpus, err := c.loopCPUs(allowed, c.Loops)
	if err != nil {
		return nil, err
	}
	for _, cpu := range cpus {
		if !slices.Contains(allowed, cpu) {
			return nil, fmt.Errorf("config: CPUs is %q: the process may not use CPU %d, only %s", c.CPUs, cpu, host.FormatList(allowed))
		}
	}
	if err := c.checkShared(cpus); err != nil {
		return nil, err // There are fewer than when the engine was made.
	}
	for i := range threads {
		threads[i].CPU = cpus[i%len(cpus)]
	}
	if c.Isolate && len(others(allowed, threads)) == 0 {
		return nil, fmt.Errorf("config: Isolate is set, and the loops are to run on each of the CPUs %s: leave one for the others by CPUs or Loops",
			host.FormatList(allowed))
	}
	return threads, nil
}

// loopCPUs returns the CPUs that so many loops get, one after the other, of those that the process may use; nil if they are not
// pinned.
func (c *Config) loopCPUs(allowed []int, loops int) ([]int, error) {
	cpus, err := parseCPUs(c.CPUs)
	if err != nil || cpus != nil || c.CPUs == cpusNone {
		return cpus, err
	}
	cpus = coresFirst(allowed)
	if c.Isolate && len(cpus) > 1 && loops >= len(cpus) {
		cpus = cpus[:len(cpus)-1] // One is left for the others.
	}
	return cpus, nil
}

// loopsDefault returns the number of loops where nothing is said: with Isolate there are no more of them than CPUs that they get,
// as two that share one have it neither for themselves.
func (c *Config) loopsDefault(allowed []int, procs int) int {
	if !c.Isolate {
		return procs
	}
	cpus, err := c.loopCPUs(allowed, procs)
	if err != nil || len(cpus) == 0 {
		return procs // Which is an error, elsewhere.
	}
	return min(procs, len(cpus))
}

// coresFirst orders CPUs so that those that share a core with an earlier one come last.
func coresFirst(cpus []int) []int {
	var first, rest []int
	taken := map[int]bool{}
	for _, cpu := range cpus {
		if taken[cpu] {
			rest = append(rest, cpu)
			continue
		}
		first = append(first, cpu)
		for _, sibling := range host.Siblings(cpu) {
			taken[sibling] = true
		}
	}
	return append(first, rest...)
}

// others returns those of the CPUs that no thread is pinned to.
func others(cpus []int, threads []cgo.Thread) []int {
	return slices.DeleteFunc(slices.Clone(cpus), func(cpu int) bool {
		return slices.ContainsFunc(threads, func(t cgo.Thread) bool { return t.CPU == cpu })
	})
}
