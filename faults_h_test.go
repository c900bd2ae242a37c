//go:build linux

package pollux

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/pollux-go/pollux/internal/testutil"
)

// Faults of group h: shutting down; and F9, handlers that panic.
//
// Not here: the part of H11 that is about threads in C.

func init() { children["service"] = serviceChild }

// serviceChild serves an echo on the address it is given until SIGTERM.
func serviceChild(in *bufio.Scanner) error {
	if !in.Scan() {
		return io.ErrUnexpectedEOF
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	e, err := New(Config{Loops: 2})
	if err != nil {
		return err
	}
	s, err := e.Bind(echo{}, in.Text())
	if err != nil {
		return err
	}
	fmt.Println(s.Addrs()[0])
	<-ctx.Done()
	drain, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := e.Shutdown(drain); err != nil {
		return err
	}
	fmt.Println("drained")
	return nil
}

// deadline returns a context that ends the test's patience.
func deadline(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// TestH1AnswersUnderWay shuts down while slow clients have answers to get.
func TestH1AnswersUnderWay(t *testing.T) {
	const size, n = 1 << 20, 8
	eachBackend(t, func(t *testing.T, config Config) {
		config.WriteLimit = 2 * size
		serve := func(t *testing.T) (*Engine, *audit, []net.Conn) {
			e := newEngine(t, config)
			s, a := bind(t, e, "tcp", funcs{data: func(c *Conn) error {
				c.Discard(-1)
				_, err := c.Write(patterned(1, size))
				return err
			}})
			clients := make([]net.Conn, n)
			for i := range clients {
				clients[i] = dial(t, s.Addrs()[0])
				clients[i].(*net.TCPConn).SetReadBuffer(32 << 10)
				clients[i].Write([]byte("question"))
			}
			return e, a, clients
		}
		t.Run("drained", func(t *testing.T) {
			testutil.CheckLeaks(t)
			e, a, clients := serve(t)
			ended := make(chan error, 1)
			go func() { ended <- e.Shutdown(deadline(t)) }()
			everyone(t, n, func(i int) error { return checkPattern(clients[i], 1, size) })
			if err := receive(t, "Shutdown", ended); err != nil {
				t.Error(err)
			}
			a.wait(t, n)
		})
		t.Run("out of time", func(t *testing.T) {
			testutil.CheckLeaks(t)
			config.WriteLimit = 32 << 20
			e := newEngine(t, config)
			s, a := bind(t, e, "tcp", funcs{data: func(c *Conn) error {
				c.Discard(-1)
				_, err := c.Write(make([]byte, 16<<20))
				return err
			}})
			for range n {
				dial(t, s.Addrs()[0]).Write([]byte("question"))
			}
			eventually(t, "the queues", func() bool {
				var queued atomic.Int64
				done := make(chan struct{}, len(e.loops))
				for _, l := range e.loops {
					l.inner.PostAlways(func() {
						for _, src := range l.sources.All {
							if src.conn != nil && src.conn.Queued() > 0 {
								queued.Add(1)
							}
						}
						done <- struct{}{}
					})
				}
				for range e.loops {
					receive(t, "the loop", done)
				}
				return queued.Load() == n
			})
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			err := e.Shutdown(ctx)
			if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(fmt.Sprint(err), fmt.Sprintf("%d connections", n)) {
				t.Errorf("Shutdown: %v", err)
			}
			a.ended.Store(true)
			a.wait(t, n)
			for _, err := range a.errs() {
				if !errors.Is(err, ErrShutdown) {
					t.Errorf("OnClose got %v", err)
				}
			}
		})
	})
}

// TestH2ConnectsDuringAShutdown connects all the time: each client is refused, or served to the end.
func TestH2ConnectsDuringAShutdown(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		for _, network := range []string{"tcp", "unix"} {
			t.Run(network, func(t *testing.T) {
				testutil.CheckLeaks(t)
				s := serveEcho(t, config, "event", network)
				var wg sync.WaitGroup
				var served atomic.Int64
				for i := range 8 {
					wg.Go(func() {
						for {
							c, err := net.Dial(s.addr.Network(), s.addr.String())
							if err != nil {
								return
							}
							c.SetDeadline(time.Now().Add(patience))
							err = pingPong(c, uint64(i), 0)
							c.Close()
							switch {
							case err == nil:
								served.Add(1)
							case errors.Is(err, syscall.ETIMEDOUT) || isTimeout(err):
								t.Errorf("a connection is neither served nor refused: %v", err)
								return
							}
						}
					})
				}
				eventually(t, "the clients", func() bool { return served.Load() > 50 })
				if err := s.engine.Shutdown(deadline(t)); err != nil {
					t.Error(err)
				}
				s.audit.ended.Store(true)
				within(t, "the clients", wg.Wait)
			})
		}
	})
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// TestH3ManyShutdowns ends an engine from 8 goroutines in three ways.
func TestH3ManyShutdowns(t *testing.T) {
	eachServer(t, func(t *testing.T, s *server) {
		c := s.dial(t)
		if err := pingPong(c, 1, 0); err != nil {
			t.Fatal(err)
		}
		if s.api == "net" {
			defer c.Close()
		}
		var succeeded atomic.Int64
		everyone(t, 9, func(i int) error {
			var err error
			switch {
			case i%3 == 0:
				err = s.engine.Shutdown(canceled(context.DeadlineExceeded))
			case i%3 == 1:
				err = s.engine.Close()
			case s.service != nil:
				if err = s.service.Shutdown(deadline(t)); err == nil {
					return nil
				}
			default:
				return nil
			}
			if errors.Is(err, ErrClosed) {
				return nil
			}
			succeeded.Add(1)
			return nil
		})
		if succeeded.Load() != 1 {
			t.Errorf("%d shutdowns did the work", succeeded.Load())
		}
		if _, err := s.engine.Listen("tcp", "127.0.0.1:0"); !errors.Is(err, ErrClosed) {
			t.Errorf("Listen after the end: %v", err)
		}
		if _, err := s.engine.Bind(echo{}, "tcp://127.0.0.1:0"); !errors.Is(err, ErrClosed) {
			t.Errorf("Bind after the end: %v", err)
		}
		if _, err := s.engine.Dial(t.Context(), "tcp://127.0.0.1:1", echo{}); !errors.Is(err, ErrClosed) {
			t.Errorf("Dial after the end: %v", err)
		}
	})
}

// TestH4ShutdownInAHandler ends the service, the engine, or both, from every callback.
func TestH4ShutdownInAHandler(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		for _, callback := range []string{"OnOpen", "OnData", "OnEOF", "OnClose", "Async"} {
			for _, what := range []string{"service", "engine", "close"} {
				t.Run(callback+"/"+what, func(t *testing.T) {
					testutil.CheckLeaks(t)
					e := newEngine(t, config)
					var s *Service
					bound := make(chan struct{})
					at := func(here string) error {
						if here != callback {
							return nil
						}
						<-bound
						switch what {
						case "service":
							return s.Shutdown(context.Background())
						case "engine":
							if err := e.Shutdown(context.Background()); !errors.Is(err, ErrClosed) {
								return err
							}
							return nil
						}
						e.Close()
						return nil
					}
					var a *audit
					s, a = bind(t, e, "tcp", funcs{
						open: func(c *Conn) error {
							if callback == "Async" {
								c.Async(func(*Conn) { at("Async") })
							}
							return at("OnOpen")
						},
						data:  func(c *Conn) error { c.Discard(-1); return at("OnData") },
						eof:   func(c *Conn) error { c.Close(); return at("OnEOF") },
						close: func(*Conn, error) { at("OnClose") },
					})
					close(bound)
					c := dial(t, s.Addrs()[0])
					c.Write([]byte("x"))
					c.(*net.TCPConn).CloseWrite()
					io.ReadAll(c)
					a.wait(t, 1)
					if what != "service" {
						eventually(t, "the loops", func() bool {
							for _, l := range e.loops {
								select {
								case <-l.done:
								default:
									return false
								}
							}
							return true
						})
					} else {
						receive(t, "the service", s.empty)
					}
				})
			}
		}
	})
}

// TestH5ShutdownOutOfTime gives a shutdown a millisecond, with connections in all states.
func TestH5ShutdownOutOfTime(t *testing.T) {
	eachServer(t, func(t *testing.T, s *server) {
		for i := range 10 {
			c := s.dial(t)
			if i%2 == 0 {
				go sendRecords(c, uint64(i), 1000, 10_000, false) // Nobody reads the answers.
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		within(t, "Shutdown", func() { s.engine.Shutdown(ctx) })
	})
}

// TestH6CloseInAHandlerDuringAShutdown has handlers that are slow, and close their connections themselves.
func TestH6CloseInAHandlerDuringAShutdown(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		config.Loops = 1
		e := newEngine(t, config)
		var h hold
		arrived := h.close()
		t.Cleanup(h.open)
		s, a := bind(t, e, "tcp", funcs{data: func(c *Conn) error {
			h.pass()
			if err := (echo{}).OnData(c); err != nil {
				return err
			}
			return c.Close()
		}})
		clients := make([]net.Conn, 10)
		for i := range clients {
			clients[i] = dial(t, s.Addrs()[0])
			if err := sendRecords(clients[i], uint64(i), 1, 100, false); err != nil {
				t.Fatal(err)
			}
		}
		receive(t, "OnData", arrived)
		ended := make(chan error, 1)
		go func() { ended <- s.Shutdown(deadline(t)) }()
		h.open()
		everyone(t, len(clients), func(i int) error { return receiveRecords(clients[i], uint64(i), 1, true) })
		if err := receive(t, "Shutdown", ended); err != nil {
			t.Error(err)
		}
		a.wait(t, len(clients))
	})
}

// TestH7StartAndStop starts and stops very often: no wake-up is lost that ends a loop.
func TestH7StartAndStop(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		for i := range 300 {
			e, err := New(config)
			if err != nil {
				t.Fatal(err)
			}
			if i%3 != 0 {
				if _, err := e.Bind(echo{}, "tcp://127.0.0.1:0"); err != nil {
					t.Fatal(err)
				}
			}
			if i%2 == 0 {
				ln, err := e.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				ln.Close()
			}
			within(t, "the end", func() {
				if i%4 < 2 {
					err = e.Close()
				} else {
					err = e.Shutdown(context.Background())
				}
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestH8EveryConnectionEndsOnce ends connections in all ways that there are, at random.
func TestH8EveryConnectionEndsOnce(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		for _, network := range []string{"tcp", "unix"} {
			t.Run(network, func(t *testing.T) {
				testutil.CheckLeaks(t)
				config.Linger = 100 * time.Millisecond
				e := newEngine(t, config)
				random := func() int { return rand.IntN(24) } // The order of events is not ours, so a seed would not repeat it.
				strange := errors.New("strange")
				var detached sync.Map
				act := func(c *Conn) error {
					switch random() {
					case 0:
						return strange
					case 1:
						return c.Close()
					case 2:
						c.Close()
						return strange
					case 3:
						panic(strange)
					case 4:
						return c.CloseWrite()
					case 5:
						go c.Close()
					case 6:
						return c.SetIdleTimeout(time.Millisecond)
					case 7:
						if d, err := c.Detach(); err == nil {
							detached.Store(d, nil)
						}
					case 8:
						c.Async(func(c *Conn) { c.Close() })
					case 9:
						c.Pause()
						go c.Resume()
					case 10:
						c.Write(make([]byte, 300_000))
						return c.Close()
					case 11:
						c.CloseWrite()
						return c.Close()
					}
					return nil
				}
				s, a := bind(t, e, network, funcs{
					open:     act,
					data:     func(c *Conn) error { c.Write(make([]byte, 10)); c.Discard(-1); return act(c) },
					eof:      func(c *Conn) error { c.Close(); return act(c) },
					writable: act,
					close: func(*Conn, error) {
						if random() == 0 {
							panic(strange)
						}
					},
				})
				const n = 400
				everyone(t, 16, func(int) error {
					for range n / 16 {
						c := dial(t, s.Addrs()[0])
						for range random() {
							if _, err := c.Write(make([]byte, 100)); err != nil {
								break
							}
							if random() == 0 {
								// Nobody answers on one that was detached.
								c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
								c.Read(make([]byte, 10))
							}
						}
						if tcp, ok := c.(*net.TCPConn); ok && random() < 8 {
							tcp.SetLinger(0)
						}
						c.Close()
					}
					return nil
				})
				a.wait(t, n)
				detached.Range(func(d, _ any) bool { d.(net.Conn).Close(); return true })
				// A connection is counted until its OnClose has returned, which a has not waited for.
				eventually(t, "that the engine counts no connections, as all have ended", func() bool { return e.Conns() == 0 })
			})
		}
	})
}

// TestH9SamePortAgain restarts on the same address, after an orderly end and after SIGKILL.
func TestH9SamePortAgain(t *testing.T) {
	t.Run("orderly", func(t *testing.T) {
		eachBackend(t, func(t *testing.T, config Config) {
			for _, network := range []string{"tcp", "unix"} {
				testutil.CheckLeaks(t)
				addr := listenAddress(t, network)
				for i := range 20 {
					e := newEngine(t, config)
					s, err := e.Bind(echo{}, network+"://"+addr)
					if err != nil {
						t.Fatalf("start %d: %v", i, err)
					}
					addr = s.Addrs()[0].String()
					if err := pingPong(dial(t, s.Addrs()[0]), 1, 0); err != nil {
						t.Fatal(err)
					}
					e.Close()
				}
			}
		})
	})
	t.Run("killed", func(t *testing.T) {
		for _, network := range []string{"tcp", "unix"} {
			testutil.CheckLeaks(t)
			addr := network + "://" + listenAddress(t, network)
			for range 3 {
				c := inChild(t, "service")
				got := c.ask(addr)
				if strings.HasPrefix(got, "error") {
					t.Fatal(got)
				}
				addr = network + "://" + got
				conn, err := net.Dial(network, got)
				if err != nil {
					t.Fatal(err)
				}
				conn.SetDeadline(time.Now().Add(patience))
				if err := pingPong(conn, 1, 0); err != nil {
					t.Fatal(err)
				}
				c.cmd.Process.Kill()
				c.cmd.Wait()
				conn.Close()
			}
		}
	})
}

// TestH10NoCallbackAfterTheEnd ends services and engines under full load; audit sees what comes after.
func TestH10NoCallbackAfterTheEnd(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		for _, what := range []string{"service", "service at once", "engine", "close"} {
			t.Run(what, func(t *testing.T) {
				testutil.CheckLeaks(t)
				for range 10 {
					e := newEngine(t, config)
					s, a := bind(t, e, "tcp", echo{})
					var wg sync.WaitGroup
					var served atomic.Int64
					for i := range 8 {
						wg.Go(func() {
							for {
								c, err := net.Dial("tcp", s.Addrs()[0].String())
								if err != nil {
									return
								}
								c.SetDeadline(time.Now().Add(patience))
								for j := range uint64(5) {
									if pingPong(c, uint64(i), j) != nil {
										break
									}
									served.Add(1)
								}
								c.Close()
							}
						})
					}
					eventually(t, "the clients", func() bool { return served.Load() > 20 })
					var err error
					within(t, "the end", func() {
						switch what {
						case "service":
							err = s.Shutdown(deadline(t))
						case "service at once":
							s.Shutdown(canceled(errClosedNow))
						case "engine":
							err = e.Shutdown(deadline(t))
						case "close":
							err = e.Close()
						}
					})
					a.ended.Store(true)
					if err != nil {
						t.Error(err)
					}
					within(t, "the clients", wg.Wait)
					if opened, closed := a.counts(); opened != closed {
						t.Errorf("OnOpen was called for %d connections and OnClose for %d", opened, closed)
					}
					e.Close()
				}
			})
		}
	})
}

// TestH11SIGTERM ends a process as a service manager does.
func TestH11SIGTERM(t *testing.T) {
	testutil.CheckLeaks(t)
	child := inChild(t, "service")
	addr, err := net.ResolveTCPAddr("tcp", child.ask("tcp://127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	c := dial(t, addr)
	if err := pingPong(c, 1, 0); err != nil {
		t.Fatal(err)
	}
	if err := child.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c); len(got) > 0 || err != nil {
		t.Errorf("an idle client reads %d bytes, error %v", len(got), err)
	}
	if answer := child.line(); answer != "drained" {
		t.Error(answer)
	}
	if err := child.cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// TestF9PanickingHandlers panics in every callback: that connection ends, and no other; OnClose comes once.
func TestF9PanickingHandlers(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		config.WriteLimit = 64 << 10
		for _, callback := range []string{"OnOpen", "OnData", "OnEOF", "OnWritable", "OnClose", "Async", "Async from outside", "OnData and OnClose"} {
			t.Run(callback, func(t *testing.T) {
				testutil.CheckLeaks(t)
				e := newEngine(t, config)
				good := serveOn(t, e, "tcp")
				boom := errors.New("boom")
				at := func(here string) {
					if strings.Contains(callback, here) {
						panic(boom)
					}
				}
				opened, wrote := make(chan *Conn, 1), make(chan struct{}, 1)
				s, a := bind(t, e, "tcp", funcs{
					open: func(c *Conn) error {
						if callback == "Async" {
							c.Async(func(*Conn) { at("Async") })
						}
						opened <- c
						at("OnOpen")
						return nil
					},
					data: func(c *Conn) error {
						c.Discard(-1)
						if callback == "OnWritable" {
							if _, err := c.Write(make([]byte, 32<<20)); !errors.Is(err, ErrWouldBlock) {
								t.Errorf("Write: %v", err)
							}
							wrote <- struct{}{}
						}
						at("OnData")
						return nil
					},
					eof:      func(c *Conn) error { at("OnEOF"); return c.Close() },
					writable: func(c *Conn) error { at("OnWritable"); return nil },
					close:    func(*Conn, error) { at("OnClose") },
				})
				const n = 50
				for i := range uint64(n) {
					c := dial(t, s.Addrs()[0])
					oc := receive(t, "OnOpen", opened)
					if callback == "Async from outside" {
						oc.Async(func(*Conn) { at("Async") })
					}
					c.Write([]byte("x"))
					if callback == "OnWritable" {
						receive(t, "Write", wrote)
						io.Copy(io.Discard, io.LimitReader(c, 8<<20))
					} else if !strings.HasPrefix(callback, "Async") { // OnEOF may overtake it, and closes.
						c.(*net.TCPConn).CloseWrite()
					}
					io.Copy(io.Discard, c)
					c.Close()
					if err := pingPong(good, 1, i); err != nil {
						t.Fatalf("another connection: %v", err)
					}
				}
				a.wait(t, n)
				for _, err := range a.errs() {
					var p *PanicError
					if isPanic := errors.As(err, &p); isPanic != (callback != "OnClose") || isPanic && (!errors.Is(err, boom) || len(p.Stack) == 0) {
						t.Errorf("OnClose got %v", err)
					}
				}
			})
		}
	})
}

// serveOn serves an echo on an engine, and returns a client of it.
func serveOn(t testing.TB, e *Engine, network string) net.Conn {
	t.Helper()
	s, err := e.Bind(echo{}, network+"://"+listenAddress(t, network))
	if err != nil {
		t.Fatal(err)
	}
	return dial(t, s.Addrs()[0])
}

// TestH1CloseWhileDraining: a handler that answers and closes during a Shutdown has not read everything. A close(2) would
// reset the connection behind the answer, as outside of a Shutdown: the client must see an orderly end.
func TestH1CloseWhileDraining(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		e := newEngine(t, config)
		conns := make(chan *Conn, 1)
		s, a := bind(t, e, "tcp", funcs{
			open: func(c *Conn) error { conns <- c; return nil },
			data: func(c *Conn) error {
				if c.Buffered() < 2 {
					return nil // Half a request: it is under way, so that the connection is not idle.
				}
				c.Write([]byte("answer"))
				return c.Close()
			},
		})
		client := dial(t, s.Addrs()[0])
		c := receive(t, "the connection", conns)
		client.Write([]byte("x"))
		ended := make(chan error, 1)
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			ended <- s.Shutdown(ctx)
		}()
		eventually(t, "the drain", func() bool {
			draining := make(chan bool, 1)
			c.Async(func(c *Conn) { draining <- c.flags&flagDraining != 0 && c.Buffered() == 1 })
			return receive(t, "a look", draining)
		})
		client.Write(make([]byte, 3*config.BufferSize+300_000))
		got, err := io.ReadAll(client)
		if string(got) != "answer" || err != nil {
			t.Errorf("the client read %q, error %v", got, err)
		}
		client.Close()
		if err := receive(t, "Shutdown", ended); err != nil {
			t.Error(err)
		}
		a.wait(t, 1)
	})
}
