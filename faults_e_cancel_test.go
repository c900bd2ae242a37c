//go:build linux

package pollux

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pollux-go/pollux/internal/invariants"
	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/internal/testutil"
	"github.com/pollux-go/pollux/internal/uring"
	"github.com/pollux-go/pollux/poller"
)

// What ends in group e: cancels, closes, descriptors that are used again, and the ring itself.

// reader is the server's end of a long stream: it sees every byte that is lost, doubled or foreign, whatever is done to the
// connection meanwhile.
type reader struct {
	id    uint64
	known bool // the first byte tells the number of the stream
	at    int
	ended bool
	fault error
}

func (r *reader) take(b []byte) {
	if !r.known && len(b) > 0 {
		r.id, r.known, b = uint64(b[0]), true, b[1:]
	}
	for _, got := range b {
		if r.fault == nil && got != pattern(r.id, r.at) {
			r.fault = fmt.Errorf("stream %d: byte %d is wrong", r.id, r.at)
		}
		r.at++
	}
}

// TestE15CancelRaces pauses, resumes, finishes, closes and takes out connections at any moment while bytes arrive. Each byte
// arrives once and in order, up to the end or until the connection is closed.
func TestE15CancelRaces(t *testing.T) {
	for _, tc := range []struct {
		mask                 string
		buffers, completions int
	}{
		{"", 16, 8}, {"-defer_taskrun", 16, 8}, // Requests end because buffers run out.
		{"-resize_rings", 64, 1}, {"-resize_rings,-defer_taskrun", 64, 1}, // They end by overflow, and bytes wait where nobody sees them.
	} {
		t.Run(fmt.Sprintf("mask=%s/buffers=%d", tc.mask, tc.buffers), func(t *testing.T) {
			config := tinyRings(t)
			config.UringFeatures = tc.mask
			config.Loops = 2
			config.RingBuffers = tc.buffers
			completions(t, tc.completions)
			e := newEngine(t, config)
			var operations atomic.Int64
			var detached sync.WaitGroup
			const length = 20_000
			check := func(r *reader, how string, whole bool) {
				if r.fault != nil {
					t.Errorf("%v, %s", r.fault, how)
				}
				if whole && r.at != length {
					t.Errorf("stream %d, %s: %d bytes have come, of %d", r.id, how, r.at, length)
				}
			}
			act := func(c *Conn, r *reader) error {
				operations.Add(1)
				switch n := rand.IntN(100); {
				case n < 30:
					c.Pause()
					go c.Resume()
				case n < 40:
					c.Pause()
					c.Write([]byte("x")) // A send while a receive is being canceled.
					c.Async(func(c *Conn) { c.Write([]byte("x")); c.Resume() })
				case n < 50:
					c.Resume()
					c.Pause()
					c.Resume()
				case n < 60:
					go func() { c.Pause(); runtime.Gosched(); c.Resume() }()
				case n < 64:
					c.CloseWrite()
				case n < 65:
					go c.Close()
				case n < 66:
					return c.Close()
				case n < 68:
					d, err := c.Detach()
					if err != nil {
						break // Something is queued.
					}
					detached.Go(func() {
						defer d.Close()
						d.SetDeadline(time.Now().Add(patience))
						b, err := io.ReadAll(d)
						if err != nil {
							t.Errorf("stream %d, taken out: %v", r.id, err)
						}
						r.take(b)
						check(r, "taken out", true)
					})
				}
				return nil
			}
			s, a := bind(t, e, "tcp", funcs{
				open: func(c *Conn) error { c.SetContext(&reader{}); return nil },
				data: func(c *Conn) error {
					r := c.Context().(*reader)
					b, _ := c.Next(-1)
					r.take(b)
					return act(c, r)
				},
				eof: func(c *Conn) error {
					c.Context().(*reader).ended = true
					return c.Close()
				},
				close: func(c *Conn, err error) {
					if r := c.Context().(*reader); !errors.Is(err, ErrDetached) {
						check(r, fmt.Sprint("closed with ", err), r.ended)
					}
				},
			})
			const enough = 5000
			var conns atomic.Int64
			everyoneGoesOn(t, 16, operations.Load, func(i int) error {
				b := append([]byte{byte(i)}, patterned(uint64(i), length)...)
				for operations.Load() < enough {
					c := dial(t, s.Addrs()[0])
					conns.Add(1)
					for rest := b; len(rest) > 0; {
						n := min(1+rand.IntN(1500), len(rest))
						if _, err := c.Write(rest[:n]); err != nil {
							break // The server has closed it.
						}
						rest = rest[n:]
					}
					c.(*net.TCPConn).CloseWrite()
					io.Copy(io.Discard, c)
					c.Close()
				}
				return nil
			})
			a.wait(t, int(conns.Load()))
			within(t, "those that were taken out", detached.Wait)
			stats, enters := uringTotals(t, e)
			t.Logf("%d operations on %d connections; %d enters, %+v", operations.Load(), conns.Load(), enters, stats)
		})
	}
}

// TestE15EndBehindPause has bytes arrive as a pause takes effect, and the end of the stream right after Resume. The bytes are
// delivered first.
func TestE15EndBehindPause(t *testing.T) {
	e := newEngine(t, tinyRings(t))
	got := make(chan string, 10)
	conns := make(chan *Conn, 1)
	s, a := bind(t, e, "tcp", funcs{
		open: func(c *Conn) error { conns <- c; return nil },
		data: func(c *Conn) error { b, _ := c.Next(-1); got <- string(b); return nil },
		eof:  func(c *Conn) error { got <- "end"; return c.Close() },
	})
	client := dial(t, s.Addrs()[0])
	c := receive(t, "the connection", conns)
	onLoop(t, e, func(l *loop) {
		client.Close()
		l.completer.Stop(c.token, func(*poller.Event) {}) // The events are ours from here on.
		c.Pause()
		l.arrived(c, []byte("last"))
		c.Resume()
		l.received(c, &poller.Event{Token: c.token, Ready: poller.Received})
	})
	for _, want := range []string{"last", "end"} {
		if b := receive(t, want, got); b != want {
			t.Errorf("the handler got %q, want %q", b, want)
		}
	}
	a.wait(t, 1)
}

// TestE15CloseDuringCancel closes a connection that has unread bytes while its receive is being canceled. It ends with its
// peer, and does not linger.
func TestE15CloseDuringCancel(t *testing.T) {
	for _, paused := range []bool{false, true} {
		config := tinyRings(t)
		config.Linger = time.Hour
		e := newEngine(t, config)
		s, a := bind(t, e, "tcp", funcs{data: func(c *Conn) error {
			c.Next(-1)
			c.Pause()
			return c.Async(func(c *Conn) { // In this turn: the cancel has not been submitted.
				if !paused {
					c.Resume()
				}
				c.Close()
			})
		}})
		client := dial(t, s.Addrs()[0])
		client.Write(make([]byte, 50_000))
		if n, err := client.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("the client reads %d bytes, error %v", n, err)
		}
		client.Close()
		a.wait(t, 1)
	}
}

// TestE15CloseWithABacklog closes a ring while Stop has met a connection that is for another one. It is not left open.
func TestE15CloseWithABacklog(t *testing.T) {
	config := tinyRings(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	file, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	client := dial(t, ln.Addr())
	defer client.Close()
	onUring(t, config, func(u *uringBackend) {
		all, tokens := newStreams(t, 1)
		listener, _ := tokens.Put(nil)
		if err := errors.Join(u.Accept(int(file.Fd()), listener), u.Receive(all[0].fd, all[0].token)); err != nil {
			t.Fatal(err)
		}
		u.Stop(all[0].token, func(*poller.Event) {})
		if len(u.backlog) == 0 {
			t.Error("Stop has met no connection")
		}
	})
}

// TestE15SendDuringCancel asks for a send while a receive is being canceled. The cancel goes on: it is answered, and nothing
// is armed again.
func TestE15SendDuringCancel(t *testing.T) {
	onUring(t, tinyRings(t), func(u *uringBackend) {
		all, _ := newStreams(t, 1)
		s := all[0]
		events := make([]poller.Event, 64)
		for round := range 1000 {
			if err := u.Receive(s.fd, s.token); err != nil {
				t.Fatal(err)
			}
			if round%2 == 0 {
				u.Wait(events, 0)
			}
			s.send(round % 3 * 400) // Some rounds have the last bytes arrive with the cancel, or run out of buffers.
			u.Cancel(s.token)
			if err := u.Send(s.fd, s.token, []byte("x")); err != nil {
				t.Fatal(err)
			}
			answered, sent := false, false
			for end := time.Now().Add(patience / 2); !answered || !sent; {
				n, err := u.Wait(events, time.Millisecond)
				if err != nil || time.Now().After(end) {
					t.Fatalf("round %d: the cancel was answered: %v; the send: %v; error %v", round, answered, sent, err)
				}
				for _, ev := range events[:n] {
					switch {
					case ev.Ready&poller.Sent != 0:
						sent = true
					case ev.Result > 0:
						if answered {
							t.Fatal("bytes came after the answer to the cancel")
						}
						b := u.Bytes(&ev)
						if err := s.check(b, s.received); err != nil {
							t.Fatal(err)
						}
						s.received += len(b)
						u.Recycle(&ev)
					case ev.Result == -int32(sys.ECANCELED):
						answered = true
					default:
						t.Fatalf("event %+v", ev)
					}
				}
			}
			// What has not been received is read as from any socket, which the loop does too.
			b := make([]byte, 4096)
			for {
				n, errno := sys.Recv(s.fd, b)
				if errno != 0 || n == 0 {
					break
				}
				if err := s.check(b[:n], s.received); err != nil {
					t.Fatal(err)
				}
				s.received += n
			}
			if s.received != s.sent {
				t.Fatalf("round %d: %d of %d bytes have come", round, s.received, s.sent)
			}
			sys.Recv(s.peer, b)
		}
	})
}

// TestE15CancelThatFindsNothing has a cancel find nothing because the request was on its way from one table of the kernel's
// to another. It is repeated, whatever was asked for the socket meanwhile.
func TestE15CancelThatFindsNothing(t *testing.T) {
	onUring(t, tinyRings(t), func(u *uringBackend) {
		all, _ := newStreams(t, 1)
		s := all[0]
		events := make([]poller.Event, 16)
		if err := u.Receive(s.fd, s.token); err != nil {
			t.Fatal(err)
		}
		u.Wait(events, 0)
		u.find(s.token).cancel = true // What Cancel does, but for the submission.
		if err := u.Send(s.fd, s.token, []byte("x")); err != nil {
			t.Fatal(err)
		}
		u.complete(&uring.CQE{UserData: userData(kindCancel, s.token), Res: -int32(unix.ENOENT)}, &events[0])
		for end := time.Now().Add(patience / 2); ; {
			n, err := u.Wait(events, time.Millisecond)
			if err != nil || time.Now().After(end) {
				t.Fatalf("the cancel was not answered, error %v", err)
			}
			for _, ev := range events[:n] {
				if ev.Ready&poller.Received != 0 && ev.Result == -int32(sys.ECANCELED) {
					return
				}
			}
		}
	})
}

// TestE15CloseWithEverythingUnderWay releases descriptors on which a receive, a send that does not go on, a poll and a poll
// for the hang-up are under way. The peer sees the end at once, and each descriptor is closed, once.
func TestE15CloseWithEverythingUnderWay(t *testing.T) {
	config := tinyRings(t)
	closes := map[int]int{}
	testutil.InjectFaults(t, func(op sys.Op, fd int) sys.Fault {
		if op == sys.OpClose {
			closes[fd]++
		}
		return sys.Fault{}
	})
	onUring(t, config, func(u *uringBackend) {
		const n = 100
		all, _ := newStreams(t, n)
		events := make([]poller.Event, 64)
		big := make([]byte, 8<<20)
		for _, s := range all {
			if err := errors.Join(u.Receive(s.fd, s.token), u.Send(s.fd, s.token, big), u.AwaitWritable(s.fd, s.token), u.AwaitHangUp(s.fd, s.token)); err != nil {
				t.Fatal(err)
			}
			s.send(100)
		}
		ended := func(s *stream) {
			t.Helper()
			for b := make([]byte, 64<<10); ; {
				if n, errno := sys.Recv(s.peer, b); errno != 0 && errno != sys.ECONNRESET {
					t.Errorf("stream %d: the peer reads: %v", s.id, errno)
					return
				} else if n == 0 {
					return
				}
			}
		}
		wait := func(room int, timeout time.Duration) {
			n, err := u.Wait(events[:room], timeout)
			if err != nil {
				t.Fatal(err)
			}
			for _, ev := range events[:n] {
				if ev.Ready&poller.Received != 0 && ev.Result > 0 {
					u.Bytes(&ev)
					u.Recycle(&ev)
				}
			}
		}
		// Some are released before anything was submitted, or before the events of it were seen.
		for i, s := range all {
			if i%3 != 0 {
				wait(1+i%7, 0)
			}
			fd := s.fd
			s.fd = -1
			clear(closes)
			u.Release(fd, s.token, i%2 == 0)
			reset := i%2 == 0
			if !reset {
				ended(s)
			}
			for end := time.Now().Add(patience / 2); closes[fd] == 0; {
				if time.Now().After(end) {
					t.Fatalf("descriptor %d is still in use: %+v", fd, u.closing[s.token])
				}
				wait(len(events), time.Millisecond)
			}
			ended(s)
			if closes[fd] != 1 {
				t.Errorf("descriptor %d was closed %d times", fd, closes[fd])
			}
		}
		if len(u.closing) > 0 {
			t.Errorf("%d descriptors are still being closed", len(u.closing))
		}
		wholePool(t, u)
	})
}

// TestE16CancelOfOneRequest cancels a receive of a socket that has a send and a poll under way. They go on.
func TestE16CancelOfOneRequest(t *testing.T) {
	onUring(t, tinyRings(t), func(u *uringBackend) {
		all, _ := newStreams(t, 1)
		s := all[0]
		big := make([]byte, 4<<20)
		if err := errors.Join(u.Receive(s.fd, s.token), u.Send(s.fd, s.token, big), u.AwaitWritable(s.fd, s.token), u.AwaitHangUp(s.fd, s.token)); err != nil {
			t.Fatal(err)
		}
		events := make([]poller.Event, 16)
		var seen []poller.Event
		wait := func(timeout time.Duration) {
			n, err := u.Wait(events, timeout)
			if err != nil {
				t.Fatal(err)
			}
			seen = append(seen, events[:n]...)
		}
		wait(0)
		u.Cancel(s.token)
		for range 5 {
			wait(time.Millisecond)
		}
		if len(seen) != 1 || seen[0].Ready&poller.Received == 0 || seen[0].Result != -int32(sys.ECANCELED) {
			t.Errorf("the cancel of a receive is answered by %+v", seen)
		}
		seen = nil
		b := make([]byte, 64<<10)
		for end := time.Now().Add(patience / 2); len(seen) < 2 && time.Now().Before(end); {
			sys.Recv(s.peer, b)
			wait(0)
		}
		for _, ev := range seen {
			if ev.Ready&poller.Sent != 0 && int(ev.Result) != len(big) {
				t.Errorf("%d bytes of %d were sent", ev.Result, len(big))
			}
		}
		if len(seen) != 2 {
			t.Errorf("the send and the poll have ended with %+v", seen)
		}
	})
}

// TestE16CancelLeavesTheOthers pauses connections whose answers wait for room: only the receive ends. A cancel of everything
// that concerns the descriptor would end the poll, and the answers would never go out.
func TestE16CancelLeavesTheOthers(t *testing.T) {
	config := tinyRings(t)
	config.WriteLimit = 64 << 10
	e := newEngine(t, config)
	s, a := bind(t, e, "tcp", echo{})
	const n, size = 4, 6 << 20 // More than the sockets hold.
	everyone(t, n, func(i int) error {
		c := dial(t, s.Addrs()[0])
		defer c.Close()
		sent := make(chan error, 1)
		go func() {
			_, err := c.Write(patterned(uint64(i), size))
			sent <- errors.Join(err, c.(*net.TCPConn).CloseWrite())
		}()
		// The echo pauses when nobody reads its answers.
		time.Sleep(50 * time.Millisecond)
		if err := checkPattern(c, uint64(i), size); err != nil {
			return err
		}
		return <-sent
	})
	a.wait(t, n)
}

// TestE11DescriptorsAgain connects and closes very often, with bytes under way in both directions: the descriptors, the slots
// and the buffers of one connection are the next one's a moment later. No byte of one reaches the other.
func TestE11DescriptorsAgain(t *testing.T) {
	config := tinyRings(t)
	config.Loops = 2
	config.Linger = -1
	e := newEngine(t, config)
	s, a := bind(t, e, "tcp", funcs{data: func(c *Conn) error {
		if rand.IntN(8) == 0 {
			return c.Close() // With bytes under way.
		}
		return echo{}.OnData(c)
	}, writable: echo{}.OnWritable})
	const n, clients = 4000, 16
	everyone(t, clients, func(i int) error {
		var b []byte
		for j := range n / clients {
			id := uint64(i*n + j)
			c := dial(t, s.Addrs()[0]).(*net.TCPConn)
			b = b[:0]
			for k := range uint64(3) {
				b = testutil.AppendRecord(b, id, k, 600)
			}
			if _, err := c.Write(b); err != nil && !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
				return err
			}
			for k := range uint64(rand.IntN(4)) {
				if err := testutil.ReadRecord(c, id, k); err != nil {
					if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, unix.ECONNRESET) {
						break
					}
					return err
				}
			}
			if j%2 == 0 {
				c.SetLinger(0)
			}
			c.Close()
		}
		return nil
	})
	a.wait(t, n)
	eventually(t, "the end of every request", func() bool {
		left := 0
		eachUring(t, e, func(u *uringBackend) { left += len(u.closing) })
		return left == 0
	})
	eachUring(t, e, func(u *uringBackend) { wholePool(t, u) })
}

// TestE19RefusedLater has enter fail for good once everything runs, as a filter would that is installed later. The engine
// ends: one line says why, and every connection is told.
func TestE19RefusedLater(t *testing.T) {
	for _, errno := range []sys.Errno{sys.EPERM, sys.ENOSYS, unix.EBADR, sys.ENOMEM} {
		t.Run(unix.ErrnoName(errno), func(t *testing.T) {
			config := tinyRings(t)
			log := &lines{}
			config.Logger = log.logger()
			var armed atomic.Bool
			testutil.InjectFaults(t, func(op sys.Op, _ int) sys.Fault {
				if op == sys.OpUringEnter && armed.Load() {
					return sys.Fault{Errno: errno}
				}
				return sys.Fault{}
			})
			e := newEngine(t, config)
			s, a := bind(t, e, "tcp", echo{})
			const n = 50
			var wg sync.WaitGroup
			for i := range n {
				c := dial(t, s.Addrs()[0])
				if err := pingPong(c, uint64(i), 0); err != nil {
					t.Fatal(err)
				}
				wg.Go(func() {
					for j := uint64(1); pingPong(c, uint64(i), j) == nil; j++ {
					}
					c.Close()
				})
			}
			armed.Store(true)
			within(t, "the clients", wg.Wait)
			a.wait(t, n)
			for _, l := range e.loops {
				receive(t, "the end of a loop", l.done)
			}
			within(t, "Close", func() { e.Close() })
			if got := log.all(); len(got) != 1 || !strings.Contains(got[0], "level=ERROR") || !strings.Contains(got[0], errno.Error()) {
				t.Errorf("the log says %q", got)
			}
			if _, err := e.Bind(echo{}, "tcp://127.0.0.1:0"); !errors.Is(err, ErrClosed) {
				t.Errorf("Bind afterwards: %v", err)
			}
		})
	}
	t.Run("register", func(t *testing.T) {
		// Nothing is registered any more once the loops run, but for the end, which does without it.
		config := tinyRings(t)
		var armed atomic.Bool
		testutil.InjectFaults(t, func(op sys.Op, _ int) sys.Fault {
			if op == sys.OpUringRegister && armed.Load() {
				return sys.Fault{Errno: sys.EPERM}
			}
			return sys.Fault{}
		})
		e := newEngine(t, config)
		s, a := bind(t, e, "tcp", echo{})
		if err := pingPong(dial(t, s.Addrs()[0]), 1, 0); err != nil {
			t.Fatal(err)
		}
		armed.Store(true)
		exchangeAll(t, s.Addrs()[0], 50, 10, 1000)
		within(t, "Close", func() { e.Close() })
		a.wait(t, 51)
	})
}

// TestE21OwnerEnds has the thread that owns a ring end, with everything under way. Close, on another thread, does not hang,
// descriptors that were being closed are closed, and the kernel writes nowhere any more.
func TestE21OwnerEnds(t *testing.T) {
	for _, mask := range []string{"", "-defer_taskrun", "-registered_ring", "-defer_taskrun,-coop_taskrun,-epoll_wait"} {
		t.Run("mask="+mask, func(t *testing.T) {
			config := tinyRings(t)
			config.UringFeatures = mask
			u := openTiny(t, config)
			all, _ := newStreams(t, 8)
			big := make([]byte, 8<<20)
			within(t, "the owner", func() {
				runtime.LockOSThread() // Never unlocked: the thread ends, and leaves the ring behind.
				for i, s := range all {
					if err := errors.Join(u.Receive(s.fd, s.token), u.AwaitHangUp(s.fd, s.token)); err != nil {
						t.Error(err)
					}
					if i%2 == 0 {
						if err := errors.Join(u.Send(s.fd, s.token, big), u.AwaitWritable(s.fd, s.token)); err != nil {
							t.Error(err)
						}
					}
				}
				events := make([]poller.Event, 16)
				for range 3 {
					if _, err := u.Wait(events, 0); err != nil {
						t.Error(err)
					}
				}
				for _, s := range all[:4] {
					u.Release(s.fd, s.token, false)
					s.fd = -1
				}
			})
			var enters atomic.Int64
			testutil.InjectFaults(t, func(op sys.Op, _ int) sys.Fault {
				if op == sys.OpUringEnter {
					enters.Add(1)
				}
				return sys.Fault{}
			})
			start := time.Now()
			if err := u.Close(); err != nil {
				t.Error(err)
			}
			// It would enter whatever ring this thread has registered under the same number.
			if d := time.Since(start); d > 3*time.Second || enters.Load() > 0 {
				t.Errorf("Close took %v, and entered %d times a ring that is not this thread's", d, enters.Load())
			}
			// Whoever is given the addresses next finds there what he has written.
			var maps [][]byte
			for range 16 {
				m, errno := sys.MapMemory(4096)
				if errno != 0 {
					t.Fatal(errno)
				}
				defer sys.Unmap(m)
				for i := range m {
					m[i] = 0x5a
				}
				maps = append(maps, m)
			}
			for _, s := range all {
				s.send(1000)
			}
			time.Sleep(20 * time.Millisecond)
			for _, m := range maps {
				for i, b := range m {
					if b != 0x5a {
						t.Fatalf("byte %d of memory that belongs to somebody else is %#x", i, b)
					}
				}
			}
		})
	}
}

// TestE22ForeignThread uses a ring from a thread that does not own it. The error says what is wrong, and the ring works on.
func TestE22ForeignThread(t *testing.T) {
	for _, mask := range []string{"", "-registered_ring"} {
		t.Run("mask="+mask, func(t *testing.T) {
			config := tinyRings(t)
			config.UringFeatures = mask
			onUring(t, config, func(u *uringBackend) {
				all, _ := newStreams(t, 1)
				if err := u.Receive(all[0].fd, all[0].token); err != nil {
					t.Fatal(err)
				}
				events := make([]poller.Event, 1)
				foreign := make(chan error, 1)
				go func() {
					runtime.LockOSThread()
					if invariants.Enabled {
						// A ring of its own, which has the same number among the thread's registered ones. That is found out only
						// where it may cost something.
						own := openTiny(t, config)
						defer own.Close()
						if _, err := own.Wait(make([]poller.Event, 1), 0); err != nil {
							t.Error(err)
						}
					}
					_, err := u.Wait(events, time.Millisecond)
					foreign <- err
				}()
				if err := <-foreign; err == nil || !strings.Contains(err.Error(), "another thread") {
					t.Errorf("a Wait on another thread: %v", err)
				}
				all[0].send(10)
				for end := time.Now().Add(patience / 2); ; {
					n, err := u.Wait(events, time.Millisecond)
					if err != nil || time.Now().After(end) {
						t.Fatalf("the ring does not work any more: %v", err)
					}
					if n == 1 {
						if events[0].Result != 10 {
							t.Errorf("event %+v", events[0])
						}
						u.Bytes(&events[0])
						u.Recycle(&events[0])
						break
					}
				}
			})
		})
	}
}

// TestE23BusyLoop has a loop that never sleeps, because one connection always has more. What is complete is seen all the
// same: with deferred work it is nowhere to be seen until somebody enters.
func TestE23BusyLoop(t *testing.T) {
	for _, mask := range []string{"", "-defer_taskrun", "-defer_taskrun,-coop_taskrun"} {
		t.Run("mask="+mask, func(t *testing.T) {
			config := tinyRings(t)
			config.UringFeatures = mask
			e := newEngine(t, config)
			s, a := bind(t, e, "tcp", echo{})
			var spin func()
			stop := make(chan struct{})
			l := e.loops[0]
			spin = func() {
				select {
				case <-stop:
				default:
					_ = l.inner.PostAlways(spin) // There is a letter each turn.
				}
			}
			_ = l.inner.PostAlways(spin)
			exchangeAll(t, s.Addrs()[0], 50, 10, 1000)
			close(stop)
			a.wait(t, 50)
		})
	}
}
