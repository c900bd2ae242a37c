//go:build linux

package pollux

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/internal/testutil"
)

// Faults of group d: writing.
//
// Not here: D10 and D13, which need sends that the kernel holds (io_uring). D18, a peer that is gone without a word,
// cannot be made on a loopback; what stands here is that the kernel is told to look for it. In D16 a send fails with
// ENOBUFS on the event API only: the net API returns it, as package net does.

func init() { children["reader"] = readerChild }

// readerChild connects to an address and reads a pattern to its end. It answers "ok".
func readerChild(in *bufio.Scanner) error {
	if !in.Scan() {
		return io.ErrUnexpectedEOF
	}
	c, err := net.Dial("tcp", in.Text())
	if err != nil {
		return err
	}
	fmt.Println("connected")
	if !in.Scan() {
		return io.ErrUnexpectedEOF
	}
	n, err := strconv.Atoi(in.Text())
	if err != nil {
		return err
	}
	if err := checkPattern(c, 1, n); err != nil {
		return err
	}
	fmt.Println("ok")
	return nil
}

// shortSends lets every send take few bytes.
func shortSends(t testing.TB, size func() int) {
	testutil.InjectFaults(t, func(op sys.Op, _ int) sys.Fault {
		if op == sys.OpSend {
			return sys.Fault{Short: size()}
		}
		return sys.Fault{}
	})
}

// TestD1PartialWrites has the kernel take 1, 2, 3, ... bytes at a time.
func TestD1PartialWrites(t *testing.T) {
	eachServer(t, func(t *testing.T, s *server) {
		var calls atomic.Int64
		shortSends(t, func() int { return 1 + int(calls.Add(1)%200) })
		everyone(t, 4, func(i int) error { return exchange(s.dial(t), uint64(i), 50, 5000) })
	})
}

// TestD2ManySlices writes more slices than the kernel takes in one call, while it takes them only in parts.
func TestD2ManySlices(t *testing.T) {
	const slices = 5000
	var bufs [][]byte
	size := 0
	for i := range slices {
		b := make([]byte, i%7)
		for j := range b {
			b[j] = pattern(1, size+j)
		}
		bufs = append(bufs, b)
		size += len(b)
	}
	eachBackend(t, func(t *testing.T, config Config) {
		for _, short := range []int{0, 1, 5, 100, 10_000} {
			t.Run(fmt.Sprintf("event/short=%d", short), func(t *testing.T) {
				testutil.CheckLeaks(t)
				e := newEngine(t, config) // First: what it tests itself with must not be cut short.
				shortSends(t, func() int { return short })
				s, _ := bind(t, e, "tcp", funcs{open: func(c *Conn) error {
					n, err := c.Writev(bufs...)
					if n != size || err != nil {
						t.Errorf("Writev: %d of %d bytes, error %v", n, size, err)
					}
					return c.Close()
				}})
				if err := checkPattern(dial(t, s.Addrs()[0]), 1, size); err != nil {
					t.Error(err)
				}
			})
			t.Run(fmt.Sprintf("net/short=%d", short), func(t *testing.T) {
				testutil.CheckLeaks(t)
				e := newEngine(t, config)
				shortSends(t, func() int { return short })
				ln, err := e.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				client := dial(t, ln.Addr())
				c, err := ln.Accept()
				if err != nil {
					t.Fatal(err)
				}
				go func() {
					n, err := c.(*NetConn).Writev(bufs...)
					if n != int64(size) || err != nil {
						t.Errorf("Writev: %d of %d bytes, error %v", n, size, err)
					}
					c.Close()
				}()
				if err := checkPattern(client, 1, size); err != nil {
					t.Error(err)
				}
			})
		}
	})
}

// TestD3StalledReaders pushes at peers that do not read: what is kept for each stays at the limit.
func TestD3StalledReaders(t *testing.T) {
	const n, limit, push = 64, 256 << 10, 64 << 20
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		config.WriteLimit = limit
		e := newEngine(t, config)
		var refused, most atomic.Int64
		piece := make([]byte, 64<<10)
		done := make(chan struct{}, n)
		s, _ := bind(t, e, "tcp", funcs{data: func(c *Conn) error {
			c.Discard(-1)
			for range push / len(piece) {
				_, err := c.Write(piece)
				if errors.Is(err, ErrWouldBlock) {
					refused.Add(1)
				} else if err != nil {
					return err
				}
				if q := int64(c.Queued()); q > most.Load() {
					most.Store(q)
				}
			}
			done <- struct{}{}
			return nil
		}})
		before := residentBytes(t)
		for range n {
			c := dial(t, s.Addrs()[0])
			c.(*net.TCPConn).SetReadBuffer(4096)
			c.Write([]byte("go"))
		}
		for range n {
			receive(t, "the push", done)
		}
		if most.Load() > limit || most.Load() < limit/2 {
			t.Errorf("%d bytes were queued for a connection, the limit is %d", most.Load(), limit)
		}
		if refused.Load() == 0 {
			t.Error("no Write was refused")
		}
		debug.FreeOSMemory() // What the queues have left behind as they grew is not kept; the kernel's buffers do not count.
		if grown := residentBytes(t) - before; grown > 4*n*limit {
			t.Errorf("%d MiB more are resident for %d stalled connections of %d KiB", grown>>20, n, limit>>10)
		}
	})
}

// TestD4WritesToTheDead writes to connections that were reset: SIGPIPE must not end the process.
func TestD4WritesToTheDead(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		e := newEngine(t, config)
		opened := make(chan *Conn, 1)
		s, a := bind(t, e, "unix", funcs{open: func(c *Conn) error { opened <- c; return nil }, eof: func(*Conn) error { return nil }})
		ln, err := e.Listen("unix", listenAddress(t, "unix"))
		if err != nil {
			t.Fatal(err)
		}
		const n = 200
		for range n {
			client := dial(t, s.Addrs()[0])
			c := receive(t, "OnOpen", opened)
			client.Close()
			c.Write([]byte("x")) // A unix socket gives EPIPE at once.
			c.Close()

			client = dial(t, ln.Addr())
			nc, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			client.Close()
			if _, err := nc.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
				t.Fatalf("Write: %v", err)
			}
			nc.Close()
		}
		a.wait(t, n)
	})
}

// TestD5ResetInTheMiddle resets connections after so many bytes: no other one notices.
func TestD5ResetInTheMiddle(t *testing.T) {
	eachServer(t, func(t *testing.T, s *server) {
		if s.addr.Network() == "unix" {
			t.Skip("a unix socket has no resets")
		}
		good := s.dial(t)
		const n = 40
		for k := range n {
			p := testutil.NewProxy(t, s.addr, testutil.Plan{Seed: uint64(k), Chunk: 4096, ResetAfter: 1 + int64(k*k*10)})
			c := dial(t, p.Addr())
			sent := make(chan error, 1)
			go func() { sent <- sendRecords(c, uint64(k), 20, 5000, true) }()
			if err := receiveRecords(c, uint64(k), 20, true); err == nil && k*k*10 < 20*1000 {
				t.Error("a connection that was reset gave everything")
			}
			c.Close()
			<-sent
			if err := pingPong(good, 1, uint64(k)); err != nil {
				t.Fatal(err)
			}
		}
		good.Close()
		if s.audit != nil {
			s.audit.wait(t, n+1)
		}
	})
}

// TestD6CloseWriteWithAQueue ends a stream of which 4 MiB wait: the end comes after the last byte, and the other
// direction goes on.
func TestD6CloseWriteWithAQueue(t *testing.T) {
	const size = 4 << 20
	eachBackend(t, func(t *testing.T, config Config) {
		config.WriteLimit = 2 * size
		for _, network := range []string{"tcp", "unix"} {
			t.Run(network, func(t *testing.T) {
				testutil.CheckLeaks(t)
				e := newEngine(t, config)
				got := make(chan string, 1)
				s, a := bind(t, e, network, funcs{
					open: func(c *Conn) error {
						if n, err := c.Write(patterned(1, size)); n != size || err != nil {
							return fmt.Errorf("Write: %d bytes, %w", n, err)
						}
						return c.CloseWrite()
					},
					data: func(c *Conn) error {
						b, _ := c.Next(-1)
						if _, err := c.Write([]byte("late")); !errors.Is(err, ErrClosed) {
							t.Errorf("Write after CloseWrite: %v", err)
						}
						got <- string(b)
						return nil
					},
				})
				c := dial(t, s.Addrs()[0])
				if err := checkPattern(c, 1, size); err != nil {
					t.Error(err)
				}
				c.Write([]byte("still here"))
				if s := receive(t, "OnData", got); s != "still here" {
					t.Errorf("the handler got %q", s)
				}
				c.Close()
				a.wait(t, 1)
			})
		}
	})
}

// TestD7WriteThenClose closes at once after 4 MiB: they arrive whole.
func TestD7WriteThenClose(t *testing.T) {
	const size = 4 << 20
	eachBackend(t, func(t *testing.T, config Config) {
		config.WriteLimit = 2 * size
		for _, network := range []string{"tcp", "unix"} {
			for _, unread := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/unread=%v", network, unread), func(t *testing.T) {
					testutil.CheckLeaks(t)
					e := newEngine(t, config)
					s, a := bind(t, e, network, funcs{data: func(c *Conn) error {
						c.Discard(-1)
						if _, err := c.Write(patterned(1, size)); err != nil {
							return err
						}
						return c.Close()
					}})
					const n = 4
					everyone(t, n, func(int) error {
						c := dial(t, s.Addrs()[0])
						c.Write([]byte("go"))
						if unread {
							// More than the handler reads: it is in the kernel when the connection closes.
							go func() {
								for range 20 {
									if _, err := c.Write(make([]byte, 10_000)); err != nil {
										return
									}
								}
								c.(interface{ CloseWrite() error }).CloseWrite()
							}()
						}
						defer c.Close()
						return checkPattern(c, 1, size)
					})
					a.wait(t, n)
					if err := errors.Join(a.errs()...); err != nil {
						t.Errorf("OnClose got %v", err)
					}
				})
			}
		}
	})
}

// waitClosing waits until a connection is closing, or all are closed.
func waitClosing(t *testing.T, e *Engine, a *audit) {
	t.Helper()
	eventually(t, "the close", func() bool {
		closing := false
		onLoop(t, e, func(*loop) {})
		for _, l := range e.loops {
			done := make(chan struct{})
			l.inner.PostAlways(func() {
				for _, src := range l.sources.All {
					closing = closing || src.conn != nil && src.conn.linger != 0
				}
				close(done)
			})
			receive(t, "the loop", done)
		}
		opened, closed := a.counts()
		return closing || opened > 0 && closed == opened
	})
}

// TestD7PeerSendsAfterTheClose closes connections whose answer is still in the kernel, as their peers take little at a time. The
// peers then send more: no reset destroys what is on its way. A connection ends once everything is acknowledged, long before the
// linger time, though its peer does not close.
func TestD7PeerSendsAfterTheClose(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		for _, how := range []string{"close", "drain"} {
			t.Run(how, func(t *testing.T) {
				testutil.CheckLeaks(t)
				config.Linger = time.Hour
				e := newEngine(t, config)
				const size = 256 << 10
				s, a := bind(t, e, "tcp", funcs{data: func(c *Conn) error {
					c.Discard(-1)
					if _, err := c.Write(patterned(1, size)); err != nil {
						return err
					}
					if how == "close" {
						return c.Close()
					}
					return nil
				}})
				d := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
					return raw.Control(func(fd uintptr) { sys.SetsockoptInt(int(fd), sys.SOL_SOCKET, syscall.SO_RCVBUF, 16<<10) })
				}}
				c, err := d.Dial("tcp", s.Addrs()[0].String())
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				c.Write([]byte("go"))
				first := make([]byte, 1)
				if _, err := io.ReadFull(c, first); err != nil {
					t.Fatal(err)
				}
				ended := make(chan error, 1)
				if how == "drain" {
					go func() { ended <- s.Shutdown(t.Context()) }()
				}
				waitClosing(t, e, a)
				if _, err := c.Write([]byte("more")); err != nil {
					t.Error(err)
				}
				b, err := io.ReadAll(c)
				if want := patterned(1, size); err != nil || !bytes.Equal(append(first, b...), want) {
					t.Errorf("%d bytes came of %d: %v", 1+len(b), size, err)
				}
				a.wait(t, 1)
				if err := errors.Join(a.errs()...); err != nil {
					t.Errorf("OnClose got %v", err)
				}
				if how == "drain" {
					if err := receive(t, "Shutdown", ended); err != nil {
						t.Error(err)
					}
				}
			})
		}
	})
}

// TestD8CloseToADeadPeer closes connections whose peers take nothing: they end after the linger time, and the loop
// sleeps until then.
func TestD8CloseToADeadPeer(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		config.Linger = 300 * time.Millisecond
		config.WriteLimit = 16 << 20
		var w waits
		testutil.InjectFaults(t, w.hook)
		e := newEngine(t, config)
		closing := make(chan struct{}, 1)
		s, a := bind(t, e, "tcp", funcs{open: func(c *Conn) error {
			if _, err := c.Write(make([]byte, 16<<20)); err != nil {
				return err
			}
			closing <- struct{}{}
			return c.Close()
		}})
		client := dial(t, s.Addrs()[0])
		receive(t, "Close", closing)
		w.quiet(t)
		a.wait(t, 1)
		if err := a.errs()[0]; !errors.Is(err, ErrLinger) {
			t.Errorf("OnClose got %v, it must be %v", err, ErrLinger)
		}
		// The peer must not take the beginning for the whole.
		if n, err := io.Copy(io.Discard, client); err == nil {
			t.Errorf("the peer reads %d of %d bytes and an orderly end", n, 16<<20)
		}
	})
}

// TestD9ConcurrentWriters has 16 goroutines write to one connection: no record is torn, and each one's stay in order.
func TestD9ConcurrentWriters(t *testing.T) {
	const writers, records = 16, 500
	check := func(c net.Conn) error {
		r := bufio.NewReaderSize(c, 64<<10)
		var next [writers]uint64
		for range writers * records {
			head, err := r.Peek(8)
			if err != nil {
				return err
			}
			id := binary.BigEndian.Uint64(head)
			if id >= writers {
				return fmt.Errorf("a record is torn: there is no writer %d", id)
			}
			if err := testutil.ReadRecord(r, id, next[id]); err != nil {
				return err
			}
			next[id]++
		}
		return nil
	}
	write := func(t *testing.T, write func(id int, b []byte) error) {
		everyone(t, writers, func(id int) error {
			for i := range records {
				if err := write(id, testutil.AppendRecord(nil, uint64(id), uint64(i), 1+(i*37)%6000)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	eachBackend(t, func(t *testing.T, config Config) {
		config.WriteLimit = 128 << 20
		t.Run("event", func(t *testing.T) {
			testutil.CheckLeaks(t)
			e := newEngine(t, config)
			opened := make(chan *Conn, 1)
			s, _ := bind(t, e, "tcp", funcs{open: func(c *Conn) error { opened <- c; return nil }})
			p := testutil.NewProxy(t, s.Addrs()[0], testutil.Plan{Seed: 9, Chunk: 20_000})
			client := dial(t, p.Addr())
			c := receive(t, "OnOpen", opened)
			done := make(chan error, 1)
			go func() { done <- check(client) }()
			write(t, func(id int, b []byte) error {
				if id%2 == 0 {
					_, err := c.Write(b)
					return err
				}
				_, err := c.Writev(b[:len(b)/3], nil, b[len(b)/3:])
				return err
			})
			if err := receive(t, "the reader", done); err != nil {
				t.Error(err)
			}
		})
		t.Run("net", func(t *testing.T) {
			testutil.CheckLeaks(t)
			e := newEngine(t, config)
			ln, err := e.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			p := testutil.NewProxy(t, ln.Addr(), testutil.Plan{Seed: 9, Chunk: 20_000})
			client := dial(t, p.Addr())
			c, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			done := make(chan error, 1)
			go func() { done <- check(client) }()
			write(t, func(id int, b []byte) error {
				if id%2 == 0 {
					_, err := c.Write(b)
					return err
				}
				_, err := c.(*NetConn).Writev(b[:len(b)/3], nil, b[len(b)/3:])
				return err
			})
			if err := receive(t, "the reader", done); err != nil {
				t.Error(err)
			}
		})
	})
}

// TestD11ShortSendBeforeAReset takes a part of a large write, and then the peer is gone: the rest is not reported as
// sent.
func TestD11ShortSendBeforeAReset(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		e := newEngine(t, config)
		ln, err := e.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		client := dial(t, ln.Addr())
		c, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		wrote := make(chan error, 1)
		var n int
		go func() {
			var err error
			n, err = c.Write(make([]byte, 64<<20))
			wrote <- err
		}()
		io.ReadFull(client, make([]byte, 100_000))
		reset(client)
		if err := receive(t, "Write", wrote); err == nil || n == 64<<20 || n < 100_000 {
			t.Errorf("Write: %d bytes, error %v", n, err)
		}
	})
}

// TestD12SliceReusedAfterWrite overwrites what was written as soon as the call is back.
func TestD12SliceReusedAfterWrite(t *testing.T) {
	const size, records = 10_000, 100
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		e := newEngine(t, config)
		s, _ := bind(t, e, "tcp", funcs{open: func(c *Conn) error {
			b := make([]byte, 0, size+100)
			for i := range uint64(records) {
				b = testutil.AppendRecord(b[:0], 1, i, recordSize(int(i), size))
				var err error
				if i%2 == 0 {
					_, err = c.Write(b)
				} else {
					_, err = c.Writev(b[:10], b[10:])
				}
				if err != nil {
					return err
				}
				for j := range b {
					b[j] = 0xdd
				}
			}
			return c.Close()
		}})
		client := dial(t, s.Addrs()[0])
		client.(*net.TCPConn).SetReadBuffer(32 << 10)
		if err := receiveRecords(client, 1, records, true); err != nil {
			t.Error(err)
		}
	})
}

// TestD14WriteAfterAReset writes to a connection whose peer has reset it: that fails, and goes on to fail.
func TestD14WriteAfterAReset(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		t.Run("event", func(t *testing.T) {
			testutil.CheckLeaks(t)
			e := newEngine(t, config)
			opened := make(chan *Conn, 1)
			s, a := bind(t, e, "tcp", funcs{open: func(c *Conn) error { opened <- c; return nil }})
			client := dial(t, s.Addrs()[0])
			c := receive(t, "OnOpen", opened)
			reset(client)
			a.wait(t, 1)
			if err := a.errs()[0]; !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("OnClose got %v", err)
			}
			for range 3 {
				if _, err := c.Write([]byte("x")); !errors.Is(err, ErrClosed) {
					t.Errorf("Write: %v", err)
				}
			}
		})
		t.Run("event/in a callback", func(t *testing.T) {
			testutil.CheckLeaks(t)
			e := newEngine(t, config)
			var h hold
			arrived := h.close()
			t.Cleanup(h.open)
			s, a := bind(t, e, "tcp", funcs{data: func(c *Conn) error {
				h.pass()
				c.Write([]byte("answer"))
				c.Flush()
				c.Write([]byte("answer"))
				return nil
			}})
			client := dial(t, s.Addrs()[0])
			client.Write([]byte("x"))
			receive(t, "OnData", arrived)
			reset(client)
			start := time.Now()
			h.open()
			a.wait(t, 1)
			if d := time.Since(start); d > Default().Linger/2 {
				t.Errorf("the connection was kept for %v after its peer was gone", d)
			}
		})
		t.Run("net", func(t *testing.T) {
			testutil.CheckLeaks(t)
			e := newEngine(t, config)
			ln, err := e.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			client := dial(t, ln.Addr())
			c, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			reset(client)
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("Read: %v", err)
			}
			for range 3 {
				if n, err := c.Write([]byte("x")); n != 0 || err == nil {
					t.Errorf("Write: %d bytes, error %v", n, err)
				}
			}
		})
	})
}

// TestD15DeadlineInTheMiddleOfAWrite compares what a Write that timed out says it has sent with what arrives.
func TestD15DeadlineInTheMiddleOfAWrite(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		e := newEngine(t, config)
		ln, err := e.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		large := patterned(1, 32<<20)
		for range 10 {
			client := dial(t, ln.Addr())
			c, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			c.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
			n, err := c.Write(large)
			if !errors.Is(err, os.ErrDeadlineExceeded) || n == 0 {
				t.Errorf("Write: %d bytes, error %v", n, err)
			}
			go c.Close()
			if err := checkPattern(client, 1, n); err != nil {
				t.Errorf("Write says %d bytes: %v", n, err)
			}
			client.Close()
		}
	})
}

// TestD16ErrorsThatPass has sends fail that would succeed if they were repeated.
func TestD16ErrorsThatPass(t *testing.T) {
	eachServer(t, func(t *testing.T, s *server) {
		if s.api == "event" && s.addr.Network() == "tcp" {
			skipDirect(t, s.engine.config, "no call of ours sends")
		}
		random := rand.New(rand.NewPCG(16, 16))
		var mu sync.Mutex
		failed := 0
		last := false
		testutil.InjectFaults(t, func(op sys.Op, _ int) sys.Fault {
			if op != sys.OpSend {
				return sys.Fault{}
			}
			mu.Lock()
			defer mu.Unlock()
			// Not twice in a row: a socket that is really full makes an edge when it is not, these do not.
			if last = !last && random.IntN(4) == 0; !last {
				return sys.Fault{}
			}
			failed++
			if s.api == "net" {
				return sys.Fault{Errno: sys.EINTR}
			}
			return sys.Fault{Errno: []sys.Errno{sys.EINTR, sys.ENOBUFS, sys.ENOMEM}[random.IntN(3)]}
		})
		c := s.dial(t)
		for i := range uint64(50) {
			if err := pingPong(c, 1, i); err != nil {
				t.Fatal(err)
			}
		}
		if err := exchange(s.dial(t), 2, 100, 20_000); err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		// A ring sends what is small itself: how much is left to send(2) depends on how the bytes come.
		ring := s.api == "event" && s.addr.Network() == "tcp" && completing(s.engine.config)
		if failed == 0 && !ring {
			t.Error("no send has failed")
		}
	})
}

// TestD17StoppedReader stops a process that reads, lets the sockets fill, and lets it go on.
func TestD17StoppedReader(t *testing.T) {
	const size = 16 << 20
	eachBackend(t, func(t *testing.T, config Config) {
		config.WriteLimit = 2 * size
		for _, api := range []string{"event", "net"} {
			t.Run(api, func(t *testing.T) {
				testutil.CheckLeaks(t)
				child := inChild(t, "reader")
				e := newEngine(t, config)
				var queued func() bool
				var send func()
				if api == "event" {
					opened := make(chan *Conn, 1)
					s, _ := bind(t, e, "tcp", funcs{open: func(c *Conn) error { opened <- c; return nil }})
					child.ask(s.Addrs()[0].String())
					c := receive(t, "OnOpen", opened)
					queued = func() bool { return c.Queued() > 0 && c.blocked.Load() }
					send = func() {
						if n, err := c.Write(patterned(1, size)); n != size || err != nil {
							t.Errorf("Write: %d bytes, error %v", n, err)
						}
						c.Close()
					}
				} else {
					ln, err := e.Listen("tcp", "127.0.0.1:0")
					if err != nil {
						t.Fatal(err)
					}
					accepted := make(chan net.Conn, 1)
					go func() {
						c, err := ln.Accept()
						if err != nil {
							t.Error(err)
						}
						accepted <- c
					}()
					child.ask(ln.Addr().String())
					c := receive(t, "Accept", accepted)
					var tries atomic.Int64
					testutil.InjectFaults(t, func(op sys.Op, _ int) sys.Fault {
						if op == sys.OpSend {
							tries.Add(1)
						}
						return sys.Fault{}
					})
					queued = func() bool { return tries.Load() > 1 }
					send = func() {
						if n, err := c.Write(patterned(1, size)); n != size || err != nil {
							t.Errorf("Write: %d bytes, error %v", n, err)
						}
						c.Close()
					}
				}
				if err := child.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
					t.Fatal(err)
				}
				done := make(chan struct{})
				go func() { send(); close(done) }()
				eventually(t, "the sockets to be full", queued)
				if err := child.cmd.Process.Signal(syscall.SIGCONT); err != nil {
					t.Fatal(err)
				}
				if answer := child.ask(strconv.Itoa(size)); answer != "ok" {
					t.Error(answer)
				}
				receive(t, "the sender", done)
			})
		}
	})
}

// TestD18PeerGoneWithoutAWord looks whether the kernel was told to ask whether the peer is there, on every way to make a
// connection, and that an idle timeout ends a connection with a queue.
func TestD18PeerGoneWithoutAWord(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		config.KeepAlive = 7 * time.Second
		config.Linger = -1
		e := newEngine(t, config)
		fds := make(chan [3]int, 2)
		h := funcs{open: func(c *Conn) error {
			var got [3]int
			fd := int(c.fd)
			if c.isDirect() {
				var err error
				if fd, err = c.loop.direct.install(fd); err != nil {
					return err
				}
				defer sys.Close(fd)
			}
			for i, o := range [][2]int{{sys.SOL_SOCKET, sys.SO_KEEPALIVE}, {sys.IPPROTO_TCP, sys.TCP_KEEPIDLE}, {sys.IPPROTO_TCP, sys.TCP_KEEPINTVL}} {
				got[i], _ = sys.GetsockoptInt(fd, o[0], o[1])
			}
			fds <- got
			return nil
		}}
		s, a := bind(t, e, "tcp", h)
		if _, err := e.Dial(t.Context(), "tcp://"+s.Addrs()[0].String(), h); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if got := receive(t, "OnOpen", fds); got != [3]int{1, 7, 7} {
				t.Errorf("keep-alive, idle time and interval are %v", got)
			}
		}
		e.Close()
		a.wait(t, 1)

		e = newEngine(t, config)
		s, a = bind(t, e, "tcp", funcs{open: func(c *Conn) error {
			if err := c.SetIdleTimeout(50 * time.Millisecond); err != nil {
				return err
			}
			_, err := c.Write(make([]byte, 1<<20))
			if errors.Is(err, ErrWouldBlock) {
				err = nil
			}
			return err
		}})
		client := dial(t, s.Addrs()[0])
		client.(*net.TCPConn).SetReadBuffer(4096)
		a.wait(t, 1)
		if err := a.errs()[0]; !errors.Is(err, ErrIdleTimeout) {
			t.Errorf("OnClose got %v", err)
		}
	})
}

// TestBadNetwork puts a proxy between that gives one byte at a time, waits, and ends streams early.
func TestBadNetwork(t *testing.T) {
	for _, plan := range []testutil.Plan{
		{Seed: 1, Chunk: 1},
		{Seed: 2, Chunk: 700, Stall: 2 * time.Millisecond},
	} {
		eachServer(t, func(t *testing.T, s *server) {
			p := testutil.NewProxy(t, s.addr, plan)
			everyone(t, 4, func(i int) error { return exchange(dial(t, p.Addr()), uint64(i), 10, 500) })
		})
	}
	eachServer(t, func(t *testing.T, s *server) {
		p := testutil.NewProxy(t, s.addr, testutil.Plan{Seed: 3, EndAfter: 10_000})
		c := dial(t, p.Addr())
		sent := patterned(1, 10_000)
		if _, err := c.Write(sent); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, sent) {
			t.Errorf("%d of %d bytes came, error %v", len(got), len(sent), err)
		}
	})
}
