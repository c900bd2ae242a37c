//go:build linux

package pollux

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/internal/testutil"
	"github.com/pollux-go/pollux/poller"
)

// Faults of group b: readiness.
//
// B9 (EPOLLONESHOT) and B10 (EPOLL_CTL_MOD) name calls that pollux does not make: descriptors are registered once,
// edge-triggered. What stands here under these numbers is what the same mistakes would look like with edges.

// TestB1ReadsShort gives the reader far less room than has arrived, and then nothing more arrives.
func TestB1ReadsShort(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		config.BufferSize = bufferSizeMin
		for _, network := range []string{"tcp", "unix"} {
			t.Run("event/"+network, func(t *testing.T) {
				testutil.CheckLeaks(t)
				// Every read gets one byte at most in the beginning, and more later. Not on TCP, where a short read says that
				// nothing is left, and the kernel keeps to that.
				var calls atomic.Int64
				testutil.InjectFaults(t, func(op sys.Op, _ int) sys.Fault {
					if op == sys.OpRecv && network == "unix" {
						return sys.Fault{Short: 1 + int(calls.Add(1)/1000)*100}
					}
					return sys.Fault{}
				})
				e := newEngine(t, config)
				got := make(chan int, 1)
				s, _ := bind(t, e, network, funcs{
					open: func(c *Conn) error { c.SetContext(new(int)); return nil },
					data: func(c *Conn) error {
						sum := c.Context().(*int)
						if *sum += c.Buffered(); *sum == 64<<10 {
							got <- *sum
						}
						return NopHandler{}.OnData(c)
					},
				})
				if _, err := dial(t, s.Addrs()[0]).Write(make([]byte, 64<<10)); err != nil {
					t.Fatal(err)
				}
				receive(t, "64 KiB", got)
			})
			t.Run("net/"+network, func(t *testing.T) {
				testutil.CheckLeaks(t)
				e := newEngine(t, config)
				ln, err := e.Listen(network, listenAddress(t, network))
				if err != nil {
					t.Fatal(err)
				}
				client := dial(t, ln.Addr())
				c, err := ln.Accept()
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				if _, err := client.Write(patterned(1, 4096)); err != nil {
					t.Fatal(err)
				}
				one := make([]byte, 1)
				within(t, "4096 reads", func() {
					for i := range 4096 {
						if n, err := c.Read(one); n != 1 || err != nil || one[0] != pattern(1, i) {
							t.Errorf("read %d: %d bytes, error %v", i, n, err)
							return
						}
					}
				})
			})
		}
	})
}

// TestB2EdgeBetweenTheReadAndItsEnd has the peer write at the moment at which a read finds nothing.
func TestB2EdgeBetweenTheReadAndItsEnd(t *testing.T) {
	eachServer(t, func(t *testing.T, s *server) {
		skipCompletion(t, s, "the kernel reads, and no call of ours ends")
		client := s.dial(t)
		var mu sync.Mutex
		sent, received := uint64(0), uint64(0)
		send := func() {
			mu.Lock()
			defer mu.Unlock()
			client.Write(testutil.AppendRecord(nil, 1, sent, 100))
			sent++
		}
		var race atomic.Bool
		testutil.InjectFaults(t, func(op sys.Op, _ int) sys.Fault {
			if op != sys.OpRecv || !race.CompareAndSwap(true, false) {
				return sys.Fault{}
			}
			return sys.Fault{Errno: sys.EAGAIN, Before: send}
		})
		for range 100 {
			send()
			race.Store(true)
			if err := testutil.ReadRecord(client, 1, received); err != nil {
				t.Fatal(err)
			}
			received++
		}
		race.Store(false)
		most := func() uint64 { mu.Lock(); defer mu.Unlock(); return sent }
		for ; received < most(); received++ {
			if err := testutil.ReadRecord(client, 1, received); err != nil {
				t.Fatal(err)
			}
		}
		if received == 100 {
			t.Error("nothing was sent between a read and its end")
		}
	})
}

// TestB3OneFastSender serves 200 clients while others send as fast as they can.
func TestB3OneFastSender(t *testing.T) { flooded(t, 1, 200) }

// TestB4ManyFastSenders is the same with a list of connections that always have more to read.
func TestB4ManyFastSenders(t *testing.T) { flooded(t, 16, 50) }

func flooded(t *testing.T, flooders, clients int) {
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		config.Loops = 1
		e := newEngine(t, config)
		s, a := bind(t, e, "tcp", funcs{data: func(c *Conn) error {
			if b, _ := c.Peek(1); b[0] == 'f' {
				return NopHandler{}.OnData(c)
			}
			return echo{}.OnData(c)
		}})
		var stop atomic.Bool
		var wg sync.WaitGroup
		for range flooders {
			c := dial(t, s.Addrs()[0])
			wg.Go(func() {
				b := make([]byte, 256<<10)
				for i := range b {
					b[i] = 'f'
				}
				for !stop.Load() {
					if _, err := c.Write(b); err != nil {
						t.Error(err)
						return
					}
				}
				c.Close()
			})
		}
		everyone(t, clients, func(i int) error {
			c := dial(t, s.Addrs()[0])
			defer c.Close()
			for j := range uint64(3) {
				if err := pingPong(c, uint64(i), j); err != nil {
					return err
				}
			}
			return nil
		})
		stop.Store(true)
		wg.Wait()
		a.wait(t, flooders+clients)
	})
}

// TestB5SpuriousWakeUps reports readiness that is not there.
func TestB5SpuriousWakeUps(t *testing.T) {
	eachServer(t, func(t *testing.T, s *server) {
		client := s.dial(t)
		for i := range uint64(50) {
			if err := pingPong(client, 1, i); err != nil {
				t.Fatal(err)
			}
			if s.api == "net" {
				continue
			}
			for _, l := range s.engine.loops {
				done := make(chan struct{})
				if err := l.inner.PostAlways(func() {
					for token, src := range l.sources.All {
						if src.conn != nil {
							l.Ready([]poller.Event{{Token: token, Ready: poller.Readable | poller.Writable}})
						}
					}
					close(done)
				}); err != nil {
					t.Fatal(err)
				}
				receive(t, "the loop", done)
			}
		}
		if err := exchange(s.dial(t), 2, 5, 1000); err != nil {
			t.Error(err)
		}
	})
}

// TestB6HangUpThatStays keeps connections open whose peers have hung up, and looks whether the loop sleeps.
func TestB6HangUpThatStays(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		for _, network := range []string{"tcp", "unix"} {
			for _, pause := range []bool{false, true} {
				t.Run(map[bool]string{false: "half-open", true: "paused"}[pause]+"/"+network, func(t *testing.T) {
					testutil.CheckLeaks(t)
					var w waits
					testutil.InjectFaults(t, w.hook)
					e := newEngine(t, config)
					ready := make(chan struct{}, 1)
					s, _ := bind(t, e, network, funcs{
						data: func(c *Conn) error {
							if pause {
								c.Pause()
								ready <- struct{}{}
							}
							return nil
						},
						eof: func(c *Conn) error { ready <- struct{}{}; return nil },
					})
					c := dial(t, s.Addrs()[0])
					c.Write([]byte("x"))
					if pause {
						receive(t, "OnData", ready)
						if tcp, ok := c.(*net.TCPConn); ok {
							tcp.SetLinger(0)
						}
					}
					c.Close()
					if !pause {
						receive(t, "OnEOF", ready)
					}
					w.quiet(t)
				})
			}
		}
	})
}

// TestB7AnswerToAHalfClosedClient has the client end its stream before it reads the answer.
func TestB7AnswerToAHalfClosedClient(t *testing.T) {
	const size = 1 << 20
	eachBackend(t, func(t *testing.T, config Config) {
		config.WriteLimit = 2 * size
		for _, network := range []string{"tcp", "unix"} {
			t.Run("event/"+network, func(t *testing.T) {
				testutil.CheckLeaks(t)
				e := newEngine(t, config)
				s, a := bind(t, e, network, funcs{eof: func(c *Conn) error {
					if _, err := c.Write(patterned(1, size)); err != nil {
						return err
					}
					return c.Close()
				}})
				c := dial(t, s.Addrs()[0])
				c.Write([]byte("question"))
				c.(interface{ CloseWrite() error }).CloseWrite()
				if err := checkPattern(c, 1, size); err != nil {
					t.Error(err)
				}
				a.wait(t, 1)
				if err := errors.Join(a.errs()...); err != nil {
					t.Errorf("OnClose got %v", err)
				}
			})
			t.Run("net/"+network, func(t *testing.T) {
				testutil.CheckLeaks(t)
				e := newEngine(t, config)
				ln, err := e.Listen(network, listenAddress(t, network))
				if err != nil {
					t.Fatal(err)
				}
				c := dial(t, ln.Addr())
				served := make(chan error, 1)
				go func() {
					c, err := ln.Accept()
					if err == nil {
						_, err = io.ReadAll(c)
						_, werr := c.Write(patterned(1, size))
						err = errors.Join(err, werr, c.Close())
					}
					served <- err
				}()
				c.Write([]byte("question"))
				c.(interface{ CloseWrite() error }).CloseWrite()
				if err := checkPattern(c, 1, size); err != nil {
					t.Error(err)
				}
				if err := receive(t, "the server", served); err != nil {
					t.Error(err)
				}
			})
		}
	})
}

// TestB8DataAndHangUpTogether has peers write and close at once: every byte must come before the end.
func TestB8DataAndHangUpTogether(t *testing.T) {
	const size, n = 100 << 10, 50
	eachBackend(t, func(t *testing.T, config Config) {
		for _, network := range []string{"tcp", "unix"} {
			t.Run(network, func(t *testing.T) {
				testutil.CheckLeaks(t)
				e := newEngine(t, config)
				s, a := bind(t, e, network, funcs{
					open: func(c *Conn) error { c.SetContext(new(int)); return nil },
					data: func(c *Conn) error {
						got := c.Context().(*int)
						b, _ := c.Next(-1)
						for _, x := range b {
							if x != pattern(1, *got) {
								return errors.New("a byte is wrong")
							}
							*got++
						}
						return nil
					},
					eof: func(c *Conn) error {
						if got := *c.Context().(*int); got != size {
							t.Errorf("OnEOF after %d of %d bytes", got, size)
						}
						return c.Close()
					},
				})
				everyone(t, n, func(int) error {
					c := dial(t, s.Addrs()[0])
					_, err := c.Write(patterned(1, size))
					return errors.Join(err, c.Close())
				})
				a.wait(t, n)
				if err := errors.Join(a.errs()...); err != nil {
					t.Errorf("OnClose got %v", err)
				}
			})
		}
	})
}

// TestB9PanicInABatch has every second handler of one batch panic: the other events are not lost with them.
func TestB9PanicInABatch(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		config.Loops = 1
		e := newEngine(t, config)
		var calls atomic.Int64 // A handler that the machine makes slow runs on workers.
		s, a := bind(t, e, "tcp", funcs{data: func(c *Conn) error {
			if calls.Add(1)%2 == 0 {
				panic("every second one")
			}
			return echo{}.OnData(c)
		}})
		const n = 60
		clients := make([]net.Conn, n)
		for i := range clients {
			clients[i] = dial(t, s.Addrs()[0])
		}
		eventually(t, "the connections", func() bool { return s.Conns() == n })
		release := holdLoops(t, e)
		defer release()
		for _, c := range clients {
			c.Write([]byte("x"))
		}
		release()
		var answered atomic.Int64
		everyone(t, n, func(i int) error {
			got, _ := io.ReadAtLeast(clients[i], make([]byte, 1), 1)
			answered.Add(int64(got))
			return clients[i].Close()
		})
		a.wait(t, n)
		if answered.Load() != n/2 {
			t.Errorf("%d of %d clients were answered", answered.Load(), n)
		}
	})
}

// TestB10PauseAndResume stops and starts reading all the time, from inside and outside of the callbacks.
func TestB10PauseAndResume(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		e := newEngine(t, config)
		opened := make(chan *Conn, 1)
		s, a := bind(t, e, "tcp", funcs{
			open:     func(c *Conn) error { opened <- c; return nil },
			data:     echo{}.OnData,
			writable: echo{}.OnWritable,
		})
		client := dial(t, s.Addrs()[0])
		c := receive(t, "OnOpen", opened)
		var stop atomic.Bool
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				for !stop.Load() {
					c.Pause()
					c.Resume()
				}
			})
		}
		err := exchange(client, 1, 2000, 1000)
		stop.Store(true)
		wg.Wait()
		c.Resume()
		if err != nil {
			t.Error(err)
		}
		a.wait(t, 1)
	})
}

// TestB10ResumeDelivers resumes with more unread than the limit, which a pause allows: a callback that ends before OnData
// has had its turn leaves nothing.
func TestB10ResumeDelivers(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		config.ReadLimit = 10
		e := newEngine(t, config)
		paused := make(chan *Conn, 1)
		first := true
		s, a := bind(t, e, "tcp", funcs{data: func(c *Conn) error {
			if first {
				first = false
				c.Pause()
				paused <- c
				return nil
			}
			return echo{}.OnData(c)
		}})
		client := dial(t, s.Addrs()[0])
		want := strings.Repeat("x", 100)
		if _, err := io.WriteString(client, want); err != nil {
			t.Fatal(err)
		}
		receive(t, "Pause", paused).Async(func(c *Conn) {
			c.Resume()
			c.Async(func(*Conn) {})
		})
		got := make([]byte, len(want))
		if _, err := io.ReadFull(client, got); err != nil || string(got) != want {
			t.Errorf("%q, %v", got, err)
		}
		client.Close()
		a.wait(t, 1)
	})
}

// TestB10ResumeAtTheEnd resumes elsewhere at the moment at which the callback that has paused ends.
func TestB10ResumeAtTheEnd(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		config.ReadLimit = 10
		e := newEngine(t, config)
		var paused atomic.Pointer[Conn]
		calls := 0
		s, a := bind(t, e, "tcp", funcs{data: func(c *Conn) error {
			if calls++; calls%2 == 0 {
				return echo{}.OnData(c)
			}
			c.Pause()
			paused.Store(c)
			return nil
		}})
		stop, stopped := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			for {
				select {
				case <-stop:
					return
				default:
				}
				if c := paused.Swap(nil); c != nil {
					c.Resume()
				}
			}
		}()
		client := dial(t, s.Addrs()[0])
		want := strings.Repeat("x", 100)
		got := make([]byte, len(want))
		for i := range 3000 {
			if _, err := io.WriteString(client, want); err != nil {
				t.Fatal(i, err)
			}
			if _, err := io.ReadFull(client, got); err != nil || string(got) != want {
				t.Fatalf("round %d: %q, %v", i, got, err)
			}
		}
		close(stop)
		<-stopped
		client.Close()
		a.wait(t, 1)
	})
}

// TestB11WritableStaysTrue drains a full socket and looks whether the loop sleeps afterwards.
func TestB11WritableStaysTrue(t *testing.T) {
	eachServer(t, func(t *testing.T, s *server) {
		var w waits
		testutil.InjectFaults(t, w.hook)
		client := s.dial(t)
		const records, size = 200, 50_000
		sent := make(chan error, 1)
		go func() { sent <- sendRecords(client, 1, records, size, false) }()
		if err := receiveRecords(client, 1, records, false); err != nil {
			t.Fatal(err)
		}
		if err := receive(t, "the sender", sent); err != nil {
			t.Fatal(err)
		}
		w.quiet(t)
	})
}

// TestB12Interrupts has a signal end every second wait.
func TestB12Interrupts(t *testing.T) {
	eachServer(t, func(t *testing.T, s *server) {
		var calls atomic.Int64
		testutil.InjectFaults(t, func(op sys.Op, _ int) sys.Fault {
			if (op == sys.OpEpollWait || op == sys.OpUringEnter) && calls.Add(1)%2 == 0 {
				return sys.Fault{Errno: sys.EINTR}
			}
			return sys.Fault{}
		})
		stop := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() { // And real ones, which the runtime uses for preemption.
			for {
				select {
				case <-stop:
					return
				default:
					syscall.Kill(os.Getpid(), syscall.SIGURG)
					time.Sleep(50 * time.Microsecond)
				}
			}
		})
		everyone(t, 10, func(i int) error { return exchange(s.dial(t), uint64(i), 100, 1000) })
		close(stop)
		wg.Wait()
		if calls.Load() == 0 {
			t.Error("no wait was interrupted")
		}
	})
}

// TestB13MoreThanABatch makes three times as many connections ready at once as one wait returns.
func TestB13MoreThanABatch(t *testing.T) {
	eachServer(t, func(t *testing.T, s *server) {
		const n = 3*epollBatch + 1
		clients := make([]net.Conn, n)
		for i := range clients {
			clients[i] = s.dial(t)
		}
		release := func() {}
		if s.api == "event" {
			eventually(t, "the connections", func() bool { return s.service.Conns() == n })
			release = holdLoops(t, s.engine)
			defer release()
		}
		for i, c := range clients {
			if _, err := c.Write(testutil.AppendRecord(nil, uint64(i), 0, 10)); err != nil {
				t.Fatal(err)
			}
		}
		release()
		for i, c := range clients {
			if err := testutil.ReadRecord(c, uint64(i), 0); err != nil {
				t.Fatal(err)
			}
			c.Close()
		}
	})
}

// TestB14ConnectFails dials what cannot be reached, on both APIs.
func TestB14ConnectFails(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		// A port that was just given back is not listened on; a socket's file without a server refuses.
		free, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := free.Addr().String()
		free.Close()
		stale := filepath.Join(t.TempDir(), "s")
		old, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		old.SetUnlinkOnClose(false)
		old.Close()
		for _, c := range []struct {
			name, network, address string
			want                   error
		}{
			{"refused", "tcp", port, syscall.ECONNREFUSED},
			{"stale", "unix", stale, syscall.ECONNREFUSED},
			{"missing", "unix", stale + "x", syscall.ENOENT},
		} {
			t.Run(c.name, func(t *testing.T) {
				testutil.CheckLeaks(t)
				e := newEngine(t, config)
				a := newAudit(t, e, NopHandler{})
				for range 20 {
					if _, err := e.DialContext(t.Context(), c.network, c.address); !errors.Is(err, c.want) {
						t.Errorf("DialContext: %v, it must be %v", err, c.want)
					}
					if _, err := e.Dial(t.Context(), c.network+"://"+c.address, a); !errors.Is(err, c.want) {
						t.Errorf("Dial: %v, it must be %v", err, c.want)
					}
				}
				if opened, _ := a.counts(); opened != 0 {
					t.Errorf("OnOpen was called %d times", opened)
				}
			})
		}
		t.Run("no answer", func(t *testing.T) {
			testutil.CheckLeaks(t)
			// The queue of a listener with room for one is filled; the kernel drops what comes then.
			full, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer syscall.Close(full)
			if err := errors.Join(syscall.Bind(full, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), syscall.Listen(full, 0)); err != nil {
				t.Fatal(err)
			}
			name, err := syscall.Getsockname(full)
			if err != nil {
				t.Fatal(err)
			}
			addr := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: name.(*syscall.SockaddrInet4).Port}
			dial(t, addr)
			e := newEngine(t, config)
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			if c, err := e.DialContext(ctx, "tcp", addr.String()); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("DialContext: %v, error %v", c, err)
			}
			ctx, cancel = context.WithCancel(t.Context())
			go cancel()
			if c, err := e.Dial(ctx, "tcp://"+addr.String(), NopHandler{}); !errors.Is(err, context.Canceled) {
				t.Errorf("Dial: %v, error %v", c, err)
			}
		})
		t.Run("spurious", func(t *testing.T) {
			testutil.CheckLeaks(t)
			s := serveEcho(t, config, "event", "tcp")
			// getpeername(2) says that the connection is not there yet, as after an event that came too early.
			var calls atomic.Int64
			testutil.InjectFaults(t, func(op sys.Op, _ int) sys.Fault {
				if op == sys.OpGetpeername && calls.Add(1) == 1 {
					return sys.Fault{Errno: sys.ENOTCONN}
				}
				return sys.Fault{}
			})
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			if c, err := s.engine.DialContext(ctx, "tcp", s.addr.String()); err == nil {
				c.Close()
			}
		})
	})
}

// TestB15RegistrationFails has the kernel refuse a registration: that connection ends, and no other.
func TestB15RegistrationFails(t *testing.T) {
	for _, errno := range []sys.Errno{sys.ENOSPC, sys.ENOMEM} {
		t.Run(errno.Error(), func(t *testing.T) {
			eachServer(t, func(t *testing.T, s *server) {
				skipCompletion(t, s, "there is no registration that could fail")
				before := s.dial(t)
				if err := pingPong(before, 1, 0); err != nil {
					t.Fatal(err)
				}
				var fail atomic.Bool
				testutil.InjectFaults(t, func(op sys.Op, _ int) sys.Fault {
					if op == sys.OpEpollCtl && fail.CompareAndSwap(true, false) {
						return sys.Fault{Errno: errno}
					}
					return sys.Fault{}
				})
				fail.Store(true)
				if err := pingPong(s.dial(t), 2, 0); err == nil {
					t.Error("a connection that could not be registered is served")
				}
				if err := pingPong(before, 1, 1); err != nil {
					t.Error(err)
				}
				if err := exchange(s.dial(t), 3, 10, 100); err != nil {
					t.Error(err)
				}
			})
		})
	}
}
