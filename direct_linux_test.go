package pollux

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/internal/testutil"
)

// The catalogue of faults runs with direct descriptors by make test-direct. The tests here are about what only they have.

// directConfig is a configuration with direct descriptors. The test is skipped where there are none.
func directConfig(t testing.TB, loops, size int) Config {
	t.Helper()
	c := Default()
	c.Backend, c.DirectDescriptors, c.Loops = KindUring, size, loops
	c.Logger = slog.New(slog.DiscardHandler)
	if err := checkUring(c, false); err != nil {
		t.Skipf("direct descriptors: %v", err)
	}
	return c
}

// filesOf returns how many files the kernel has in the table of a ring.
func filesOf(t testing.TB, l *loop) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", l.backend.(*uringBackend).ring.FD()))
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(text), "\nUserFiles:")
	if !found {
		t.Skip("the kernel does not show the table")
	}
	n := 0
	for line := range strings.Lines(table) {
		_, file, found := strings.Cut(line, ": ")
		if n += strings.Count(file, "socket"); !found && n > 0 {
			break
		}
	}
	return n
}

// checkTables fails the test unless every place of every table is free, for us and for the kernel.
func checkTables(t *testing.T, e *Engine) {
	t.Helper()
	full := int64(e.config.DirectDescriptors)
	eventually(t, "the tables to be empty", func() bool {
		empty := true
		for _, l := range e.loops {
			u := l.backend.(*uringBackend)
			places := make(chan int64, 1)
			err := l.inner.PostAlways(func() {
				free := u.direct.free.Load()
				for _, a := range u.direct.accepts {
					if a.armed {
						free++ // The accept under way has it.
					}
				}
				places <- free
			})
			if err != nil {
				t.Fatal(err)
			}
			empty = empty && receive(t, "a loop", places) == full && filesOf(t, l) == 0
		}
		return empty
	})
}

// checkWorkers fails the test when a kernel thread has worked for a ring.
func checkWorkers(t *testing.T) {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		if name, _ := os.ReadFile("/proc/self/task/" + task.Name() + "/comm"); strings.HasPrefix(string(name), "iou-wrk") {
			t.Errorf("there is a thread %s", name)
		}
	}
}

func TestDirectDescriptors(t *testing.T) {
	config := directConfig(t, 2, 100)
	for _, records := range []int{100, 20_000} {
		t.Run(fmt.Sprint(records), func(t *testing.T) {
			testutil.CheckLeaks(t)
			e := newEngine(t, config)
			var direct atomic.Int64
			s, a := bind(t, e, "tcp", funcs{
				open: func(c *Conn) error {
					if c.isDirect() {
						direct.Add(1)
					}
					return nil
				},
				data: echo{}.OnData, writable: echo{}.OnWritable,
			})
			const n = 50
			everyone(t, n, func(i int) error { return exchange(dial(t, s.Addrs()[0]), uint64(i), 100, records) })
			a.wait(t, n)
			if direct.Load() != n {
				t.Errorf("%d of %d connections had direct descriptors", direct.Load(), n)
			}
			checkTables(t, e)
			checkWorkers(t)
		})
	}
}

// TestDirectBeyondTheLimit has a process that may open few files hold many times as many connections.
func TestDirectBeyondTheLimit(t *testing.T) {
	directConfig(t, 4, 250)
	const n = 900
	server := inChild(t, "direct server")
	addr, err := net.ResolveTCPAddr("tcp", server.line())
	if err != nil {
		t.Fatal(err)
	}
	conns := make([]net.Conn, n)
	for i := range conns {
		conns[i] = dial(t, addr)
	}
	for round := range uint64(3) {
		for i, c := range conns {
			if err := pingPong(c, uint64(i), round); err != nil {
				t.Fatalf("connection %d: %v; the server: %s", i, err, server.ask("state"))
			}
		}
	}
	var conn, files, limit int
	if _, err := fmt.Sscan(server.ask("state"), &conn, &files, &limit); err != nil {
		t.Fatal(err)
	}
	if conn != n || files > 60 || limit != 256 {
		t.Errorf("%d connections with %d open files, and a limit of %d", conn, files, limit)
	}
}

func init() {
	children["direct server"] = func(in *bufio.Scanner) error {
		limit := syscall.Rlimit{Cur: 256, Max: 256}
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
			return err
		}
		e, err := New(Config{Backend: KindUring, DirectDescriptors: 250, Loops: 4, RingBuffers: 64})
		if err != nil {
			return err
		}
		defer e.Close()
		s, err := e.Bind(echo{}, "tcp://127.0.0.1:0")
		if err != nil {
			return err
		}
		fmt.Println(s.Addrs()[0])
		for in.Scan() {
			soft, _, _ := sys.Rlimit(sys.RLIMIT_NOFILE)
			fmt.Println(s.Conns(), len(testutil.Files()), soft)
		}
		return nil
	}
}

// TestDirectTableFull fills the tables: who comes then waits, and nobody is dropped.
func TestDirectTableFull(t *testing.T) {
	testutil.CheckLeaks(t)
	config := directConfig(t, 2, 5)
	var log lines
	config.Logger = log.logger()
	e := newEngine(t, config)
	s, a := bind(t, e, "tcp", echo{})
	var conns []net.Conn
	for i := range 25 {
		c := dial(t, s.Addrs()[0])
		c.Write(testutil.AppendRecord(nil, uint64(i), 0, 100))
		conns = append(conns, c)
	}
	for i, c := range conns[:10] {
		if err := testutil.ReadRecord(c, uint64(i), 0); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
	}
	eventually(t, "the log", func() bool { return strings.Contains(strings.Join(log.all(), ""), "POLLUX_DIRECT") })
	if n := s.Conns(); n != 10 {
		t.Errorf("%d connections", n)
	}
	for i := 10; i < len(conns); i++ {
		conns[i-10].Close()
		if err := testutil.ReadRecord(conns[i], uint64(i), 0); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
	}
	for _, c := range conns {
		c.Close()
	}
	a.wait(t, 25)
	checkTables(t, e)
}

// TestDirectShares sees that each loop gets its share, though only one accepts at a time.
func TestDirectShares(t *testing.T) {
	testutil.CheckLeaks(t)
	e := newEngine(t, directConfig(t, 4, 200))
	s, a := bind(t, e, "tcp", echo{})
	const n = 200
	conns := make([]net.Conn, n)
	for i := range conns {
		conns[i] = dial(t, s.Addrs()[0])
	}
	eventually(t, "all to be accepted", func() bool { opened, _ := a.counts(); return opened == n })
	for i, l := range e.loops {
		if count := l.count.Load(); count < n/4-10 || count > n/4+10 {
			t.Errorf("loop %d has %d of %d connections", i, count, n)
		}
	}
}

// TestDirectTableIsGivenBack ends connections in every way there is.
func TestDirectTableIsGivenBack(t *testing.T) {
	testutil.CheckLeaks(t)
	config := directConfig(t, 2, 100)
	config.WriteLimit = 8 << 20
	e := newEngine(t, config)
	boom := errors.New("boom")
	s, a := bind(t, e, "tcp", funcs{data: func(c *Conn) error {
		b, _ := c.Next(1)
		switch b[0] {
		case 'e':
			c.Write([]byte("answer"))
			return boom
		case 'p':
			panic(boom)
		case 'c':
			c.Write([]byte("answer"))
			return c.Close()
		case 'd':
			d, err := c.Detach()
			if err == nil {
				d.Close()
			}
			return err
		case 'q':
			c.Write(make([]byte, 8<<20))
			return c.SetIdleTimeout(time.Millisecond)
		case 'w':
			return c.CloseWrite()
		case 'z':
			return nil
		}
		c.Pause()
		return nil
	}})
	const rounds = 20
	everyone(t, 8, func(i int) error {
		for range rounds {
			c := dial(t, s.Addrs()[0])
			if _, err := c.Write([]byte("epcdqwzr")[i : i+1]); err != nil {
				return err
			}
			switch "epcdqwzr"[i] {
			case 'z':
				c.(*net.TCPConn).CloseWrite()
			case 'r':
				reset(c)
			case 'w':
				if _, err := io.ReadAll(c); err != nil {
					return err
				}
			default:
				io.Copy(io.Discard, c)
			}
			c.Close()
		}
		return nil
	})
	a.wait(t, 8*rounds)
	checkTables(t, e)
	checkWorkers(t)
}

// TestDirectPeerHears sees that a close is told at once, and which kind of end it is, while other connections have requests
// under way that began before.
func TestDirectPeerHears(t *testing.T) {
	testutil.CheckLeaks(t)
	config := directConfig(t, 1, 100)
	config.WriteLimit, config.Linger = 32<<20, -1
	e := newEngine(t, config)
	s, _ := bind(t, e, "tcp", funcs{data: func(c *Conn) error {
		b, _ := c.Next(1)
		if b[0] == 'q' {
			c.Write(make([]byte, 32<<20)) // More than the sockets hold.
		}
		return c.Close()
	}})
	idle := dial(t, s.Addrs()[0])
	for range 10 {
		c := dial(t, s.Addrs()[0])
		c.Write([]byte("x"))
		start := time.Now()
		if b, err := io.ReadAll(c); len(b) > 0 || err != nil {
			t.Errorf("%d bytes and %v instead of an end", len(b), err)
		}
		if d := time.Since(start); d > 2*time.Second {
			t.Errorf("the peer has heard of the end after %v", d)
		}
		c = dial(t, s.Addrs()[0])
		c.Write([]byte("q"))
		if _, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%v instead of a reset, behind a queue that was dropped", err)
		}
	}
	idle.SetReadDeadline(time.Now().Add(time.Millisecond))
	if _, err := idle.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection beside them: %v", err)
	}
}

// TestDirectHalfClose has the server end its direction first, from a callback and from elsewhere, behind a queue.
func TestDirectHalfClose(t *testing.T) {
	testutil.CheckLeaks(t)
	e := newEngine(t, directConfig(t, 2, 10))
	for _, elsewhere := range []bool{false, true} {
		opened := make(chan *Conn, 1)
		answer := patterned(7, 900_000)
		send := func(c *Conn) error {
			if _, err := c.Write(answer); err != nil {
				return err
			}
			return c.CloseWrite()
		}
		heard := make(chan string, 1)
		s, a := bind(t, e, "tcp", funcs{
			open: func(c *Conn) error {
				opened <- c
				if elsewhere {
					return nil
				}
				return send(c)
			},
			eof: func(c *Conn) error {
				b, _ := c.Next(-1)
				heard <- string(b)
				return nil
			},
		}.keeping())
		client := dial(t, s.Addrs()[0])
		c := receive(t, "OnOpen", opened)
		if elsewhere {
			if err := send(c); err != nil {
				t.Fatal(err)
			}
		}
		if err := checkPattern(client, 7, len(answer)); err != nil {
			t.Error(err)
		}
		client.Write([]byte("still there"))
		client.(*net.TCPConn).CloseWrite()
		if got := receive(t, "OnEOF", heard); got != "still there" {
			t.Errorf("the other direction brought %q", got)
		}
		a.wait(t, 1)
	}
}

// keeping leaves what comes in the buffer.
func (f funcs) keeping() funcs {
	f.data = func(*Conn) error { return nil }
	return f
}

func TestDirectAddresses(t *testing.T) {
	testutil.CheckLeaks(t)
	e := newEngine(t, directConfig(t, 2, 10))
	type pair struct{ local, remote string }
	for _, addr := range []string{"tcp://127.0.0.1:0", "tcp://0.0.0.0:0", "tcp://[::1]:0", "tcp://:0"} {
		t.Run(addr, func(t *testing.T) {
			got := make(chan pair, 1)
			s, err := e.Bind(funcs{open: func(c *Conn) error {
				got <- pair{c.LocalAddr().String(), c.RemoteAddr().String()}
				return nil
			}}, "unix://"+listenAddress(t, "unix"), addr)
			if err != nil {
				if strings.Contains(addr, "::1") {
					t.Skip(err)
				}
				t.Fatal(err)
			}
			to := s.Addrs()[1].(*net.TCPAddr)
			targets := []string{to.IP.String()}
			if to.IP.IsUnspecified() {
				targets = []string{"127.0.0.1", "127.0.0.9"}
			}
			for _, ip := range targets {
				c, err := net.Dial("tcp", net.JoinHostPort(ip, fmt.Sprint(to.Port)))
				if err != nil {
					t.Fatal(err)
				}
				unmapped := func(s string) string { return strings.Replace(s, "::ffff:", "", 1) }
				p := receive(t, "OnOpen", got)
				if unmapped(p.local) != c.RemoteAddr().String() || unmapped(p.remote) != c.LocalAddr().String() {
					t.Errorf("%v to %v: the server says %+v", c.LocalAddr(), c.RemoteAddr(), p)
				}
				c.Close()
			}
			if err := s.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestDirectDrains shuts a service down while answers are under way.
func TestDirectDrains(t *testing.T) {
	testutil.CheckLeaks(t)
	e := newEngine(t, directConfig(t, 3, 100))
	s, a := bind(t, e, "tcp", echo{})
	const n, size = 30, 300_000
	var conns []net.Conn
	for i := range n {
		c := dial(t, s.Addrs()[0])
		conns = append(conns, c)
		if err := pingPong(c, uint64(i), 0); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(patterned(uint64(i), size)[:100_000]); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	for i, c := range conns {
		wg.Go(func() {
			got := make([]byte, 100_000)
			if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, patterned(uint64(i), size)[:100_000]) {
				t.Errorf("connection %d: %v", i, err)
			}
			if rest, err := io.ReadAll(c); len(rest) > 0 || err != nil {
				t.Errorf("connection %d: %d bytes and %v at the end", i, len(rest), err)
			}
		})
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	within(t, "the clients", wg.Wait)
	a.wait(t, n)
	checkTables(t, e)
}

// TestDirectStalledReader leaves a long answer unread for a while: the send must not end up in a kernel
// thread, and other connections go on.
func TestDirectStalledReader(t *testing.T) {
	testutil.CheckLeaks(t)
	config := directConfig(t, 1, 10)
	config.WriteLimit = 8 << 20
	e := newEngine(t, config)
	const size = 8 << 20
	s, a := bind(t, e, "tcp", funcs{data: func(c *Conn) error {
		b, _ := c.Next(-1)
		if string(b) != "long" {
			_, err := c.Write(b)
			return err
		}
		_, err := c.Write(patterned(1, size))
		return errors.Join(err, c.CloseWrite())
	}})
	stalled, other := dial(t, s.Addrs()[0]), dial(t, s.Addrs()[0])
	stalled.(*net.TCPConn).SetReadBuffer(64 << 10)
	stalled.Write([]byte("long"))
	for i := range uint64(100) {
		if err := pingPong(other, 1, i); err != nil {
			t.Fatal(err)
		}
	}
	if err := checkPattern(stalled, 1, size); err != nil {
		t.Error(err)
	}
	checkWorkers(t)
	stalled.Close()
	other.Close()
	a.wait(t, 2)
}

// TestDirectWithoutInstall is a kernel before 6.8, but for what it needs of 6.13.
func TestDirectWithoutInstall(t *testing.T) {
	testutil.CheckLeaks(t)
	config := directConfig(t, 2, 10)
	config.UringFeatures = "-fixed_fd_install"
	e := newEngine(t, config)
	results := make(chan error, 2)
	s, a := bind(t, e, "tcp", funcs{data: func(c *Conn) error {
		results <- c.CloseWrite()
		_, err := c.Detach()
		results <- err
		return echo{}.OnData(c)
	}})
	c := dial(t, s.Addrs()[0])
	if err := pingPong(c, 1, 1); err != nil {
		t.Error(err)
	}
	for _, call := range []string{"CloseWrite", "Detach"} {
		if err := receive(t, call, results); !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "6.8") {
			t.Errorf("%s: %v", call, err)
		}
	}
	c.Close()
	a.wait(t, 1)
	checkTables(t, e)
}

func TestDirectRefused(t *testing.T) {
	testutil.CheckLeaks(t)
	valid := directConfig(t, 1, 10)
	soft, _, _ := sys.Rlimit(sys.RLIMIT_NOFILE)
	for name, test := range map[string]struct {
		change func(*Config)
		want   []string
		is     error
	}{
		"auto":     {func(c *Config) { c.Backend = KindAuto }, []string{"DirectDescriptors is 10", "Backend is auto", "io_uring"}, nil},
		"epoll":    {func(c *Config) { c.Backend = KindEpoll }, []string{"DirectDescriptors is 10", "Backend is epoll", "POLLUX_BACKEND"}, nil},
		"MaxConns": {func(c *Config) { c.MaxConns = 5 }, []string{"DirectDescriptors is 10", "MaxConns 5"}, nil},
		"negative": {func(c *Config) { c.DirectDescriptors = -1 }, []string{"DirectDescriptors is -1", "0 to 1048576"}, nil},
		"large": {func(c *Config) { c.DirectDescriptors = int(soft) + 1 },
			[]string{fmt.Sprint(soft + 1), "RLIMIT_NOFILE", "POLLUX_LOOPS"}, sys.EMFILE},
		"direct_files":   {func(c *Config) { c.UringFeatures = "-direct_files" }, []string{"direct_files"}, errors.ErrUnsupported},
		"direct_close":   {func(c *Config) { c.UringFeatures = "-direct_close" }, []string{"direct_close"}, errors.ErrUnsupported},
		"multishot_recv": {func(c *Config) { c.UringFeatures = "-multishot_recv" }, []string{"multishot_recv"}, errors.ErrUnsupported},
	} {
		t.Run(name, func(t *testing.T) {
			c := valid
			test.change(&c)
			e, err := New(c)
			if err == nil {
				e.Close()
				t.Fatal("it was accepted")
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("no %q in %v", want, err)
				}
			}
			if test.is != nil && !errors.Is(err, test.is) {
				t.Errorf("%v is not %v", err, test.is)
			}
		})
	}
}

// TestDirectIndexIsNoDescriptor sees what a system call makes of a direct descriptor.
func TestDirectIndexIsNoDescriptor(t *testing.T) {
	for _, fd := range []int{directBit, directBit + 7, directBit + directMax - 1} {
		if _, errno := sys.Send(fd, []byte("x")); errno != sys.EBADF {
			t.Errorf("fd %#x: %v", fd, errno)
		}
		if errno := sys.Close(fd); errno != sys.EBADF {
			t.Errorf("fd %#x: %v", fd, errno)
		}
	}
}

// BenchmarkAccept measures a connection from its connect to its close, with a client in the same process that takes its part of
// the time, and of the CPU time that is reported too. A listener on every address asks for the local one of each connection.
func BenchmarkAccept(b *testing.B) {
	for _, c := range []struct {
		name, addr string
		direct     int
		kind       Kind
	}{
		{"epoll", "127.0.0.1:0", 0, KindEpoll},
		{"io_uring", "127.0.0.1:0", 0, KindUring},
		{"direct", "127.0.0.1:0", 1000, KindUring},
		{"direct-wildcard", "0.0.0.0:0", 1000, KindUring},
	} {
		for _, loops := range []int{1, 2} {
			b.Run(fmt.Sprintf("descriptors=%s/loops=%d", c.name, loops), func(b *testing.B) {
				config := directConfig(b, loops, 1000)
				config.Backend, config.DirectDescriptors = c.kind, c.direct
				e := newEngine(b, config)
				s, err := e.Bind(echo{}, "tcp4://"+c.addr)
				if err != nil {
					b.Fatal(err)
				}
				sa := &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: s.Addrs()[0].(*net.TCPAddr).Port}
				linger := &syscall.Linger{Onoff: 1}
				var hello [1]byte
				var before, after syscall.Rusage
				syscall.Getrusage(syscall.RUSAGE_SELF, &before)
				b.ResetTimer()
				for range b.N {
					fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
					if err != nil {
						b.Fatal(err)
					}
					if err := syscall.Connect(fd, sa); err != nil {
						b.Fatal(err)
					}
					// An echo, so that it was accepted; then a reset, so that no port is left waiting.
					syscall.Write(fd, hello[:])
					if n, err := syscall.Read(fd, hello[:]); n != 1 {
						b.Fatal(n, err)
					}
					syscall.SetsockoptLinger(fd, syscall.SOL_SOCKET, syscall.SO_LINGER, linger)
					syscall.Close(fd)
				}
				b.StopTimer()
				syscall.Getrusage(syscall.RUSAGE_SELF, &after)
				used := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
				b.ReportMetric(float64(used)/float64(b.N), "cpu-ns/op")
			})
		}
	}
}
