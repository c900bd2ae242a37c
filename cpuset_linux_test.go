package pollux

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pollux-go/pollux/cgo"
	"github.com/pollux-go/pollux/internal/host"
	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/internal/testutil"
)

// A cpuset is a control group that says which CPUs the processes in it may use, as container engines make them.
type cpuset struct{ dir string }

// makeCPUSet makes one, of version 2 or 1, for tests that change it; none that is there is changed.
func makeCPUSet(t *testing.T, cpus []int) cpuset {
	t.Helper()
	const v2, v1 = "/sys/fs/cgroup", "/sys/fs/cgroup/cpuset"
	root := v2
	if b, err := os.ReadFile(v2 + "/cgroup.subtree_control"); err != nil || !slices.Contains(strings.Fields(string(b)), "cpuset") {
		root = v1
	}
	mems := "cpuset.mems"
	if _, err := os.Stat(filepath.Join(root, mems)); err != nil {
		mems = "cpuset.mems.effective"
	}
	nodes, err := os.ReadFile(filepath.Join(root, mems))
	if err != nil {
		t.Skip("there are no cpusets: ", err)
	}
	s := cpuset{filepath.Join(root, "pollux-test-"+strconv.Itoa(os.Getpid()))}
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		t.Skip("no cpuset can be made: ", err)
	}
	t.Cleanup(func() {
		eventually(t, "the cpuset to be empty", func() bool { return os.Remove(s.dir) == nil })
	})
	if err := os.WriteFile(filepath.Join(s.dir, "cpuset.mems"), bytes.TrimSpace(nodes), 0); err != nil {
		t.Skip("the cpuset gets no memory: ", err)
	}
	if err := s.write("cpuset.cpus", host.FormatList(cpus)); err != nil {
		t.Skip("the cpuset gets no CPUs: ", err)
	}
	return s
}

func (s cpuset) write(name, text string) error {
	return os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0)
}

// allow changes the CPUs.
func (s cpuset) allow(t *testing.T, cpus ...int) {
	t.Helper()
	if err := s.write("cpuset.cpus", host.FormatList(cpus)); err != nil {
		t.Fatal(err)
	}
}

// inCPUSet runs f in a process of its own, for each backend, in a cpuset of two CPUs.
func inCPUSet(t *testing.T, f func(t *testing.T, config Config, set cpuset, first, second int)) {
	const variable = "POLLUX_TEST_CPUSET"
	allowed := host.Affinity()
	if len(allowed) < 2 {
		t.Skip("it needs two CPUs")
	}
	allowed = allowed[:2]
	if dir := os.Getenv(variable); dir != "" {
		set := cpuset{dir}
		if err := set.write("cgroup.procs", strconv.Itoa(os.Getpid())); err != nil {
			t.Fatal(err)
		}
		eachBackend(t, func(t *testing.T, config Config) {
			testutil.CheckLeaks(t)
			lookOften(t)
			set.allow(t, allowed...)
			f(t, config, set, allowed[0], allowed[1])
		})
		return
	}
	set := makeCPUSet(t, allowed)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), variable+"="+set.dir)
	if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("--- PASS")) {
		t.Fatalf("%v\n%s", err, out)
	}
}

// TestCPUSet takes a loop's CPU away, by a cpuset, and gives it back. The kernel tells of the second by nothing.
func TestCPUSet(t *testing.T) {
	inCPUSet(t, func(t *testing.T, config Config, set cpuset, first, second int) {
		config.Loops, config.CPUs, config.Dispatch = 1, itoa(second), DispatchInline
		e := newEngine(t, config)
		s, _ := bind(t, e, "tcp", echo{})
		c := dial(t, s.Addrs()[0])
		ping(t, c)
		tid := loopThreads(e)[0]
		isOn := func(cpu int) bool {
			ping(t, c) // The watchdog looks while something happens.
			now, errno := sys.AffinityOf(tid)
			return errno == 0 && slices.Equal(now, []int{cpu}) && e.Stats().Loops[0].CPU == cpu
		}
		for range 2 {
			set.allow(t, first)
			eventually(t, "the loop on what is left", func() bool { return isOn(first) })
			set.allow(t, first, second)
			eventually(t, "the loop on its own CPU", func() bool { return isOn(second) })
		}
		c.Close()
	})
}

// TestProcsAreTheRuntimesAgain changes the cpuset while an engine runs, and after it has closed: GOMAXPROCS follows, by the watchdog
// first, and then by the runtime, as before there was an engine.
func TestProcsAreTheRuntimesAgain(t *testing.T) {
	if os.Getenv("GOMAXPROCS") != "" || strings.Contains(os.Getenv("GODEBUG"), "maxprocs") {
		t.Skip("the environment keeps the runtime from choosing it")
	}
	inCPUSet(t, func(t *testing.T, config Config, set cpuset, first, second int) {
		follows := func(want int, do func()) {
			t.Helper()
			eventually(t, "GOMAXPROCS "+strconv.Itoa(want), func() bool { do(); return runtime.GOMAXPROCS(0) == want })
		}
		nothing := func() {}
		follows(2, nothing)
		config.Loops = 2
		e := newEngine(t, config)
		s, _ := bind(t, e, "tcp", echo{})
		c := dial(t, s.Addrs()[0])
		again := func() { ping(t, c) } // The watchdog looks while something happens.
		follows(4, again)
		set.allow(t, first)
		follows(3, again)
		set.allow(t, first, second)
		follows(4, again)
		c.Close()
		if err := e.Close(); err != nil {
			t.Error(err)
		}
		follows(2, nothing)
		set.allow(t, first)
		follows(1, nothing)
		set.allow(t, first, second)
		follows(2, nothing)
	})
}

// TestIsolationFollows takes the CPU away that a realtime loop has for itself, and spins on, and gives it back. Where it shares a
// CPU with the other threads of the process it does not spin, and has an attendant.
func TestIsolationFollows(t *testing.T) {
	inCPUSet(t, func(t *testing.T, config Config, set cpuset, first, second int) {
		log := new(lines)
		config.Loops, config.CPUs, config.Isolate, config.Logger = 1, itoa(second), true, log.logger()
		config.Sched, config.Hot, config.Spin = "fifo:1", HotAlways, time.Second
		e := newEngine(t, config)
		s, _ := bind(t, e, "tcp", echo{})
		c := dial(t, s.Addrs()[0])
		ping(t, c)
		if strings.Contains(strings.Join(log.all(), "\n"), "CAP_SYS_NICE") {
			t.Skip("the process may not")
		}
		tid := loopThreads(e)[0]
		// spins tells whether it does, and whether it is realtime, where it is pinned to that CPU.
		spins := func(cpu int) (spins, realtime bool) {
			before, _ := sys.CPUTime(tid)
			time.Sleep(50 * time.Millisecond)
			after, _ := sys.CPUTime(tid)
			now, errno := sys.AffinityOf(tid)
			sched, _ := sys.GetSched(tid)
			return errno == 0 && slices.Equal(now, []int{cpu}) && after-before > int64(25*time.Millisecond), sched.FIFO
		}
		othersOn := func(cpus ...int) bool {
			for other, now := range masks(t) {
				if other != tid && !slices.Equal(now, cpus) {
					return false
				}
			}
			return true
		}
		sole := func() bool {
			ping(t, c)
			yes, realtime := spins(second)
			return yes && realtime && attendants(t) == 0 && othersOn(first)
		}
		shared := func() bool {
			ping(t, c)
			yes, realtime := spins(first)
			n := attendants(t)
			return !yes && e.Stats().Loops[0].CPU == first && realtime == cgo.Attends && (n == 1) == cgo.Attends
		}
		eventually(t, "a loop that spins on its CPU", sole)
		for i := range 2 {
			set.allow(t, first)
			eventually(t, "a loop that shares a CPU", shared)
			set.allow(t, first, second)
			eventually(t, "a loop that has its CPU for itself again", sole)
			text := strings.Join(log.all(), "\n")
			if n, m := strings.Count(text, "in spite of Isolate"), strings.Count(text, "for itself again"); n != i+1 || m != i+1 {
				t.Errorf("the log is %s", text)
			}
		}
		c.Close()
		if err := e.Close(); err != nil {
			t.Error(err)
		}
		eventually(t, "all threads to have both CPUs", func() bool { return othersOn(first, second) })
	})
}
