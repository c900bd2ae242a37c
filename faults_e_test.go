//go:build linux

package pollux

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pollux-go/pollux/internal/invariants"
	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/internal/testutil"
	"github.com/pollux-go/pollux/internal/uring"
	"github.com/pollux-go/pollux/poller"
)

// Group e: io_uring. The rings are so small that a handful of connections reaches every end of them: queues that are full,
// completions that overflow, buffers that run out. faults_e_cancel_test.go has what ends, and faults_e_process_test.go what
// happens around the rings: threads, signals, processes, the collector.
//
// Rows of the group that are elsewhere:
//
//   - E17, E18 (refused at set-up, memory that may be locked): TestUringRefused, TestUringUnderSeccomp and
//     TestUringMemlock in backend_linux_test.go.
//   - E20 (kernels that lack a feature): TestUringWithout there, and the probes of internal/uring.
//   - E9, as a state machine against the real ring of buffers: test/bufring_test.go.
//
// Rows that do not apply: E10 (bundles and incremental rings of buffers are not used, so each completion has one buffer and
// each buffer one completion), E24 (SQPOLL is not used), E28 (the kernel's workers that ignore a mask of CPUs: there are
// none, as each test of this group checks, which is also E27). Zero-copy sends are not used either.

// tinyRings returns a configuration with the smallest rings, and buffers that hold a record, so that connections are not taken
// for ones with much to read, which do without the buffers. It is for a test that must leave nothing behind, log no error, and
// never have the kernel start a worker.
func tinyRings(t *testing.T) Config {
	t.Helper()
	needUring(t)
	testutil.CheckLeaks(t)
	noWorkers(t)
	log := &lines{}
	t.Cleanup(func() {
		for _, line := range log.all() {
			if strings.Contains(line, "level=ERROR") {
				t.Error("the log says", line)
			}
		}
	})
	return Config{Backend: KindUring, Loops: 1, RingEntries: 8, RingBuffers: 4, RingBufferSize: 2 << 10, Logger: log.logger()}
}

// completions makes queues with room for so many completions for each submission, until the test ends.
func completions(t *testing.T, n int) {
	before := uringCompletions
	uringCompletions = n
	t.Cleanup(func() { uringCompletions = before })
}

// noWorkers fails the test if the kernel starts threads of its own for a ring (iou-wrk): a request has been punted then,
// which costs a thread, and ends on another CPU at another time. This is E27.
func noWorkers(t *testing.T) {
	t.Helper()
	stop, most := make(chan struct{}), make(chan []string)
	go func() {
		var seen []string
		for {
			if now := workers(); len(now) > len(seen) {
				seen = now
			}
			select {
			case <-time.After(20 * time.Millisecond): // A worker stays for five seconds when it has nothing to do.
			case <-stop:
				most <- seen
				return
			}
		}
	}()
	t.Cleanup(func() {
		close(stop)
		if seen := <-most; len(seen) > 0 {
			t.Errorf("the kernel has started %d workers: %v", len(seen), seen)
		}
	})
}

// workers returns the names of the kernel's worker threads in this process.
func workers() (names []string) {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		panic(err)
	}
	for _, task := range tasks {
		if name, err := os.ReadFile("/proc/self/task/" + task.Name() + "/comm"); err == nil && strings.HasPrefix(string(name), "iou-") {
			names = append(names, strings.TrimSpace(string(name)))
		}
	}
	return names
}

// eachUring runs f for the backend of each loop of the engine, on that loop, and waits.
func eachUring(t testing.TB, e *Engine, f func(u *uringBackend)) {
	t.Helper()
	for _, l := range e.loops {
		done := make(chan struct{})
		if err := l.inner.PostAlways(func() { f(l.backend.(*uringBackend)); close(done) }); err != nil {
			t.Fatal(err)
		}
		receive(t, "a loop", done)
	}
}

// uringTotals adds up what the backends of an engine have counted.
func uringTotals(t testing.TB, e *Engine) (sum struct{ overflows, resizes, starved, rearms, stale uint64 }, enters uint64) {
	t.Helper()
	eachUring(t, e, func(u *uringBackend) {
		sum.overflows += u.stats.overflows.Load()
		sum.resizes += u.stats.resizes.Load()
		sum.starved += u.stats.starved.Load()
		sum.rearms += u.stats.rearms.Load()
		sum.stale += u.stats.stale.Load()
		enters += u.ring.Enters()
	})
	return sum, enters
}

// quietUring fails the test if the loops enter the kernel often while nothing happens.
func quietUring(t testing.TB, e *Engine) {
	t.Helper()
	const window, most = 100 * time.Millisecond, 20
	_, before := uringTotals(t, e)
	<-time.After(window)
	if _, after := uringTotals(t, e); after-before > most {
		t.Errorf("%d enters within %v in which nothing happened: a loop spins", after-before, window)
	}
}

// onUring runs f with a backend, on a thread of its own that owns the ring, and ends with it.
func onUring(t *testing.T, config Config, f func(u *uringBackend)) {
	t.Helper()
	u := openTiny(t, config)
	within(t, "the ring's thread", func() {
		runtime.LockOSThread() // Never unlocked: the thread ends.
		defer u.Close()
		if _, err := u.Wait(make([]poller.Event, 1), 0); err != nil {
			t.Error(err)
			return
		}
		f(u)
	})
}

func openTiny(t testing.TB, config Config) *uringBackend {
	t.Helper()
	config, err := config.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	b, err := newUring(config)
	if err != nil {
		t.Fatal(err)
	}
	return b.(*uringBackend)
}

// stream is a connection that a backend is used on directly, and what its peer has sent.
type stream struct {
	fd, peer int
	token    poller.Token
	id       uint64
	sent     int
	received int
}

// newStreams makes connected pairs of sockets. Whoever releases a descriptor sets it to -1.
func newStreams(t testing.TB, n int) (all []*stream, tokens *poller.Table[*stream]) {
	t.Helper()
	tokens = new(poller.Table[*stream])
	for i := range n {
		pair, errno := sys.Socketpair()
		if errno != 0 {
			t.Fatal(errno)
		}
		s := &stream{fd: pair[0], peer: pair[1], id: uint64(i)}
		s.token, _ = tokens.Put(s)
		all = append(all, s)
		t.Cleanup(func() {
			for _, fd := range []int{s.fd, s.peer} {
				if fd >= 0 {
					sys.Close(fd)
				}
			}
		})
	}
	return all, tokens
}

// send has the peer send up to n bytes more of the stream.
func (s *stream) send(n int) {
	b := make([]byte, n)
	for i := range b {
		b[i] = pattern(s.id, s.sent+i)
	}
	if n, errno := sys.Send(s.peer, b); errno == 0 {
		s.sent += n
	}
}

// check compares a piece of the stream that begins at a position.
func (s *stream) check(b []byte, at int) error {
	for i := range b {
		if b[i] != pattern(s.id, at+i) {
			return fmt.Errorf("stream %d: byte %d is wrong", s.id, at+i)
		}
	}
	return nil
}

// wholePool fails the test if a buffer has been lost: as many pieces as there are buffers must find one each. It is for the
// thread of the ring. Events of others that come meanwhile are thrown away.
func wholePool(t testing.TB, u *uringBackend) {
	t.Helper()
	all, _ := newStreams(t, u.buffers.Len())
	for i, s := range all {
		s.token = poller.Token(1<<24 | 1000 + i) // Beyond those that a loop has given away.
		if err := u.Receive(s.fd, s.token); err != nil {
			t.Error(err)
			return
		}
		s.send(1)
	}
	var held []poller.Event
	events := make([]poller.Event, 64)
	for end := time.Now().Add(patience / 4); len(held) < len(all) && time.Now().Before(end); {
		n, err := u.Wait(events, 10*time.Millisecond)
		if err != nil {
			t.Error(err)
			return
		}
		for _, ev := range events[:n] {
			if ev.Ready&poller.Received == 0 || ev.Result <= 0 {
				continue
			}
			u.Bytes(&ev)
			if ev.Token.Slot() < 1000 {
				u.Recycle(&ev)
			} else {
				held = append(held, ev)
			}
		}
	}
	if len(held) != len(all) || u.buffers.Free() != 0 {
		t.Errorf("%d of %d buffers are in use, and %d counted as free", len(held), len(all), u.buffers.Free())
	}
	for i := range held {
		u.Recycle(&held[i])
	}
	for _, s := range all {
		u.Release(s.fd, s.token, false)
		s.fd = -1
	}
}

// exchangeAll has n clients exchange records with the echo server, all at the same time.
func exchangeAll(t testing.TB, addr net.Addr, n, records, size int) {
	t.Helper()
	everyone(t, n, func(i int) error {
		c := dial(t, addr)
		defer c.Close()
		return exchange(c, uint64(i), records, size)
	})
}

// bursts has n clients exchange a record each with the echo server, several times: the loops find them all at once.
func bursts(t testing.TB, e *Engine, addr net.Addr, n, rounds, size int) (clients []net.Conn) {
	t.Helper()
	for range n {
		clients = append(clients, dial(t, addr))
	}
	eventually(t, "the accepts", func() bool { return e.Conns() >= n })
	for round := range uint64(rounds) {
		release := holdLoops(t, e)
		for i, c := range clients {
			if _, err := c.Write(testutil.AppendRecord(nil, uint64(i), round, size)); err != nil {
				t.Fatal(err)
			}
		}
		release()
		for i, c := range clients {
			if err := testutil.ReadRecord(c, uint64(i), round); err != nil {
				t.Fatal(err)
			}
		}
	}
	return clients
}

// TestE1CompletionOverflow has more connections than completions have room, while the loop is held. What does not fit waits
// in the kernel, and multishot requests end. Where the kernel can, the ring grows until everything fits.
func TestE1CompletionOverflow(t *testing.T) {
	for _, mask := range []string{"", "-resize_rings", "-resize_rings,-epoll_wait", "-defer_taskrun", "-defer_taskrun,-coop_taskrun", "-resize_rings,-multishot_accept"} {
		t.Run("mask="+mask, func(t *testing.T) {
			config := tinyRings(t)
			config.UringFeatures = mask
			completions(t, 2)
			e := newEngine(t, config)
			s, a := bind(t, e, "tcp", echo{})
			const n = 200
			clients := bursts(t, e, s.Addrs()[0], n, 5, 1000)
			everyone(t, n, func(i int) error {
				defer clients[i].Close()
				return exchange(clients[i], uint64(i), 10, 1500)
			})
			a.wait(t, n)
			stats, _ := uringTotals(t, e)
			t.Logf("%+v", stats)
			if stats.overflows == 0 || stats.rearms == 0 {
				t.Errorf("there were %d overflows, and %d requests were armed again", stats.overflows, stats.rearms)
			}
			eachUring(t, e, func(u *uringBackend) {
				if grown := stats.resizes > 0; grown != (u.without&uring.ResizeRings == 0) {
					t.Errorf("the ring has grown %d times", stats.resizes)
				}
			})
		})
	}
}

// TestE2EnterRefusesForAWhile is E2, E3 and E4: enter fails now and then, and long in a row, with errors that are no reason
// to give up. Nothing is lost, and nothing submitted twice.
func TestE2EnterRefusesForAWhile(t *testing.T) {
	for _, errno := range []sys.Errno{sys.EBUSY, sys.EAGAIN, sys.ENOMEM, sys.EINTR} {
		for name, fails := range map[string]func(n int64) bool{
			"each third": func(n int64) bool { return n%3 == 0 },
			"in a row":   func(n int64) bool { return n%200 < 100 },
		} {
			t.Run(fmt.Sprintf("%v/%s", errno, name), func(t *testing.T) {
				config := tinyRings(t)
				var calls, failed atomic.Int64
				var armed atomic.Bool
				testutil.InjectFaults(t, func(op sys.Op, _ int) sys.Fault {
					if op == sys.OpUringEnter && armed.Load() && fails(calls.Add(1)) {
						failed.Add(1)
						return sys.Fault{Errno: errno}
					}
					return sys.Fault{}
				})
				e := newEngine(t, config)
				s, a := bind(t, e, "tcp", echo{})
				armed.Store(true)
				const n = 100
				for i, c := range bursts(t, e, s.Addrs()[0], n, 5, 1000) {
					if err := exchange(c, uint64(i), 5, 1000); err != nil {
						t.Error(err)
					}
					c.Close()
				}
				a.wait(t, n)
				for _, err := range a.errs() {
					if err != nil {
						t.Errorf("OnClose got %v", err)
					}
				}
				if failed.Load() < 20 {
					t.Errorf("only %d of %d enters have failed", failed.Load(), calls.Load())
				}
			})
		}
	}
}

// TestE5SubmissionQueueFull has 1,000 connections write at the same time, with room for 8 submissions.
func TestE5SubmissionQueueFull(t *testing.T) {
	config := tinyRings(t)
	config.RingBuffers, config.RingBufferSize = 64, 1024
	e := newEngine(t, config)
	s, a := bind(t, e, "tcp", echo{})
	const n = 1000
	clients := bursts(t, e, s.Addrs()[0], n, 3, 100)
	for _, c := range clients {
		c.Close()
	}
	a.wait(t, n)
}

// TestE6BadSubmission puts submissions that the kernel refuses between good ones. Without SUBMIT_ALL, it stops at each.
func TestE6BadSubmission(t *testing.T) {
	for _, mask := range []string{"", "-defer_taskrun,-coop_taskrun"} {
		t.Run("mask="+mask, func(t *testing.T) {
			config := tinyRings(t)
			config.UringFeatures = mask
			config.Dispatch = DispatchInline // The ring is to send.
			e := newEngine(t, config)
			bad := uring.SQE{Opcode: 255, UserData: userData(kindPoll, 1<<24|1<<20)}
			s, a := bind(t, e, "tcp", funcs{data: func(c *Conn) error {
				u := c.loop.backend.(*uringBackend)
				if e := u.entry(); e != nil {
					*e = bad
				}
				return echo{}.OnData(c)
			}, writable: echo{}.OnWritable})
			const n = 100
			exchangeAll(t, s.Addrs()[0], n, 10, 1000)
			a.wait(t, n)
			if stats, _ := uringTotals(t, e); stats.stale < n {
				t.Errorf("%d bad submissions were answered", stats.stale)
			}
		})
	}
}

// TestE7NoBuffers has 4 buffers for hundreds of connections, and a handler that keeps the loop busy meanwhile.
func TestE7NoBuffers(t *testing.T) {
	config := tinyRings(t)
	e := newEngine(t, config)
	var count atomic.Int64
	s, a := bind(t, e, "tcp", funcs{data: func(c *Conn) error {
		if count.Add(1)%64 == 0 {
			time.Sleep(time.Millisecond) // More comes than there is room for.
		}
		return echo{}.OnData(c)
	}, writable: echo{}.OnWritable})
	const n = 300
	exchangeAll(t, s.Addrs()[0], n, 8, 1500)
	a.wait(t, n)
	stats, _ := uringTotals(t, e)
	t.Logf("%+v", stats)
	if stats.starved == 0 {
		t.Error("no receive has found the pool empty")
	}
	quietUring(t, e)
	eachUring(t, e, func(u *uringBackend) { wholePool(t, u) })
}

// TestE7Fairness has a few sockets flood the ring, so that every buffer that comes back is taken at once. The others have
// their turn all the same.
func TestE7Fairness(t *testing.T) {
	onUring(t, tinyRings(t), func(u *uringBackend) {
		all, tokens := newStreams(t, 50)
		floods := all[:8]
		for _, s := range all {
			if err := u.Receive(s.fd, s.token); err != nil {
				t.Fatal(err)
			}
		}
		const each, most = 20, 5000
		events := make([]poller.Event, 64)
		left, waits := len(all)-len(floods), 0
		for ; left > 0 && waits < most; waits++ {
			for _, s := range floods {
				s.send(64 << 10)
			}
			for _, s := range all[len(floods):] {
				if s.sent == s.received && s.sent < each {
					s.send(1)
				}
			}
			n, err := u.Wait(events, 10*time.Millisecond)
			if err != nil {
				t.Fatal(err)
			}
			for _, ev := range events[:n] {
				s, _ := tokens.Get(ev.Token)
				b := u.Bytes(&ev)
				if err := s.check(b, s.received); err != nil {
					t.Fatal(err)
				}
				if s.received += len(b); s.received == each && s.id >= uint64(len(floods)) {
					left--
				}
				u.Recycle(&ev)
			}
		}
		t.Logf("%d waits; %+v", waits, u.uringStats())
		if left > 0 || u.stats.starved.Load() == 0 {
			t.Errorf("%d small streams were not through after %d waits; %d receives have found the pool empty", left, waits, u.stats.starved.Load())
		}
	})
}

// TestE8EmptyPoolAndIdleSockets keeps every buffer while sockets are idle, and others want one. A receive that finds none is
// not armed again until one has come back, so that nothing spins.
func TestE8EmptyPoolAndIdleSockets(t *testing.T) {
	onUring(t, tinyRings(t), func(u *uringBackend) {
		all, tokens := newStreams(t, 12)
		for _, s := range all {
			if err := u.Receive(s.fd, s.token); err != nil {
				t.Error(err)
			}
		}
		talking := all[:8]
		for _, s := range talking {
			s.send(100)
		}
		events := make([]poller.Event, 64)
		var held []poller.Event
		wait := func(timeout time.Duration) {
			n, err := u.Wait(events, timeout)
			if err != nil {
				t.Fatal(err)
			}
			for _, ev := range events[:n] {
				if ev.Ready&poller.Received == 0 || ev.Result <= 0 {
					t.Errorf("event %+v", ev)
					continue
				}
				s, _ := tokens.Get(ev.Token)
				b := u.Bytes(&ev)
				if err := s.check(b, s.received); err != nil {
					t.Error(err)
				}
				s.received += len(b)
				held = append(held, ev)
			}
		}
		for end := time.Now().Add(patience); len(held) < 4 && time.Now().Before(end); {
			wait(10 * time.Millisecond)
		}
		for range 5 {
			wait(time.Millisecond) // The others find nothing.
		}
		starved, enters, start := u.stats.starved.Load(), u.ring.Enters(), time.Now()
		// Older kernels look again after a receive that has emptied the socket, for a buffer first: then those that got one
		// find none as well.
		if len(held) != 4 || starved < 4 || starved > 8 {
			t.Errorf("%d buffers are held, and %d receives have found none; that must be 4, and 4 to 8", len(held), starved)
		}
		const n = 20
		for range n {
			wait(5 * time.Millisecond)
		}
		if u.stats.starved.Load() != starved || u.ring.Enters() > enters+n || time.Since(start) < n*5*time.Millisecond/2 {
			t.Errorf("%d enters within %v in which nothing happened, and %d receives were tried in vain",
				u.ring.Enters()-enters, time.Since(start), u.stats.starved.Load()-starved)
		}
		// One idle socket speaks: it is starved too. Then the buffers come back, and everybody has his turn.
		all[10].send(100)
		wait(5 * time.Millisecond)
		for i := range held {
			u.Recycle(&held[i])
		}
		held = nil
		done := func() bool {
			for _, s := range append(slices.Clone(talking), all[10]) {
				if s.received != s.sent {
					return false
				}
			}
			return true
		}
		for end := time.Now().Add(patience); !done() && time.Now().Before(end); {
			wait(10 * time.Millisecond)
			for i := range held {
				u.Recycle(&held[i])
			}
			held = nil
		}
		if !done() {
			t.Error("bytes were lost")
		}
	})
}

// TestE9BuffersInAnyOrder keeps buffers for a while, looks at them again, and gives them back in any order.
func TestE9BuffersInAnyOrder(t *testing.T) {
	onUring(t, tinyRings(t), func(u *uringBackend) {
		all, tokens := newStreams(t, 10)
		for _, s := range all {
			if err := u.Receive(s.fd, s.token); err != nil {
				t.Error(err)
			}
		}
		type lease struct {
			ev poller.Event
			s  *stream
			at int
			b  []byte
		}
		var leases []lease
		random := rand.New(rand.NewPCG(1, 2))
		events := make([]poller.Event, 64)
		const enough = 200_000
		total := 0
		for end := time.Now().Add(patience); total < enough; {
			if time.Now().After(end) {
				t.Fatalf("only %d bytes have come", total)
			}
			for range 5 {
				all[random.IntN(len(all))].send(1 + random.IntN(700))
			}
			n, err := u.Wait(events, time.Millisecond)
			if err != nil {
				t.Fatal(err)
			}
			for _, ev := range events[:n] {
				s, _ := tokens.Get(ev.Token)
				l := lease{ev, s, s.received, u.Bytes(&ev)}
				s.received += len(l.b)
				total += len(l.b)
				leases = append(leases, l)
			}
			random.Shuffle(len(leases), func(i, j int) { leases[i], leases[j] = leases[j], leases[i] })
			for keep := random.IntN(5); len(leases) > keep; {
				last := leases[len(leases)-1]
				leases = leases[:len(leases)-1]
				if err := last.s.check(last.b, last.at); err != nil {
					t.Fatal(err)
				}
				u.Recycle(&last.ev)
			}
		}
		if free := u.buffers.Free(); free+len(leases) != u.buffers.Len() {
			t.Errorf("%d buffers are held and %d free, of %d", len(leases), free, u.buffers.Len())
		}
	})
}

// TestE11NoForeignByte has 1,000 connections share a few buffers.
func TestE11NoForeignByte(t *testing.T) {
	config := tinyRings(t)
	config.Loops = 2
	e := newEngine(t, config)
	s, a := bind(t, e, "tcp", echo{})
	const n = 1000
	for _, c := range bursts(t, e, s.Addrs()[0], n, 2, 1500) {
		c.Close()
	}
	exchangeAll(t, s.Addrs()[0], n, 3, 1500)
	a.wait(t, 2*n)
}

// TestE12Poison has a handler keep a slice, which it must not. In builds that look for that, it finds nothing in it that
// could be taken for bytes of a stream.
func TestE12Poison(t *testing.T) {
	if !invariants.Enabled {
		t.Skip("buffers are poisoned under the race detector and with the tag invariants")
	}
	config := tinyRings(t)
	e := newEngine(t, config)
	kept := make(chan []byte, 1)
	s, a := bind(t, e, "tcp", funcs{data: func(c *Conn) error {
		b, _ := c.Next(-1)
		return c.Async(func(*Conn) { kept <- slices.Clone(b) })
	}})
	c := dial(t, s.Addrs()[0])
	for range 10 {
		if _, err := c.Write([]byte("secret")); err != nil {
			t.Fatal(err)
		}
		if b := receive(t, "the slice", kept); len(b) == 0 || len(b) != bytes.Count(b, []byte{0xdd}) {
			t.Errorf("the slice that was kept has %q", b)
		}
	}
	c.Close()
	a.wait(t, 1)
}

// TestE13RequestsEndUnasked ends multishot requests at any moment, as the kernel may. They are armed again, once.
func TestE13RequestsEndUnasked(t *testing.T) {
	config := tinyRings(t)
	e := newEngine(t, config)
	s, a := bind(t, e, "tcp", echo{})
	stop := make(chan struct{})
	var ended atomic.Int64
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(300 * time.Microsecond):
			}
			eachUring(t, e, func(u *uringBackend) {
				u.all(func(s *uringSlot) {
					for _, kind := range [...]int{kindReceive, kindAccept} {
						if s.armed&(1<<kind) != 0 && rand.IntN(4) == 0 {
							u.cancel(kind, s.token)
							ended.Add(1)
						}
					}
				})
			})
		}
	})
	const most, enough = 4000, 200
	everyone(t, 20, func(i int) error {
		for j := range most / 20 {
			if ended.Load() >= enough {
				break
			}
			c := dial(t, s.Addrs()[0])
			if err := exchange(c, uint64(i*1000+j), 30, 1000); err != nil {
				return err
			}
			c.Close()
		}
		return nil
	})
	close(stop)
	wg.Wait()
	eventually(t, "the end of every connection", func() bool { return e.Conns() == 0 })
	for _, err := range a.errs() {
		if err != nil {
			t.Errorf("OnClose got %v", err)
		}
	}
	if ended.Load() < enough {
		t.Errorf("only %d requests were ended", ended.Load())
	}
}

// TestE14DataThenEnd has unix sockets send and shut down at the same time. The kernel's multishot receive may take the bytes
// and never tell of the end there, which is why it is not used for them.
func TestE14DataThenEnd(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			config := tinyRings(t)
			config.Loops = 2
			n := 10_000
			if network == "tcp" {
				n = 3000
			}
			var got, ends atomic.Int64
			s, a := bind(t, newEngine(t, config), network, funcs{
				data: func(c *Conn) error { b, _ := c.Next(-1); got.Add(int64(len(b))); return nil },
				eof:  func(c *Conn) error { ends.Add(1); return c.Close() },
			})
			const clients = 8
			everyone(t, clients, func(i int) error {
				for range n / clients {
					c, err := net.Dial(network, s.Addrs()[0].String())
					if err != nil {
						return err
					}
					if _, err := c.Write([]byte("hello")); err != nil {
						return err
					}
					if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
						return err
					}
					c.SetDeadline(time.Now().Add(patience))
					if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
						return fmt.Errorf("the server's end: %w", err)
					}
					c.Close()
				}
				return nil
			})
			a.wait(t, n)
			if got.Load() != int64(5*n) || ends.Load() != int64(n) {
				t.Errorf("%d bytes and %d ends have come, of %d and %d", got.Load(), ends.Load(), 5*n, n)
			}
		})
	}
}

// TestE31ResetBehindData has bytes and a reset come together, before the loop looks, to a handler that never writes. A
// multishot receive delivers the bytes and never tells of the reset.
func TestE31ResetBehindData(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		for _, answer := range []int{0, 2 * corkMost} { // The handler does not look at what becomes of its answer.
			t.Run(fmt.Sprint(answer), func(t *testing.T) { resetBehindData(t, config, answer) })
		}
	})
}

func resetBehindData(t *testing.T, config Config, answer int) {
	testutil.CheckLeaks(t)
	config.Loops = 1
	config.Dispatch = DispatchInline // It is to be held up.
	blocked, goOn := make(chan bool), make(chan bool)
	s, a := bind(t, newEngine(t, config), "tcp", funcs{data: func(c *Conn) error {
		b, _ := c.Next(-1)
		if b[0] == '!' {
			blocked <- true
			<-goOn
		} else if answer > 0 {
			c.Write(make([]byte, answer))
		}
		return nil
	}})
	const n = 50
	blocker := dial(t, s.Addrs()[0])
	for i := range n {
		c := dial(t, s.Addrs()[0]).(*net.TCPConn)
		if _, err := c.Write([]byte("x")); err != nil { // It is accepted and received for by now.
			t.Fatal(err)
		}
		time.Sleep(time.Duration(i%3) * time.Millisecond)
		if _, err := blocker.Write([]byte("!")); err != nil {
			t.Fatal(err)
		}
		receive(t, "the handler", blocked)
		if _, err := c.Write([]byte("y")); err != nil {
			t.Fatal(err)
		}
		c.SetLinger(0)
		c.Close()
		time.Sleep(time.Millisecond)
		goOn <- true
	}
	blocker.Close()
	a.wait(t, n+1)
}

// TestE32OneEnterABatch counts the system calls of echoes that come together: the enter that brought the requests, the one
// that takes the answers and waits, and no other.
func TestE32OneEnterABatch(t *testing.T) {
	needUring(t)
	testutil.CheckLeaks(t)
	const n, rounds = 64, 20
	var counting atomic.Bool
	var calls [sys.Ops]atomic.Int64
	testutil.InjectFaults(t, func(op sys.Op, _ int) sys.Fault {
		if counting.Load() {
			calls[op].Add(1)
		}
		return sys.Fault{}
	})
	e := newEngine(t, Config{Backend: KindUring, Loops: 1, Dispatch: DispatchInline, Logger: slog.New(slog.DiscardHandler)})
	s, _ := bind(t, e, "tcp", echo{})
	clients := make([]net.Conn, n)
	for i := range clients {
		clients[i] = dial(t, s.Addrs()[0])
		if err := pingPong(clients[i], uint64(i), 0); err != nil {
			t.Fatal(err)
		}
	}
	for round := range uint64(rounds) {
		release := holdLoops(t, e)
		for i, c := range clients {
			if _, err := c.Write(testutil.AppendRecord(nil, uint64(i), round, 100)); err != nil {
				t.Fatal(err)
			}
		}
		counting.Store(true)
		release()
		for i, c := range clients {
			if err := testutil.ReadRecord(c, uint64(i), round); err != nil {
				t.Fatal(err)
			}
		}
		counting.Store(false)
	}
	polled := false // Without OP_EPOLL_WAIT, the wake-up of release may cost a call.
	eachUring(t, e, func(u *uringBackend) { polled = u.without&uring.EpollWait != 0 })
	for i := range calls {
		op, made := sys.Op(i), calls[i].Load()
		switch {
		case op == sys.OpEpollWait && polled && made <= rounds:
		case op == sys.OpUringEnter:
			t.Logf("%d calls of %v for %d batches of %d echoes", made, op, rounds, n)
			// One may be cut in two, where the first requests are there before the others.
			if made > 5*rounds {
				t.Errorf("%d calls of %v for %d batches of %d echoes", made, op, rounds, n)
			}
		case made > 0:
			t.Errorf("%d calls of %v", made, op)
		}
	}
}
