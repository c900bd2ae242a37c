//go:build linux

package pollux

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/internal/testutil"
)

// The tests of the files faults_*_test.go provoke one kind of fault each and are named by it: a letter for the group
// (a: descriptors, b: readiness, c: accept, d: write, g: deadlines, h: shutdown) and a number.
//
// They share one oracle. Every stream carries the connection's number, a sequence and a checksum; descriptors,
// goroutines and threads are back to where they were at the end; and audit sees that a handler's callbacks come as the
// documentation says. The peers are connections of package net, which no injected fault concerns.

// patience is how long a test waits for what must come. It is only there to end a test that hangs.
var patience = testutil.Patience

// testBackends are the backends of eachBackend: epoll, and io_uring where it works, or the one that POLLUX_BACKEND names.
func testBackends(t testing.TB) []Kind {
	if kind := os.Getenv("POLLUX_BACKEND"); kind != "" {
		return []Kind{Kind(kind)}
	}
	c := Default()
	c.UringFeatures = testFeatures()
	if err := checkUring(c, false); err != nil {
		t.Logf("io_uring is not tested: %v", err)
		return []Kind{KindEpoll}
	}
	return []Kind{KindEpoll, KindUring}
}

// testFeatures is the mask that io_uring is tested with.
func testFeatures() string { return os.Getenv("POLLUX_URING_FEATURES") }

// Where POLLUX_DISPATCH is set, all tests run with that.
func init() {
	if d := Dispatch(os.Getenv("POLLUX_DISPATCH")); d != "" {
		defaultDispatch = func() Dispatch { return d }
	}
}

// Where POLLUX_TEST_BACKLOG is set, every turn with two events has a backlog, in all tests.
func init() {
	if os.Getenv("POLLUX_TEST_BACKLOG") != "" {
		backlogWorth, backlogLeast = 0, 0
		backlogCPUs = func(int, int) int { return 1 << 10 }
	}
}

// testDirect is the size of the tables of direct descriptors that io_uring is tested with, as POLLUX_DIRECT says; 0: none.
func testDirect(kind Kind) int {
	n, _ := strconv.Atoi(os.Getenv("POLLUX_DIRECT"))
	if kind != KindUring {
		return 0
	}
	return n
}

// eachBackend runs f with a configuration for every backend that is tested.
func eachBackend(t *testing.T, f func(t *testing.T, config Config)) {
	for _, kind := range testBackends(t) {
		name, direct := string(kind), testDirect(kind)
		if direct > 0 {
			name += " direct"
		}
		t.Run(name, func(t *testing.T) {
			f(t, Config{
				Backend: kind, UringFeatures: testFeatures(), DirectDescriptors: direct, Loops: 2, Logger: slog.New(slog.DiscardHandler),
			})
		})
	}
}

// eachServer is eachBackend for the event API and the net API, over TCP and unix sockets.
func eachServer(t *testing.T, f func(t *testing.T, s *server)) {
	eachBackend(t, func(t *testing.T, config Config) {
		for _, api := range []string{"event", "net"} {
			for _, network := range []string{"tcp", "unix"} {
				t.Run(api+"/"+network, func(t *testing.T) {
					testutil.CheckLeaks(t)
					f(t, serveEcho(t, config, api, network))
				})
			}
		}
	})
}

// skipCompletion skips a test of readiness where a completer does the input.
func skipCompletion(t *testing.T, s *server, why string) {
	t.Helper()
	if s.api == "event" && s.addr.Network() == "tcp" && completing(s.engine.config) {
		t.Skip("a completer takes this input: " + why)
	}
}

// skipDirect skips a test of system calls on a connection's descriptor where connections have direct ones.
func skipDirect(t *testing.T, config Config, why string) {
	t.Helper()
	if config.DirectDescriptors > 0 {
		t.Skip("direct descriptors: " + why)
	}
}

// completing tells whether the loops of such an engine have a completer.
func completing(c Config) bool {
	without, err := uringWithout(c)
	return c.Backend == KindUring && err == nil && without&uringReceives == 0
}

// newEngine makes an engine that is closed when the test ends.
func newEngine(t testing.TB, config Config) *Engine {
	t.Helper()
	e, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil && !errors.Is(err, ErrClosed) {
			t.Errorf("close the engine: %v", err)
		}
	})
	return e
}

// listenAddress is an address for a test to listen on.
func listenAddress(t testing.TB, network string) string {
	if network == "unix" {
		dir, err := os.MkdirTemp("", "pollux") // t.TempDir is too long for a socket's path.
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		return filepath.Join(dir, "s")
	}
	return "127.0.0.1:0"
}

// bind serves h, audited, on one loopback address.
func bind(t testing.TB, e *Engine, network string, h Handler) (*Service, *audit) {
	t.Helper()
	a := newAudit(t, e, h)
	s, err := e.Bind(a, network+"://"+listenAddress(t, network))
	if err != nil {
		t.Fatal(err)
	}
	return s, a
}

// server is an echo server on one of the two APIs.
type server struct {
	engine  *Engine
	addr    net.Addr
	api     string
	service *Service // of the event API
	audit   *audit   // of the event API
}

// serveEcho starts an echo server, which ends with the test.
func serveEcho(t testing.TB, config Config, api, network string) *server {
	t.Helper()
	s := &server{engine: newEngine(t, config), api: api}
	if api == "event" {
		s.service, s.audit = bind(t, s.engine, network, echo{})
		s.addr = s.service.Addrs()[0]
		return s
	}
	ln, err := s.engine.Listen(network, listenAddress(t, network))
	if err != nil {
		t.Fatal(err)
	}
	s.addr = ln.Addr()
	var wg sync.WaitGroup
	var conns sync.Map
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue
			}
			conns.Store(c, nil)
			wg.Go(func() {
				io.Copy(c, c)
				c.Close()
				conns.Delete(c)
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		conns.Range(func(c, _ any) bool { c.(net.Conn).Close(); return true })
		wg.Wait()
	})
	return s
}

// dial connects to the server by package net.
func (s *server) dial(t testing.TB) net.Conn { return dial(t, s.addr) }

func dial(t testing.TB, addr net.Addr) net.Conn {
	t.Helper()
	c, err := net.DialTimeout(addr.Network(), addr.String(), patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

// echo sends back what arrives, and waits when the peer does not read.
type echo struct{ NopHandler }

func (echo) OnData(c *Conn) error {
	b, _ := c.Peek(-1)
	n, err := c.Write(b)
	if _, err := c.Discard(n); err != nil {
		return err
	}
	if errors.Is(err, ErrWouldBlock) {
		c.Pause()
		return nil
	}
	return err
}

func (echo) OnWritable(c *Conn) error { c.Resume(); return nil }

// funcs is a handler of functions; those that are nil do what NopHandler does.
type funcs struct {
	open, data, eof, writable func(*Conn) error
	close                     func(*Conn, error)
}

func (f funcs) OnOpen(c *Conn) error {
	if f.open == nil {
		return nil
	}
	return f.open(c)
}

func (f funcs) OnData(c *Conn) error {
	if f.data == nil {
		return NopHandler{}.OnData(c)
	}
	return f.data(c)
}

func (f funcs) OnEOF(c *Conn) error {
	if f.eof == nil {
		return c.Close()
	}
	return f.eof(c)
}

func (f funcs) OnWritable(c *Conn) error {
	if f.writable == nil {
		return nil
	}
	return f.writable(c)
}

func (f funcs) OnClose(c *Conn, err error) {
	if f.close != nil {
		f.close(c, err)
	}
}

// audit passes everything on to a handler, and sees that it comes as it must: OnOpen first, OnClose last, each once,
// never two callbacks of a connection at a time, and none after ended.
type audit struct {
	inner Handler
	ended atomic.Bool // set by a test when no callback may come any more

	mu     sync.Mutex
	conns  map[*Conn]*life
	faults []string
	opened int
	closed int
}

type life struct {
	running, opened, eof, closed bool
	err                          error // what OnClose got
}

// newAudit makes an audit that closes the engine at the end of the test and checks that every connection was closed.
func newAudit(t testing.TB, e *Engine, h Handler) *audit {
	a := &audit{inner: h, conns: map[*Conn]*life{}}
	t.Cleanup(func() {
		if err := e.Close(); err != nil && !errors.Is(err, ErrClosed) {
			t.Errorf("close the engine: %v", err)
		}
		a.ended.Store(true)
		a.mu.Lock()
		defer a.mu.Unlock()
		for _, fault := range a.faults {
			t.Error(fault)
		}
		if a.opened != a.closed {
			t.Errorf("OnOpen was called for %d connections and OnClose for %d", a.opened, a.closed)
		}
	})
	return a
}

func (a *audit) enter(c *Conn, name string) (leave func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.conns[c]
	if l == nil {
		l = &life{}
		a.conns[c] = l
	}
	fault := func(format string, args ...any) {
		a.faults = append(a.faults, fmt.Sprintf(name+": "+format, args...))
	}
	if a.ended.Load() {
		fault("called after the end")
	}
	if l.running {
		fault("called while another callback of the connection runs")
	}
	if l.closed {
		fault("called after OnClose")
	}
	switch name {
	case "OnOpen":
		if l.opened {
			fault("called twice")
		}
		l.opened = true
		a.opened++
	case "OnEOF":
		if l.eof {
			fault("called twice")
		}
		l.eof = true
	case "OnData":
		if l.eof && len(c.in.view) == 0 {
			fault("called with nothing after OnEOF")
		}
	case "OnClose":
		l.closed = true
	}
	if !l.opened {
		fault("called before OnOpen")
	}
	l.running = true
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		l.running = false
		if name == "OnClose" {
			a.closed++
		}
	}
}

func (a *audit) OnOpen(c *Conn) error { defer a.enter(c, "OnOpen")(); return a.inner.OnOpen(c) }
func (a *audit) OnData(c *Conn) error { defer a.enter(c, "OnData")(); return a.inner.OnData(c) }
func (a *audit) OnEOF(c *Conn) error  { defer a.enter(c, "OnEOF")(); return a.inner.OnEOF(c) }
func (a *audit) OnWritable(c *Conn) error {
	defer a.enter(c, "OnWritable")()
	return a.inner.OnWritable(c)
}

func (a *audit) OnClose(c *Conn, err error) {
	defer a.enter(c, "OnClose")()
	a.mu.Lock()
	a.conns[c].err = err
	a.mu.Unlock()
	a.inner.OnClose(c, err)
}

// counts returns how many connections were opened and closed.
func (a *audit) counts() (opened, closed int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.opened, a.closed
}

// errs returns what OnClose got, for all connections.
func (a *audit) errs() (errs []error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, l := range a.conns {
		if l.closed {
			errs = append(errs, l.err)
		}
	}
	return errs
}

// wait waits until n connections have been opened and all are closed again.
func (a *audit) wait(t testing.TB, n int) {
	t.Helper()
	eventually(t, fmt.Sprintf("the OnClose of %d connections", n), func() bool {
		opened, closed := a.counts()
		return opened >= n && closed == opened
	})
	if opened, _ := a.counts(); opened != n {
		t.Errorf("OnOpen was called for %d connections, there were %d", opened, n)
	}
}

// eventually waits until ok is true.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(200 * time.Microsecond) {
		if time.Now().After(end) {
			stacks := make([]byte, 1<<20)
			t.Fatalf("waited %v in vain for %s\n%s", patience, what, stacks[:runtime.Stack(stacks, true)])
		}
	}
}

// receive waits for a value.
func receive[T any](t testing.TB, what string, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		stacks := make([]byte, 1<<20)
		t.Fatalf("waited %v in vain for %s\n%s", patience, what, stacks[:runtime.Stack(stacks, true)])
		panic("not reached")
	}
}

// within runs f, which must end.
func within(t testing.TB, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	receive(t, what, done)
}

// exchange sends records on a connection to an echo server while it checks that exactly these come back, and then the
// end of the stream.
func exchange(c net.Conn, id uint64, records, size int) error {
	sent := make(chan error, 1)
	go func() { sent <- sendRecords(c, id, records, size, true) }()
	if err := receiveRecords(c, id, records, true); err != nil {
		return err
	}
	return <-sent
}

// sendRecords writes records of up to size bytes, and an end of stream where that is wanted.
func sendRecords(c net.Conn, id uint64, records, size int, end bool) error {
	var b []byte
	for i := range records {
		b = testutil.AppendRecord(b[:0], id, uint64(i), recordSize(i, size))
		if n, err := c.Write(b); err != nil || n != len(b) {
			return fmt.Errorf("stream %d: write record %d: %d of %d bytes: %w", id, i, n, len(b), err)
		}
	}
	if end {
		return c.(interface{ CloseWrite() error }).CloseWrite()
	}
	return nil
}

func recordSize(i, size int) int { return size * (1 + i%5) / 5 }

// receiveRecords is the other side of sendRecords.
func receiveRecords(c io.Reader, id uint64, records int, end bool) error {
	r := bufio.NewReaderSize(c, 16<<10)
	for i := range records {
		if err := testutil.ReadRecord(r, id, uint64(i)); err != nil {
			return fmt.Errorf("stream %d: read record %d of %d: %w", id, i, records, err)
		}
	}
	if !end {
		return nil
	}
	if b, err := r.ReadByte(); err != io.EOF {
		return fmt.Errorf("stream %d: after the last record: byte %#x, error %w", id, b, err)
	}
	return nil
}

// pingPong exchanges one record and leaves the connection open.
func pingPong(c net.Conn, id, sequence uint64) error {
	b := testutil.AppendRecord(nil, id, sequence, 100)
	if _, err := c.Write(b); err != nil {
		return err
	}
	return testutil.ReadRecord(c, id, sequence)
}

// reset makes a TCP connection end with a reset.
func reset(c net.Conn) {
	c.(*net.TCPConn).SetLinger(0)
	c.Close()
}

// inChild starts a child process.
func inChild(t testing.TB, name string, env ...string) *child {
	t.Helper()
	c := &child{t: t, cmd: exec.Command(os.Args[0], "-test.run=^TestChild$", "-test.count=1")}
	c.cmd.Env = append(os.Environ(), append(env, "POLLUX_TEST_CHILD="+name)...)
	c.cmd.Stderr = os.Stderr
	in, err := c.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c.in, c.out = in, bufio.NewReader(out)
	t.Cleanup(func() {
		c.cmd.Process.Signal(syscall.SIGCONT)
		in.Close()
		if c.cmd.ProcessState == nil {
			timer := time.AfterFunc(patience, func() { c.cmd.Process.Kill() })
			c.cmd.Wait()
			timer.Stop()
		}
	})
	return c
}

// child is a process of the test binary that runs one of children. It ends when its input does.
type child struct {
	t   testing.TB
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// ask sends a line and returns the answer.
func (c *child) ask(question string) string {
	c.t.Helper()
	if _, err := io.WriteString(c.in, question+"\n"); err != nil {
		c.t.Fatal(err)
	}
	return c.line()
}

func (c *child) line() string {
	c.t.Helper()
	line, err := c.out.ReadString('\n')
	if err != nil {
		c.t.Fatalf("the child says %q: %v", line, err)
	}
	return strings.TrimSpace(line)
}

// children are what a child process can be.
var children = map[string]func(in *bufio.Scanner) error{}

// TestChild is not a test: it is what a child process runs.
func TestChild(t *testing.T) {
	name := os.Getenv("POLLUX_TEST_CHILD")
	if name == "" {
		t.Skip("this is what child processes of other tests run")
	}
	if err := children[name](bufio.NewScanner(os.Stdin)); err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// hold is a place where a loop can be kept. The zero hold lets everybody through.
type hold struct {
	mu      sync.Mutex
	gate    chan struct{}
	arrived chan struct{}
}

// close makes the next pass wait; the channel it returns is closed when somebody waits.
func (h *hold) close() (arrived <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.gate, h.arrived = make(chan struct{}), make(chan struct{})
	return h.arrived
}

// open lets everybody through.
func (h *hold) open() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.gate != nil {
		close(h.gate)
		h.gate = nil
	}
}

// pass waits while the hold is closed.
func (h *hold) pass() {
	h.mu.Lock()
	gate := h.gate
	if gate != nil && h.arrived != nil {
		close(h.arrived)
		h.arrived = nil
	}
	h.mu.Unlock()
	if gate != nil {
		<-gate
	}
}

// onLoop runs f on the first loop of an engine, and waits for it.
func onLoop(t testing.TB, e *Engine, f func(l *loop)) {
	t.Helper()
	l := e.loops[0]
	done := make(chan struct{})
	if err := l.inner.PostAlways(func() { f(l); close(done) }); err != nil {
		t.Fatal(err)
	}
	receive(t, "the loop", done)
}

// holdLoops keeps every loop of the engine where it is until release is called.
func holdLoops(t testing.TB, e *Engine) (release func()) {
	t.Helper()
	gate := make(chan struct{})
	var arrived sync.WaitGroup
	for _, l := range e.loops {
		arrived.Add(1)
		if err := l.inner.PostAlways(func() { arrived.Done(); <-gate }); err != nil {
			t.Fatal(err)
		}
	}
	within(t, "the loops", arrived.Wait)
	return sync.OnceFunc(func() { close(gate) })
}

// waits counts how often a backend is asked for events: a loop that spins asks all the time.
type waits struct{ n atomic.Int64 }

func (w *waits) hook(op sys.Op, _ int) sys.Fault {
	if op == sys.OpEpollWait {
		w.n.Add(1)
	}
	return sys.Fault{}
}

// quiet fails the test if there are many waits while nothing happens.
func (w *waits) quiet(t testing.TB) {
	t.Helper()
	const window, most = 100 * time.Millisecond, 50
	before := w.n.Load()
	<-time.After(window)
	if n := w.n.Load() - before; n > most {
		t.Errorf("%d waits within %v in which nothing happened: a loop spins", n, window)
	}
}

// countingLog is a slog handler that counts lines.
type countingLog struct{ lines atomic.Int64 }

func (l *countingLog) Enabled(context.Context, slog.Level) bool  { return true }
func (l *countingLog) Handle(context.Context, slog.Record) error { l.lines.Add(1); return nil }
func (l *countingLog) WithAttrs([]slog.Attr) slog.Handler        { return l }
func (l *countingLog) WithGroup(string) slog.Handler             { return l }

// residentBytes returns the resident set size of this process.
func residentBytes(t testing.TB) int64 {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.ParseInt(strings.Fields(string(b))[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}

// pattern is byte i of the long stream id.
func pattern(id uint64, i int) byte { return byte(patternWord(id, i/8) >> (8 * (i % 8))) }

func patternWord(id uint64, i int) uint64 {
	return (id+1)*0x9e3779b97f4a7c15 ^ uint64(i)*0xbf58476d1ce4e5b9
}

// patterned returns the first n bytes of the long stream id.
func patterned(id uint64, n int) []byte {
	b := make([]byte, 0, n+8)
	for i := 0; len(b) < n; i++ {
		b = binary.LittleEndian.AppendUint64(b, patternWord(id, i))
	}
	return b[:n]
}

// checkPattern reads a stream to its end and compares.
func checkPattern(r io.Reader, id uint64, n int) error {
	got, err := io.ReadAll(r)
	if err != nil {
		return fmt.Errorf("after %d of %d bytes: %w", len(got), n, err)
	}
	if len(got) != n {
		return fmt.Errorf("%d bytes came, there were %d", len(got), n)
	}
	want := patterned(id, n)
	if bytes.Equal(got, want) {
		return nil
	}
	for i, b := range got {
		if b != want[i] {
			return fmt.Errorf("byte %d of %d is wrong", i, n)
		}
	}
	return nil
}

// everyone runs f for n clients at the same time, and reports what fails.
func everyone(t testing.TB, n int, f func(i int) error) {
	t.Helper()
	within(t, "the clients", clients(t, n, f))
}

// everyoneGoesOn is everyone for a test that does a lot: it may last for as long as what it has done so far still grows.
func everyoneGoesOn(t testing.TB, n int, done func() int64, f func(i int) error) {
	t.Helper()
	ended := make(chan struct{})
	wait := clients(t, n, f)
	go func() { defer close(ended); wait() }()
	for before := done(); ; {
		select {
		case <-ended:
			return
		case <-time.After(patience):
		}
		now := done()
		if now == before {
			stacks := make([]byte, 1<<20)
			t.Fatalf("the clients have done nothing for %v, after %d\n%s", patience, now, stacks[:runtime.Stack(stacks, true)])
		}
		before = now
	}
}

// clients starts f for n clients, and returns what waits for them.
func clients(t testing.TB, n int, f func(i int) error) (wait func()) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if err := f(i); err != nil {
				t.Errorf("client %d: %v", i, err)
			}
		})
	}
	return wg.Wait
}
