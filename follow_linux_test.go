package pollux

import (
	"log/slog"
	"sync/atomic"
	"testing"

	"github.com/pollux-go/pollux/internal/testutil"
)

// fakeSurroundings has the watchdog find what the test says.
func fakeSurroundings(t *testing.T, s surroundings) *atomic.Pointer[surroundings] {
	var now atomic.Pointer[surroundings]
	now.Store(&s)
	before := surroundingsNow
	surroundingsNow = func() surroundings { return *now.Load() }
	t.Cleanup(func() { surroundingsNow = before }) // The engines are closed by then.
	return &now
}

// TestSpinFollows changes how many CPUs there are, and the quota, while a loop runs that finds out itself whether a spin pays: on two
// CPUs, and under a quota, it does not spin. What is shared with workers follows, too.
func TestSpinFollows(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		now := fakeSurroundings(t, surroundings{cpus: 8})
		config.Loops, config.Spin, config.Logger = 1, SpinAuto, slog.New(slog.DiscardHandler)
		e := newEngine(t, config)
		s, _ := bind(t, e, "tcp", echo{})
		c := dial(t, s.Addrs()[0])
		spins := func() bool {
			before := e.loops[0].inner.Counters().Spins
			for range 20 {
				ping(t, c)
			}
			return e.loops[0].inner.Counters().Spins > before
		}
		for _, step := range []struct {
			surroundings
			want bool
		}{{surroundings{cpus: 8}, true}, {surroundings{cpus: 2}, false}, {surroundings{cpus: 4}, true}, {surroundings{cpus: 4, quota: 2.5}, false}} {
			now.Store(&step.surroundings)
			eventually(t, "a loop that spins, or does not", func() bool { return spins() == step.want })
			cpus := int64(backlogCPUs(step.cpus, procsOfOthers()))
			eventually(t, "the CPUs for workers", func() bool { ping(t, c); return e.cpus.Load() == cpus })
		}
		c.Close()
	})
}
