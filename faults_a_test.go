//go:build linux

package pollux

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/internal/testutil"
	"github.com/pollux-go/pollux/poller"
)

// Faults of group a: the life of a descriptor.
//
// Not here: A7, A8, A9 and A10, which need operations that the kernel holds (io_uring). The generation of A3 is tested
// near its wrap-around by package poller, where it is made.

// isOpen tells whether a descriptor's number is in use.
func isOpen(fd int) bool {
	_, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_GETFD, 0)
	return errno == 0
}

// closesOnce fails the test when a descriptor is closed that is not open.
func closesOnce(t *testing.T) (closes *atomic.Int64) {
	closes = new(atomic.Int64)
	testutil.InjectFaults(t, func(op sys.Op, fd int) sys.Fault {
		if op == sys.OpClose {
			closes.Add(1)
			if !isOpen(fd) {
				t.Errorf("close of fd %d, which is not open", fd)
			}
		}
		return sys.Fault{}
	})
	return closes
}

func TestA1DoubleClose(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		t.Run("event", func(t *testing.T) {
			skipDirect(t, config, "no call closes them; TestDirectTableIsGivenBack counts")
			testutil.CheckLeaks(t)
			closes := closesOnce(t)
			e := newEngine(t, config)
			opened := make(chan *Conn, 1)
			s, a := bind(t, e, "tcp", funcs{open: func(c *Conn) error { opened <- c; return nil }})
			client := dial(t, s.Addrs()[0])
			c := receive(t, "OnOpen", opened)
			before := closes.Load()
			closeTogether(t, c.Close)
			a.wait(t, 1)
			if err := c.Close(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Close after OnClose: %v", err)
			}
			if _, err := io.ReadAll(client); err != nil {
				t.Error(err)
			}
			eventually(t, "close(2)", func() bool { return closes.Load() > before }) // A ring lets go of it first.
			if err := s.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
			if n := closes.Load() - before; n != 2 {
				t.Errorf("%d calls of close(2) for one connection and a listener", n)
			}
		})
		t.Run("net", func(t *testing.T) {
			testutil.CheckLeaks(t)
			closes := closesOnce(t)
			e := newEngine(t, config)
			ln, err := e.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			dial(t, ln.Addr())
			c, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			before := closes.Load()
			closeTogether(t, c.Close)
			closeTogether(t, ln.Close)
			if n := closes.Load() - before; n != 2 {
				t.Errorf("%d calls of close(2) for a connection and a listener", n)
			}
		})
	})
}

// closeTogether calls a Close from many goroutines: one of them must succeed.
func closeTogether(t *testing.T, close func() error) {
	t.Helper()
	var succeeded atomic.Int64
	everyone(t, 8, func(int) error {
		err := close()
		if err == nil {
			succeeded.Add(1)
		} else if !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	})
	if succeeded.Load() != 1 {
		t.Errorf("%d of 8 closes succeeded", succeeded.Load())
	}
}

// TestA2EventOfAnEarlierOwner gives the loop an event of a connection whose slot and descriptor have a new owner.
func TestA2EventOfAnEarlierOwner(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		config.Loops = 1
		config.Dispatch = DispatchInline // The order of the loop's events is what is tested.
		e := newEngine(t, config)
		opened, data := make(chan *Conn, 2), make(chan *Conn, 2)
		s, _ := bind(t, e, "tcp", funcs{
			open: func(c *Conn) error { opened <- c; return nil },
			data: func(c *Conn) error { data <- c; c.Discard(-1); return nil },
			eof:  func(c *Conn) error { data <- c; return c.Close() },
		})
		// The descriptor is another one if somebody else in the process, such as the runtime, has one just then.
		var old, token poller.Token
		var oldFD, fd int32
		var b *Conn
		for try := 0; ; try++ {
			client := dial(t, s.Addrs()[0])
			b = receive(t, "OnOpen", opened)
			onLoop(t, e, func(*loop) { token, fd = b.token, b.fd })
			if token.Slot() == old.Slot() && fd == oldFD && try > 0 {
				break
			}
			if try == 100 {
				t.Fatalf("a connection has slot %v and fd %d, the one before had %v and %d: nothing is tested", token, fd, old, oldFD)
			}
			old, oldFD = token, fd
			client.Close()
			receive(t, "OnEOF", data)
			eventually(t, "the connection to leave", func() bool { return s.Conns() == 0 && (fd >= directBit || !isOpen(int(fd))) })
		}
		onLoop(t, e, func(l *loop) {
			before := l.stale.Load()
			l.Ready([]poller.Event{
				{Token: old, Ready: poller.Readable | poller.Writable | poller.HungUp | poller.Failed},
				{Token: old, Ready: poller.PeerClosed},
			})
			if n := l.stale.Load() - before; n != 2 {
				t.Errorf("%d of 2 stale events were counted", n)
			}
			if b.isClosed() {
				t.Error("a stale event has closed another connection")
			}
		})
		select {
		case <-data:
			t.Error("a stale event has called a handler")
		default:
		}
	})
}

// TestA3OneSlotManyOwners reuses one slot and looks whether a token ever comes again.
func TestA3OneSlotManyOwners(t *testing.T) {
	var table poller.Table[int]
	seen := map[poller.Token]bool{}
	for i := range 200_000 {
		token, err := table.Put(i)
		if err != nil || token.Slot() != 0 || seen[token] {
			t.Fatalf("owner %d: token %v, error %v, seen before: %v", i, token, err, seen[token])
		}
		seen[token] = true
		table.Delete(token)
		if _, ok := table.Get(token); ok {
			t.Fatalf("owner %d is found after it has left", i)
		}
	}
}

// TestA4CloseDuringASend keeps a send(2) of one connection from starting, closes the connection meanwhile, and opens
// others, to which its bytes must not go.
func TestA4CloseDuringASend(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		run := func(t *testing.T, start func(t *testing.T, e *Engine) (net.Addr, func() (io.WriteCloser, int))) {
			testutil.CheckLeaks(t)
			var h hold
			var held, closed atomic.Int64
			held.Store(-1)
			testutil.InjectFaults(t, func(op sys.Op, fd int) sys.Fault {
				switch {
				case op == sys.OpSend && int64(fd) == held.Load():
					return sys.Fault{Before: h.pass}
				case op == sys.OpClose && int64(fd) == held.Load():
					closed.Add(1)
				}
				return sys.Fault{}
			})
			e := newEngine(t, config)
			addr, accept := start(t, e)
			first := dial(t, addr)
			c, fd := accept()
			held.Store(int64(fd))
			arrived := h.close()
			t.Cleanup(h.open)
			wrote, ended := make(chan error, 1), make(chan struct{})
			message := testutil.AppendRecord(nil, 1, 0, 1000)
			go func() { _, err := c.Write(message); wrote <- err }()
			receive(t, "the send", arrived)
			go func() { c.Close(); close(ended) }()
			var others []net.Conn
			for range 20 {
				others = append(others, dial(t, addr))
			}
			if config.Loops > 0 && closed.Load() != 0 || !isOpen(fd) {
				t.Error("the descriptor was closed while a send was using it")
			}
			h.open()
			if err := receive(t, "Write", wrote); err != nil {
				t.Errorf("the Write that came before the Close: %v", err)
			}
			receive(t, "Close", ended)
			if err := receiveRecords(first, 1, 1, true); err != nil {
				t.Error(err)
			}
			within(t, "the engine", func() { e.Close() })
			for _, other := range others {
				if got, _ := io.ReadAll(other); len(got) > 0 {
					t.Errorf("another connection got %d bytes", len(got))
				}
			}
		}
		t.Run("event", func(t *testing.T) {
			skipDirect(t, config, "the loop alone sends")
			run(t, func(t *testing.T, e *Engine) (net.Addr, func() (io.WriteCloser, int)) {
				opened := make(chan *Conn, 100)
				s, _ := bind(t, e, "tcp", funcs{open: func(c *Conn) error { opened <- c; return nil }})
				return s.Addrs()[0], func() (io.WriteCloser, int) {
					c := receive(t, "OnOpen", opened)
					c.mu.Lock()
					defer c.mu.Unlock()
					return c, int(c.fd)
				}
			})
		})
		t.Run("net", func(t *testing.T) {
			run(t, func(t *testing.T, e *Engine) (net.Addr, func() (io.WriteCloser, int)) {
				ln, err := e.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				return ln.Addr(), func() (io.WriteCloser, int) {
					c, err := ln.Accept()
					if err != nil {
						t.Fatal(err)
					}
					go func() {
						for {
							c, err := ln.Accept()
							if err != nil {
								return
							}
							c.Close()
						}
					}()
					return c, c.(*NetConn).desc.Fd()
				}
			})
		})
	})
}

// TestA5WriteInOnClose keeps OnClose waiting while others connect, and writes there to the connection that is gone.
func TestA5WriteInOnClose(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		e := newEngine(t, config)
		var h hold
		arrived := h.close()
		t.Cleanup(h.open)
		var first atomic.Pointer[Conn]
		late := make(chan error, 3)
		s, a := bind(t, e, "tcp", funcs{
			open: func(c *Conn) error { first.CompareAndSwap(nil, c); return nil },
			data: echo{}.OnData,
			close: func(c *Conn, _ error) {
				if first.Load() != c {
					return
				}
				h.pass()
				_, err := c.Write([]byte("too late"))
				late <- err
				_, err = c.Writev([]byte("too"), []byte("late"))
				late <- err
				late <- c.CloseWrite()
			},
		})
		dial(t, s.Addrs()[0]).Close()
		receive(t, "OnClose", arrived)
		// The other loop goes on; the descriptor's number is free for these.
		clients := make([]net.Conn, 16)
		for i := range clients {
			clients[i] = dial(t, s.Addrs()[0])
		}
		h.open()
		for range 3 {
			if err := receive(t, "the late write", late); !errors.Is(err, ErrClosed) {
				t.Errorf("a write in OnClose: %v, it must be %v", err, ErrClosed)
			}
		}
		everyone(t, len(clients), func(i int) error { return exchange(clients[i], uint64(i), 10, 1000) })
		a.wait(t, 17)
	})
}

// TestA6StaleEventsLaterInTheBatch has one handler close 50 other connections whose events are in the same batch.
func TestA6StaleEventsLaterInTheBatch(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		config.Loops = 1
		config.Dispatch = DispatchInline // The order of the loop's events is what is tested.
		e := newEngine(t, config)
		var opened []*Conn // the loop's
		closed, answered := 0, 0
		s, a := bind(t, e, "tcp", funcs{
			open: func(c *Conn) error { opened = append(opened, c); return nil },
			data: func(c *Conn) error {
				answered++
				if answered > 1 {
					return NopHandler{}.OnData(c)
				}
				for _, other := range opened {
					if other != c {
						if err := other.Close(); err != nil {
							return err
						}
						closed++
					}
				}
				return echo{}.OnData(c)
			},
		})
		const n = 51
		clients := make([]net.Conn, n)
		for i := range clients {
			clients[i] = dial(t, s.Addrs()[0])
		}
		eventually(t, "the connections", func() bool { return s.Conns() == n })
		release := holdLoops(t, e)
		defer release()
		for _, c := range clients {
			if _, err := c.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
		}
		release()
		var alive atomic.Int64
		everyone(t, n, func(i int) error {
			got := make([]byte, 5)
			if _, err := io.ReadFull(clients[i], got); err == nil && string(got) == "hello" {
				alive.Add(1)
			}
			return clients[i].Close()
		})
		a.wait(t, n)
		if alive.Load() != 1 || closed != n-1 || answered != 1 {
			t.Errorf("%d clients were answered, %d connections closed by the first, %d calls of OnData", alive.Load(), closed, answered)
		}
	})
}

// TestA11CopyOfTheDescriptor keeps a copy of a connection's descriptor: closing ours must end the events.
func TestA11CopyOfTheDescriptor(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		for _, api := range []string{"event", "net"} {
			t.Run(api, func(t *testing.T) {
				if api == "event" && completing(config) {
					t.Skip("a completer shuts the connection down for its copies too, so that the peer sees the end at once")
				}
				testutil.CheckLeaks(t)
				var w waits
				testutil.InjectFaults(t, w.hook)
				e := newEngine(t, config)
				copied := -1
				var client net.Conn
				if api == "event" {
					fds := make(chan int, 1)
					s, a := bind(t, e, "tcp", funcs{data: func(c *Conn) error {
						fd, err := syscall.Dup(int(c.fd))
						fds <- fd
						c.Discard(-1)
						return errors.Join(err, c.Close())
					}})
					client = dial(t, s.Addrs()[0])
					client.Write([]byte("x"))
					copied = receive(t, "the copy", fds)
					a.wait(t, 1)
				} else {
					ln, err := e.Listen("tcp", "127.0.0.1:0")
					if err != nil {
						t.Fatal(err)
					}
					client = dial(t, ln.Addr())
					c, err := ln.Accept()
					if err != nil {
						t.Fatal(err)
					}
					if copied, err = syscall.Dup(c.(*NetConn).desc.Fd()); err != nil {
						t.Fatal(err)
					}
					c.Close()
				}
				t.Cleanup(func() { syscall.Close(copied) })
				before := w.n.Load()
				for range 100 {
					if _, err := client.Write([]byte("more")); err != nil {
						t.Fatal(err) // The copy keeps the connection open.
					}
				}
				w.quiet(t)
				if n := w.n.Load() - before; n > 60 {
					t.Errorf("%d waits after the close: the copy's events still come", n)
				}
				stale := uint64(0)
				for _, l := range e.loops {
					stale += l.stale.Load()
				}
				if e.poller != nil {
					stale += e.poller.Stale()
				}
				if stale > 2 { // An event of before the close may have been under way.
					t.Errorf("%d events of the copy came after the close", stale)
				}
			})
		}
	})
}

// TestA12RemovedBeforeClosed watches that a socket leaves the backend before it is closed.
func TestA12RemovedBeforeClosed(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		for _, api := range []string{"event", "net"} {
			t.Run(api, func(t *testing.T) {
				if api == "event" && completing(config) {
					t.Skip("what a completer receives from is in no epoll set")
				}
				testutil.CheckLeaks(t)
				var mu sync.Mutex
				controls := map[int]int{} // calls of epoll_ctl since the descriptor was made
				closed := 0
				testutil.InjectFaults(t, func(op sys.Op, fd int) sys.Fault {
					mu.Lock()
					defer mu.Unlock()
					switch op {
					case sys.OpEpollCtl:
						controls[fd]++
					case sys.OpClose:
						file, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
						if strings.HasPrefix(file, "socket:") && controls[fd] > 0 {
							closed++
							if controls[fd] != 2 {
								t.Errorf("fd %d was closed after %d calls of epoll_ctl", fd, controls[fd])
							}
						}
						delete(controls, fd)
					}
					return sys.Fault{}
				})
				s := serveEcho(t, config, api, "tcp")
				everyone(t, 20, func(i int) error { return exchange(s.dial(t), uint64(i), 3, 100) })
				eventually(t, "20 closes", func() bool { mu.Lock(); defer mu.Unlock(); return closed >= 20 })
			})
		}
	})
}

// TestA13GarbageCollectedListener drops every reference to a listener whose descriptor was adopted.
func TestA13GarbageCollectedListener(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		e := newEngine(t, config)
		a := newAudit(t, e, echo{})
		served := make(chan error, 1)
		addr := func() net.Addr {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			go func() { served <- e.Serve(ln, a) }()
			return ln.Addr()
		}()
		for i := range 20 {
			runtime.GC()
			c := dial(t, addr)
			if err := exchange(c, uint64(i), 5, 100); err != nil {
				t.Fatal(err)
			}
			c.Close()
		}
		e.Close()
		if err := receive(t, "Serve", served); !errors.Is(err, ErrClosed) {
			t.Errorf("Serve: %v", err)
		}
	})
}

// TestA14FailureWhileOpening lets one call after the other fail while things are opened: no descriptor stays behind.
func TestA14FailureWhileOpening(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		for _, op := range []sys.Op{sys.OpEpollCreate, sys.OpEventfd, sys.OpEpollCtl, sys.OpSocket, sys.OpSetsockopt, sys.OpBind,
			sys.OpListen, sys.OpGetsockname, sys.OpChmod, sys.OpFcntl, sys.OpConnect, sys.OpGetpeername} {
			t.Run(op.String(), func(t *testing.T) {
				testutil.CheckLeaks(t)
				for n := range int64(1000) {
					fault := &testutil.Nth{Op: op, N: n, Fault: sys.Fault{Errno: sys.ENOMEM}}
					restore := sys.Inject(fault.Hook)
					before := testutil.Files()
					openEverything(t, config)
					restore()
					for fd, target := range testutil.Files() {
						if _, ok := before[fd]; !ok && !strings.Contains(target, "eventpoll") && !strings.Contains(target, "eventfd") {
							t.Errorf("%v fails at call %d: fd %s stays open: %s", op, n, fd, target)
						}
					}
					if !fault.Hit() {
						return
					}
				}
				t.Error("the call fails for ever")
			})
		}
	})
}

// openEverything opens an engine, listeners and connections as far as it gets, and closes them.
func openEverything(t *testing.T, config Config) {
	e, err := New(config)
	if err != nil {
		return
	}
	defer within(t, "Close", func() { e.Close() })
	for _, network := range []string{"tcp", "unix"} {
		path := listenAddress(t, network)
		if s, err := e.Bind(echo{}, network+"://"+path); err == nil {
			if c, err := e.Dial(t.Context(), network+"://"+s.Addrs()[0].String(), NopHandler{}); err == nil {
				c.Close()
			}
		}
		if ln, err := e.Listen(network, path); err == nil {
			ln.Close()
		}
	}
}

// TestA15NothingInherited starts a program that lists what it has inherited.
func TestA15NothingInherited(t *testing.T) {
	list := func() []string {
		out, err := exec.Command("ls", "/proc/self/fd").Output()
		if err != nil {
			t.Fatal(err)
		}
		return strings.Fields(string(out))
	}
	want := list() // The test itself may have inherited some.
	eachServer(t, func(t *testing.T, s *server) {
		c := s.dial(t)
		if err := pingPong(c, 1, 0); err != nil {
			t.Fatal(err)
		}
		for range 5 {
			if got := list(); !slices.Equal(got, want) {
				t.Fatalf("a child has the descriptors %v, before the server was started %v", got, want)
			}
		}
	})
}

// TestA16HighNumbers opens so many descriptors that those of the connections have five digits.
func TestA16HighNumbers(t *testing.T) {
	eachServer(t, func(t *testing.T, s *server) {
		null, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer null.Close()
		var limit syscall.Rlimit
		if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
			t.Fatal(err)
		}
		most := min(12_000, int(limit.Cur)-200)
		var copies []int
		defer func() {
			for _, fd := range copies {
				syscall.Close(fd)
			}
		}()
		for range most {
			fd, err := syscall.Dup(int(null.Fd()))
			if err != nil {
				t.Fatal(err)
			}
			copies = append(copies, fd)
		}
		everyone(t, 20, func(i int) error { return exchange(s.dial(t), uint64(i), 5, 1000) })
	})
}

// TestA17DetachUnderTraffic detaches connections in the middle of a stream, with bytes in every buffer.
func TestA17DetachUnderTraffic(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		for _, network := range []string{"tcp", "unix"} {
			t.Run(network, func(t *testing.T) {
				testutil.CheckLeaks(t)
				e := newEngine(t, config)
				var wg sync.WaitGroup
				defer wg.Wait()
				s, a := bind(t, e, network, funcs{
					open: func(c *Conn) error { c.SetContext(new(int)); return nil },
					data: func(c *Conn) error {
						calls := c.Context().(*int)
						if *calls++; *calls < 3 {
							return echo{}.OnData(c)
						}
						d, err := c.Detach()
						if errors.Is(err, ErrWouldBlock) {
							return echo{}.OnData(c) // Something is queued. The next bytes bring the next chance, if there are any.
						}
						if err != nil {
							return err
						}
						wg.Go(func() { io.Copy(d, d); d.Close() })
						return nil
					},
					close: func(_ *Conn, err error) {
						if err != nil && !errors.Is(err, ErrDetached) {
							t.Errorf("OnClose got %v", err)
						}
					},
				})
				const n = 20
				everyone(t, n, func(i int) error { return exchange(dial(t, s.Addrs()[0]), uint64(i), 50, 20_000) })
				a.wait(t, n)
				detached := 0
				for _, err := range a.errs() {
					if errors.Is(err, ErrDetached) {
						detached++
					}
				}
				if detached == 0 {
					t.Error("no connection was detached")
				}
			})
		}
		t.Run("panic", func(t *testing.T) {
			testutil.CheckLeaks(t)
			e := newEngine(t, config)
			detached := make(chan net.Conn, 1)
			s, a := bind(t, e, "tcp", funcs{data: func(c *Conn) error {
				d, err := c.Detach()
				if err != nil {
					return err
				}
				detached <- d
				panic("after Detach")
			}})
			client := dial(t, s.Addrs()[0])
			message := bytes.Repeat([]byte("x"), 1000)
			client.Write(message)
			d := receive(t, "the detached connection", detached)
			defer d.Close()
			got := make([]byte, len(message))
			if _, err := io.ReadFull(d, got); err != nil || !bytes.Equal(got, message) {
				t.Errorf("the detached connection reads %d bytes, error %v", len(got), err)
			}
			a.wait(t, 1)
		})
	})
}
