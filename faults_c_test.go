//go:build linux

package pollux

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/internal/testutil"
)

// Faults of group c: accepting.
//
// Not here: C5, C6 and C7, which are about multishot accepts (io_uring). C10 is about SO_REUSEPORT, which pollux does
// not use: what stands here is that a graceful end resets nobody. The overflow counter of C8 is the kernel's, and pollux
// does not export it.

func init() {
	children["nofile"] = nofileChild
}

// nofileChild serves an echo with few descriptors. It answers "usage" with the CPU time used and the lines logged.
func nofileChild(in *bufio.Scanner) error {
	if !in.Scan() {
		return io.ErrUnexpectedEOF
	}
	api := in.Text()
	// First: an accept of a ring keeps the limit that it was asked for under.
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 64, Max: 64}); err != nil {
		return err
	}
	var log countingLog
	e, err := New(Config{Loops: 2, Logger: slog.New(&log)})
	if err != nil {
		return err
	}
	var addr net.Addr
	if api == "event" {
		s, err := e.Bind(echo{}, "tcp://127.0.0.1:0")
		if err != nil {
			return err
		}
		addr = s.Addrs()[0]
	} else {
		ln, err := e.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		addr = ln.Addr()
		go func() {
			for {
				c, err := ln.Accept()
				if errors.Is(err, net.ErrClosed) {
					return
				}
				if err != nil {
					if temporary, ok := err.(interface{ Temporary() bool }); !ok || !temporary.Temporary() {
						log.lines.Add(1 << 20)
					}
					time.Sleep(5 * time.Millisecond) // What net/http does.
					continue
				}
				go func() { io.Copy(c, c); c.Close() }()
			}
		}()
	}
	fmt.Println(addr)
	for in.Scan() {
		var use syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &use); err != nil {
			return err
		}
		fmt.Println(use.Utime.Nano()+use.Stime.Nano(), log.lines.Load(), time.Now().UnixNano())
	}
	return nil
}

// TestC1OutOfDescriptors has more clients than descriptors, twice (C2): those that are served stay so, the others wait,
// and are served as soon as there is room.
func TestC1OutOfDescriptors(t *testing.T) {
	for _, api := range []string{"event", "net"} {
		t.Run(api, func(t *testing.T) {
			testutil.CheckLeaks(t)
			c := inChild(t, "nofile")
			addr, err := net.ResolveTCPAddr("tcp", c.ask(api))
			if err != nil {
				t.Fatal(err)
			}
			usage := func() (cpu, lines, at int64) {
				if _, err := fmt.Sscan(c.ask("usage"), &cpu, &lines, &at); err != nil {
					t.Fatal(err)
				}
				return cpu, lines, at
			}
			existing := make([]net.Conn, 5)
			for i := range existing {
				existing[i] = dial(t, addr)
				if err := pingPong(existing[i], uint64(i), 0); err != nil {
					t.Fatal(err)
				}
			}
			for cycle := range uint64(2) {
				const n = 200
				clients := make([]net.Conn, n)
				answered := make(chan int, n)
				for i := range clients {
					clients[i] = dial(t, addr)
					go func() {
						if pingPong(clients[i], uint64(100+i), 0) == nil {
							answered <- i
						}
					}()
				}
				// The first ones have the descriptors; nothing more happens then.
				var served []int
				for len(served) < 30 {
					served = append(served, receive(t, "the first clients", answered))
				}
				quiet := time.NewTimer(200 * time.Millisecond)
			more:
				for {
					select {
					case i := <-answered:
						served = append(served, i)
						quiet.Reset(200 * time.Millisecond)
					case <-quiet.C:
						break more
					}
				}
				if len(served) == n {
					t.Fatal("the child does not run out of descriptors")
				}
				cpu, lines, at := usage()
				<-time.After(300 * time.Millisecond)
				cpuAfter, linesAfter, atAfter := usage()
				if busy := float64(cpuAfter-cpu) / float64(atAfter-at); busy > 0.25 {
					t.Errorf("cycle %d: %.0f%% of a CPU are used while there are no descriptors", cycle, 100*busy)
				}
				if n := linesAfter - lines; n > 2 {
					t.Errorf("cycle %d: %d lines were logged in %v", cycle, n, time.Duration(atAfter-at))
				}
				for i, c := range existing {
					if err := pingPong(c, uint64(i), cycle+1); err != nil {
						t.Errorf("cycle %d: a client that was there before: %v", cycle, err)
					}
				}
				start := time.Now()
				clients[served[0]].Close()
				next := receive(t, "the next client", answered)
				t.Logf("%s, cycle %d: %d clients served, the next one %v after a descriptor was free", api, cycle, len(served), time.Since(start))
				clients[next].Close()
				for _, i := range served[1:] {
					clients[i].Close()
				}
				for range n - len(served) - 1 {
					clients[receive(t, "the clients that wait", answered)].Close()
				}
			}
		})
	}
}

// refused makes the first calls of accept4(2) fail.
func refused(t *testing.T, n int64, errno sys.Errno) (calls *atomic.Int64) {
	calls = new(atomic.Int64)
	testutil.InjectFaults(t, func(op sys.Op, _ int) sys.Fault {
		if op == sys.OpAccept && calls.Add(1) <= n {
			return sys.Fault{Errno: errno}
		}
		return sys.Fault{}
	})
	return calls
}

// TestC3ClientsThatGiveUp has clients that are gone before they are accepted: they concern nobody else.
func TestC3ClientsThatGiveUp(t *testing.T) {
	for _, errno := range []sys.Errno{sys.ECONNABORTED, sys.EPROTO, sys.EINTR} {
		t.Run(errno.Error(), func(t *testing.T) {
			eachServer(t, func(t *testing.T, s *server) {
				refused(t, 3, errno)
				everyone(t, 5, func(i int) error { return exchange(s.dial(t), uint64(i), 5, 100) })
			})
		})
	}
	t.Run("reset", func(t *testing.T) {
		eachServer(t, func(t *testing.T, s *server) {
			if s.addr.Network() != "tcp" {
				t.Skip("a unix socket has no resets")
			}
			for range 20 {
				c := s.dial(t)
				c.Write([]byte("x"))
				reset(c)
			}
			everyone(t, 5, func(i int) error { return exchange(s.dial(t), uint64(i), 5, 100) })
		})
	})
}

// TestC4KernelWithoutMemory has the kernel refuse, for a while and for a long while.
func TestC4KernelWithoutMemory(t *testing.T) {
	for _, errno := range []sys.Errno{sys.ENOBUFS, sys.ENOMEM, sys.ENFILE, sys.EPERM} {
		for _, n := range []int64{1, 5, 200} {
			if n > 5 && errno != sys.EPERM {
				continue // Each takes a pause.
			}
			t.Run(fmt.Sprintf("%v/%d", errno, n), func(t *testing.T) {
				eachBackend(t, func(t *testing.T, config Config) {
					testutil.CheckLeaks(t)
					s := serveEcho(t, config, "event", "tcp")
					refused(t, n, errno)
					everyone(t, 5, func(i int) error { return exchange(s.dial(t), uint64(i), 5, 100) })
				})
			})
		}
	}
}

// TestC8BacklogOverflow connects more clients than the queue holds while nobody accepts.
func TestC8BacklogOverflow(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		config.Backlog = 4
		s := serveEcho(t, config, "event", "tcp")
		release := holdLoops(t, s.engine)
		defer release()
		// The kernel drops what does not fit, and the clients' kernel asks again after a second.
		var connected atomic.Int64
		done := make(chan struct{})
		go func() {
			defer close(done)
			everyone(t, 20, func(i int) error {
				c := s.dial(t)
				connected.Add(1)
				defer c.Close()
				// No end of stream: the kernel answers a FIN that does not fit with one of its own.
				return pingPong(c, uint64(i), 0)
			})
		}()
		eventually(t, "the queue to be full", func() bool { return connected.Load() >= 4 })
		release()
		receive(t, "the clients", done)
	})
}

// TestC9ThunderingHerd counts the accepts of clients that come one by one.
func TestC9ThunderingHerd(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		config.Loops = 8
		s := serveEcho(t, config, "event", "tcp")
		calls := refused(t, 0, 0)
		const n = 50
		for i := range n {
			c := s.dial(t)
			if err := pingPong(c, uint64(i), 0); err != nil {
				t.Fatal(err)
			}
		}
		if calls.Load() > 2*n+10 {
			t.Errorf("%d calls of accept4 for %d connections: one that succeeds and one that finds nothing are due for each", calls.Load(), n)
		}
	})
}

// TestC10GracefulEndResetsNobody ends a service while connections wait in the queue with their question.
func TestC10GracefulEndResetsNobody(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		for _, network := range []string{"tcp", "unix"} {
			t.Run(network, func(t *testing.T) {
				testutil.CheckLeaks(t)
				s := serveEcho(t, config, "event", network)
				release := holdLoops(t, s.engine)
				defer release()
				const n = 200 // More than are accepted in a turn.
				clients := make([]net.Conn, n)
				for i := range clients {
					clients[i] = s.dial(t)
					if err := sendRecords(clients[i], uint64(i), 1, 1000, false); err != nil {
						t.Fatal(err)
					}
				}
				ended := make(chan error, 1)
				go func() {
					ctx, cancel := context.WithTimeout(context.Background(), patience)
					defer cancel()
					ended <- s.service.Shutdown(ctx)
				}()
				release()
				everyone(t, n, func(i int) error { return receiveRecords(clients[i], uint64(i), 1, true) })
				if err := receive(t, "Shutdown", ended); err != nil {
					t.Error(err)
				}
				s.audit.wait(t, n)
			})
		}
	})
}

// TestC11HandOverToAClosingLoop ends engines in a storm of connects: none is left behind between two loops.
func TestC11HandOverToAClosingLoop(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		config.Loops = 4
		for range 20 {
			testutil.CheckLeaks(t)
			e := newEngine(t, config)
			s, a := bind(t, e, "tcp", echo{})
			addr := s.Addrs()[0]
			var wg sync.WaitGroup
			var connected atomic.Int64
			for range 4 {
				wg.Go(func() {
					for {
						c, err := net.Dial("tcp", addr.String())
						if err != nil {
							return
						}
						connected.Add(1)
						c.SetDeadline(time.Now().Add(patience))
						c.Write([]byte("x"))
						reset(c)
					}
				})
			}
			eventually(t, "the storm", func() bool { return connected.Load() > 20 })
			e.Close()
			a.ended.Store(true)
			wg.Wait()
			if opened, closed := a.counts(); opened != closed {
				t.Errorf("OnOpen was called for %d connections and OnClose for %d", opened, closed)
			}
		}
	})
}

// TestC12StormOfConnects looks how many connections are accepted before one that is open has its turn.
func TestC12StormOfConnects(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		config.Loops = 1
		s := serveEcho(t, config, "event", "tcp")
		client := s.dial(t)
		if err := pingPong(client, 1, 0); err != nil {
			t.Fatal(err)
		}
		release := holdLoops(t, s.engine)
		defer release()
		const n = 500
		for range n {
			s.dial(t)
		}
		if _, err := client.Write(testutil.AppendRecord(nil, 1, 1, 100)); err != nil {
			t.Fatal(err)
		}
		var accepts, before atomic.Int64
		testutil.InjectFaults(t, func(op sys.Op, _ int) sys.Fault {
			switch op {
			case sys.OpAccept:
				accepts.Add(1)
			case sys.OpRecv:
				before.CompareAndSwap(0, accepts.Load())
			}
			return sys.Fault{}
		})
		release()
		if err := testutil.ReadRecord(client, 1, 1); err != nil {
			t.Fatal(err)
		}
		if before.Load() > 130 { // acceptMost, and once more where the turn ends between.
			t.Errorf("%d connections were accepted before a question was read", before.Load())
		}
		eventually(t, "the connections", func() bool { return s.service.Conns() == n+1 })
	})
}

// TestC13CloseDuringAnAccept closes a listener while an accept4(2) is about to take a connection.
func TestC13CloseDuringAnAccept(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		for _, network := range []string{"tcp", "unix"} {
			t.Run("net/"+network, func(t *testing.T) {
				testutil.CheckLeaks(t)
				var h hold
				arrived := h.close()
				t.Cleanup(h.open)
				testutil.InjectFaults(t, func(op sys.Op, _ int) sys.Fault {
					if op == sys.OpAccept {
						return sys.Fault{Before: h.pass}
					}
					return sys.Fault{}
				})
				e := newEngine(t, config)
				ln, err := e.Listen(network, listenAddress(t, network))
				if err != nil {
					t.Fatal(err)
				}
				client := dial(t, ln.Addr())
				accepted, closed := make(chan error, 1), make(chan error, 1)
				go func() {
					c, err := ln.Accept()
					if err == nil {
						c.Close()
					}
					accepted <- err
				}()
				receive(t, "accept4", arrived)
				go func() { closed <- ln.Close() }()
				h.open()
				if err := receive(t, "Accept", accepted); err != nil && !errors.Is(err, net.ErrClosed) {
					t.Errorf("Accept: %v", err)
				}
				if err := receive(t, "Close", closed); err != nil {
					t.Errorf("Close: %v", err)
				}
				if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
					t.Errorf("Accept after Close: %v", err)
				}
				io.ReadAll(client) // An end or a reset, and not the deadline.
			})
		}
		t.Run("event", func(t *testing.T) {
			testutil.CheckLeaks(t)
			for range 20 {
				e := newEngine(t, config)
				s, _ := bind(t, e, "tcp", echo{})
				c := dial(t, s.Addrs()[0])
				ctx, cancel := context.WithCancel(context.Background())
				cancel()
				s.Shutdown(ctx)
				// What was not accepted is reset, and what was is closed.
				c.Write([]byte("x"))
				if n, err := io.ReadAll(c); errors.Is(err, syscall.ETIMEDOUT) {
					t.Errorf("a connection stays open: %d bytes, error %v", n, err)
				}
				e.Close()
			}
		})
	})
}
