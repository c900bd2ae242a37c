//go:build linux

package pollux

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
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
	"unsafe"

	"github.com/pollux-go/pollux/internal/host"
	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/internal/testutil"
)

// Group f: the threads, the scheduler of Go, and handlers that misbehave.

// TestF10CallbackThatDoesNotReturn blocks a loop: the watchdog counts it once and names the function. Nobody is to do anything about
// it, so the loop's other connection waits; that of the other loop is served.
func TestF10CallbackThatDoesNotReturn(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		log := new(lines)
		config.Loops, config.Logger = 2, log.logger()
		config.Dispatch = DispatchInline // On a worker, it may take its time.
		e := newEngine(t, config)
		release, homes := make(chan struct{}), make(chan *loop, 1)
		s, a := bind(t, e, "tcp", funcs{data: func(c *Conn) error {
			if b, _ := c.Peek(1); b[0] == 'b' {
				blockHere(release)
			} else {
				homes <- c.loop
			}
			return echo{}.OnData(c)
		}})
		home := func(c net.Conn) *loop { ping(t, c); return receive(t, "the loop", homes) }
		var beside, elsewhere net.Conn // of the same loop, and of another one
		c, n := dial(t, s.Addrs()[0]), 1
		for stuck := home(c); beside == nil || elsewhere == nil; n++ {
			if n == 100 {
				t.Fatal("all connections are on one loop")
			}
			if d := dial(t, s.Addrs()[0]); home(d) == stuck {
				beside = d
			} else {
				elsewhere = d
			}
		}
		if _, err := c.Write([]byte{'b'}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the watchdog to count", func() bool { return e.Stats().Stuck == 1 })
		if _, err := beside.Write([]byte{'x'}); err != nil {
			t.Fatal(err)
		}
		for range 10 {
			home(elsewhere)
		}
		eventually(t, "a log line", func() bool {
			all := strings.Join(log.all(), "\n")
			return strings.Contains(all, "pollux.blockHere") && strings.Contains(all, "every connection of its loop waits")
		})
		time.Sleep(3 * stuckAfter) // It is one callback still.
		if got := e.Stats().Stuck; got != 1 {
			t.Errorf("one callback is counted %d times", got)
		}
		if len(homes) != 0 {
			t.Error("the loop goes on while it is blocked")
		}
		close(release)
		for _, c := range []net.Conn{c, beside} {
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				t.Error(err)
			}
		}
		c.Close()
		beside.Close()
		elsewhere.Close()
		if got := e.Stats().Rescues; got != 0 {
			t.Errorf("%d lost wake-ups", got)
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
		a.wait(t, n)
	})
}

// logHandler calls a function for each line.
type logHandler struct{ handle func(slog.Record) }

func (h logHandler) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelWarn }
func (h logHandler) Handle(_ context.Context, r slog.Record) error    { h.handle(r); return nil }
func (h logHandler) WithAttrs([]slog.Attr) slog.Handler               { return h }
func (h logHandler) WithGroup(string) slog.Handler                    { return h }

// TestF10LoggerBlocks has the logger block that the watchdog tells of a callback: other engines come and go, and have their callbacks
// looked at, and its own engine closes.
func TestF10LoggerBlocks(t *testing.T) {
	testutil.CheckLeaks(t)
	told, goOn := make(chan struct{}, 100), make(chan struct{})
	block := slog.New(logHandler{func(slog.Record) { told <- struct{}{}; <-goOn }})
	defer close(goOn)
	release := make(chan struct{})
	stuck := funcs{data: func(c *Conn) error { <-release; return echo{}.OnData(c) }}
	e := newEngine(t, Config{Loops: 1, Dispatch: DispatchInline, Logger: block})
	s, _ := bind(t, e, "tcp", stuck)
	c := dial(t, s.Addrs()[0])
	io.WriteString(c, "x")
	receive(t, "a line", told)
	log := new(lines)
	other := newEngine(t, Config{Loops: 1, Dispatch: DispatchInline, Logger: log.logger()})
	so, _ := bind(t, other, "tcp", stuck)
	co := dial(t, so.Addrs()[0])
	io.WriteString(co, "x")
	eventually(t, "the other engine's line", func() bool { return strings.Contains(strings.Join(log.all(), "\n"), "a callback has been running") })
	close(release)
	expect(t, c, "x")
	expect(t, co, "x")
	for i, e := range []*Engine{other, e} {
		if err := e.Shutdown(t.Context()); err != nil {
			t.Errorf("engine %d: %v", i, err)
		}
	}
	if n := len(told); n != 0 {
		t.Errorf("%d lines at once", n)
	}
}

// TestF10LoggerCloses has the logger close the engine when the watchdog tells of a callback, and end its own goroutine for the next
// engine.
func TestF10LoggerCloses(t *testing.T) {
	testutil.CheckLeaks(t)
	for _, exits := range []bool{false, true} {
		var e *Engine
		var once sync.Once
		release, closed := make(chan struct{}), make(chan error, 1)
		e = newEngine(t, Config{Loops: 1, Dispatch: DispatchInline, Logger: slog.New(logHandler{func(slog.Record) {
			once.Do(func() { close(release); closed <- e.Shutdown(context.Background()) })
			if exits {
				runtime.Goexit()
			}
		}})})
		s, _ := bind(t, e, "tcp", funcs{data: func(c *Conn) error { <-release; return echo{}.OnData(c) }})
		c := dial(t, s.Addrs()[0])
		io.WriteString(c, "x")
		if err := receive(t, "the close", closed); err != nil {
			t.Error(err)
		}
		c.Close()
	}
}

// TestTeller has a line block: as many as there is room for are written afterwards, in their order, though one ends its goroutine.
func TestTeller(t *testing.T) {
	testutil.CheckLeaks(t)
	var w teller
	began, goOn := make(chan struct{}), make(chan struct{})
	w.tell(func() { close(began); <-goOn; runtime.Goexit() })
	receive(t, "the first line", began)
	wrote := make(chan int, 2*linesMost)
	for i := range linesMost + 2 {
		w.tell(func() { wrote <- i })
	}
	close(goOn)
	for i := range linesMost {
		if got := receive(t, "a line", wrote); got != i {
			t.Fatalf("line %d comes as line %d", got, i)
		}
	}
	eventually(t, "the end", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return !w.runs })
	if n := len(wrote); n != 0 {
		t.Errorf("%d lines that there was no room for", n)
	}
	w.tell(func() { wrote <- 0 })
	receive(t, "a line", wrote)
}

//go:noinline
func blockHere(release chan struct{}) { <-release }

// TestNestedEngines has a handler make another engine, have it serve a connection, and close it, in every way to dispatch. Its own
// engine serves on.
func TestNestedEngines(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		for _, dispatch := range []Dispatch{DispatchInline, DispatchSteal, DispatchWorkers} {
			t.Run(string(dispatch), func(t *testing.T) {
				testutil.CheckLeaks(t)
				config.Dispatch, config.Loops = dispatch, 1
				nested := func() error {
					inner, err := New(config)
					if err != nil {
						return err
					}
					s, err := inner.Bind(echo{}, "tcp://127.0.0.1:0")
					if err != nil {
						return errors.Join(err, inner.Close())
					}
					c, err := net.Dial("tcp", s.Addrs()[0].String())
					if err != nil {
						return errors.Join(err, inner.Close())
					}
					_ = c.SetDeadline(time.Now().Add(patience))
					err = errors.Join(exchange(c, 1, 10, 100), c.Close(), inner.Shutdown(context.Background()))
					if n := inner.Conns(); n != 0 {
						err = errors.Join(err, fmt.Errorf("%d connections are left", n))
					}
					return err
				}
				e := newEngine(t, config)
				s, a := bind(t, e, "tcp", funcs{data: func(c *Conn) error {
					if b, _ := c.Peek(1); b[0] == 'n' {
						if err := nested(); err != nil {
							t.Error(err)
						}
					}
					return echo{}.OnData(c)
				}})
				c, other := dial(t, s.Addrs()[0]), dial(t, s.Addrs()[0])
				for range 3 {
					if _, err := c.Write([]byte{'n'}); err != nil {
						t.Fatal(err)
					}
					if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
						t.Fatal(err)
					}
					ping(t, other)
				}
				c.Close()
				other.Close()
				a.wait(t, 2)
				if err := e.Close(); err != nil {
					t.Error(err)
				}
			})
		}
	})
}

// TestF11Goexit ends the loop's goroutine in each callback. On epoll, its connection is closed and the others are served on; on
// io_uring the engine closes, because the ring goes with the thread. Each connection hears of it either way.
func TestF11Goexit(t *testing.T) {
	for _, where := range []string{"open", "data", "eof", "close", "async"} {
		t.Run(where, func(t *testing.T) {
			eachBackend(t, func(t *testing.T, config Config) {
				testutil.CheckLeaks(t)
				config.Loops = 1
				e := newEngine(t, config)
				var armed atomic.Bool
				exit := func(at string) {
					if at == where && armed.CompareAndSwap(true, false) {
						runtime.Goexit()
					}
				}
				var reasons sync.Map
				s, _ := bind(t, e, "tcp", funcs{
					open: func(*Conn) error { exit("open"); return nil },
					data: func(c *Conn) error {
						exit("data")
						if armed.Load() && where == "async" {
							return c.Async(func(*Conn) { exit("async") })
						}
						return echo{}.OnData(c)
					},
					eof: func(c *Conn) error { exit("eof"); return c.Close() },
					close: func(c *Conn, err error) {
						reasons.Store(err, true)
						exit("close")
					},
				})
				other := dial(t, s.Addrs()[0])
				ping(t, other)
				armed.Store(true)
				victim := dial(t, s.Addrs()[0])
				if where == "data" || where == "async" {
					if _, err := victim.Write([]byte{'x'}); err != nil {
						t.Fatal(err)
					}
				} else if where != "open" {
					victim.(interface{ CloseWrite() error }).CloseWrite()
				}
				_, _ = io.Copy(io.Discard, victim) // Until it is closed.
				eventually(t, "the exit", func() bool { return !armed.Load() })
				// A ring goes with its thread, where that ran the handler.
				survives := config.Backend == KindEpoll || defaultDispatch() == DispatchWorkers
				if survives {
					ping(t, other)
					again := dial(t, s.Addrs()[0])
					ping(t, again)
					again.Close()
				} else {
					_, _ = io.Copy(io.Discard, other)
				}
				other.Close()
				victim.Close()
				eventually(t, "the connections to end", func() bool { return s.Conns() == 0 })
				if _, ok := reasons.Load(ErrGoexit); !ok && where != "close" && survives {
					t.Error("no connection was told ErrGoexit")
				}
			})
		})
	}
}

// Several handlers of one turn end their goroutines: each time, somebody goes on with the rest of the turn.
func TestF11GoexitTogether(t *testing.T) {
	testutil.CheckLeaks(t)
	e := newEngine(t, Config{Backend: KindEpoll, Loops: 1, Dispatch: DispatchInline})
	held, release := make(chan struct{}), make(chan struct{})
	s, _ := bind(t, e, "tcp", funcs{data: func(c *Conn) error {
		b, _ := c.Peek(1)
		switch b[0] {
		case '?':
			held <- struct{}{}
			<-release
		case '!':
			runtime.Goexit()
		}
		return echo{}.OnData(c)
	}})
	holder, other := dial(t, s.Addrs()[0]), dial(t, s.Addrs()[0])
	ping(t, other)
	const n = 8
	var victims [n]net.Conn
	for i := range victims {
		victims[i] = dial(t, s.Addrs()[0])
		ping(t, victims[i])
	}
	if _, err := holder.Write([]byte("?")); err != nil {
		t.Fatal(err)
	}
	<-held
	for _, v := range victims {
		if _, err := v.Write([]byte("!")); err != nil {
			t.Fatal(err)
		}
	}
	close(release) // The next turn has them all.
	for _, v := range victims {
		_ = v.SetReadDeadline(time.Now().Add(patience))
		if n, err := v.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("read %d bytes, error %v: want the end of the connection", n, err)
		}
	}
	ping(t, other)
}

// TestF11GoexitInShutdown ends the loop's goroutine while a shutdown closes connections by force: it closes all of them.
func TestF11GoexitInShutdown(t *testing.T) {
	testutil.CheckLeaks(t)
	e := newEngine(t, Config{Backend: KindEpoll, Loops: 1, Dispatch: DispatchInline, Logger: slog.New(slog.DiscardHandler)})
	const n = 9
	var closed atomic.Int64
	s, _ := bind(t, e, "tcp", funcs{
		data: func(c *Conn) error { c.Pause(); return nil }, // It works elsewhere.
		close: func(*Conn, error) {
			if closed.Add(1)%3 == 0 {
				runtime.Goexit()
			}
		},
	})
	for range n {
		if _, err := dial(t, s.Addrs()[0]).Write([]byte{'x'}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the connections", func() bool { return s.Conns() == n })
	err := s.Shutdown(canceled(errors.New("no time")))
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("shutdown: %d connections with 0 queued bytes were closed by force: no time", n)) {
		t.Error(err)
	}
	if closed.Load() != n {
		t.Errorf("%d of %d connections were closed", closed.Load(), n)
	}
}

// TestF11GoexitInClose ends the goroutine in each OnClose while the engine closes: all are told, and nothing is left.
func TestF11GoexitInClose(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		config.Loops = 1
		e := newEngine(t, config)
		const n = 9
		var closed atomic.Int64
		s, _ := bind(t, e, "tcp", funcs{
			data: echo{}.OnData,
			close: func(*Conn, error) {
				closed.Add(1)
				runtime.Goexit()
			},
		})
		for range n {
			ping(t, dial(t, s.Addrs()[0]))
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
		if closed.Load() != n {
			t.Errorf("%d of %d connections were closed", closed.Load(), n)
		}
	})
}

// TestF14CollectorAndHeap has Go collect a large heap all the time, with its stops of the world and its assists, while peers send
// more than the handlers keep up with. No byte is lost, nothing overflows, and no wake-up is.
func TestF14CollectorAndHeap(t *testing.T) {
	live, clients, records := 64<<20, 24, 20
	if os.Getenv("POLLUX_TEST_LONG") != "" {
		live, records = 1<<30, 200
	}
	type node struct {
		next *node
		_    [7]uintptr
	}
	var heap *node // Pointers, which the collector has to follow.
	for range live / int(unsafe.Sizeof(node{})) {
		heap = &node{next: heap}
	}
	defer runtime.KeepAlive(&heap)
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		defer debug.SetGCPercent(debug.SetGCPercent(1))
		e := newEngine(t, config)
		s, a := bind(t, e, "tcp", funcs{data: func(c *Conn) error {
			garbage.Store(new([4 << 10]byte)) // The handler pays for the collection, too.
			return echo{}.OnData(c)
		}, writable: echo{}.OnWritable})
		var stop atomic.Bool
		var collector sync.WaitGroup
		collector.Go(func() {
			for !stop.Load() {
				runtime.GC()
			}
		})
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		exchangeAll(t, s.Addrs()[0], clients, records, 20_000)
		runtime.ReadMemStats(&after)
		stop.Store(true)
		collector.Wait()
		a.wait(t, clients)
		if after.NumGC == before.NumGC {
			t.Error("nothing was collected meanwhile")
		}
		if got := e.Stats().Rescues; got != 0 {
			t.Errorf("%d lost wake-ups", got)
		}
		if config.Backend == KindUring {
			if sum, _ := uringTotals(t, e); sum.overflows != 0 {
				t.Errorf("%d overflows", sum.overflows)
			}
		}
	})
}

// TestF15SpinStops has events come later than a spin lasts: a loop that finds out whether spinning pays does so no more, and
// begins on its own only where there are CPUs to spare. That is all that is promised. A spin of a length that somebody has set goes
// on whoever else wants the CPU: the loop does not look.
func TestF15SpinStops(t *testing.T) {
	spare := len(host.Affinity()) > 2 && host.CPUQuota().CPUs == 0
	if budget, adaptive := (&Config{Spin: SpinAuto}).spinBudget(surroundingsNow().roomy()); spare != (budget > 0) || spare != adaptive {
		t.Errorf("with CPUs to spare %t, the spin is %v, adaptive %t", spare, budget, adaptive)
	}
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		config.Loops, config.Dispatch = 1, DispatchInline // With a relief it would not spin.
		e := newEngine(t, config)
		s, _ := bind(t, e, "tcp", echo{})
		c := dial(t, s.Addrs()[0])
		defer c.Close()
		rarely := func(pings int) (spins uint64) {
			before := e.Stats().Loops[0].Spins
			for range pings {
				time.Sleep(time.Millisecond)
				ping(t, c)
			}
			return e.Stats().Loops[0].Spins - before
		}
		set := func(adaptive bool) {
			l := e.loops[0]
			if err := l.inner.PostAlways(func() { l.inner.Spin(spinMoment, adaptive) }); err != nil {
				t.Fatal(err)
			}
		}
		set(false)
		const pings = 60
		if spins := rarely(pings); spins < pings/2 {
			t.Errorf("a set spin was tried %d times in %d waits", spins, pings)
		}
		set(true)
		rarely(pings) // It finds out.
		if spins := rarely(pings); spins > pings/4 {
			t.Errorf("a spin that does not pay was tried %d times in %d waits", spins, pings)
		}
	})
}

// TestF16ProcsChange changes how many goroutines run at once, all the time.
func TestF16ProcsChange(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
		e := newEngine(t, config)
		s, _ := bind(t, e, "tcp", echo{})
		var stop atomic.Bool
		var all sync.WaitGroup
		all.Go(func() {
			for i := 0; !stop.Load(); i++ {
				runtime.GOMAXPROCS([]int{1, 2, 8}[i%3])
				time.Sleep(200 * time.Microsecond)
			}
		})
		c := dial(t, s.Addrs()[0])
		for range 500 {
			ping(t, c)
		}
		stop.Store(true)
		all.Wait()
		e.Close()
	})
}

// TestF19CPUIsTaken moves a loop off its CPU, as a cpuset that shrinks does: it is pinned to what is left, and goes back when
// its own is there again.
//
// F20, a CPU that is unplugged, is the same to the loop: the kernel gives a thread whose last CPU goes a wider mask, and the second
// step is one that has been given a wider mask. No test unplugs one: it would take it from everything else on the machine, and many
// machines cannot.
func TestF19CPUIsTaken(t *testing.T) {
	allowed := host.Affinity()
	if len(allowed) < 2 {
		t.Skip("it needs two CPUs")
	}
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		lookOften(t)
		config.Loops, config.CPUs = 1, itoa(allowed[0])
		config.Dispatch = DispatchInline // A relief would move the loop to another thread.
		e := newEngine(t, config)
		s, _ := bind(t, e, "tcp", echo{})
		c := dial(t, s.Addrs()[0])
		ping(t, c)
		tid := loopThreads(e)[0]
		for _, step := range []struct{ left, want []int }{
			{allowed[1:], allowed[1:2]},
			{allowed, allowed[:1]},
		} {
			if errno := sys.SetAffinity(tid, step.left); errno != 0 {
				t.Fatal(errno)
			}
			eventually(t, "the loop to be pinned", func() bool {
				ping(t, c) // The watchdog looks while something happens.
				now, errno := sys.AffinityOf(tid)
				return errno == 0 && slices.Equal(now, step.want) && e.Stats().Loops[0].CPU == step.want[0]
			})
		}
		c.Close()
	})
}

// TestF21SignalStorm sends the loops' threads the runtime's own signals, SIGURG and SIGPROF, 10,000 a second of each, with the CPU
// profile running, to loops that wait hot, or spin, or do neither. On a machine that is too slow it is what it can do.
func TestF21SignalStorm(t *testing.T) {
	const (
		goal  = 10_000 // of each signal, a second
		least = 2_000
		lasts = 500 * time.Millisecond
	)
	eachBackend(t, func(t *testing.T, config Config) {
		for name, c := range map[string]Config{
			"cold":  {Hot: HotNever, Spin: SpinNever},
			"hot":   {Hot: HotAlways, Spin: SpinNever},
			"spins": {Hot: HotNever, Spin: 100 * time.Microsecond},
			"both":  {Hot: HotAlways, Spin: 100 * time.Microsecond},
		} {
			t.Run(name, func(t *testing.T) {
				testutil.CheckLeaks(t)
				config.Loops, config.Hot, config.Spin = 1, c.Hot, c.Spin
				config.Dispatch = DispatchInline // A relief would move the loop to another thread.
				e := newEngine(t, config)
				s, _ := bind(t, e, "tcp", echo{})
				if err := pprof.StartCPUProfile(io.Discard); err != nil {
					t.Fatal(err)
				}
				tid := loopThreads(e)[0]
				var stop atomic.Bool
				var all sync.WaitGroup
				var sent int // of each
				began := time.Now()
				all.Go(func() {
					for !stop.Load() {
						// As many as are due: a sleep may take far longer than it was told to.
						for due := int(goal * time.Since(began) / time.Second); sent < due && !stop.Load(); sent++ {
							for _, signal := range []syscall.Signal{syscall.SIGURG, syscall.SIGPROF} {
								if err := syscall.Tgkill(syscall.Getpid(), tid, signal); err != nil {
									t.Error(err)
									return
								}
							}
						}
						time.Sleep(20 * time.Microsecond)
					}
				})
				conn := dial(t, s.Addrs()[0])
				pings := 0
				for ; time.Since(began) < lasts || pings < 200; pings++ {
					ping(t, conn)
				}
				took := time.Since(began)
				stop.Store(true)
				all.Wait()
				pprof.StopCPUProfile()
				rate := float64(sent) / took.Seconds()
				t.Logf("%.0f a second of each signal for %v, %d requests", rate, took.Round(time.Millisecond), pings)
				if rate < least {
					t.Errorf("%.0f a second of each signal, want %d, and %d at least", rate, goal, least)
				}
				if n := e.Stats().Rescues; n != 0 {
					t.Errorf("%d lost wake-ups", n)
				}
				e.Close()
			})
		}
	})
}

// TestF9Panics panics in every callback; the loop serves on.
func TestF9Panics(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		config.Loops = 1
		e := newEngine(t, config)
		var told atomic.Int32
		s, _ := bind(t, e, "tcp", funcs{
			data: func(*Conn) error {
				defer func() { panic("again") }() // While one is under way.
				panic("first")
			},
			close: func(_ *Conn, err error) {
				if p := new(PanicError); errors.As(err, &p) {
					told.Add(1)
				}
				panic("and in OnClose")
			},
		})
		for range 20 {
			c := dial(t, s.Addrs()[0])
			_, _ = c.Write([]byte{'x'})
			_, _ = io.Copy(io.Discard, c)
			c.Close()
		}
		eventually(t, "every connection to end", func() bool { return s.Conns() == 0 })
		if told.Load() != 20 {
			t.Errorf("%d of 20 connections were told of their panic", told.Load())
		}
	})
}

// TestF13StartAndStop starts and closes engines: descriptors, threads and mappings are what they were after the first few. A
// thread has a stack and what guards it, and a ring has its queues: one of them left by each engine would be as many mappings as
// there were engines.
func TestF13StartAndStop(t *testing.T) {
	rounds := 100
	if os.Getenv("POLLUX_TEST_LONG") != "" {
		rounds = 10_000
	}
	// The runtime keeps threads and their stacks for later, and its heap may grow. A leak of each fourth engine is seen.
	const slack = 25
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		config.CPUs, config.Hot = "auto", HotAlways
		round := func() {
			e := newEngine(t, config)
			s, _ := bind(t, e, "tcp", echo{})
			c := dial(t, s.Addrs()[0])
			ping(t, c)
			c.Close()
			if err := e.Close(); err != nil {
				t.Fatal(err)
			}
		}
		for range 10 {
			round() // What the process makes once is there now.
		}
		before := takeInventory(t)
		for range rounds {
			round()
		}
		for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) { // The last threads may be about to end.
			now := takeInventory(t)
			if now.files == before.files && now.rings == before.rings && now.threads <= before.threads+slack && now.mappings <= before.mappings+slack {
				t.Logf("after %d engines: %+v, before: %+v", rounds, now, before)
				return
			}
			if time.Now().After(end) {
				t.Fatalf("after %d engines there are %+v, before there were %+v", rounds, now, before)
			}
		}
	})
}

// inventory is what a process has of the kernel's.
type inventory struct {
	files, threads, mappings int
	rings                    int // of the mappings: queues of rings
}

func takeInventory(t *testing.T) (i inventory) {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	return inventory{
		files:    len(testutil.Files()),
		threads:  testutil.Threads(),
		mappings: strings.Count(string(maps), "\n"),
		rings:    strings.Count(string(maps), "[io_uring]"),
	}
}

// TestStats counts a known load.
func TestStats(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		config.Loops = 1
		e := newEngine(t, config)
		if got := e.Stats(); len(got.Loops) != 0 || got.Conns != 0 {
			t.Errorf("before it starts: %+v", got)
		}
		s, _ := bind(t, e, "tcp", echo{})
		c := dial(t, s.Addrs()[0])
		const pings = 100
		for range pings {
			ping(t, c)
		}
		got := e.Stats()
		l := got.Loops[0]
		if got.Conns != 1 || l.Conns != 1 || got.Backend != string(config.Backend) {
			t.Errorf("%+v", got)
		}
		if l.Callbacks < pings+1 || l.Events < pings || l.Turns < pings || l.Posts == 0 || l.Busy <= 0 || l.WakesSent+l.WakesElided == 0 {
			t.Errorf("%+v", l)
		}
		turns := uint64(0)
		for _, n := range l.TurnTimes {
			turns += n
		}
		if waits := l.HotWaits + l.ColdWaits; turns > waits || turns+2 < waits {
			t.Errorf("%d turns in the classes of %d waits", turns, waits)
		}
		if u := l.Uring; (u != nil) != (config.Backend == KindUring) {
			t.Errorf("io_uring: %+v", u)
		} else if u != nil && (u.Enters == 0 || u.Enters < pings && completing(config)) { // What is ready may be found without one.
			t.Errorf("%d enters", u.Enters)
		}
	})
}
