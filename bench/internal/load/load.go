// Package load makes the traffic of the benchmark and measures it from the
// client's side: request and answer over TCP, where the answer is an echo.
//
// One goroutine locked to its thread drives all connections through an epoll set
// of its own, with raw system calls and without an allocation. It shares nothing
// with what it measures: neither net's poller nor pollux's.
//
// Two ways to ask. In a closed loop each connection keeps Pipeline requests under
// way and the next leaves when an answer has come: it finds the most that a server
// can do, and its latencies are those under that full load. In an open loop
// requests leave at a fixed rate whatever the server does, and latency counts from
// the moment a request was meant to leave: a server that stands still for 10 ms has
// made late all requests of those 10 ms, and coordinated omission cannot happen.
//
// Every byte that comes back is compared with what was sent. Each connection sends
// its own stretch of a pseudo-random stream, so a byte lost, repeated, changed or
// of another connection ends the run with an error, as does a connection that the
// server closes. A figure is only ever published for a run in which all was right.
package load

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sys/unix"

	"github.com/pollux-go/pollux/bench/internal/proc"
	"github.com/pollux-go/pollux/bench/internal/skew"
)

const (
	latencyMax    = int64(time.Minute) // Slower answers count as this.
	latencyDigits = 3

	// stallLimit is how long nothing at all may come back while answers are due.
	stallLimit = 5 * time.Second

	// drainLimit is how long an open loop waits for the answers still due at its end.
	drainLimit = 5 * time.Second

	// waitMax bounds one wait, so that the end of a phase and a cancelled context
	// are seen in time.
	waitMax = 5 * time.Millisecond

	// wakeAhead is how long before its next request a realtime generator that spins stops sleeping.
	wakeAhead = 40 * time.Microsecond

	// burstMax bounds what a late open loop sends before it looks at its answers.
	burstMax = 64
)

// Config says what to send where.
type Config struct {
	Addr     string        // Addr is the server's host:port.
	Conns    int           // Conns is the number of connections.
	First    int           // First is the number of the first one: several processes share the source addresses by it.
	Size     int           // Size of a request and of its answer, in bytes.
	Pipeline int           // Pipeline is the number of requests under way per connection, closed loop only.
	Rate     float64       // Rate above zero makes it an open loop of so many requests a second over all connections.
	Warmup   time.Duration // Warmup is how long requests flow before they count.
	Duration time.Duration // Duration of the timed window.

	// Spin makes the generator never sleep. It needs a CPU to itself. An open loop
	// that spins leaves on time; any loop that spins keeps the cost of waking the
	// client out of the server's sends.
	Spin bool

	// Skew leaves the requests that the servers take their time for out of Latency: Slow has them.
	Skew bool

	// Start and End are called on the generator's thread at the two edges of the
	// timed window, or of each turn's, to read the server's counters. They may be nil.
	Start, End func()
}

// Result is what was measured in the timed window.
type Result struct {
	// Requests is the number of answers that were complete within the window: the
	// divisor for whatever Start and End read.
	Requests uint64
	Elapsed  time.Duration

	// Latency is in nanoseconds. Closed loop: from just before a request's send to
	// after the receive that completed its answer, answers of the window. Open loop:
	// from the moment the request was due, requests due in the window, whenever their
	// answer came.
	Latency *hdrhistogram.Histogram

	// Slow is Latency of the slow requests, where Config.Skew tells them from the others.
	Slow *hdrhistogram.Histogram

	// Lag is how late the generator itself sent, in nanoseconds; open loop only. It
	// is part of Latency: where it is not small against it, the generator and not
	// the server was measured.
	Lag *hdrhistogram.Histogram

	// Unfinished counts requests of an open loop without an answer at the end of the
	// drain. Latency has them with the time they had waited by then.
	Unfinished uint64
}

func (c *Config) check() error {
	switch {
	case c.Conns < 1:
		return fmt.Errorf("%d connections: at least 1 is needed", c.Conns)
	case c.Size < 1:
		return fmt.Errorf("message size %d: at least 1 byte is needed", c.Size)
	case c.Skew && (c.Rate == 0 || c.Size < skew.Least):
		return fmt.Errorf("slow requests are told from others in an open loop, of %d bytes at least", skew.Least)
	case c.Pipeline < 1:
		return fmt.Errorf("pipeline depth %d: at least 1 is needed", c.Pipeline)
	case c.Rate < 0:
		return fmt.Errorf("rate %g: must not be negative", c.Rate)
	case c.Duration <= 0:
		return fmt.Errorf("duration %v: must be above zero", c.Duration)
	case c.Warmup < 0:
		return fmt.Errorf("warm-up %v: must not be negative", c.Warmup)
	}
	return nil
}

// Run connects, warms up, measures, takes the answers still due, and returns. It
// locks the calling goroutine to its thread meanwhile and leaves that thread's CPU
// affinity alone: pin it beforehand.
//
// An error means that the server did wrong (a wrong byte, a closed connection, no
// answer), that it could not be reached, or that ctx ended; no figure is valid then.
func Run(ctx context.Context, cfg Config) (Result, error) {
	if err := cfg.check(); err != nil {
		return Result{}, err
	}
	defer Reserve()()
	realtime := false
	if cfg.Rate > 0 {
		var release func()
		realtime, release = prefer(cfg.Rate)
		defer release()
	}
	g, err := newGenerator(ctx, cfg)
	if err != nil {
		return Result{}, err
	}
	defer g.close()
	g.realtime = realtime
	if cfg.Rate > 0 {
		err = g.runOpen()
	} else {
		err = g.turn(cfg.Warmup, cfg.Duration)
	}
	return g.result, err
}

// realtimeMost is the rate up to which a generator finds the time to sleep between its requests.
const realtimeMost = float64(time.Second / (3 * wakeAhead))

// prefer has the threads of this process come before others, where it may, until release is called. A realtime thread that does not
// sleep is stopped by the kernel for 50 ms of each second (sched_rt_runtime_us), which would be the p99 of every server; so they are
// realtime up to a rate at which the generator sleeps, and of the highest weight above.
//
// All threads, and not the generator's alone: coming back from a system call it may have to wait for what the runtime's monitor does
// within a few instructions, and does so by looking again and again, and yielding (casgstatus in runtime/proc.go). A thread of a
// lower class that it has interrupted there, on its CPU, does not go on for that: not until the kernel takes the CPU from realtime
// threads, after 950 ms. One of the same priority does.
func prefer(rate float64) (realtime bool, release func()) {
	before, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		return false, func() {}
	}
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL, Nice: -20}
	if realtime = rate <= realtimeMost; realtime {
		attr = unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}
	}
	release = func() {
		_ = proc.EachThread(func(tid int) error { return unix.SchedSetAttr(tid, before, 0) })
	}
	if proc.EachThread(func(tid int) error { return unix.SchedSetAttr(tid, &attr, 0) }) != nil {
		release()
		return false, func() {}
	}
	return realtime, release
}

// Reserve locks the calling goroutine to its thread and, since a generator that is late makes the server look late, gives it Ps
// to spare to come back to, and has the collector rest, until release is called: a goroutine that comes back from a system call
// while the collector scans its stack spins until that is done (casgstatus in runtime/proc.go). A realtime one would keep the
// collector off the CPU meanwhile, for up to 950 ms.
func Reserve() (release func()) {
	runtime.LockOSThread()
	before := runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + 2)
	runtime.GC()
	percent := debug.SetGCPercent(-1)
	return func() {
		debug.SetGCPercent(percent)
		runtime.GOMAXPROCS(before)
		runtime.UnlockOSThread()
	}
}

// A Session is a closed loop that is driven in turns and silent between them, so that several servers can be driven one after the
// other and again. It belongs to the goroutine that has opened it, under [Reserve].
type Session struct{ g *generator }

// Open connects. Config's Warmup and Duration are those of [Run]; here [Session.Turn] is given others.
func Open(ctx context.Context, cfg Config) (*Session, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if cfg.Rate > 0 {
		return nil, fmt.Errorf("rate %g: turns are for the closed loop", cfg.Rate)
	}
	g, err := newGenerator(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return &Session{g}, nil
}

// Turn has requests flow for the warm-up and then, timed, for the duration, and takes the answers still due. Errors are those of
// [Run].
func (s *Session) Turn(warmup, duration time.Duration) error { return s.g.turn(warmup, duration) }

// Result is what was measured in all turns so far.
func (s *Session) Result() Result { return s.g.result }

// Close closes the connections.
func (s *Session) Close() { s.g.close() }

// conn is one connection of the generator.
type conn struct {
	fd    int
	index int

	asked uint64 // Requests handed to send or to the queue.
	done  uint64 // Answers complete.

	sendAt   int // Place in the pattern of the next byte to send.
	unsent   int // Bytes of asked requests that the socket has not taken.
	expectAt int // Place in the pattern of the next byte to come.
	partial  int // Bytes of the answer that is under way.

	sentAt []int64 // Closed loop: when request n left, at n % Pipeline.
}

// generator drives the connections. It belongs to one goroutine.
type generator struct {
	cfg    Config
	epfd   int
	conns  []conn
	events []unix.EpollEvent
	buf    []byte
	base   time.Time
	result Result

	asking bool // A complete answer asks for the next request (closed loop).
	timed  bool // Within the timed window.

	realtime     bool   // The thread comes before all others.
	due          uint64 // Answers due, over all connections.
	lastProgress int64

	// Open loop: request n leaves at first + n*interval on connection n % Conns.
	first            int64
	interval         float64
	windowA, windowB int64 // The window: requests due in [A, B) count.

	cancelled  atomic.Bool
	unregister func() bool
	ctx        context.Context
}

func newGenerator(ctx context.Context, cfg Config) (*generator, error) {
	g := &generator{
		cfg:    cfg,
		epfd:   -1,
		conns:  make([]conn, 0, cfg.Conns),
		events: make([]unix.EpollEvent, 512),
		buf:    make([]byte, receiveSize),
		base:   time.Now(),
		ctx:    ctx,
	}
	g.result.Latency = hdrhistogram.New(1, latencyMax, latencyDigits)
	g.result.Slow = hdrhistogram.New(1, latencyMax, latencyDigits)
	g.result.Lag = hdrhistogram.New(1, latencyMax, latencyDigits)
	g.unregister = context.AfterFunc(ctx, func() { g.cancelled.Store(true) })
	if err := g.open(); err != nil {
		g.close()
		return nil, err
	}
	return g, nil
}

func (g *generator) open() error {
	// The default slack of 50 us would make every sleep that much too long. It is
	// the thread's own and there is nothing to put back: threads of the runtime
	// have no use for slack.
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)

	addr, err := resolve(g.cfg.Addr)
	if err != nil {
		return err
	}
	if g.epfd, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return fmt.Errorf("create the generator's epoll set: %w", err)
	}
	stamps := make([]int64, g.cfg.Conns*g.cfg.Pipeline)
	for i := range g.cfg.Conns {
		if g.cancelled.Load() {
			return context.Cause(g.ctx)
		}
		fd, err := connect(addr, g.cfg.First+i)
		if err != nil {
			return fmt.Errorf("connection %d of %d to %s: %w", i+1, g.cfg.Conns, g.cfg.Addr, err)
		}
		g.conns = append(g.conns, conn{
			fd:       fd,
			index:    i,
			sendAt:   streamStart(i),
			expectAt: streamStart(i),
			sentAt:   stamps[i*g.cfg.Pipeline : (i+1)*g.cfg.Pipeline],
		})
		// Edge-triggered, registered once: a short receive has emptied the socket, and
		// a send that would block is followed by an edge.
		ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET, Fd: int32(i)}
		if err := unix.EpollCtl(g.epfd, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
			return fmt.Errorf("add connection %d to the generator's epoll set: %w", i+1, err)
		}
	}
	return nil
}

func (g *generator) close() {
	g.unregister()
	for i := range g.conns {
		_ = unix.Close(g.conns[i].fd)
	}
	if g.epfd >= 0 {
		_ = unix.Close(g.epfd)
	}
}

// now is the time since the generator was made, in nanoseconds.
func (g *generator) now() int64 { return int64(time.Since(g.base)) }

func (g *generator) turn(warmup, duration time.Duration) error {
	g.asking = true
	t := g.now()
	g.lastProgress = t
	for i := range g.conns {
		c := &g.conns[i]
		if err := g.askClosed(c, g.cfg.Pipeline, g.now()); err != nil {
			return err
		}
	}
	if err := g.until(t + int64(warmup)); err != nil {
		return err
	}
	start := g.beginWindow()
	if err := g.until(start + int64(duration)); err != nil {
		return err
	}
	g.endWindow(start)
	g.asking = false
	return g.drain(1 << 62)
}

// until serves events to the time given.
func (g *generator) until(end int64) error {
	for {
		left := end - g.now()
		if left <= 0 {
			return nil
		}
		if err := g.poll(time.Duration(left)); err != nil {
			return err
		}
	}
}

func (g *generator) runOpen() error {
	g.interval = float64(time.Second) / g.cfg.Rate
	g.first = g.now() + int64(time.Millisecond)
	g.lastProgress = g.first
	g.windowA = g.first + int64(g.cfg.Warmup)
	g.windowB = g.windowA + int64(g.cfg.Duration)
	var (
		next  uint64
		start int64
	)
	for {
		t := g.now()
		if !g.timed && start == 0 && t >= g.windowA {
			start = g.beginWindow()
		}
		if t >= g.windowB {
			break
		}
		dueAt := g.dueAt(next)
		for n := 0; dueAt <= t && dueAt < g.windowB && n < burstMax; n++ {
			if err := g.askOpen(&g.conns[next%uint64(len(g.conns))], dueAt, t); err != nil {
				return err
			}
			next++
			dueAt = g.dueAt(next)
			t = g.now()
		}
		if err := g.poll(time.Duration(max(0, min(dueAt, g.windowB)-g.now()))); err != nil {
			return err
		}
	}
	// Requests that were due in the window and that the generator had no time for
	// count as sent now, late: leaving them out would flatter the server.
	g.endWindow(start)
	for dueAt := g.dueAt(next); dueAt < g.windowB; dueAt = g.dueAt(next) {
		if err := g.askOpen(&g.conns[next%uint64(len(g.conns))], dueAt, g.now()); err != nil {
			return err
		}
		next++
		if next%burstMax == 0 {
			if err := g.poll(0); err != nil {
				return err
			}
		}
	}
	if err := g.drain(g.now() + int64(drainLimit)); err != nil {
		return err
	}
	t := g.now()
	for i := range g.conns {
		for c := &g.conns[i]; c.done < c.asked; c.done++ {
			g.recordOpen(c, t)
			g.result.Unfinished++
		}
	}
	return nil
}

// dueAt is when request n of an open loop is to leave.
func (g *generator) dueAt(n uint64) int64 { return g.first + int64(float64(n)*g.interval) }

func (g *generator) beginWindow() int64 {
	if g.cfg.Start != nil {
		g.cfg.Start()
	}
	g.timed = true
	return g.now()
}

func (g *generator) endWindow(start int64) {
	g.result.Elapsed += time.Duration(g.now() - start)
	g.timed = false
	if g.cfg.End != nil {
		g.cfg.End()
	}
}

// drain serves events until no answer is due any more, or to the time given.
func (g *generator) drain(end int64) error {
	for g.due > 0 && g.now() < end {
		if err := g.poll(waitMax); err != nil {
			return err
		}
	}
	return nil
}

// poll waits for events, no longer than timeout, and serves them.
func (g *generator) poll(timeout time.Duration) error {
	if g.cancelled.Load() {
		return context.Cause(g.ctx)
	}
	if g.cfg.Spin {
		// A realtime generator that has no answer due sleeps until shortly before the next request.
		if timeout -= wakeAhead; !g.realtime || g.due > 0 || timeout < wakeAhead {
			timeout = 0
		}
	}
	n, err := epollWait(g.epfd, g.events, min(timeout, waitMax))
	if err != nil {
		return fmt.Errorf("wait for events: %w", err)
	}
	for i := range g.events[:n] {
		ev := &g.events[i]
		c := &g.conns[ev.Fd]
		if ev.Events&^unix.EPOLLOUT != 0 {
			if err := g.receive(c, ev.Events&^(unix.EPOLLIN|unix.EPOLLOUT) != 0); err != nil {
				return fmt.Errorf("connection %d: %w", c.index+1, err)
			}
		}
		if c.unsent > 0 && ev.Events&unix.EPOLLOUT != 0 {
			if err := g.send(c); err != nil {
				return err
			}
		}
	}
	if n == 0 && g.due > 0 && g.now()-g.lastProgress > int64(stallLimit) {
		return g.stalled()
	}
	return nil
}

func (g *generator) stalled() error {
	for i := range g.conns {
		if c := &g.conns[i]; c.done < c.asked {
			return fmt.Errorf("no answer for %v: %d are due, on connection %d %d of %d bytes came back",
				stallLimit, g.due, c.index+1, c.received(g.cfg.Size), c.asked*uint64(g.cfg.Size))
		}
	}
	return fmt.Errorf("no answer for %v: %d are due", stallLimit, g.due)
}

// received is the number of bytes that have come back.
func (c *conn) received(size int) uint64 { return c.done*uint64(size) + uint64(c.partial) }

// askClosed sends n more requests at time t.
func (g *generator) askClosed(c *conn, n int, t int64) error {
	depth := uint64(g.cfg.Pipeline)
	for range n {
		c.sentAt[c.asked%depth] = t
		c.asked++
	}
	return g.ask(c, n)
}

// askOpen sends the request that was due at dueAt.
func (g *generator) askOpen(c *conn, dueAt, t int64) error {
	c.asked++
	if dueAt >= g.windowA {
		_ = g.result.Lag.RecordValue(min(max(t-dueAt, 1), latencyMax))
	}
	return g.ask(c, 1)
}

func (g *generator) ask(c *conn, n int) error {
	if g.due == 0 {
		g.lastProgress = g.now()
	}
	g.due += uint64(n)
	waiting := c.unsent > 0 // An edge will come for the bytes before these.
	c.unsent += n * g.cfg.Size
	if waiting {
		return nil
	}
	return g.send(c)
}

// send offers the socket what is unsent until it takes no more.
func (g *generator) send(c *conn) error {
	for c.unsent > 0 {
		n, errno := send(c.fd, pattern[c.sendAt:c.sendAt+min(c.unsent, sendSize)])
		switch errno {
		case 0:
			c.unsent -= n
			c.sendAt = (c.sendAt + n) % patternPeriod
		case unix.EAGAIN:
			return nil
		case unix.EINTR:
		default:
			return fmt.Errorf("connection %d: send after %d requests: %w", c.index+1, c.asked, errno)
		}
	}
	return nil
}

// receive takes what has come. all says that the event told of more than input: the
// socket is then read to its end or until it is empty.
func (g *generator) receive(c *conn, all bool) error {
	for {
		n, errno := receive(c.fd, g.buf)
		switch {
		case errno == unix.EAGAIN:
			return nil
		case errno == unix.EINTR:
			continue
		case errno != 0:
			return fmt.Errorf("receive after %d of %d bytes: %w", c.received(g.cfg.Size), c.asked*uint64(g.cfg.Size), errno)
		case n == 0:
			return fmt.Errorf("the server closed it after %d of %d bytes", c.received(g.cfg.Size), c.asked*uint64(g.cfg.Size))
		}
		if err := g.take(c, g.buf[:n]); err != nil {
			return err
		}
		if n < len(g.buf) && !all {
			return nil
		}
	}
}

// take checks received bytes, records the answers they complete and, in a closed
// loop, asks as many times again.
func (g *generator) take(c *conn, b []byte) error {
	size := g.cfg.Size
	if got, sent := c.received(size)+uint64(len(b)), c.asked*uint64(size); got > sent {
		return fmt.Errorf("%d bytes came back, %d were sent", got, sent)
	}
	at, err := checkStream(b, c.expectAt, c.received(size))
	if err != nil {
		return err
	}
	c.expectAt = at
	t := g.now()
	g.lastProgress = t
	c.partial += len(b)
	answers := c.partial / size
	if answers == 0 {
		return nil
	}
	c.partial -= answers * size
	g.due -= uint64(answers)
	if g.timed {
		g.result.Requests += uint64(answers)
	}
	if g.cfg.Rate > 0 {
		for range answers {
			g.recordOpen(c, t)
			c.done++
		}
		return nil
	}
	depth := uint64(g.cfg.Pipeline)
	for range answers {
		if g.timed {
			_ = g.result.Latency.RecordValue(min(max(t-c.sentAt[c.done%depth], 1), latencyMax))
		}
		c.done++
	}
	if g.asking {
		return g.askClosed(c, answers, t)
	}
	return nil
}

// recordOpen records the answer to request c.done of an open loop. When it was due
// follows from its number, so that no queue of times is kept and none can overflow.
func (g *generator) recordOpen(c *conn, t int64) {
	dueAt := g.dueAt(c.done*uint64(len(g.conns)) + uint64(c.index))
	if dueAt >= g.windowA && dueAt < g.windowB {
		into := g.result.Latency
		if g.cfg.Skew {
			if at := (streamStart(c.index) + int(c.done%patternPeriod)*g.cfg.Size) % patternPeriod; skew.Slow(pattern[at:]) {
				into = g.result.Slow
			}
		}
		_ = into.RecordValue(min(max(t-dueAt, 1), latencyMax))
	}
}
