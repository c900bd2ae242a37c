//go:build linux

package conformance

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/internal/testutil"
	"github.com/pollux-go/pollux/internal/testutil/fake"
	"github.com/pollux-go/pollux/poller"
)

// patience is how long something may take that must happen.
var patience = testutil.Patience

// env is one subtest on one target.
type env struct {
	*testing.T
	target  Target
	network string
}

func (e *env) noError(err error) {
	e.Helper()
	if err != nil {
		e.Fatal(err)
	}
}

func (e *env) wantError(err, want error) {
	e.Helper()
	if !errors.Is(err, want) {
		e.Fatalf("the error is %v, not %v", err, want)
	}
}

// backend opens the target; it is closed with the test.
func (e *env) backend() poller.Backend {
	e.Helper()
	b, err := e.target.Open()
	e.noError(err)
	e.Cleanup(func() { b.Close() })
	return b
}

// rig is a poller, the spy under it, and the clock of its deadlines.
type rig struct {
	*poller.Poller
	spy   *spy
	clock *fake.Clock

	sentinel       *poller.Desc
	sentinelStream *stream
}

func (e *env) rig() *rig {
	e.Helper()
	b, err := e.target.Open()
	e.noError(err)
	r := &rig{spy: &spy{Backend: b, tokens: map[int]poller.Token{}}, clock: fake.NewClock()}
	r.Poller, err = poller.NewWithClock(r.spy.wrap(), r.clock)
	e.noError(err)
	e.Cleanup(func() { r.Close() })
	r.sentinel, r.sentinelStream = e.desc(r)
	// The edge of its registration must have been: while one waits to be delivered, the next is told in its place, which
	// is before those that settle is to come after.
	if f, ok := b.(*fake.Backend); ok {
		f.Settle()
	}
	e.settle(r)
	return r
}

// settle returns once everything that had changed before the call has been delivered: descriptors become ready in the order of
// their changes, so an event of one more comes last. But an edge of that one may come twice, the second time at the head of a
// batch, and the others of the batch are under way then. So it is the beginning of the second wait from now on that says so:
// what had changed was in the batch of the first at the latest.
func (e *env) settle(r *rig) {
	e.Helper()
	for begun := r.spy.waits.Load(); ; {
		e.noError(r.sentinel.Reset(poller.ModeRead))
		r.sentinelStream.send(e, "x")
		e.noError(r.sentinel.WaitRead()) // Not a Read: it would find the byte before its edge comes.
		var p [2]byte
		if n, err := r.sentinel.Read(p[:]); n != 1 || err != nil {
			e.Fatalf("settle: %d, %v", n, err)
		}
		if r.spy.waits.Load() >= begun+2 {
			return
		}
	}
}

// spy stands between a poller and its backend.
type spy struct {
	poller.Backend

	waits  atomic.Uint64 // that have begun
	mu     sync.Mutex
	tokens map[int]poller.Token
	after  func(events []poller.Event) // runs between the kernel's answer and the delivery
	inject []poller.Event              // what the next Wait says beyond it
}

type pollableSpy struct{ *spy }

func (s pollableSpy) PollFD() int { return s.Backend.(poller.Pollable).PollFD() }

func (s *spy) nested() bool {
	_, ok := s.Backend.(poller.Pollable)
	return ok
}

func (s *spy) wrap() poller.Backend {
	if s.nested() {
		return pollableSpy{s}
	}
	return s
}

func (s *spy) Add(fd int, t poller.Token) error {
	err := s.Backend.Add(fd, t)
	if err == nil {
		s.mu.Lock()
		s.tokens[fd] = t
		s.mu.Unlock()
	}
	return err
}

func (s *spy) token(fd int) poller.Token {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tokens[fd]
}

func (s *spy) Wait(events []poller.Event, timeout time.Duration) (int, error) {
	s.waits.Add(1)
	n, err := s.Backend.Wait(events, timeout)
	s.mu.Lock()
	m := copy(events[n:], s.inject)
	s.inject = s.inject[m:]
	n += m
	after := s.after
	s.mu.Unlock()
	if after != nil {
		after(events[:n])
	}
	return n, err
}

// say makes the poller hear these events, and returns when it has.
func (e *env) say(r *rig, events ...poller.Event) {
	e.Helper()
	r.spy.mu.Lock()
	r.spy.inject = append(r.spy.inject, events...)
	r.spy.mu.Unlock()
	e.settle(r)
	e.settle(r) // What is injected comes last in its batch.
}

// stream is the test's end of a connection.
type stream struct {
	net.Conn
	fd   int // the other end
	kick func()
}

func (s *stream) send(e *env, bytes string) {
	e.Helper()
	_, err := s.Write([]byte(bytes))
	e.noError(err)
}

func (s *stream) Write(p []byte) (int, error) {
	n, err := s.Conn.Write(p)
	s.kick()
	return n, err
}

func (s *stream) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	s.kick()
	return n, err
}

func (s *stream) CloseWrite() error {
	err := s.Conn.(interface{ CloseWrite() error }).CloseWrite()
	s.kick()
	return err
}

func (s *stream) Close() error {
	err := s.Conn.Close()
	s.kick()
	return err
}

// pair connects a descriptor of the caller's with a stream of the test's.
func (e *env) pair(b poller.Backend) (fd int, s *stream) {
	e.Helper()
	fd, conn := e.connect()
	s = &stream{Conn: conn, fd: fd, kick: func() {}}
	if e.target.Kick != nil {
		s.kick = func() { e.target.Kick(b, s.fd) }
	}
	e.Cleanup(func() { conn.Close() })
	e.noError(conn.SetDeadline(time.Now().Add(patience)))
	return fd, s
}

func (e *env) connect() (int, net.Conn) {
	e.Helper()
	if e.network == "unix" {
		fds, errno := sys.Socketpair()
		if errno != 0 {
			e.Fatal(errno)
		}
		f := os.NewFile(uintptr(fds[1]), "peer")
		conn, err := net.FileConn(f)
		f.Close()
		e.noError(err)
		return fds[0], conn
	}
	lfd, addr := e.listenTCP()
	defer sys.Close(lfd)
	conn, err := net.Dial("tcp", addr)
	e.noError(err)
	for {
		switch fd, _, errno := sys.Accept(lfd); errno {
		case 0:
			return fd, conn
		case sys.EAGAIN:
			runtime.Gosched()
		default:
			e.Fatal(errno)
		}
	}
}

func (e *env) listenTCP() (fd int, addr string) {
	e.Helper()
	fd, errno := sys.Socket(sys.AF_INET)
	a := sys.Sockaddr{Family: sys.AF_INET, IP: [16]byte{127, 0, 0, 1}}
	if errno == 0 {
		errno = sys.Bind(fd, &a)
	}
	if errno == 0 {
		errno = sys.Listen(fd, 128)
	}
	if errno == 0 {
		a, errno = sys.Getsockname(fd)
	}
	if errno != 0 {
		e.Fatal(errno)
	}
	return fd, (&net.TCPAddr{IP: a.IP[:4], Port: int(a.Port)}).String()
}

// desc opens a connected descriptor; it is closed with the test.
func (e *env) desc(r *rig) (*poller.Desc, *stream) {
	e.Helper()
	fd, s := e.pair(r.spy.Backend)
	return e.open(r, fd), s
}

func (e *env) open(r *rig, fd int) *poller.Desc {
	e.Helper()
	d, err := r.OpenStream(fd, e.network == "tcp")
	if err != nil {
		sys.Close(fd)
		e.Fatal(err)
	}
	e.Cleanup(func() { d.Close() })
	return d
}

// fill writes until the kernel takes no more, and returns how much it took.
//
// Over TCP that does not last on a slow machine: what is under way makes room as it arrives, and a window that is smaller
// than a segment gets a part of one after 200 ms. So the buffer becomes smaller than what is queued.
func (e *env) fill(d *poller.Desc) int {
	e.Helper()
	total := 0
	chunk := make([]byte, 64<<10)
	e.noError(d.Use(poller.ModeWrite, func(fd int) bool {
		if e.network == "tcp" {
			e.noError(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 1<<20))
		}
		for {
			n, errno := sys.Send(fd, chunk)
			if errno == sys.EAGAIN {
				if e.network == "tcp" {
					e.noError(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 0)) // The kernel has a least.
				}
				return true
			}
			if errno != 0 {
				e.Fatal(errno)
			}
			total += n
		}
	}))
	return total
}

// task is a goroutine of the test.
type task struct {
	env  *env
	done chan struct{}
	n    int
	err  error
}

// start runs f beside the test.
func (e *env) start(f func() (int, error)) *task {
	t := &task{env: e, done: make(chan struct{})}
	go func() {
		defer close(t.done)
		t.n, t.err = f()
	}()
	return t
}

func (e *env) run(f func() error) *task { return e.start(func() (int, error) { return 0, f() }) }

// wait returns what f did.
func (t *task) wait() (int, error) {
	t.env.Helper()
	select {
	case <-t.done:
	case <-time.After(patience):
		t.env.Fatalf("still not over:\n%s", stacks())
	}
	return t.n, t.err
}

func (t *task) ended() bool {
	select {
	case <-t.done:
		return true
	default:
		return false
	}
}

// Places where a goroutine can be parked.
const (
	inWait  = ").wait(0x"     // Desc.wait, on an edge
	inLock  = "fdMutex).lock" // for the direction's lock
	inClose = "Desc).Close"   // for the last user
)

// parked returns once n goroutines are parked at a place. It fails if one of the tasks, which should be there, ends.
func (e *env) parked(place string, n int, tasks ...*task) {
	e.Helper()
	for end := time.Now().Add(patience); ; runtime.Gosched() {
		found := 0
		for _, g := range strings.Split(stacks(), "\n\n") {
			state, _, _ := strings.Cut(g, "\n")
			if strings.Contains(g, place) && strings.Contains(g, "poller.(*") &&
				(strings.Contains(state, "[chan receive") || strings.Contains(state, "[sync.Cond.Wait")) {
				found++
			}
		}
		if found == n {
			return
		}
		for _, t := range tasks {
			if t.ended() {
				e.Fatalf("it should be parked, and has ended with %d, %v", t.n, t.err)
			}
		}
		if time.Now().After(end) {
			e.Fatalf("%d goroutines are parked at %s, not %d:\n%s", found, place, n, stacks())
		}
	}
}

func stacks() string {
	buf := make([]byte, 1<<20)
	return string(buf[:runtime.Stack(buf, true)])
}

// read reads from d until it has n bytes or fails.
func read(d *poller.Desc, n int) ([]byte, error) {
	var got bytes.Buffer
	p := make([]byte, 64<<10)
	for got.Len() < n {
		m, err := d.Read(p[:min(len(p), n-got.Len())])
		got.Write(p[:m])
		if err != nil {
			return got.Bytes(), err
		}
		if m == 0 {
			return got.Bytes(), io.ErrNoProgress
		}
	}
	return got.Bytes(), nil
}

// inject makes the hook decide about system calls until restore is called, or the test ends.
func (e *env) inject(h sys.Hook) (restore func()) {
	restore = sync.OnceFunc(sys.Inject(h))
	e.Cleanup(restore)
	return restore
}
