package pollux

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
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
	"github.com/pollux-go/pollux/internal/uring"
	"github.com/pollux-go/pollux/poller"
)

// fallbackTime is how long it may take from a refusal to a backend that works. It takes about a millisecond; a busy
// machine with the race detector is not what this is about.
const fallbackTime = 3 * time.Second

// needUring skips the test where io_uring does not work, and says why.
func needUring(t *testing.T) {
	t.Helper()
	c := Default()
	if err := checkUring(c, true); err != nil {
		t.Skipf("io_uring with the features of Linux 6.1: %v", err)
	}
}

// needUringByName skips the test where io_uring does not work even for who asks for it by name, and says why.
func needUringByName(t *testing.T) {
	t.Helper()
	if err := checkUring(Default(), false); err != nil {
		t.Skipf("io_uring: %v", err)
	}
}

// preferUring makes auto try io_uring first until the test ends.
func preferUring(t *testing.T) {
	order := autoOrder
	autoOrder = []Kind{KindUring, KindEpoll}
	t.Cleanup(func() { autoOrder = order })
}

// refuse makes every call of one kind fail until the test ends.
func refuse(t *testing.T, op sys.Op, errno sys.Errno) {
	testutil.InjectFaults(t, func(got sys.Op, _ int) sys.Fault {
		if got == op {
			return sys.Fault{Errno: errno}
		}
		return sys.Fault{}
	})
}

// lines is a logger that keeps its lines.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func (l *lines) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Split(strings.TrimSuffix(l.b.String(), "\n"), "\n")
}

// echoHandler answers every byte with itself.
type echoHandler struct{ NopHandler }

func (echoHandler) OnData(c *Conn) error {
	b, _ := c.Next(-1)
	_, err := c.Write(b)
	return err
}

// checkEcho serves connections on the engine, all at once, several times, and closes it.
func checkEcho(t *testing.T, e *Engine, conns int) {
	t.Helper()
	defer e.Close()
	s, err := e.Bind(echoHandler{}, "tcp://127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	peers := make([]net.Conn, conns)
	for i := range peers {
		if peers[i], err = net.Dial("tcp", s.Addrs()[0].String()); err != nil {
			t.Fatal(err)
		}
		defer peers[i].Close()
		peers[i].SetDeadline(time.Now().Add(time.Minute))
	}
	for round := range 3 {
		for i, c := range peers {
			if _, err := fmt.Fprintf(c, "%08d", i*10+round); err != nil {
				t.Fatal(err)
			}
		}
		for i, c := range peers {
			var got [8]byte
			if _, err := io.ReadFull(c, got[:]); err != nil || string(got[:]) != fmt.Sprintf("%08d", i*10+round) {
				t.Fatalf("connection %d: %q, %v", i, got, err)
			}
		}
	}
	// The half of each stream that goes to the server ends; the other one ends as its answer.
	for _, c := range peers {
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if rest, err := io.ReadAll(c); err != nil || len(rest) > 0 {
			t.Fatalf("%q, %v after the end", rest, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := e.Shutdown(ctx); err != nil {
		t.Error(err)
	}
}

// refusals are what the kernel and sandboxes answer, and what must be said about it.
var refusals = []struct {
	errno sys.Errno
	want  string
}{
	{sys.EPERM, "POLLUX_BACKEND=epoll"},
	{sys.ENOSYS, "POLLUX_BACKEND=epoll"},
	{sys.ENOTSUP, "from Linux 6.1 on"},
	{sys.ENOMEM, "RLIMIT_MEMLOCK"},
	{sys.EINVAL, "too old"},
}

// checkAutoFallsBack demands that auto, which would rather have io_uring, serves on epoll and says why.
func checkAutoFallsBack(t *testing.T, errno sys.Errno, want string) {
	t.Helper()
	var log lines
	start := time.Now()
	e, err := New(Config{Loops: 2, Logger: log.logger()})
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(start)
	t.Logf("in %v: %s", took, e.BackendReason())
	if took > fallbackTime {
		t.Errorf("it took %v", took)
	}
	if e.Backend() != "epoll" {
		t.Errorf("the backend is %s", e.Backend())
	}
	for _, w := range []string{"backend io_uring: ", errno.Error(), want} {
		if !strings.Contains(e.BackendReason(), w) {
			t.Errorf("no %q in the reason %q", w, e.BackendReason())
		}
	}
	if strings.Contains(e.BackendReason(), "\n") {
		t.Errorf("the reason has several lines: %q", e.BackendReason())
	}
	checkEcho(t, e, 4)
	if got := log.all(); len(got) != 1 || !strings.Contains(got[0], "level=INFO") || !strings.Contains(got[0], "backend=epoll") || !strings.Contains(got[0], want) {
		t.Errorf("the log says %q", got)
	}
}

// checkExplicitFails demands that who asks for io_uring by name gets the error, and nothing else.
func checkExplicitFails(t *testing.T, errno sys.Errno, want string) {
	t.Helper()
	var log lines
	start := time.Now()
	e, err := New(Config{Backend: KindUring, Logger: log.logger()})
	if err == nil {
		e.Close()
		t.Fatal("io_uring was opened")
	}
	if d := time.Since(start); d > fallbackTime {
		t.Errorf("it took %v", d)
	}
	if !errors.Is(err, errno) || !strings.Contains(err.Error(), want) {
		t.Errorf("%v; want %v and %q", err, errno, want)
	}
	if got := log.all(); len(got) != 1 || got[0] != "" {
		t.Errorf("the log says %q", got)
	}
}

func TestUringRefused(t *testing.T) {
	needUring(t)
	testutil.CheckLeaks(t)
	preferUring(t)
	for _, op := range []sys.Op{sys.OpUringSetup, sys.OpUringEnter, sys.OpUringRegister} {
		for _, r := range refusals {
			t.Run(fmt.Sprintf("%v %v", op, r.errno), func(t *testing.T) {
				refuse(t, op, r.errno)
				checkAutoFallsBack(t, r.errno, r.want)
				checkExplicitFails(t, r.errno, r.want)
			})
		}
	}
}

// A real filter, as a container has it, that lets some of the three calls pass.
func TestUringUnderSeccomp(t *testing.T) {
	for name, call := range map[string]uintptr{
		"setup": unix.SYS_IO_URING_SETUP, "enter": unix.SYS_IO_URING_ENTER, "register": unix.SYS_IO_URING_REGISTER,
	} {
		for _, r := range []struct {
			errno sys.Errno
			want  string
		}{
			{sys.EPERM, "seccomp"}, {sys.ENOSYS, "seccomp"}, {sys.ENOMEM, "RLIMIT_MEMLOCK"},
		} {
			t.Run(name+" "+unix.ErrnoName(r.errno), func(t *testing.T) {
				if !testutil.Refused(t, r.errno, call) {
					return
				}
				testutil.CheckLeaks(t)
				preferUring(t)
				checkAutoFallsBack(t, r.errno, r.want)
				checkExplicitFails(t, r.errno, r.want)
			})
		}
	}
}

// An unprivileged user may lock little memory: rings become smaller, and serve all the same. Where even the smallest does
// not fit, the error says what to raise.
func TestUringMemlock(t *testing.T) {
	for _, kib := range []uint64{0, 64, 216} {
		t.Run(fmt.Sprint(kib), func(t *testing.T) {
			if !testutil.Memlock(t, kib<<10) {
				return
			}
			testutil.CheckLeaks(t)
			if kib == 0 {
				e, err := New(Config{Backend: KindUring})
				if err == nil {
					e.Close()
					t.Skip("the kernel does not charge rings to RLIMIT_MEMLOCK")
				}
				if !errors.Is(err, sys.ENOMEM) || !strings.Contains(err.Error(), "RLIMIT_MEMLOCK, 0 KiB") {
					t.Error(err)
				}
				preferUring(t)
				checkAutoFallsBack(t, sys.ENOMEM, "RLIMIT_MEMLOCK")
				return
			}
			// What ran before may hold some of the memory for a while, and longer on a busy machine.
			again := func(try func() error) {
				t.Helper()
				for end := time.Now().Add(20 * time.Second); ; time.Sleep(300 * time.Millisecond) {
					err := try()
					if err == nil {
						return
					}
					if !errors.Is(err, sys.ENOMEM) || time.Now().After(end) {
						t.Fatal(err)
					}
				}
			}
			again(func() error {
				e, err := New(Config{Backend: KindUring, Loops: 1})
				if err != nil {
					return err
				}
				e.mu.Lock()
				err = e.start()
				e.mu.Unlock()
				if err != nil {
					e.Close()
					return err
				}
				u, ok := e.loops[0].backend.(*uringBackend)
				charged := kib != 64
				if ok && !charged {
					entries, _ := u.ring.Entries()
					charged = entries < Default().RingEntries
				}
				checkEcho(t, e, 8)
				if !charged {
					t.Skip("the kernel does not charge rings to RLIMIT_MEMLOCK")
				}
				return nil
			})
			if kib == 64 {
				preferUring(t)
				e, err := New(Config{Loops: 1, Logger: slog.New(slog.DiscardHandler)})
				if err != nil {
					t.Fatal(err)
				}
				checkEcho(t, e, 8)
				if e.Backend() != "epoll" || !strings.Contains(e.BackendReason(), "RLIMIT_MEMLOCK, 64 KiB") {
					t.Errorf("auto takes %s: %s", e.Backend(), e.BackendReason())
				}
			}
			if kib == 216 && os.Getpagesize() == 4096 { // Just enough.
				again(func() error {
					c := Default()
					b, err := newUring(c)
					if err != nil {
						return err
					}
					defer b.Close()
					u, ok := b.(*uringBackend)
					if !ok {
						t.Skip("the kernel has no rings of buffers, which take half of it")
					}
					if sq, _ := u.ring.Entries(); sq < c.RingEntries || u.buffers.Len() < c.RingBuffers {
						return fmt.Errorf("%d submissions and %d buffers: %w", sq, u.buffers.Len(), sys.ENOMEM)
					}
					return nil
				})
			}
		})
	}
}

// What works once may not work once a loop: the memory that may be locked runs out.
func TestUringRefusedAsLoopsStart(t *testing.T) {
	needUring(t)
	testutil.CheckLeaks(t)
	preferUring(t)
	var armed atomic.Bool
	var rings atomic.Int64
	testutil.InjectFaults(t, func(op sys.Op, _ int) sys.Fault {
		if armed.Load() && op == sys.OpUringSetup && rings.Add(1) > 2 {
			return sys.Fault{Errno: sys.ENOMEM}
		}
		return sys.Fault{}
	})
	t.Run("auto", func(t *testing.T) {
		armed.Store(false)
		var log lines
		e, err := New(Config{Loops: 4, Logger: log.logger()})
		if err != nil {
			t.Fatal(err)
		}
		if e.Backend() != "io_uring" {
			t.Errorf("the backend is %s: %s", e.Backend(), e.BackendReason())
		}
		armed.Store(true)
		rings.Store(0)
		checkEcho(t, e, 8)
		if e.Backend() != "epoll" || !strings.Contains(e.BackendReason(), "RLIMIT_MEMLOCK") {
			t.Errorf("the backend is %s: %s", e.Backend(), e.BackendReason())
		}
		if got := log.all(); len(got) != 2 || !strings.Contains(got[1], "backend=epoll") {
			t.Errorf("the log says %q", got)
		}
	})
	t.Run("explicit", func(t *testing.T) {
		armed.Store(false)
		e, err := New(Config{Loops: 4, Backend: KindUring})
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		armed.Store(true)
		rings.Store(0)
		if _, err := e.Bind(echoHandler{}, "tcp://127.0.0.1:0"); !errors.Is(err, sys.ENOMEM) {
			t.Errorf("%v instead of ENOMEM", err)
		}
	})
}

// auto says what it took even where nothing was refused.
func TestAutoReason(t *testing.T) {
	testutil.CheckLeaks(t)
	for _, order := range [][]Kind{{KindEpoll, KindUring}, {KindUring, KindEpoll}} {
		if order[0] == KindUring {
			needUring(t)
		}
		before := autoOrder
		autoOrder = order
		e, err := New(Config{Logger: slog.New(slog.DiscardHandler)})
		autoOrder = before
		if err != nil {
			t.Fatal(err)
		}
		if e.Backend() != string(order[0]) || !strings.Contains(e.BackendReason(), "backend "+string(order[1])+" was not tried") {
			t.Errorf("%s: %s", e.Backend(), e.BackendReason())
		}
		e.Close()
	}
}

// Every feature alone, and those that are newer than a kernel, are masked off: what is served must be the same.
func TestUringWithout(t *testing.T) {
	needUringByName(t)
	testutil.CheckLeaks(t)
	masks := map[string]string{
		"nothing": "",
		"6.6":     without66,
		"6.1":     without61,
		"5.19":    without519,
		"5.11":    without511,
	}
	for _, a := range uring.Answers() {
		if a.Feature != uring.ExtArg {
			masks[a.Name] = "-" + a.Name
		}
	}
	for name, mask := range masks {
		t.Run(name, func(t *testing.T) {
			e, err := New(Config{Backend: KindUring, UringFeatures: mask, Loops: 2, RingEntries: 8, RingBuffers: 4, RingBufferSize: 256})
			if err != nil {
				t.Fatal(err)
			}
			if e.Backend() != "io_uring" || e.BackendReason() == "" {
				t.Errorf("%s: %s", e.Backend(), e.BackendReason())
			}
			bind(t, e, "tcp", echo{}) // It has loops from here on.
			if _, ok := e.loops[0].backend.(poller.Holder); !ok {
				t.Error("no wait of it keeps the P")
			}
			if e.Stats().Loops[0].Uring == nil {
				t.Error("nothing is counted")
			}
			checkEcho(t, e, 40)
		})
	}
	t.Run("ext_arg", func(t *testing.T) {
		if _, err := New(Config{Backend: KindUring, UringFeatures: "-ext_arg"}); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%v", err)
		}
	})
}

// More descriptors are ready at once than one fetch brings, and a poll tells of them only once.
func TestUringReadinessOfMany(t *testing.T) {
	needUringByName(t)
	testutil.CheckLeaks(t)
	for _, mask := range []string{"-multishot_recv", "-multishot_recv,-epoll_wait", "-multishot_recv,-epoll_wait,-multishot_poll"} {
		t.Run(mask, func(t *testing.T) {
			runtime.LockOSThread() // The ring belongs to the thread that waits first; it ends with the test.
			c, err := Config{Backend: KindUring, UringFeatures: mask}.withDefaults()
			if err != nil {
				t.Fatal(err)
			}
			b, err := newUring(c)
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			if _, ok := b.(poller.Completer); ok {
				t.Error("the backend receives")
			}
			if b.Name() != "io_uring" {
				t.Errorf("the backend is called %s", b.Name())
			}
			const n = 3*epollBatch + 7
			tokens := map[poller.Token]bool{}
			var slots poller.Table[int]
			for range n {
				fd, errno := sys.Eventfd()
				if errno != 0 {
					t.Fatal(errno)
				}
				defer sys.Close(fd)
				token, err := slots.Put(fd)
				if err != nil {
					t.Fatal(err)
				}
				if err := b.Add(fd, token); err != nil {
					t.Fatal(err)
				}
				sys.Write(fd, one[:])
			}
			// The room for events is less than what is fetched.
			events := make([]poller.Event, 50)
			for end := time.Now().Add(time.Minute); len(tokens) < n && time.Now().Before(end); {
				k, err := b.Wait(events, 100*time.Millisecond)
				if err != nil {
					t.Fatal(err)
				}
				for _, ev := range events[:k] {
					if ev.Ready&poller.Readable != 0 {
						tokens[ev.Token] = true
					}
				}
			}
			if len(tokens) != n {
				t.Errorf("%d of %d were reported", len(tokens), n)
			}
		})
	}
}

func TestAutoDemandsFeatures(t *testing.T) {
	needUring(t)
	testutil.CheckLeaks(t)
	preferUring(t)
	for _, mask := range []string{"-defer_taskrun", "-multishot_recv", "-buffer_ring"} {
		e, err := New(Config{UringFeatures: mask, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		if e.Backend() != "epoll" || !strings.Contains(e.BackendReason(), mask[1:]) {
			t.Errorf("%s: %s", e.Backend(), e.BackendReason())
		}
		e.Close()
	}
}

// TestAnswerAloneIsSentAtOnce counts calls of send(2) on io_uring: an answer that is alone in its turn, as those before were, is
// sent at once; those of a turn that has many go out with the wait.
func TestAnswerAloneIsSentAtOnce(t *testing.T) {
	needUringByName(t)
	testutil.CheckLeaks(t)
	config := Config{Backend: KindUring, UringFeatures: testFeatures(), Loops: 1, Dispatch: DispatchInline}
	if !completing(config) {
		t.Skip("no completer: each answer is sent at once")
	}
	var sends atomic.Int64
	testutil.InjectFaults(t, func(op sys.Op, _ int) sys.Fault {
		if op == sys.OpSend {
			sends.Add(1)
		}
		return sys.Fault{}
	})
	e := newEngine(t, config)
	entered, gate := make(chan struct{}), make(chan struct{})
	s, _ := bind(t, e, "tcp", funcs{data: func(c *Conn) error {
		if b, _ := c.Peek(-1); b[0] == 'w' {
			entered <- struct{}{}
			<-gate
		}
		return echo{}.OnData(c)
	}})
	ask := func(c net.Conn, what string) {
		if _, err := c.Write([]byte(what)); err != nil {
			t.Fatal(err)
		}
	}
	answer := func(c net.Conn) {
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	const clients, rounds = 20, 20
	var conns []net.Conn
	for range clients {
		c := dial(t, s.Addrs()[0])
		ask(c, "a")
		answer(c)
		conns = append(conns, c)
	}
	for i := range singleLeast + rounds {
		if i == singleLeast {
			sends.Store(0)
		}
		ask(conns[0], "a")
		answer(conns[0])
	}
	if n := sends.Load(); n < rounds/2 { // The client may be fast enough for two turns to become one.
		t.Errorf("%d of %d answers that were alone were sent at once", n, rounds)
	}
	ask(conns[0], "w")
	<-entered
	for _, c := range conns[1:] {
		ask(c, "a")
	}
	sends.Store(0)
	gate <- struct{}{}
	for _, c := range conns {
		answer(c)
	}
	if n := sends.Load(); n > 1 { // The first one's turn had one event.
		t.Errorf("%d calls for the answers of a turn that had %d", n, clients-1)
	}
}
