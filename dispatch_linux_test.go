package pollux

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pollux-go/pollux/cgo"
	"github.com/pollux-go/pollux/internal/host"
	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/internal/testutil"
	"github.com/pollux-go/pollux/poller"

	"golang.org/x/sys/unix"
)

// stuckHandler blocks for requests that begin with 'b' or 'B', until the test lets them go on. It is an echo otherwise.
type stuckHandler struct {
	echo
	blocked, goOn chan struct{}
	stuck         func(*Conn) // what it does after it was blocked by 'B'
	loop          atomic.Pointer[loop]
	thread        atomic.Int64 // that the last one was blocked on
}

func newStuckHandler() *stuckHandler {
	return &stuckHandler{blocked: make(chan struct{}, 100), goOn: make(chan struct{})}
}

func (h *stuckHandler) OnData(c *Conn) error {
	h.loop.Store(c.loop)
	if b, _ := c.Peek(1); len(b) > 0 && (b[0] == 'b' || b[0] == 'B') {
		h.thread.Store(int64(sys.Gettid()))
		h.blocked <- struct{}{}
		<-h.goOn
		if b[0] == 'B' {
			h.stuck(c)
		}
	}
	return h.echo.OnData(c)
}

// beSlow has the loop find out that the handler may be slow: it must look twice for the turns that are long. A loop that can be
// relieved is looked after then; where threads had to wait for a CPU it may have been for nothing before, and takes a rest.
func beSlow(t *testing.T, h *stuckHandler, c net.Conn) {
	t.Helper()
	for end := time.Now().Add(patience / 2); ; {
		for range 4 {
			var release sync.WaitGroup
			release.Go(func() { <-h.blocked; time.Sleep(2 * time.Millisecond); h.goOn <- struct{}{} })
			roundTrip(t, c, "b first")
			release.Wait()
		}
		l := h.loop.Load()
		ready := make(chan bool, 1)
		if err := l.inner.Post(func() { ready <- !l.relievable() || l.lookout.turns > 0 }); err != nil {
			t.Fatal(err)
		}
		if receive(t, "the loop", ready) {
			return
		}
		if time.Now().After(end) {
			t.Fatal("its handler is slow, and the loop is not looked after")
		}
	}
}

func roundTrip(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	expect(t, c, text)
}

func expect(t *testing.T, c net.Conn, text string) {
	t.Helper()
	b := make([]byte, len(text))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != text {
		t.Fatalf("%q came for %q: %v", b, text, err)
	}
}

// TestStuckHandlerHoldsUpNobody blocks handlers for some connections, in every way that does something about it: the others are
// answered meanwhile, and the bytes of those are handled in order afterwards.
func TestStuckHandlerHoldsUpNobody(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		for _, dispatch := range []Dispatch{DispatchSteal, DispatchWorkers} {
			if dispatch == DispatchSteal && config.Backend == KindUring {
				continue // There the handler must be slow for longer: TestSlowHandlerMoves.
			}
			for _, pinned := range []string{"", "0"} {
				t.Run(string(dispatch)+"/cpus="+pinned, func(t *testing.T) {
					testutil.CheckLeaks(t)
					config.Dispatch, config.Loops, config.CPUs = dispatch, 1, pinned
					if pinned != "" {
						config.Hot = HotAlways // And workers that the loop's P would strand.
						config.Isolate = len(host.Affinity()) > 1
					}
					e := newEngine(t, config)
					h := newStuckHandler()
					s, a := bind(t, e, "tcp", h)
					const stuck = 5
					var conns [stuck]net.Conn
					other := dial(t, s.Addrs()[0])
					roundTrip(t, other, "hello")
					beSlow(t, h, other)
					for i := range conns {
						conns[i] = dial(t, s.Addrs()[0])
						io.WriteString(conns[i], "b")
						receive(t, "the handler", h.blocked)
						for j := range 20 {
							roundTrip(t, other, strings.Repeat("x", j+1))
						}
						fresh := dial(t, s.Addrs()[0])
						roundTrip(t, fresh, "new")
						fresh.Close()
						io.WriteString(conns[i], "more")
					}
					if dispatch == DispatchSteal {
						// On a machine that stands still, so many calls may be slow that workers have the rest.
						if s := e.Stats(); s.Reliefs == 0 || s.Reliefs+s.Workers.Run < stuck {
							t.Errorf("%d reliefs for %d callbacks that block: %+v", s.Reliefs, stuck, s.Workers)
						}
					}
					if pinned != "" {
						l := e.loops[0]
						if cpus, errno := sys.AffinityOf(int(l.thread.Load())); errno != 0 || len(cpus) != 1 || cpus[0] != l.pin.CPU {
							t.Errorf("the loop's thread may run on %v, %v: want CPU %d only", cpus, errno, l.pin.CPU)
						}
					}
					close(h.goOn)
					for _, c := range conns {
						expect(t, c, "bmore")
						roundTrip(t, c, "still there")
						c.Close()
					}
					other.Close()
					a.wait(t, 2*stuck+1)
					if n := e.Stats().Rescues; n != 0 {
						t.Errorf("%d lost wake-ups", n)
					}
				})
			}
		}
	})
}

// TestSlowOnCloseHoldsUpNobody has OnClose block, once a few were slow: the other connections are answered meanwhile.
func TestSlowOnCloseHoldsUpNobody(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		config.Dispatch, config.Loops = DispatchSteal, 1
		e := newEngine(t, config)
		var block, moved atomic.Bool
		blocked, goOn := make(chan struct{}, 1), make(chan struct{})
		s, a := bind(t, e, "tcp", funcs{
			data: echo{}.OnData,
			close: func(*Conn, error) {
				if block.Load() {
					blocked <- struct{}{}
					<-goOn
					return
				}
				time.Sleep(2 * time.Millisecond)
				moved.Store(moved.Load() || e.onWorker())
			},
		})
		other := dial(t, s.Addrs()[0])
		closed := 0
		closeOne := func() {
			c := dial(t, s.Addrs()[0])
			roundTrip(t, c, "hello")
			c.Close()
			closed++
		}
		eventually(t, "a slow OnClose to go to a worker", func() bool {
			closeOne()
			for range 2 * reliefWeight { // So that it is a handler which is fast, mostly.
				roundTrip(t, other, "hello")
			}
			return moved.Load()
		})
		block.Store(true)
		closeOne()
		receive(t, "OnClose", blocked)
		for range 20 {
			roundTrip(t, other, "meanwhile")
		}
		block.Store(false)
		close(goOn)
		other.Close()
		a.wait(t, closed+1)
		if n := e.Stats().Rescues; n != 0 {
			t.Errorf("%d lost wake-ups", n)
		}
	})
}

// TestReliefOfTheStarved relieves a callback that a loop runs while it goes through the connections that the kernel had no
// memory for: the others have their try all the same.
func TestReliefOfTheStarved(t *testing.T) {
	testutil.CheckLeaks(t)
	e := newEngine(t, Config{Backend: KindEpoll, Loops: 1, Dispatch: DispatchSteal, WriteLimit: 32 << 10})
	var poor, blocks atomic.Bool
	testutil.InjectFaults(t, func(op sys.Op, _ int) sys.Fault {
		if op == sys.OpSend && poor.Load() {
			return sys.Fault{Errno: sys.ENOBUFS}
		}
		return sys.Fault{}
	})
	h := newStuckHandler()
	writable := make(chan struct{})
	s, a := bind(t, e, "tcp", funcs{
		data: func(c *Conn) error {
			b, _ := c.Peek(-1)
			if b[0] != 's' {
				return h.OnData(c)
			}
			_, _ = c.Next(-1)
			_, _ = c.Write(make([]byte, 40<<10)) // More than the limit, so that OnWritable is called.
			return nil
		},
		writable: func(*Conn) error {
			if blocks.CompareAndSwap(true, false) {
				h.blocked <- struct{}{}
				<-writable
			}
			return nil
		},
	})
	other := dial(t, s.Addrs()[0])
	beSlow(t, h, other)
	const n = 4
	var conns [n]net.Conn
	for i := range conns {
		conns[i] = dial(t, s.Addrs()[0])
	}
	roundTrip(t, conns[n-1], "all are there")
	poor.Store(true)
	for _, c := range conns {
		io.WriteString(c, "s")
	}
	eventually(t, "the sends to be refused", func() bool {
		starved := make(chan int)
		if err := e.loops[0].inner.Post(func() { starved <- len(e.loops[0].starved) }); err != nil {
			t.Fatal(err)
		}
		return receive(t, "the loop", starved) == n
	})
	blocks.Store(true)
	poor.Store(false)
	receive(t, "OnWritable", h.blocked)
	roundTrip(t, other, "meanwhile")
	for _, c := range conns {
		if _, err := io.ReadFull(c, make([]byte, 32<<10)); err != nil {
			t.Error(err)
		}
	}
	close(writable)
	for _, c := range append(conns[:], other) {
		c.Close()
	}
	a.wait(t, n+1)
	if e.Stats().Reliefs == 0 {
		t.Error("nobody was relieved")
	}
}

// TestReliefOfTheLastAccept relieves OnOpen of a connection that was accepted because its listener closes, or has it end its
// goroutine: the others are accepted all the same, and Shutdown comes to its end.
func TestReliefOfTheLastAccept(t *testing.T) {
	for name, exits := range map[string]bool{"relief": false, "goexit": true} {
		t.Run(name, func(t *testing.T) {
			testutil.CheckLeaks(t)
			e := newEngine(t, Config{Backend: KindEpoll, Loops: 1, Dispatch: DispatchSteal, Logger: slog.New(slog.DiscardHandler)})
			h := newStuckHandler()
			warm, _ := bind(t, e, "tcp", h)
			other := dial(t, warm.Addrs()[0])
			beSlow(t, h, other)
			const n, stuck = 100, 90 // Of which 64 are accepted in a turn before.
			var opened atomic.Int64
			blocked, goOn := make(chan struct{}, 1), make(chan struct{})
			s, a := bind(t, e, "tcp", funcs{
				data: echo{}.OnData,
				open: func(*Conn) error {
					if opened.Add(1) == stuck {
						blocked <- struct{}{}
						if exits {
							runtime.Goexit()
						}
						<-goOn
					}
					return nil
				},
			})
			release := holdLoops(t, e)
			defer release()
			var clients [n]net.Conn
			for i := range clients {
				clients[i] = dial(t, s.Addrs()[0])
				io.WriteString(clients[i], "x")
			}
			posts := func() uint64 {
				c := e.loops[0].inner.Counters()
				return c.WakesSent + c.WakesElided
			}
			before, ended := posts(), make(chan error, 1)
			go func() { ended <- s.Shutdown(t.Context()) }()
			eventually(t, "the acceptor to be told", func() bool { return posts() > before })
			release()
			receive(t, "OnOpen", blocked)
			roundTrip(t, other, "meanwhile")
			close(goOn)
			answered := 0
			for _, c := range clients {
				if b, _ := io.ReadAll(c); string(b) == "x" {
					answered++
				}
			}
			if err := receive(t, "Shutdown", ended); err != nil {
				t.Error(err)
			}
			if want := map[bool]int{false: n, true: n - 1}[exits]; answered != want {
				t.Errorf("%d of %d clients were answered, want %d", answered, n, want)
			}
			other.Close()
			a.wait(t, n)
		})
	}
}

// TestHandlerThatIsSlowNowAndThen changes its mind all the time about whether a handler is slow, while connections send more
// than fits into a buffer: every byte is echoed.
func TestHandlerThatIsSlowNowAndThen(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		config.Dispatch, config.RingBufferSize, config.BufferSize = DispatchSteal, 256, 4<<10
		e := newEngine(t, config)
		s, a := bind(t, e, "tcp", echo{})
		var stop atomic.Bool
		var flips, clients sync.WaitGroup
		flips.Go(func() {
			for slow := false; !stop.Load(); slow = !slow {
				s.pace.isSlow.Store(slow)
			}
		})
		const conns, rounds = 4, 200
		sent := bytes.Repeat([]byte("0123456789"), 1001)
		for range conns {
			c := dial(t, s.Addrs()[0])
			clients.Go(func() {
				defer c.Close()
				got := make([]byte, len(sent))
				for round := range rounds {
					_ = c.SetDeadline(time.Now().Add(patience))
					if _, err := c.Write(sent); err != nil {
						t.Errorf("round %d: %v", round, err)
						return
					}
					if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, sent) {
						t.Errorf("round %d: %v", round, err)
						return
					}
				}
			})
		}
		clients.Wait()
		stop.Store(true)
		flips.Wait()
		a.wait(t, conns)
	})
}

// TestNearLoops has two caches of four CPUs each.
func TestNearLoops(t *testing.T) {
	sharers := func(cpu int) []int {
		first := cpu / 4 * 4
		return []int{first, first + 1, first + 2, first + 3}
	}
	all := []int{0, 1, 2, 3, 4, 5, 6, 7}
	loops := func(cpus ...int) (threads []cgo.Thread) {
		for _, cpu := range cpus {
			threads = append(threads, cgo.Thread{CPU: cpu})
		}
		return threads
	}
	n := makeNear(loops(0, 4, 1, 5), all, sharers) // Their sources are 0 to 3 for what is slow, and 4 to 7.
	for cpu, want := range map[int][]int{0: {0, 4, 2, 6}, 3: {0, 4, 2, 6}, 4: {1, 5, 3, 7}, 7: {1, 5, 3, 7}, 8: nil, -1: nil} {
		n.cpu = func() int { return cpu }
		if got := n.sources(); !slices.Equal(got, want) {
			t.Errorf("near to CPU %d are the sources %v, want %v", cpu, got, want)
		}
	}
	for what, n := range map[string]*near{
		"loops that are not pinned":        makeNear(loops(-1, -1), all, sharers),
		"one cache":                        makeNear(loops(0, 1), all[:4], sharers),
		"loops at one cache of two":        makeNear(loops(0, 1, 2), all, sharers),
		"caches of which nothing is known": makeNear(loops(0, 4), all, func(int) []int { return nil }),
	} {
		if n != nil {
			t.Errorf("%s: the workers are told %v", what, n.near)
		}
	}
}

// TestPreemptedHandler has a thread with a higher priority take the loop's CPU for a millisecond in each callback. These are
// not slow, and nobody relieves the loop of them, also where it is looked after. Some are slow all the same, as the runtime, or
// a hypervisor, has stopped them, and more where the machine has much else to do; but not a third of them, nor is the loop
// relieved of one in thirty, as one try of three must show.
func TestPreemptedHandler(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		for _, watched := range []bool{false, true} {
			if watched && config.Backend != KindEpoll {
				continue
			}
			var found string
			for range 3 {
				if found = preemptedHandler(t, config, watched); found == "" {
					break
				}
			}
			if found != "" {
				t.Errorf("looked after %v: %s", watched, found)
			}
		}
	})
}

// preemptedHandler returns what is wrong.
func preemptedHandler(t *testing.T, config Config, watched bool) (found string) {
	t.Helper()
	cpus := host.Affinity()
	if len(cpus) < 2 {
		t.Skip("it takes two CPUs")
	}
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // A handler that the collector stops is slow.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(8))  // The other thread need not wait for a P.
	const pause = time.Millisecond
	var bell [2]int
	if err := unix.Pipe2(bell[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	begun := make(chan sys.Errno)
	var ended sync.WaitGroup
	ended.Go(func() {
		runtime.LockOSThread() // And it ends with its goroutine.
		errno := sys.SetAffinity(0, cpus[:1])
		if errno == 0 {
			errno = sys.SetSched(0, sys.Sched{FIFO: true, Priority: 1})
		}
		begun <- errno
		for b := make([]byte, 1); errno == 0; {
			if n, err := unix.Read(bell[0], b); n != 1 && err != unix.EINTR {
				return
			}
			for began := time.Now(); time.Since(began) < pause; {
			}
		}
	})
	defer func() {
		unix.Close(bell[1])
		ended.Wait()
		unix.Close(bell[0])
	}()
	if errno := <-begun; errno != 0 {
		t.Skipf("it takes CAP_SYS_NICE: %v", errno)
	}
	config.Dispatch, config.Loops, config.CPUs = DispatchSteal, 1, strconv.Itoa(cpus[0])
	e := newEngine(t, config)
	var late atomic.Int64
	s, a := bind(t, e, "tcp", funcs{data: func(c *Conn) error {
		if b, _ := c.Peek(1); b[0] == 'p' {
			began := time.Now()
			_, _ = unix.Write(bell[1], b)
			if time.Since(began) > pause/2 {
				late.Add(1)
			}
		}
		return echo{}.OnData(c)
	}})
	c, other := dial(t, s.Addrs()[0]), dial(t, s.Addrs()[0])
	roundTrip(t, c, "x")
	l := e.loops[0]
	if watched {
		if err := l.inner.Post(l.beWatched); err != nil {
			t.Fatal(err)
		}
	}
	const calls = 300
	slow := 0
	for range calls {
		io.WriteString(c, "p")
		roundTrip(t, other, "x")
		expect(t, c, "p")
		// What was slow goes into the bucket. With nothing in it the next call is the loop's again.
		if s.pace.bucket.Swap(0) > 0 {
			slow++
		}
		s.pace.isSlow.Store(false)
	}
	preempted := int(late.Load())
	switch n := e.Stats(); {
	case preempted < calls/2:
		found = fmt.Sprintf("only %d of %d callbacks have lost their CPU: the test shows nothing", preempted, calls)
	case slow > preempted/3 || n.Reliefs > uint64(preempted/30):
		found = fmt.Sprintf("of %d callbacks that have lost their CPU %d were slow; %d reliefs", preempted, slow, n.Reliefs)
	}
	t.Logf("%d of %d callbacks have lost their CPU, %d were slow, %d reliefs, %d ran on workers", preempted, calls, slow,
		e.Stats().Reliefs, e.Stats().Workers.Run)
	c.Close()
	other.Close()
	a.wait(t, 2)
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	return found
}

// TestReliefWithoutClocks has the kernel refuse to say what threads do: callbacks that take long are relieved all the same.
func TestReliefWithoutClocks(t *testing.T) {
	for _, refused := range []sys.Op{sys.OpClockGettime, sys.OpGetrusage, sys.OpOpen} {
		t.Run(refused.String(), func(t *testing.T) {
			testutil.CheckLeaks(t)
			testutil.InjectFaults(t, func(op sys.Op, _ int) sys.Fault {
				if op == refused {
					return sys.Fault{Errno: sys.EPERM}
				}
				return sys.Fault{}
			})
			e := newEngine(t, Config{Backend: KindEpoll, Loops: 1, Dispatch: DispatchSteal})
			h := newStuckHandler()
			s, a := bind(t, e, "tcp", h)
			c, other := dial(t, s.Addrs()[0]), dial(t, s.Addrs()[0])
			beSlow(t, h, other)
			io.WriteString(c, "b")
			receive(t, "the handler", h.blocked)
			roundTrip(t, other, "meanwhile")
			close(h.goOn)
			expect(t, c, "b")
			c.Close()
			other.Close()
			a.wait(t, 2)
			if e.Stats().Reliefs == 0 {
				t.Error("nobody was relieved")
			}
		})
	}
}

// TestDetachBeforeLate takes out a connection in what Async was given while a callback was away, before what has come since is
// delivered: it is there.
func TestDetachBeforeLate(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		config.Dispatch, config.Loops = DispatchSteal, 1
		e := newEngine(t, config)
		blocked, goOn := make(chan *Conn, 1), make(chan struct{})
		s, a := bind(t, e, "tcp", funcs{data: func(c *Conn) error {
			blocked <- c
			<-goOn
			_, err := c.Discard(-1)
			return err
		}})
		s.pace.bucket.Store(slowMost)
		s.pace.isSlow.Store(true)
		client := dial(t, s.Addrs()[0])
		io.WriteString(client, "first")
		c := receive(t, "the handler", blocked)
		io.WriteString(client, "late")
		l := e.loops[0]
		eventually(t, "what comes late", func() bool {
			kept := make(chan bool)
			_ = l.inner.PostAlways(func() {
				r := l.elsewhere(c)
				kept <- r.kept&keptEvents != 0 || len(r.late) > 0
			})
			return <-kept
		})
		_ = c.Async(func(c *Conn) {
			d, err := c.Detach()
			if err != nil {
				t.Error(err)
				return
			}
			go func() {
				defer d.Close()
				_ = d.SetDeadline(time.Now().Add(patience))
				_, _ = io.CopyN(d, d, int64(len("late")))
			}()
		})
		s.pace.isSlow.Store(false) // So that the loop runs it.
		close(goOn)
		expect(t, client, "late")
		client.Close()
		a.wait(t, 1)
	})
}

// TestLoopLends has a loop tell whether callbacks of it are away.
func TestLoopLends(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		config.Dispatch, config.Loops = DispatchWorkers, 1
		e := newEngine(t, config)
		blocked, goOn := make(chan struct{}), make(chan struct{})
		s, a := bind(t, e, "tcp", funcs{data: func(c *Conn) error {
			blocked <- struct{}{}
			<-goOn
			return echo{}.OnData(c)
		}})
		lends := func() bool {
			lent := make(chan bool)
			_ = e.loops[0].inner.PostAlways(func() {
				_, some := e.loops[0].EndTurn()
				lent <- some
			})
			return <-lent
		}
		if lends() {
			t.Error("it lends, and has nothing to do")
		}
		client := dial(t, s.Addrs()[0])
		io.WriteString(client, "hello")
		receive(t, "the handler", blocked)
		if !lends() {
			t.Error("it does not lend, and a callback is with a worker")
		}
		close(goOn)
		expect(t, client, "hello")
		eventually(t, "the callback to be back", func() bool { return !lends() })
		client.Close()
		a.wait(t, 1)
	})
}

// TestReliefLate has callbacks not return in a loop that is not looked after, as nothing was slow before, or as that was of no use
// lately, or as its thread has SCHED_FIFO. The watchdog has them relieved, and tells of them.
func TestReliefLate(t *testing.T) {
	for name, config := range map[string]Config{
		"as it is":       {},
		"hot":            {Hot: HotAlways, CPUs: "0"},
		"spins":          {Spin: time.Millisecond},
		"fifo":           {Sched: "fifo:2", CPUs: "0"},
		"fifo, hot":      {Sched: "fifo:2", CPUs: "0", Hot: HotAlways},
		"fifo, isolated": {Sched: "fifo:2", CPUs: "0", Isolate: true},
	} {
		t.Run(name, func(t *testing.T) {
			testutil.CheckLeaks(t)
			fifo := config.Sched != ""
			switch {
			case fifo && !config.Isolate && !cgo.Attends:
				t.Skip("there are no attendants without cgo")
			case config.Isolate && len(host.Affinity()) < 2:
				t.Skip("it needs two CPUs")
			}
			log := new(lines)
			config.Backend, config.Loops, config.Dispatch, config.Logger = KindEpoll, 1, DispatchSteal, log.logger()
			e := newEngine(t, config)
			h, computes := newStuckHandler(), atomic.Bool{}
			h.stuck = func(*Conn) {
				for computes.Load() {
				}
			}
			s, a := bind(t, e, "tcp", h)
			l := e.loops[0]
			other := dial(t, s.Addrs()[0])
			roundTrip(t, other, "hello")
			if fifo && strings.Contains(strings.Join(log.all(), "\n"), "CAP_SYS_NICE") {
				t.Skip("the process may not")
			}
			const n = 4
			var conns [n]net.Conn
			var stuck [n]int // the threads
			for i := range conns {
				unwatch(t, s, l)
				stuck[i] = int(l.thread.Load())
				eventually(t, "the loop's thread to be scheduled as it is to be", func() bool {
					roundTrip(t, other, "again") // A turn that was long has cost it its priority until the next one.
					sched, errno := sys.GetSched(stuck[i])
					return errno == 0 && sched.FIFO == fifo
				})
				conns[i] = dial(t, s.Addrs()[0])
				what := "b"
				if i%2 == 1 {
					what = "B"
					computes.Store(true)
				}
				io.WriteString(conns[i], what)
				receive(t, "the handler", h.blocked)
				if what == "B" {
					h.goOn <- struct{}{}
				}
				roundTrip(t, other, "meanwhile")
				if got := e.Stats().Reliefs; got < uint64(i+1) {
					t.Errorf("%d reliefs for %d callbacks that do not return", got, i+1)
				}
				for k, tid := range stuck[:i+1] { // Who was relieved has nothing of a loop's any more.
					sched, errno := sys.GetSched(tid)
					if errno != 0 || sched.FIFO {
						t.Errorf("after relief %d, thread %d of those that are stuck is scheduled as %+v (%v)", i+1, k+1, sched, errno)
					}
					if cpus, errno := sys.AffinityOf(tid); fifo && !config.Isolate && (errno != 0 || !slices.Equal(cpus, host.Affinity())) {
						t.Errorf("after relief %d, thread %d of those that are stuck may run on %v (%v)", i+1, k+1, cpus, errno)
					}
				}
				if fifo && !config.Isolate && attendants(t) != 1 {
					t.Errorf("%d attendants after %d reliefs", attendants(t), i+1)
				}
				if i == 0 {
					eventually(t, "a log line", func() bool {
						all := strings.Join(log.all(), "\n")
						return strings.Contains(all, "(*stuckHandler).OnData") && strings.Contains(all, "have another thread")
					})
				}
			}
			computes.Store(false)
			close(h.goOn)
			for i, c := range conns {
				expect(t, c, []string{"b", "B"}[i%2])
				c.Close()
			}
			if fifo { // Such a loop would be relieved late each time.
				eventually(t, "the handler to be slow", s.pace.slow)
			}
			roundTrip(t, other, "over")
			other.Close()
			a.wait(t, n+1)
		})
	}
}

// TestFirstStuckOnUring has the first callback that is slow not return, on io_uring, where nobody can take the loop over: with steal
// the loop's other connections wait, and the watchdog says so; with workers nobody waits, and the watchdog has nothing to say.
func TestFirstStuckOnUring(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		if config.Backend != KindUring {
			t.Skip("epoll has relief: TestReliefLate")
		}
		for _, dispatch := range []Dispatch{DispatchSteal, DispatchWorkers} {
			t.Run(string(dispatch), func(t *testing.T) {
				testutil.CheckLeaks(t)
				log := new(lines)
				config.Dispatch, config.Loops, config.Logger = dispatch, 1, log.logger()
				e := newEngine(t, config)
				h := newStuckHandler()
				s, a := bind(t, e, "tcp", h)
				stuck, other := dial(t, s.Addrs()[0]), dial(t, s.Addrs()[0])
				roundTrip(t, other, "hello")
				roundTrip(t, stuck, "hello")
				io.WriteString(stuck, "b")
				receive(t, "the handler", h.blocked)
				if dispatch == DispatchSteal {
					fresh := dial(t, s.Addrs()[0]) // By the kernel.
					io.WriteString(fresh, "new")
					io.WriteString(other, "later")
					eventually(t, "a log line", func() bool {
						return strings.Contains(strings.Join(log.all(), "\n"), "every connection of its loop waits")
					})
					for _, c := range []net.Conn{fresh, other} {
						c.SetReadDeadline(time.Now().Add(stuckAfter))
						if n, err := c.Read(make([]byte, 8)); !errors.Is(err, os.ErrDeadlineExceeded) {
							t.Errorf("%d bytes come from a loop that is blocked: %v", n, err)
						}
						c.SetReadDeadline(time.Now().Add(patience))
					}
					if s := e.Stats(); s.Stuck != 1 || s.Reliefs != 0 {
						t.Errorf("%d callbacks are counted, with %d reliefs", s.Stuck, s.Reliefs)
					}
					close(h.goOn)
					expect(t, other, "later")
					expect(t, fresh, "new")
					fresh.Close()
				} else {
					for end := time.Now().Add((tellLooks + 4) * stuckAfter); time.Now().Before(end); time.Sleep(stuckAfter / 5) {
						roundTrip(t, other, "meanwhile")
					}
					fresh := dial(t, s.Addrs()[0])
					roundTrip(t, fresh, "new")
					fresh.Close()
					if all := log.all(); e.Stats().Stuck != 0 || strings.Contains(strings.Join(all, "\n"), "a callback has been running") {
						t.Errorf("%d callbacks are counted, and the log is %q", e.Stats().Stuck, all)
					}
					close(h.goOn)
				}
				expect(t, stuck, "b")
				stuck.Close()
				other.Close()
				a.wait(t, 3)
			})
		}
	})
}

// unwatch has a loop not be looked after, for an hour. What others on the machine have made slow must not have a callback of the
// service go to a worker.
func unwatch(t *testing.T, s *Service, l *loop) {
	t.Helper()
	done := make(chan struct{})
	if err := l.inner.Post(func() {
		if l.lookout.turns > 0 {
			l.notWatched() // A follower may still wait, for an event.
		}
		l.lookout.after = poller.Nanotime() + int64(time.Hour)
		s.pace.bucket.Store(0)
		s.pace.isSlow.Store(false)
		close(done)
	}); err != nil {
		t.Fatal(err)
	}
	receive(t, "the loop", done)
}

// TestReliefLateInVain has a callback end just before it is relieved late, and the loop looked after from then on: the thread that
// came in vain is its follower.
func TestReliefLateInVain(t *testing.T) {
	testutil.CheckLeaks(t)
	e := newEngine(t, Config{Backend: KindEpoll, Loops: 1, Dispatch: DispatchSteal})
	h := newStuckHandler()
	s, a := bind(t, e, "tcp", h)
	c := dial(t, s.Addrs()[0])
	roundTrip(t, c, "hello")
	l := e.loops[0]
	looks, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	testutil.InjectFaults(t, func(op sys.Op, tid int) sys.Fault {
		if op == sys.OpClockGettime && tid != 0 { // What the callback does.
			return sys.Fault{Before: func() { once.Do(func() { close(looks); <-goOn }) }}
		}
		return sys.Fault{}
	})
	io.WriteString(c, "b")
	receive(t, "the handler", h.blocked)
	receive(t, "the watchdog's thread", looks)
	h.goOn <- struct{}{}
	expect(t, c, "b")
	shared := make(chan struct{})
	if err := l.inner.Post(func() { l.beWatched(); close(shared) }); err != nil {
		t.Fatal(err)
	}
	receive(t, "the loop", shared)
	close(goOn)
	eventually(t, "a follower", func() bool { return l.lookout.spares.isMember(int(l.thread.Load())) && membersOf(l) == 2 })
	if n := l.lookout.threads.Load(); n != 2 || !l.inner.Shared() {
		t.Errorf("%d threads; it is shared: %v", n, l.inner.Shared())
	}
	io.WriteString(c, "b") // Which is relieved as if nothing had happened.
	receive(t, "the handler", h.blocked)
	other := dial(t, s.Addrs()[0])
	roundTrip(t, other, "meanwhile")
	close(h.goOn)
	expect(t, c, "b")
	c.Close()
	other.Close()
	a.wait(t, 2)
}

// TestReliefIsolated has callbacks relieved, early and late, of a loop that has its CPU for itself: whoever was relieved stays off that
// CPU from the start, and may run everywhere again when the engine has closed.
func TestReliefIsolated(t *testing.T) {
	allowed := host.Affinity()
	if len(allowed) < 2 {
		t.Skip("it needs two CPUs")
	}
	testutil.CheckLeaks(t)
	e := newEngine(t, Config{Backend: KindEpoll, Loops: 1, Dispatch: DispatchSteal, CPUs: itoa(allowed[0]), Isolate: true})
	h := newStuckHandler()
	s, a := bind(t, e, "tcp", h)
	other := dial(t, s.Addrs()[0])
	roundTrip(t, other, "hello")
	l := e.loops[0]
	var stuck []net.Conn
	for _, early := range []bool{true, false} {
		if early {
			beSlow(t, h, other)
		} else {
			unwatch(t, s, l)
		}
		var thread int64
		before := e.Stats().Reliefs
		for e.Stats().Reliefs == before { // Where the machine stands still, a worker may have it.
			stuck = append(stuck, dial(t, s.Addrs()[0]))
			io.WriteString(stuck[len(stuck)-1], "b")
			receive(t, "the handler", h.blocked)
			thread = h.thread.Load()
			roundTrip(t, other, "meanwhile")
		}
		if cpus, errno := sys.AffinityOf(int(thread)); errno != 0 || !slices.Equal(cpus, allowed[1:]) {
			t.Errorf("early %v: who was relieved may run on %v (%v), want %v", early, cpus, errno, allowed[1:])
		}
		if cpus, errno := sys.AffinityOf(int(l.thread.Load())); errno != 0 || !slices.Equal(cpus, allowed[:1]) {
			t.Errorf("early %v: the loop may run on %v (%v), want %v", early, cpus, errno, allowed[:1])
		}
	}
	close(h.goOn)
	for _, c := range stuck {
		expect(t, c, "b")
		c.Close()
	}
	other.Close()
	a.wait(t, len(stuck)+1)
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	eventually(t, "every mask to be what it was", func() bool { // A loop's thread takes a moment to end.
		for _, cpus := range masks(t) {
			if !slices.Equal(cpus, allowed) {
				return false
			}
		}
		return true
	})
}

// membersOf counts the threads that run a loop, or wait to.
func membersOf(l *loop) int {
	s := &l.lookout.spares
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.members)
}

// TestReliefEnds has callbacks whose loop was taken over end in every way.
func TestReliefEnds(t *testing.T) {
	boom := errors.New("boom")
	for name, stuck := range map[string]func(t *testing.T, c *Conn){
		"return":  func(*testing.T, *Conn) {},
		"close":   func(_ *testing.T, c *Conn) { c.Close() },
		"panic":   func(*testing.T, *Conn) { panic(boom) },
		"goexit":  func(*testing.T, *Conn) { runtime.Goexit() },
		"pause":   func(_ *testing.T, c *Conn) { c.Pause(); go func() { time.Sleep(time.Millisecond); c.Resume() }() },
		"async":   func(_ *testing.T, c *Conn) { c.Async(func(c *Conn) { c.Close() }) },
		"timeout": func(_ *testing.T, c *Conn) { c.SetIdleTimeout(time.Millisecond) },
		"detach": func(t *testing.T, c *Conn) {
			d, err := c.Detach()
			if err != nil {
				t.Error(err)
				return
			}
			go func() {
				b := make([]byte, 100)
				n, _ := io.ReadAtLeast(d, b, 5)
				d.Write(b[:n])
				d.Close()
			}()
		},
		"shutdown": func(t *testing.T, c *Conn) {
			if err := c.service.engine.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			testutil.CheckLeaks(t)
			e := newEngine(t, Config{Backend: KindEpoll, Loops: 1, Dispatch: DispatchSteal, Logger: (&lines{}).logger()})
			h := newStuckHandler()
			h.stuck = func(c *Conn) { stuck(t, c) }
			s, a := bind(t, e, "tcp", h)
			other := dial(t, s.Addrs()[0])
			beSlow(t, h, other)
			c := dial(t, s.Addrs()[0])
			io.WriteString(c, "B")
			receive(t, "the handler", h.blocked)
			roundTrip(t, other, "hello")
			io.WriteString(c, "more")
			close(h.goOn)
			switch name {
			case "return", "pause", "detach":
				expect(t, c, "Bmore")
			default:
				io.ReadAll(c)
			}
			c.Close()
			if name != "shutdown" {
				roundTrip(t, other, "over")
				other.Close()
			}
			a.wait(t, 2)
			var p *PanicError
			err := errors.Join(a.errs()...)
			switch name {
			case "panic":
				if !errors.As(err, &p) || !errors.Is(err, boom) {
					t.Errorf("OnClose got %v", err)
				}
			case "goexit":
				if !errors.Is(err, ErrGoexit) {
					t.Errorf("OnClose got %v", err)
				}
			case "detach":
				if !errors.Is(err, ErrDetached) {
					t.Errorf("OnClose got %v", err)
				}
			}
		})
	}
}

// TestReliefKeepsThreads has a loop relieved again and again: its threads take turns, and none is made each time.
func TestReliefKeepsThreads(t *testing.T) {
	testutil.CheckLeaks(t)
	e := newEngine(t, Config{Backend: KindEpoll, Loops: 1, Dispatch: DispatchSteal, Logger: (&lines{}).logger()})
	h := newStuckHandler()
	threads := map[int]int{}
	h.stuck = func(*Conn) { threads[sys.Gettid()]++ }
	s, a := bind(t, e, "tcp", h)
	stuck, other := dial(t, s.Addrs()[0]), dial(t, s.Addrs()[0])
	beSlow(t, h, other)
	const n = 40
	for range n {
		for range 2 * reliefWeight { // So that it is a handler which is fast, mostly.
			roundTrip(t, other, "hello")
		}
		io.WriteString(stuck, "B")
		receive(t, "the handler", h.blocked)
		roundTrip(t, other, "meanwhile")
		h.goOn <- struct{}{}
		expect(t, stuck, "B")
	}
	stuck.Close()
	other.Close()
	a.wait(t, 2)
	stats := e.Stats()
	t.Logf("%d reliefs, %d callbacks on workers; those that block, of each thread: %v", stats.Reliefs, stats.Workers.Run, threads)
	// On a machine that stands still, so many calls may be slow that workers have the rest.
	if stats.Reliefs < n/2 && stats.Workers.Run < n/2 || len(threads) > n/4 {
		t.Errorf("%d reliefs and %d callbacks on workers, for %d that block, which %d threads have run", stats.Reliefs, stats.Workers.Run, n, len(threads))
	}
}

// TestReliefRefused lets no second thread wait: handlers that are slow go to workers then.
func TestReliefRefused(t *testing.T) {
	testutil.CheckLeaks(t)
	log := new(lines)
	e := newEngine(t, Config{Backend: KindEpoll, Loops: 1, Dispatch: DispatchSteal, Logger: log.logger()})
	h := newStuckHandler()
	s, a := bind(t, e, "tcp", h)
	l := e.loops[0]
	defer sys.Inject(func(op sys.Op, fd int) sys.Fault {
		if op != sys.OpEpollWait || fd != l.backend.(*epoll).epfd || int64(sys.Gettid()) == l.thread.Load() {
			return sys.Fault{}
		}
		return sys.Fault{Errno: sys.ENOMEM}
	})()
	other := dial(t, s.Addrs()[0])
	beSlow(t, h, other)
	eventually(t, "the refusal to be logged", func() bool { return strings.Contains(strings.Join(log.all(), "\n"), "relieve a loop that is stuck") })
	beSlow(t, h, other)
	stuck := dial(t, s.Addrs()[0])
	io.WriteString(stuck, "b")
	receive(t, "the handler", h.blocked)
	roundTrip(t, other, "hello")
	close(h.goOn)
	expect(t, stuck, "b")
	stuck.Close()
	other.Close()
	a.wait(t, 2)
	if s := e.Stats(); s.Reliefs != 0 {
		t.Errorf("%d reliefs by nobody", s.Reliefs)
	}
}

// TestReliefRaces has callbacks end, in every way, at about the instant at which they are relieved.
func TestReliefRaces(t *testing.T) {
	testutil.CheckLeaks(t)
	e := newEngine(t, Config{Backend: KindEpoll, Loops: 1, Dispatch: DispatchSteal, Logger: slog.New(slog.DiscardHandler)})
	boom := errors.New("boom")
	s, a := bind(t, e, "tcp", funcs{data: func(c *Conn) error {
		b, _ := c.Peek(2)
		switch b[0] {
		case 's':
			time.Sleep(2 * slowCall)
			fallthrough
		case 'x':
			return echo{}.OnData(c)
		}
		limit, sleeps := reliefAfter, b[1]%2 == 0
		if !sleeps {
			limit = reliefCompute
		}
		limit += time.Duration(b[1])*time.Microsecond/2 - 20*time.Microsecond
		for began := time.Now(); time.Since(began) < limit; {
			if sleeps {
				runtime.Gosched() // The thread waits until its goroutine's turn has come.
			}
		}
		switch b[0] {
		case 'p':
			panic(boom)
		case 'g':
			runtime.Goexit()
		}
		return echo{}.OnData(c)
	}})
	var stop atomic.Bool
	var others sync.WaitGroup
	for range 2 { // Their events are what a follower takes a loop over for.
		others.Go(func() {
			c := dial(t, s.Addrs()[0])
			defer c.Close()
			for !stop.Load() {
				roundTrip(t, c, "x others")
			}
		})
	}
	slow := dial(t, s.Addrs()[0]) // Its callbacks are slow enough for the loop to be looked after, and too few to be sent away.
	defer slow.Close()
	const rounds = 1500
	for i := range rounds {
		if i%10 == 0 {
			roundTrip(t, slow, "slow")
		}
		c := dial(t, s.Addrs()[0])
		_ = c.SetDeadline(time.Now().Add(patience))
		what := []byte{"rpg"[i%3], byte(i / 3 % 100)}
		if _, err := c.Write(what); err != nil {
			t.Fatal(err)
		}
		n, err := c.Read(make([]byte, 10))
		if i%3 == 0 && n != len(what) || i%3 != 0 && (n != 0 || errors.Is(err, os.ErrDeadlineExceeded)) {
			t.Fatalf("round %d, %q: read %d bytes, error %v", i, what, n, err)
		}
		c.Close()
	}
	stop.Store(true)
	others.Wait()
	slow.Close()
	a.wait(t, rounds+3)
	var panics, exits int
	for _, err := range a.errs() {
		switch {
		case errors.Is(err, boom):
			panics++
		case errors.Is(err, ErrGoexit):
			exits++
		}
	}
	if panics != rounds/3 || exits != rounds/3 {
		t.Errorf("%d connections were told of a panic, and %d of an exit: want %d each", panics, exits, rounds/3)
	}
	if e.Stats().Reliefs == 0 {
		t.Error("nobody was relieved: the test shows nothing")
	}
	t.Logf("%d reliefs, %+v", e.Stats().Reliefs, e.Stats().Workers)
}

// TestSharedLoopHearsEverything has threads run a loop by turns, begin to and cease to, while others post to it and connections are
// busy: no post and no event is overlooked.
func TestSharedLoopHearsEverything(t *testing.T) {
	testutil.CheckLeaks(t)
	e := newEngine(t, Config{Backend: KindEpoll, Loops: 1, Dispatch: DispatchSteal, Logger: (&lines{}).logger()})
	s, a := bind(t, e, "tcp", echo{})
	l := e.loops[0]
	const posters, posts, clients, pings = 4, 2000, 32, 100
	var work sync.WaitGroup
	for p := range posters {
		work.Go(func() {
			for i := range posts {
				ran := make(chan struct{})
				_ = l.inner.PostAlways(func() {
					switch (i + p) % 50 {
					case 0:
						l.beWatched()
					case 25:
						l.notWatched()
					}
					close(ran)
				})
				select {
				case <-ran:
				case <-time.After(patience):
					t.Errorf("post %d of %d has not run: %+v", i, p, e.Stats())
					return
				}
			}
		})
	}
	work.Go(func() {
		everyone(t, clients, func(i int) error {
			c := dial(t, s.Addrs()[0])
			defer c.Close()
			for k := range uint64(pings) {
				if err := pingPong(c, uint64(i), k); err != nil {
					return err
				}
			}
			return nil
		})
	})
	work.Wait()
	a.wait(t, clients)
	if n := e.Stats().Rescues; n != 0 {
		t.Errorf("%d lost wake-ups", n)
	}
}

// TestReliefStorm has every callback of many connections block now and then: each stream is whole, and nobody waits for ever.
func TestReliefStorm(t *testing.T) {
	testutil.CheckLeaks(t)
	e := newEngine(t, Config{Backend: KindEpoll, Loops: 2, Dispatch: DispatchSteal, Logger: (&lines{}).logger()})
	var calls atomic.Int64
	s, a := bind(t, e, "tcp", funcs{
		open: func(*Conn) error { time.Sleep(time.Duration(calls.Add(1)%7/6) * 700 * time.Microsecond); return nil },
		data: func(c *Conn) error {
			time.Sleep(time.Duration(calls.Add(1)%40/39) * time.Millisecond)
			return echo{}.OnData(c)
		},
		writable: echo{}.OnWritable,
	})
	const clients, rounds = 16, 20
	everyone(t, clients, func(i int) error {
		for r := range rounds {
			c := dial(t, s.Addrs()[0])
			for k := range uint64(10) {
				if err := pingPong(c, uint64(i*rounds+r), k); err != nil {
					return err
				}
			}
			c.Close()
		}
		return nil
	})
	a.wait(t, clients*rounds)
	if err := errors.Join(a.errs()...); err != nil {
		t.Errorf("OnClose got %v", err)
	}
	t.Logf("%d reliefs", e.Stats().Reliefs)
}

// TestSlowHandlerMoves has a handler be slow for a while: its callbacks go to workers, and come back when it is fast.
func TestSlowHandlerMoves(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		t.Run("plain", func(t *testing.T) { slowHandlerMoves(t, config) })
		if config.Backend == KindUring && config.DirectDescriptors == 0 {
			// The ring is used for readiness alone then, and is its thread's all the same.
			t.Run("readiness", func(t *testing.T) {
				config.UringFeatures = strings.TrimPrefix(config.UringFeatures+",-multishot_recv", ",")
				slowHandlerMoves(t, config)
			})
		}
	})
}

func slowHandlerMoves(t *testing.T, config Config) {
	testutil.CheckLeaks(t)
	config.Dispatch, config.Loops = DispatchSteal, 1
	e := newEngine(t, config)
	var slow, elsewhere atomic.Bool
	s, a := bind(t, e, "tcp", funcs{data: func(c *Conn) error {
		elsewhere.Store(!e.inHandler())
		if slow.Load() {
			time.Sleep(time.Millisecond)
		}
		return echo{}.OnData(c)
	}})
	c := dial(t, s.Addrs()[0])
	where := func(want bool) {
		t.Helper()
		disturbed := false
		for end := time.Now().Add(patience); ; {
			_ = c.SetDeadline(time.Now().Add(patience))
			before := s.pace.bucket.Load()
			for range 100 {
				roundTrip(t, c, "x")
			}
			disturbed = disturbed || s.pace.bucket.Load() > before
			switch {
			case elsewhere.Load() == want && s.pace.slow() == want:
				return
			case time.Now().Before(end):
			case disturbed && !slow.Load():
				t.Skip("the handler is fast, but the machine stands still for too many of its calls")
			default:
				t.Fatalf("after %v: slow %v, on a worker %v; want %v", patience, s.pace.slow(), elsewhere.Load(), want)
			}
		}
	}
	where(false)
	slow.Store(true)
	where(true)
	slow.Store(false)
	where(false)
	c.Close()
	a.wait(t, 1)
}

// TestLateWorkers has a slow handler sleep where there is one worker for all, so that its calls come late: it is doubted that they are
// slow, and it comes back.
func TestLateWorkers(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		config.Dispatch, config.Loops, config.Workers = DispatchSteal, 1, 1
		e := newEngine(t, config)
		s, _ := bind(t, e, "tcp", funcs{data: func(c *Conn) error {
			if b, _ := c.Peek(1); b[0] == 's' {
				time.Sleep(3 * time.Millisecond)
			}
			return echo{}.OnData(c)
		}})
		var conns [16]net.Conn
		for i := range conns {
			conns[i] = dial(t, s.Addrs()[0])
		}
		s.pace.bucket.Store(slowMost)
		s.pace.isSlow.Store(true)
		eventually(t, "a doubt", func() bool {
			const texts = "sfffffffsfffffff" // Two of the calls are slow, and the others wait for them.
			for i, c := range conns {
				io.WriteString(c, texts[i:i+1])
			}
			for i, c := range conns {
				expect(t, c, texts[i:i+1])
			}
			return s.pace.doubted.Load() || !s.pace.slow()
		})
		if !s.pace.doubted.Load() {
			t.Error("it is fast, and was never doubted")
		}
	})
}

// TestDialWaitsForOnOpen has OnOpen take its time, wherever it runs: Dial returns when it has returned, or the connection is
// closed.
func TestDialWaitsForOnOpen(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		for _, dispatch := range []Dispatch{DispatchInline, DispatchSteal, DispatchWorkers} {
			t.Run(string(dispatch), func(t *testing.T) {
				testutil.CheckLeaks(t)
				config.Dispatch = dispatch
				e := newEngine(t, config)
				s, _ := bind(t, e, "tcp", echo{})
				for _, fails := range []bool{false, true} {
					var returned atomic.Bool
					c, err := e.Dial(t.Context(), "tcp://"+s.Addrs()[0].String(), funcs{open: func(*Conn) error {
						time.Sleep(5 * time.Millisecond)
						returned.Store(true)
						if fails {
							panic("OnOpen")
						}
						return nil
					}})
					if err != nil {
						t.Fatal(err)
					}
					if !returned.Load() {
						t.Error("Dial has returned before OnOpen")
					}
					c.Close()
				}
			})
		}
	})
}

// TestWorkersGatherNothing: a goroutine that writes while a callback blocks on a worker is not held up by it.
func TestWorkersGatherNothing(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		config.Dispatch = DispatchWorkers
		e := newEngine(t, config)
		blocked, goOn := make(chan *Conn), make(chan struct{})
		s, a := bind(t, e, "tcp", funcs{data: func(c *Conn) error {
			c.Discard(-1)
			blocked <- c
			<-goOn
			return nil
		}})
		client := dial(t, s.Addrs()[0])
		io.WriteString(client, "x")
		c := receive(t, "the handler", blocked)
		big := bytes.Repeat([]byte("y"), 1<<20)
		var wg sync.WaitGroup
		wg.Go(func() {
			for range 4 { // More than the socket takes at once: the loop sends the rest meanwhile.
				if _, err := c.Write(big); err != nil {
					break
				}
			}
		})
		got := make([]byte, len(big))
		if _, err := io.ReadFull(client, got); err != nil || !bytes.Equal(got, big) {
			t.Errorf("what was written during the callback has not come: %v", err)
		}
		wg.Wait()
		close(goOn)
		client.Close()
		a.wait(t, 1)
	})
}

// TestBusyPoll sets busy polling, which this machine's loopback has no use for, and refuses each part of it: the engine runs in
// each case, and says what was refused, and what it needs.
func TestBusyPoll(t *testing.T) {
	const ring, set, socket = "uring.(*Ring).BusyPoll", "sys.EpollBusyPoll", "pollux.(*Engine).busyPollSocket"
	eachBackend(t, func(t *testing.T, config Config) {
		for name, refused := range map[string]struct {
			by    string // the function that makes the call
			nth   int64  // of its calls, from 1 on; 0: all
			errno sys.Errno
			want  string // in the log; empty: nothing
		}{
			"nothing":                     {},
			"an old epoll":                {set, 0, sys.ENOTTY, "poll busily on epoll: inappropriate ioctl for device: it came with Linux 6.9"},
			"epoll by a policy":           {set, 0, sys.EPERM, "poll busily on epoll: operation not permitted: a security policy refuses it"},
			"an old io_uring":             {ring, 0, sys.EINVAL, "poll busily on io_uring: invalid argument: it came with Linux 6.9"},
			"io_uring by a policy":        {ring, 0, sys.EPERM, "poll busily on io_uring: operation not permitted: a security policy refuses it"},
			"more than busy_read":         {socket, 1, sys.EPERM, "set SO_BUSY_POLL: operation not permitted: it needs CAP_NET_ADMIN where it is more than net.core.busy_read"},
			"no CAP_NET_ADMIN":            {socket, 2, sys.EPERM, "set SO_PREFER_BUSY_POLL: operation not permitted: it needs CAP_NET_ADMIN"},
			"an option that is not there": {socket, 2, sys.ENOPROTOOPT, "set SO_PREFER_BUSY_POLL: protocol not available"},
		} {
			if refused.by == set && config.Backend != KindEpoll || refused.by == ring && config.Backend != KindUring {
				continue
			}
			t.Run(name, func(t *testing.T) {
				testutil.CheckLeaks(t)
				log := &lines{}
				config.BusyPoll, config.Logger = 50*time.Microsecond, log.logger()
				var calls atomic.Int64
				testutil.InjectFaults(t, func(op sys.Op, fd int) sys.Fault {
					if refused.by == "" || op != sys.OpIoctl && op != sys.OpUringRegister && op != sys.OpSetsockopt || !calledBy(refused.by) {
						return sys.Fault{}
					}
					if n := calls.Add(1); refused.nth != 0 && refused.nth != n {
						return sys.Fault{}
					}
					return sys.Fault{Errno: refused.errno}
				})
				e := newEngine(t, config)
				s, a := bind(t, e, "tcp", echo{})
				c := dial(t, s.Addrs()[0])
				roundTrip(t, c, "hello")
				c.Close()
				a.wait(t, 1)
				if refused.by == "" {
					return // The kernel may refuse it by itself.
				}
				if all := strings.Join(log.all(), "\n"); calls.Load() == 0 || strings.Count(all, refused.want) != 1 {
					t.Errorf("after %d calls the log says %q, want once %q", calls.Load(), all, refused.want)
				}
			})
		}
	})
}

// calledBy tells whether a function, by the end of its name, is among the caller's callers.
func calledBy(name string) bool {
	var pcs [32]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(1, pcs[:])])
	for {
		f, more := frames.Next()
		if strings.HasSuffix(f.Function, name) {
			return true
		}
		if !more {
			return false
		}
	}
}

// TestBusyPollWithoutCapability takes CAP_NET_ADMIN away from the thread that binds: the kernel itself refuses one of the options,
// and the line in the log names it. Without the capability from the start, it is the same.
func TestBusyPollWithoutCapability(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		log := &lines{}
		config.BusyPoll, config.Logger = 50*time.Microsecond, log.logger()
		e := newEngine(t, config)
		bind(t, e, "tcp", echo{}) // Now the loops' threads are there, and keep the capability.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var before [2]unix.CapUserData
		if err := unix.Capget(&header, &before[0]); err != nil {
			t.Fatal(err)
		}
		without := before
		without[0].Effective &^= 1 << unix.CAP_NET_ADMIN
		if err := unix.Capset(&header, &without[0]); err != nil {
			t.Fatal(err)
		}
		s, _ := bind(t, e, "tcp", echo{})
		if err := unix.Capset(&header, &before[0]); err != nil {
			t.Fatal(err)
		}
		c := dial(t, s.Addrs()[0])
		roundTrip(t, c, "hello")
		c.Close()
		all := strings.Join(log.all(), "\n")
		if !strings.Contains(all, "BUSY_POLL: operation not permitted: it needs CAP_NET_ADMIN") {
			t.Errorf("the log says %q", all)
		}
	})
}
