package pollux

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/pollux-go/pollux/cgo"
	"github.com/pollux-go/pollux/internal/host"
)

// A Profile is a set of defaults.
type Profile string

// The profiles.
const (
	Balanced   Profile = "balanced"   // the loops give their Ps to others while they wait
	Latency    Profile = "latency"    // they keep them, each on a CPU of its own, before others in the kernel's eyes
	Throughput Profile = "throughput" // as balanced, with GOMAXPROCS left alone
)

// UnmarshalText accepts the names of the profiles.
func (p *Profile) UnmarshalText(text []byte) error {
	if _, ok := profiles[Profile(text)]; !ok {
		return fmt.Errorf("%q is not a profile", text)
	}
	*p = Profile(text)
	return nil
}

var profiles = map[Profile]Config{
	Balanced:   {Hot: HotNever, CPUs: cpusNone, Sched: "other", Spin: SpinNever},
	Latency:    {Hot: HotAlways, CPUs: cpusAuto, Sched: "slice:100us", Spin: SpinAuto},
	Throughput: {Hot: HotNever, CPUs: cpusNone, Sched: "other", Spin: SpinNever, Procs: ProcsKeep},
}

// Values of Config.Spin that are no durations.
const (
	SpinAuto  time.Duration = math.MaxInt64
	SpinNever time.Duration = -1

	// spinMoment is how long a loop spins that is to find out itself whether it pays: about what the kernel needs to wake a
	// thread up, so that a spin in vain costs no more than it might have saved.
	spinMoment = 30 * time.Microsecond
)

// keepsP tells whether loops keep their Ps while they wait, lately after an event or always.
func (c *Config) keepsP() bool { return c.Hot > 0 && c.Procs != ProcsKeep }

// spinBudget says for how long the loops spin, and whether they find out if it pays, which it may where it is roomy.
func (c *Config) spinBudget(roomy bool) (budget time.Duration, adaptive bool) {
	switch {
	case c.Spin != SpinAuto:
		return max(0, c.Spin), false
	case !roomy:
		return 0, false
	}
	return spinMoment, true
}

// spin is that for one loop. One that is to have its CPU for itself begins when it has it; and while it has not, a realtime one
// does not spin. It is for the loop's thread.
func (l *loop) spin() (budget time.Duration, adaptive bool) {
	if l.engine.config.Isolate {
		if standing := l.standing.Load(); standing == standingNew || standing == standingShared && l.pin.Sched.FIFO {
			return 0, false
		}
	}
	return l.engine.config.spinBudget(l.engine.roomy.Load())
}

// tune has the loop spin for as long as it may now. It is for the loop's thread.
func (l *loop) tune() {
	if !l.inner.Shared() { // Else notWatched does.
		l.inner.Spin(l.spin())
	}
}

// checkRealtime refuses what might stop the process: a thread that spins as SCHED_FIFO lets nobody else onto its CPU, and a
// thread of the runtime that was interrupted there may hold a lock that the loop waits for. One that does not spin has an
// attendant, which sees to that, where there is cgo.
func (c *Config) checkRealtime() error {
	sched, err := cgo.ParseSched(c.Sched)
	switch {
	case err != nil || !sched.FIFO:
		return nil
	case c.Isolate:
		cpus, err := c.loopCPUs(host.Affinity(), c.Loops)
		if err != nil {
			return nil // Which is told elsewhere.
		}
		return c.checkShared(cpus)
	case !cgo.Attends:
		return fmt.Errorf("config: Sched is %q, and this is a build without cgo: nothing could stop a realtime thread that keeps those from its CPU that it waits for: set Isolate, or Sched to nice:-20",
			c.Sched)
	case c.Spin == SpinAuto:
		c.Spin = SpinNever
	case c.Spin != SpinNever:
		return fmt.Errorf("config: Sched is %q and Spin %v: a realtime thread may spin only on a CPU that is left to it: set Isolate, or no Spin", c.Sched, c.Spin)
	}
	return nil
}

// checkShared refuses isolated realtime loops that spin and share a CPU: one that spins through its waits never sleeps, and the
// kernel does not take the CPU from a SCHED_FIFO thread for another one of the same priority.
func (c *Config) checkShared(cpus []int) error {
	sched, err := cgo.ParseSched(c.Sched)
	switch {
	case err != nil || !sched.FIFO || !c.Isolate || c.Spin == SpinNever || len(cpus) == 0 || c.Loops <= len(cpus):
		return nil
	case c.Spin == SpinAuto:
		c.Spin = SpinNever
		return nil
	}
	return fmt.Errorf("config: Sched is %q, Spin %v and Loops %d, and the CPUs for them, with Isolate, are %s: realtime threads that spin must not share one: set Loops to %d at most, or no Spin",
		c.Sched, c.Spin, c.Loops, host.FormatList(slices.Sorted(slices.Values(cpus))), len(cpus))
}

// Values of Config.Hot that are no durations.
const (
	HotAlways time.Duration = math.MaxInt64
	HotNever  time.Duration = -1
)

// ProcsKeep is the value of Config.Procs that leaves GOMAXPROCS alone.
const ProcsKeep = -1

// Values of Config.CPUs that are no lists.
const (
	cpusNone = "none"
	cpusAuto = "auto"
)

// parseCPUs reads Config.CPUs: a list, or none.
func parseCPUs(text string) ([]int, error) {
	if text == cpusNone || text == cpusAuto {
		return nil, nil
	}
	cpus, err := cgo.ParseCPUs(text)
	if err != nil {
		return nil, fmt.Errorf("%w: it must be none, auto or a list as 2-3,6", err)
	}
	return cpus, nil
}
