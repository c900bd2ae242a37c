package pollux

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/pollux-go/pollux/cgo"
	"github.com/pollux-go/pollux/internal/host"
	"github.com/pollux-go/pollux/internal/invariants"
	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/internal/testutil"
	"github.com/pollux-go/pollux/poller"
)

// masks returns what each thread of the process may run on.
func masks(t *testing.T) map[int][]int {
	t.Helper()
	all := map[int][]int{}
	for _, tid := range host.Threads() {
		if cpus, errno := sys.AffinityOf(tid); errno == 0 {
			all[tid] = cpus
		}
	}
	if len(all) == 0 {
		t.Fatal("the process has no threads")
	}
	return all
}

// loopThreads returns the ids of the threads of an engine's loops.
func loopThreads(e *Engine) (tids []int) {
	for _, l := range e.loops {
		<-l.begun
		tids = append(tids, int(l.thread.Load()))
	}
	return tids
}

// ping sends a byte to an echo server and waits for it.
func ping(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := c.Write([]byte{'x'}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
}

// many makes the runtime start threads: so many goroutines block in system calls at once.
func many(t *testing.T, n int) (end func()) {
	t.Helper()
	var all sync.WaitGroup
	var fds []int
	for range n {
		var p [2]int
		if err := syscall.Pipe2(p[:], syscall.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		fds = append(fds, p[1])
		all.Go(func() {
			var b [1]byte
			_, _ = syscall.Read(p[0], b[:])
			syscall.Close(p[0])
		})
	}
	return func() {
		for _, fd := range fds {
			syscall.Close(fd)
		}
		all.Wait()
	}
}

// TestPinningStaysWithTheLoops pins the loops and reads the mask of every other thread: of those that were there, of those
// that the runtime has made since, and of a child process.
func TestPinningStaysWithTheLoops(t *testing.T) {
	allowed := host.Affinity()
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		config.CPUs = "auto"
		var children atomic.Int32
		child := make(chan string, 1)
		e := newEngine(t, config)
		s, a := bind(t, e, "tcp", funcs{data: func(c *Conn) error {
			if children.Add(1) == 1 {
				// A process that a callback starts itself inherits the pin, which only the kernel could change: it is started on
				// a goroutine, as the documentation says.
				go func() {
					out, err := exec.Command("grep", "Cpus_allowed_list", "/proc/self/status").Output()
					if err != nil {
						t.Error(err)
					}
					child <- string(bytes.TrimSpace(out))
				}()
			}
			return echo{}.OnData(c)
		}})
		c := dial(t, s.Addrs()[0])
		ping(t, c)
		end := many(t, 4)
		defer end()
		time.Sleep(10 * time.Millisecond) // For the runtime to make threads; what is not there yet is not looked at.
		loops := loopThreads(e)
		for tid, cpus := range masks(t) {
			if i := slices.Index(loops, tid); i >= 0 {
				if want := e.loops[i].pin.CPU; len(cpus) != 1 || cpus[0] != want {
					t.Errorf("loop %d may run on %v, it is pinned to %d", i, cpus, want)
				}
				name, _ := os.ReadFile(filepath.Join("/proc/self/task", itoa(tid), "comm"))
				if !strings.HasPrefix(string(name), "pollux-loop-") {
					t.Errorf("loop %d is called %q", i, name)
				}
			} else if !slices.Equal(cpus, allowed) {
				t.Errorf("thread %d may run on %v, the process on %v", tid, cpus, allowed)
			}
		}
		if got := receive(t, "the child", child); !strings.HasSuffix(got, "\t"+host.FormatList(allowed)) {
			t.Errorf("a child process of the handler's has %q", got)
		}
		c.Close()
		a.wait(t, 1)
	})
}

// TestChildOfACallback starts a child process in a callback itself, on a loop that is pinned: it inherits the pin, as it does whatever
// else a thread has. One that the callback has a goroutine start does not, nor one that a worker starts, which is no loop.
func TestChildOfACallback(t *testing.T) {
	allowed := host.Affinity()
	if len(allowed) < 2 {
		t.Skip("it needs two CPUs")
	}
	cpus := func() string {
		out, err := exec.Command("grep", "Cpus_allowed_list", "/proc/self/status").Output()
		if err != nil {
			return err.Error()
		}
		_, list, _ := strings.Cut(string(bytes.TrimSpace(out)), "\t")
		return list
	}
	eachBackend(t, func(t *testing.T, config Config) {
		for _, dispatch := range []Dispatch{DispatchInline, DispatchWorkers} {
			t.Run(string(dispatch), func(t *testing.T) {
				testutil.CheckLeaks(t)
				config.Loops, config.CPUs, config.Dispatch = 1, itoa(allowed[1]), dispatch
				e := newEngine(t, config)
				self, other := make(chan string, 1), make(chan string, 1)
				s, _ := bind(t, e, "tcp", funcs{data: func(c *Conn) error {
					self <- cpus()
					go func() { other <- cpus() }()
					return echo{}.OnData(c)
				}})
				ping(t, dial(t, s.Addrs()[0]))
				want := host.FormatList(allowed)
				if got := receive(t, "the goroutine's child", other); got != want {
					t.Errorf("the child of a callback's goroutine may run on %s, want %s", got, want)
				}
				if dispatch == DispatchInline {
					want = itoa(allowed[1])
				}
				if got := receive(t, "the callback's child", self); got != want {
					t.Errorf("the child of a callback may run on %s, want %s", got, want)
				}
			})
		}
	})
}

func itoa(n int) string { return host.FormatList([]int{n}) }

// TestIsolate keeps the other threads away while the engine is open, also those that are made meanwhile.
func TestIsolate(t *testing.T) {
	allowed := host.Affinity()
	if len(allowed) < 2 {
		t.Skip("it needs two CPUs")
	}
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		config.Loops, config.CPUs, config.Isolate = 1, itoa(allowed[0]), true
		e := newEngine(t, config)
		s, _ := bind(t, e, "tcp", echo{})
		ping(t, dial(t, s.Addrs()[0]))
		end := many(t, 4)
		time.Sleep(10 * time.Millisecond)
		loop := loopThreads(e)[0]
		for tid, cpus := range masks(t) {
			switch {
			case tid == loop && !slices.Equal(cpus, allowed[:1]):
				t.Errorf("the loop may run on %v", cpus)
			case tid != loop && !slices.Equal(cpus, allowed[1:]):
				t.Errorf("thread %d may run on %v", tid, cpus)
			}
		}
		end()
		if err := e.Close(); err != nil {
			t.Error(err)
		}
		for tid, cpus := range masks(t) {
			if tid != loop && !slices.Equal(cpus, allowed) {
				t.Errorf("after the close, thread %d may run on %v", tid, cpus)
			}
		}
	})
}

// TestRefusedScheduling has the kernel refuse what needs a privilege: the loops run without, and the log says so once.
func TestRefusedScheduling(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		log := new(lines)
		config.Logger, config.Dispatch = log.logger(), DispatchInline // The slack of workers has a line of its own.
		config.Sched = "fifo:1"
		if !cgo.Attends {
			config.Sched = "nice:-1"
		}
		restore := sys.Inject(func(op sys.Op, _ int) sys.Fault {
			if op == sys.OpSchedSetattr {
				return sys.Fault{Errno: sys.EPERM}
			}
			return sys.Fault{}
		})
		defer restore()
		e := newEngine(t, config)
		s, _ := bind(t, e, "tcp", echo{})
		ping(t, dial(t, s.Addrs()[0]))
		if err := e.Close(); err != nil {
			t.Error(err)
		}
		if text := strings.Join(log.all(), "\n"); strings.Count(text, "CAP_SYS_NICE") != 1 || !strings.Contains(text, config.Sched) {
			t.Errorf("the log is %q", text)
		}
	})
}

// TestSched looks at how the kernel schedules the loops' threads, and nobody else.
func TestSched(t *testing.T) {
	for _, test := range []struct {
		sched string
		want  sys.Sched
	}{
		{"nice:-5", sys.Sched{Nice: -5}},
		{"nice:5", sys.Sched{Nice: 5}},
		{"fifo:7", sys.Sched{FIFO: true, Priority: 7}},
		{"slice:200us", sys.Sched{Slice: 200 * time.Microsecond}},
	} {
		t.Run(test.sched, func(t *testing.T) {
			testutil.CheckLeaks(t)
			if test.want.FIFO && !cgo.Attends {
				t.Skip("without cgo it needs Isolate")
			}
			log := new(lines)
			e := newEngine(t, Config{Loops: 1, Sched: test.sched, Logger: log.logger()})
			bind(t, e, "tcp", echo{})
			loop := loopThreads(e)[0]
			got, errno := sys.GetSched(loop)
			for end := time.Now().Add(10 * time.Second); test.want.FIFO && !got.FIFO && time.Now().Before(end); {
				time.Sleep(time.Millisecond) // Its first turn may have taken so long that it was demoted.
				got, errno = sys.GetSched(loop)
			}
			if strings.Contains(strings.Join(log.all(), "\n"), "CAP_SYS_NICE") {
				t.Skip("the process may not")
			}
			if test.want.Slice == 0 {
				got.Slice = 0 // The kernel's own.
			} else if major, minor := host.Version(); major < 6 || major == 6 && minor < 12 {
				t.Skip("the kernel has no slices")
			}
			if errno != 0 || got != test.want {
				t.Errorf("the loop is scheduled as %+v, %v", got, errno)
			}
			usual, _ := sys.GetSched(os.Getpid())
			for _, tid := range host.Threads() {
				if other, errno := sys.GetSched(tid); tid != loop && !isAttendant(tid) && errno == 0 && (other.FIFO || other.Nice != usual.Nice) {
					t.Errorf("thread %d is scheduled as %+v", tid, other)
				}
			}
		})
	}
}

// TestProcs looks at GOMAXPROCS while engines come and go, and somebody else sets it.
func TestProcs(t *testing.T) {
	testutil.CheckLeaks(t)
	before := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(before)
	expect := func(what string, want int) {
		t.Helper()
		if got := runtime.GOMAXPROCS(0); got != want {
			t.Errorf("%s: GOMAXPROCS is %d, want %d", what, got, want)
		}
	}
	a := newEngine(t, Config{Loops: 2, Logger: slog.New(slog.DiscardHandler)})
	expect("nothing has started", before)
	bind(t, a, "tcp", echo{})
	expect("two loops", before+2)
	b := newEngine(t, Config{Loops: 1, Logger: slog.New(slog.DiscardHandler)})
	bind(t, b, "tcp", echo{})
	expect("three loops", before+3)
	keep := newEngine(t, Config{Loops: 1, Procs: ProcsKeep, Logger: slog.New(slog.DiscardHandler)})
	bind(t, keep, "tcp", echo{})
	expect("another one that keeps it", before+3)
	a.Close()
	expect("one loop", before+1)
	runtime.GOMAXPROCS(before + 5)
	b.Close()
	expect("somebody else has set it", before+5)
	keep.Close()
	runtime.GOMAXPROCS(before)
	n := newEngine(t, Config{Loops: 1, Procs: 7, Logger: slog.New(slog.DiscardHandler)})
	bind(t, n, "tcp", echo{})
	expect("a number", 7)
	n.Close()
	expect("and back", before)
}

// TestProcsCollector sees to it that the collector takes no part of the Ps of loops that are always hot: in a process with 2, 3 or
// 6 Ps it has each of them work for it for a part of the time.
func TestProcsCollector(t *testing.T) {
	testutil.CheckLeaks(t)
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	for _, test := range []struct{ before, loops, cold, hot int }{
		{1, 1, 2, 4}, {2, 1, 3, 4}, {3, 1, 4, 5}, {4, 1, 5, 7}, {2, 2, 4, 5}, {2, 3, 5, 7}, {8, 4, 12, 13},
	} {
		for _, hot := range []time.Duration{HotNever, HotAlways} {
			want := test.cold
			if hot == HotAlways {
				want = test.hot
			}
			runtime.GOMAXPROCS(test.before)
			e := newEngine(t, Config{Loops: test.loops, Hot: hot, Logger: slog.New(slog.DiscardHandler)})
			bind(t, e, "tcp", echo{})
			if got := runtime.GOMAXPROCS(0); got != want {
				t.Errorf("%d loops, hot %v: GOMAXPROCS went from %d to %d, want %d", test.loops, hot, test.before, got, want)
			}
			e.Close()
			if got := runtime.GOMAXPROCS(0); got != test.before {
				t.Errorf("GOMAXPROCS is %d afterwards, want %d", got, test.before)
			}
		}
	}
}

// TestProcsChanged sets GOMAXPROCS while a loop runs: the log says so, once, and it stays so.
func TestProcsChanged(t *testing.T) {
	testutil.CheckLeaks(t)
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	each := lookOften(t)
	log := &lines{}
	e := newEngine(t, Config{Loops: 1, Logger: log.logger()})
	s, _ := bind(t, e, "tcp", echo{})
	c := dial(t, s.Addrs()[0])
	n := runtime.GOMAXPROCS(0) + 2
	runtime.GOMAXPROCS(n)
	told := func() int { return strings.Count(strings.Join(log.all(), "\n"), "GOMAXPROCS was set") }
	eventually(t, "the log line", func() bool { ping(t, c); return told() > 0 })
	for end := time.Now().Add(4 * each); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		ping(t, c) // The watchdog looks again.
	}
	if got := runtime.GOMAXPROCS(0); told() != 1 || got != n {
		t.Errorf("%d lines, GOMAXPROCS is %d, want 1 and %d", told(), got, n)
	}
	c.Close()
}

// TestHotLoopsStop runs loops that are always hot beside whatever stops the world, or changes how many goroutines run.
func TestHotLoopsStop(t *testing.T) {
	for name, disturb := range map[string]func(i int){
		"collector":   func(int) { runtime.GC() },
		"free":        func(int) { debug.FreeOSMemory() },
		"stacks":      func(int) { runtime.Stack(make([]byte, 1<<16), true) },
		"procs":       func(i int) { runtime.GOMAXPROCS(1 + i%8) },
		"goroutines":  func(int) { _ = pprof.Lookup("goroutine").WriteTo(io.Discard, 1) },
		"nothing":     func(int) { time.Sleep(time.Millisecond) },
		"computation": func(int) { spin(5 * time.Millisecond) },
	} {
		t.Run(name, func(t *testing.T) {
			eachBackend(t, func(t *testing.T, config Config) {
				testutil.CheckLeaks(t)
				defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
				config.Hot = HotAlways
				e := newEngine(t, config)
				s, _ := bind(t, e, "tcp", echo{})
				stop, stopped := make(chan struct{}), make(chan struct{})
				go func() {
					defer close(stopped)
					for i := 0; ; i++ {
						select {
						case <-stop:
							return
						default:
							disturb(i)
						}
					}
				}()
				c := dial(t, s.Addrs()[0])
				for range 300 {
					ping(t, c)
				}
				close(stop)
				receive(t, "the disturbance to end", stopped)
			})
		})
	}
}

// TestWaits serves with every way to wait: hot and cold, with and without a spin, found out and fixed.
func TestWaits(t *testing.T) {
	for name, set := range map[string]func(*Config){
		"cold":               func(c *Config) { c.Hot = HotNever },
		"cold, spin":         func(c *Config) { c.Hot, c.Spin = HotNever, 100*time.Microsecond },
		"hot":                func(c *Config) { c.Hot = HotAlways },
		"hot, spin":          func(c *Config) { c.Hot, c.Spin = HotAlways, 100*time.Microsecond },
		"both, spin":         func(c *Config) { c.Hot, c.Spin = 100*time.Microsecond, 50*time.Microsecond },
		"procs kept":         func(c *Config) { c.Hot, c.Procs = HotAlways, ProcsKeep },
		"latency profile":    func(c *Config) { c.Profile = Latency },
		"throughput profile": func(c *Config) { c.Profile = Throughput },
	} {
		t.Run(name, func(t *testing.T) {
			eachBackend(t, func(t *testing.T, config Config) {
				testutil.CheckLeaks(t)
				set(&config)
				e := newEngine(t, config)
				for _, adaptive := range []bool{false, true} {
					if adaptive {
						for _, l := range e.loops {
							_ = l.inner.PostAlways(func() { l.inner.Spin(max(0, config.Spin), true) })
						}
					}
					s, _ := bind(t, e, "tcp", echo{})
					c := dial(t, s.Addrs()[0])
					for i := range 200 {
						if i%20 == 0 {
							time.Sleep(300 * time.Microsecond) // From hot to cold, and from the spin to sleep.
						}
						ping(t, c)
					}
					c.Close()
				}
			})
		})
	}
}

// TestSpinKeepsTimeouts has loops that spin for longer than they may wait: the spin is a part of the wait. An idle timeout is over
// in time, and until then the loop does not sleep, nor at the ends of hot waits, which are short.
func TestSpinKeepsTimeouts(t *testing.T) {
	if _, err := os.Stat("/proc/self/schedstat"); err != nil {
		t.Skip("a kernel without CONFIG_SCHED_INFO: ", err)
	}
	const idle, tries = 100 * time.Millisecond, 20
	for name, hot := range map[string]time.Duration{"cold": HotNever, "hot": HotAlways} {
		t.Run(name, func(t *testing.T) {
			eachBackend(t, func(t *testing.T, config Config) {
				testutil.CheckLeaks(t)
				config.Loops, config.Hot, config.Spin, config.Dispatch = 1, hot, time.Second, DispatchInline
				e := newEngine(t, config)
				type instant struct {
					time  time.Time
					awake time.Duration
				}
				mark := func() instant { return instant{time.Now(), awake(t, int(e.loops[0].thread.Load()))} }
				opened, closed := make(chan instant, 1), make(chan instant, 1)
				s, _ := bind(t, e, "tcp", funcs{
					open:  func(c *Conn) error { opened <- mark(); return c.SetIdleTimeout(idle) },
					close: func(*Conn, error) { closed <- mark() },
				})
				for try := 1; ; try++ {
					c := dial(t, s.Addrs()[0])
					begin, end := receive(t, "the connection", opened), receive(t, "its end", closed)
					c.Close()
					passed := end.time.Sub(begin.time)
					if passed < idle {
						t.Fatalf("closed after %v, and it may be idle for %v", passed, idle)
					}
					// Whatever else runs on the machine makes it longer; hardly each time. The kernel's numbers are some milliseconds old.
					slept := passed - (end.awake - begin.awake)
					if passed < idle*3/2 && slept < idle/4 {
						break
					}
					if try == tries {
						t.Fatalf("closed after %v, of which the loop has slept for %v, and not better before; it may be idle for %v", passed, slept, idle)
					}
				}
			})
		})
	}
}

// awake returns for how long a thread has run, or waited for a CPU to run on.
func awake(t *testing.T, tid int) time.Duration {
	b, err := os.ReadFile("/proc/self/task/" + itoa(tid) + "/schedstat")
	var run, queued time.Duration
	if err == nil {
		_, err = fmt.Sscan(string(b), &run, &queued)
	}
	if err != nil {
		t.Errorf("schedstat of thread %d: %q, %v", tid, b, err)
	}
	return run + queued
}

// TestLongTurnHasBreaks has each event of a long turn send to a goroutine, which has no other P than the loop's: it runs before the
// last of the events, and not after the turn only.
func TestLongTurnHasBreaks(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
		config.Loops, config.Procs, config.Dispatch = 1, ProcsKeep, DispatchInline
		e := newEngine(t, config)
		const rounds, many, enough = 1000, 16, 20
		work := make(chan struct{}, rounds*many)
		var ran atomic.Int64
		var receiver sync.WaitGroup
		receiver.Go(func() {
			for range work {
				ran.Add(1)
				for began := time.Now(); time.Since(began) < 5*time.Microsecond; { // It would go unnoticed.
				}
			}
		})
		defer func() {
			_ = e.Close() // Else the loop might send.
			close(work)
			receiver.Wait()
		}()
		entered, leave := make(chan struct{}), make(chan struct{})
		var events int // The loop's.
		var before int64
		var early atomic.Int64
		s, _ := bind(t, e, "tcp", funcs{data: func(c *Conn) error {
			if b, _ := c.Peek(1); b[0] == 'w' {
				entered <- struct{}{}
				<-leave
				return echo{}.OnData(c)
			}
			switch events++; events % many {
			case 1:
				before = ran.Load()
			case 0:
				if ran.Load() > before {
					early.Add(1)
				}
			}
			work <- struct{}{}
			return echo{}.OnData(c)
		}})
		gate := dial(t, s.Addrs()[0])
		defer gate.Close()
		var conns [many]net.Conn
		for i := range conns {
			conns[i] = dial(t, s.Addrs()[0])
			defer conns[i].Close()
			roundTrip(t, conns[i], "x")
		}
		for i := 0; i < rounds && early.Load() < enough; i++ { // Whether it uses a break is found out, now and then.
			if _, err := io.WriteString(gate, "w"); err != nil {
				t.Fatal(err)
			}
			<-entered
			for _, c := range conns { // For the next turn.
				if _, err := io.WriteString(c, "x"); err != nil {
					t.Fatal(err)
				}
			}
			leave <- struct{}{}
			expect(t, gate, "w")
			for _, c := range conns {
				expect(t, c, "x")
			}
		}
		if n := early.Load(); n < enough && !invariants.Enabled { // The race detector, which has them enabled, shuffles who is ready.
			t.Errorf("the goroutine ran between the first and the last event of %d turns of %d: want %d", n, rounds, enough)
		}
	})
}

// TestSpinOfRealtimeThreads refuses what could stop the machine.
func TestSpinOfRealtimeThreads(t *testing.T) {
	if _, err := New(Config{Sched: "fifo:1", Spin: time.Millisecond}); err == nil || !strings.Contains(err.Error(), "Isolate") {
		t.Errorf("a realtime thread that spins where others are: %v", err)
	}
	for _, c := range []Config{
		{Sched: "fifo:1", Spin: time.Millisecond, CPUs: "0", Isolate: true},
		{Sched: "nice:-20", Spin: time.Millisecond},
	} {
		if _, err := c.withDefaults(); err != nil {
			t.Error(err)
		}
	}
}

// TestIsolatedLoops looks at how many loops there are on isolated CPUs, where nothing is said: none shares one with another.
func TestIsolatedLoops(t *testing.T) {
	for _, test := range []struct {
		cpus    string
		allowed []int
		procs   int
		want    int
	}{
		{"auto", []int{0, 1}, 2, 1},
		{"auto", []int{0, 1, 2, 3}, 4, 3},
		{"auto", []int{0, 1, 2, 3}, 2, 2}, // A quota.
		{"auto", []int{0, 1}, 5, 1},
		{"auto", []int{3}, 1, 1}, // Which threads refuses.
		{"1-2", []int{0, 1, 2, 3}, 4, 2},
		{"1", []int{0, 1, 2, 3}, 4, 1},
	} {
		c := Config{CPUs: test.cpus, Isolate: true}
		if got := c.loopsDefault(test.allowed, test.procs); got != test.want {
			t.Errorf("CPUs %s of %v, GOMAXPROCS %d: %d loops, want %d", test.cpus, test.allowed, test.procs, got, test.want)
		}
		c.Isolate = false
		if got := c.loopsDefault(test.allowed, test.procs); got != test.procs {
			t.Errorf("CPUs %s of %v, GOMAXPROCS %d, not isolated: %d loops", test.cpus, test.allowed, test.procs, got)
		}
	}
	allowed := host.Affinity()
	if len(allowed) < 2 {
		t.Skip("it needs two CPUs")
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(len(allowed)))
	c, err := Config{Isolate: true, Sched: "fifo:1", Hot: HotAlways, Spin: 10 * time.Millisecond}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	threads, err := c.threads()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[int]bool{}
	for _, thread := range threads {
		if seen[thread.CPU] {
			t.Errorf("two of %d loops run on CPU %d", len(threads), thread.CPU)
		}
		seen[thread.CPU] = true
	}
}

// TestRealtimeLoopsThatShareACPU refuses a spin of those, and says why.
func TestRealtimeLoopsThatShareACPU(t *testing.T) {
	config := Config{Loops: 3, CPUs: "0", Isolate: true, Sched: "fifo:1", Spin: 10 * time.Millisecond}
	_, err := New(config)
	if err == nil {
		t.Fatal("it is allowed")
	}
	for _, part := range []string{`"fifo:1"`, "10ms", "Loops 3", "Isolate", "are 0:", "Loops to 1", "no Spin"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%v: it does not say %s", err, part)
		}
	}
	for _, set := range []func(*Config){
		func(c *Config) { c.Loops = 1 },
		func(c *Config) { c.Spin = SpinNever },
		func(c *Config) { c.Spin = SpinAuto },
		func(c *Config) { c.Sched = "nice:-5" },
	} {
		c := config
		set(&c)
		c, err := c.withDefaults()
		if err != nil {
			t.Error(err)
		}
		if c.Sched == "fifo:1" && c.Loops > 1 && c.Spin != SpinNever {
			t.Errorf("with %d loops the spin is %v", c.Loops, c.Spin)
		}
	}
}

// spin computes for so long.
func spin(d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); {
	}
}

// TestHotLoopsWithoutAsyncPreemption stops the world often where signals do not preempt goroutines: each stop waits for at
// most one of the short waits.
func TestHotLoopsWithoutAsyncPreemption(t *testing.T) {
	const variable = "POLLUX_TEST_ASYNCPREEMPTOFF"
	if os.Getenv(variable) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), variable+"=1", "GODEBUG=asyncpreemptoff=1")
		if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("--- PASS")) {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	eachBackend(t, func(t *testing.T, config Config) {
		config.Hot = HotAlways
		e := newEngine(t, config)
		s, _ := bind(t, e, "tcp", echo{})
		c := dial(t, s.Addrs()[0])
		for range 50 {
			runtime.GC()
			ping(t, c)
		}
	})
}

// TestLoopsEndTheirThreads starts and closes engines on the process's first thread and elsewhere: no thread stays pinned.
func TestLoopsEndTheirThreads(t *testing.T) {
	testutil.CheckLeaks(t)
	allowed := host.Affinity()
	for range 30 {
		e := newEngine(t, Config{Loops: 3, CPUs: "auto", Logger: slog.New(slog.DiscardHandler)})
		bind(t, e, "tcp", echo{})
		if slices.Contains(loopThreads(e), os.Getpid()) {
			t.Error("the process's first thread is a loop's")
		}
		e.Close()
	}
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		wrong := 0
		for _, cpus := range masks(t) {
			if !slices.Equal(cpus, allowed) {
				wrong++
			}
		}
		if wrong == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d threads are pinned still", wrong)
		}
	}
}

// TestWokenTogether has many goroutines woken at a time in a process with one P, where others compute: none of these has the P in
// between. Not each try is good: the runtime may take the P while the events are made, and the kernel the CPU for as long as a slice.
// Under the race detector it says less, as the runtime shuffles its queues there.
func TestWokenTogether(t *testing.T) {
	testutil.CheckLeaks(t)
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	e := newEngine(t, Config{Logger: slog.New(slog.DiscardHandler)})
	const n, tries, enough = 8, 50, 3
	var descs [n]*poller.Desc
	var ends [n]int
	for i := range n {
		fd, errno := sys.Eventfd()
		if errno != 0 {
			t.Fatal(errno)
		}
		d, err := e.Open(fd)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		descs[i], ends[i] = d, fd
	}
	var computed atomic.Uint64
	var stop atomic.Bool
	var burners sync.WaitGroup
	for range 2 {
		burners.Go(func() {
			for !stop.Load() {
				computed.Add(1)
			}
		})
	}
	together := 0
	for i := 0; i < tries && together < enough; i++ {
		var at [n]uint64
		var all sync.WaitGroup
		var begun atomic.Int32
		for i, d := range descs {
			all.Go(func() {
				begun.Add(1)
				if err := d.WaitRead(); err != nil {
					t.Error(err)
				}
				at[i] = computed.Load()
			})
		}
		for begun.Load() < n {
			time.Sleep(time.Millisecond) // When the last one has begun, all wait, most likely.
		}
		for _, fd := range ends {
			sys.Write(fd, one[:])
		}
		all.Wait()
		if slices.Min(at[:]) == slices.Max(at[:]) {
			together++
		}
	}
	stop.Store(true)
	burners.Wait()
	if together < enough {
		t.Errorf("in %d of %d tries nobody had the P in between", together, tries)
	}
}
