package pollux

import (
	"fmt"
	"math"
	"time"

	"github.com/pollux-go/pollux/cgo"
)

// A Profile is a set of defaults.
type Profile string

// The profiles.
const (
	Balanced   Profile = "balanced"   // the loops are hot for a moment after an event
	Latency    Profile = "latency"    // always hot, each on a CPU of its own, before others in the kernel's eyes
	Throughput Profile = "throughput" // never hot
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
	Balanced:   {Hot: hotMoment, CPUs: cpusNone, Sched: "other"},
	Latency:    {Hot: HotAlways, CPUs: cpusAuto, Sched: "slice:100us"},
	Throughput: {Hot: HotNever, CPUs: cpusNone, Sched: "other"},
}

// Values of Config.Hot that are no durations.
const (
	HotAlways time.Duration = math.MaxInt64
	HotNever  time.Duration = -1

	// hotMoment is how long a loop is hot after an event in the balanced profile.
	hotMoment = 200 * time.Microsecond
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
