package pollux

import (
	"log/slog"
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

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

// lookOften has the watchdog look each 100 ms where the loops run, and what is around them, and isolation which threads there are. It
// returns those 100 ms. A second is long for tests.
func lookOften(t *testing.T) time.Duration {
	set := func(each time.Duration) time.Duration {
		dog.mu.Lock()
		defer dog.mu.Unlock()
		before := dog.each
		dog.each = each
		return before
	}
	const often = 100 * time.Millisecond
	before, period := set(often), sweepPeriod
	sweepPeriod = often
	t.Cleanup(func() {
		set(before)
		sweepPeriod = period
	})
	return often
}

// TestProcsFollow changes how many CPUs there are, and the quota, while engines run: GOMAXPROCS is what the runtime would make of
// them, and the loops' share. What somebody has set, in whatever way, is left.
func TestProcsFollow(t *testing.T) {
	testutil.CheckLeaks(t)
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	t.Setenv("GOMAXPROCS", "")
	runtime.SetDefaultGOMAXPROCS()
	n := runtime.GOMAXPROCS(0)
	quiet := slog.New(slog.DiscardHandler)
	here := surroundings{cpus: n}
	now := fakeSurroundings(t, here)
	begin := func(config Config) *Engine {
		t.Helper()
		config.Logger = quiet
		e := newEngine(t, config)
		s, _ := bind(t, e, "tcp", echo{})
		ping(t, dial(t, s.Addrs()[0]))
		return e
	}
	expect := func(what string, s surroundings, want int) {
		t.Helper()
		now.Store(&s)
		followProcs(s) // As the watchdog does.
		if got := runtime.GOMAXPROCS(0); got != want {
			t.Errorf("%s: GOMAXPROCS is %d, want %d", what, got, want)
		}
	}
	a, b := begin(Config{Loops: 2}), begin(Config{Loops: 1, Hot: HotAlways})
	above := func(base int) int { return base + 2 + loopProcs(base+2, 1, true) }
	expect("as it was", here, above(n))
	expect("more CPUs", surroundings{cpus: n + 6}, above(n+6))
	expect("a quota", surroundings{cpus: n + 6, quota: 3.2}, above(4))
	expect("a small quota", surroundings{cpus: n + 6, quota: 0.5}, above(2))
	expect("one CPU", surroundings{cpus: 1, quota: 1.5}, above(1))
	b.Close()
	expect("one engine has closed", surroundings{cpus: 5}, 5+2)
	a.Close()
	expect("both have closed", surroundings{cpus: 5}, n)

	now.Store(&here)
	a = begin(Config{Loops: 2})
	runtime.GOMAXPROCS(n + 7)
	expect("somebody has set it", surroundings{cpus: n + 1}, n+7)
	b = begin(Config{Loops: 1})
	expect("and another engine", surroundings{cpus: n + 2}, n+8)
	b.Close()
	a.Close()
	expect("it is left", surroundings{cpus: n + 3}, n+7)

	runtime.SetDefaultGOMAXPROCS()
	now.Store(&here)
	a = begin(Config{Loops: 1, Procs: n + 5})
	expect("a number of the configuration's", surroundings{cpus: n + 1}, n+5)
	a.Close()
	t.Setenv("GOMAXPROCS", strconv.Itoa(n))
	now.Store(&here)
	a = begin(Config{Loops: 1})
	expect("a number of the environment's", surroundings{cpus: n + 1}, n+1)
	a.Close()
	expect("which is back", surroundings{cpus: n + 1}, n)
}

// TestSpinFollows changes how many CPUs there are, and the quota, while a loop runs that finds out itself whether a spin pays: on two
// CPUs, and under a quota, it does not spin. What is shared with workers follows, too.
func TestSpinFollows(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		lookOften(t)
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
