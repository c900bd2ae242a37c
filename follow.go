package pollux

import (
	"math"
	"slices"

	"github.com/pollux-go/pollux/internal/host"
)

// surroundings are what the process has of the machine, which may change while it runs: somebody moves it to another cpuset, or
// sets another quota. The watchdog looks once a second, as long as a loop does something: what depends on it matters only then.
//
// Two things do not follow, and are what they were when the loops began. How many workers are started readily (Parallel of
// [scheduler.Config]): one too many is an idle goroutine for ten seconds, and where there is one too few the next is started when
// all are blocked. And which loops are near to a CPU (near): it is the order in which a worker looks at the loops, all of which it
// looks at; a CPU that is new has none before others.
type surroundings struct {
	cpus  int     // that the process may use
	quota float64 // as many CPUs' time; 0: there is none
}

// surroundingsNow reads them. The caller's thread must be nobody's in particular. The CPUs that are kept for loops are not among
// its own; they are the process's. A CPU that is new is missing while threads are kept off others: the kernel holds on to what
// they were confined to.
var surroundingsNow = func() surroundings { // Tests change it.
	cpus := host.Affinity()
	for _, cpu := range isolated.keptNow() {
		if !slices.Contains(cpus, cpu) {
			cpus = append(cpus, cpu)
		}
	}
	return surroundings{len(cpus), host.CPUQuota().CPUs}
}

// roomy tells whether a spin may pay. On one or two CPUs it takes the time from those who are to send the events, and under a
// quota from the loops themselves.
func (s surroundings) roomy() bool { return s.cpus > 2 && s.quota == 0 }

// procs is what Go's runtime makes of them, as GOMAXPROCS: see runtime.GOMAXPROCS.
func (s surroundings) procs() int {
	if s.quota == 0 {
		return s.cpus
	}
	return min(s.cpus, max(2, int(math.Ceil(s.quota))))
}

// heed has the engine's loops know of a change. The watchdog calls it.
func (e *Engine) heed(s surroundings) {
	if e.around == s {
		return
	}
	e.around = s
	e.cpus.Store(int64(backlogCPUs(s.cpus, procsOfOthers())))
	if e.roomy.Swap(s.roomy()) == s.roomy() {
		return
	}
	for _, l := range e.loops {
		_ = l.inner.PostAlways(l.tune) // One that has ended spins no more.
	}
}
