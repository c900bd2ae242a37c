//go:build linux

package pollux

import (
	"context"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pollux-go/pollux/internal/testutil"
)

// Faults of group g: deadlines.
//
// Not here: G6, a jump of the wall clock, which would hit the whole machine: package poller tests its clock. G8 is a
// process that was stopped: what it leads to, many deadlines that are over at once, is made by a loop that is held. G9
// is about operations that the kernel holds (io_uring).

// pair returns the two ends of a connection of the net API, ours and the client's.
func pair(t testing.TB, e *Engine, network string) (ours, client net.Conn) {
	t.Helper()
	ln, err := e.Listen(network, listenAddress(t, network))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client = dial(t, ln.Addr())
	ours, err = ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ours.Close() })
	return ours, client
}

// deadlineReader reads with deadlines that are about as long as the answers take, and tries again: no byte may be lost
// between a timeout and the next read.
type deadlineReader struct {
	c        net.Conn
	random   *rand.Rand
	timeouts int
}

func (r *deadlineReader) Read(p []byte) (int, error) {
	for end := time.Now().Add(patience); ; {
		r.c.SetReadDeadline(time.Now().Add(time.Duration(r.random.IntN(100)) * time.Microsecond))
		n, err := r.c.Read(p)
		switch {
		case err == nil || n > 0:
			return n, err
		case !errors.Is(err, os.ErrDeadlineExceeded) || time.Now().After(end):
			return n, err
		}
		r.timeouts++
	}
}

func TestG1DeadlineAndDataTogether(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		for _, network := range []string{"tcp", "unix"} {
			t.Run("net/"+network, func(t *testing.T) {
				testutil.CheckLeaks(t)
				c, client := pair(t, newEngine(t, config), network)
				go func() {
					for i := range uint64(1000) {
						client.Write(testutil.AppendRecord(nil, 1, i, 100))
						runtime.Gosched()
					}
					client.(interface{ CloseWrite() error }).CloseWrite()
				}()
				r := &deadlineReader{c: c, random: rand.New(rand.NewPCG(1, 1))}
				for i := range uint64(1000) {
					if err := testutil.ReadRecord(r, 1, i); err != nil {
						t.Fatal(err)
					}
				}
				if n, err := r.Read(make([]byte, 1)); err != io.EOF {
					t.Errorf("after the last record: %d bytes, error %v", n, err)
				}
				if r.timeouts == 0 {
					t.Error("no read timed out: nothing was tested")
				}
			})
		}
		t.Run("event", func(t *testing.T) {
			testutil.CheckLeaks(t)
			e := newEngine(t, config)
			s, a := bind(t, e, "tcp", funcs{
				open: func(c *Conn) error { return c.SetIdleTimeout(time.Millisecond) },
				data: echo{}.OnData,
			})
			// Each client speaks at about the time at which it is given up: it gets its answer, or the end.
			everyone(t, 16, func(i int) error {
				random := rand.New(rand.NewPCG(uint64(i), 1))
				for range 10 {
					c := dial(t, s.Addrs()[0])
					for j := uint64(0); ; j++ {
						time.Sleep(time.Duration(random.IntN(1500)) * time.Microsecond)
						err := pingPong(c, uint64(i), j)
						if errors.Is(err, os.ErrDeadlineExceeded) {
							return err
						}
						if err != nil {
							break
						}
					}
					c.Close()
				}
				return nil
			})
			a.wait(t, 160)
		})
	})
}

// TestG2DeadlineThatWasMoved sets deadlines and takes them back before they are over.
func TestG2DeadlineThatWasMoved(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		t.Run("net", func(t *testing.T) {
			testutil.CheckLeaks(t)
			c, client := pair(t, newEngine(t, config), "tcp")
			b := make([]byte, 1)
			c.SetReadDeadline(time.Now().Add(10 * time.Second))
			c.SetReadDeadline(time.Time{})
			c.SetReadDeadline(time.Unix(1, 0))
			if _, err := c.Read(b); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("Read: %v", err)
			}
			for range 100 {
				c.SetReadDeadline(time.Now().Add(200 * time.Microsecond))
				c.SetReadDeadline(time.Now().Add(time.Hour))
				client.Write(b)
				if _, err := c.Read(b); err != nil {
					t.Fatal(err)
				}
			}
			// The timers that were set above are over long before this read gets its byte.
			time.AfterFunc(5*time.Millisecond, func() { client.Write(b) })
			if _, err := c.Read(b); err != nil {
				t.Errorf("an old timer has ended a read: %v", err)
			}
			done := make(chan error, 1)
			go func() { _, err := c.Read(b); done <- err }()
			c.SetReadDeadline(time.Now())
			if err := receive(t, "Read", done); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("Read: %v", err)
			}
		})
		t.Run("event", func(t *testing.T) {
			testutil.CheckLeaks(t)
			e := newEngine(t, config)
			opened := make(chan *Conn, 1)
			s, a := bind(t, e, "tcp", funcs{
				open: func(c *Conn) error { opened <- c; return nil },
				data: echo{}.OnData,
			})
			client := dial(t, s.Addrs()[0])
			c := receive(t, "OnOpen", opened)
			c.SetIdleTimeout(time.Hour)
			c.SetIdleTimeout(20 * time.Millisecond)
			c.SetIdleTimeout(0)
			<-time.After(60 * time.Millisecond)
			if err := pingPong(client, 1, 0); err != nil {
				t.Fatalf("an idle timeout that was taken back has closed the connection: %v", err)
			}
			c.SetIdleTimeout(time.Millisecond)
			a.wait(t, 1)
			if err := a.errs()[0]; !errors.Is(err, ErrIdleTimeout) || !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("OnClose got %v", err)
			}
			if err := c.SetIdleTimeout(time.Second); !errors.Is(err, ErrClosed) {
				t.Errorf("SetIdleTimeout after the end: %v", err)
			}
		})
	})
}

// TestG3DeadlinesSetAsTheyExpire moves deadlines from 8 goroutines at the moments at which they are over.
func TestG3DeadlinesSetAsTheyExpire(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		e := newEngine(t, config)
		c, _ := pair(t, e, "tcp")
		var opened atomic.Pointer[Conn]
		s, _ := bind(t, e, "tcp", funcs{open: func(c *Conn) error { opened.Store(c); return nil }})
		dial(t, s.Addrs()[0])
		eventually(t, "OnOpen", func() bool { return opened.Load() != nil })
		reading := make(chan struct{})
		var stop atomic.Bool
		go func() {
			defer close(reading)
			for !stop.Load() {
				if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("Read: %v", err)
					return
				}
			}
		}()
		everyone(t, 8, func(i int) error {
			for range 500 {
				c.SetDeadline(time.Now().Add(time.Duration(i*10) * time.Microsecond))
				opened.Load().SetIdleTimeout(time.Hour - time.Duration(i)*time.Second)
			}
			return nil
		})
		stop.Store(true)
		c.SetDeadline(time.Unix(1, 0))
		receive(t, "the reader", reading)
	})
}

// TestG4SetDeadlineAgainstRead is the program of golang/go#68273: one goroutine reads with a deadline, another one
// moves it.
func TestG4SetDeadlineAgainstRead(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
		for _, procs := range []int{1, 2, 8} {
			runtime.GOMAXPROCS(procs)
			c, client := pair(t, newEngine(t, config), "tcp")
			go func() {
				for i := range uint64(500) {
					client.Write(testutil.AppendRecord(nil, 1, i, 10))
				}
			}()
			var wg sync.WaitGroup
			var stop atomic.Bool
			wg.Go(func() {
				for !stop.Load() {
					c.SetReadDeadline(time.Now().Add(time.Hour))
					runtime.Gosched()
				}
			})
			within(t, "the reads", func() {
				for i := range uint64(500) {
					c.SetReadDeadline(time.Now().Add(time.Hour))
					if err := testutil.ReadRecord(c, 1, i); err != nil {
						t.Error(err)
						return
					}
				}
			})
			stop.Store(true)
			within(t, "the setter", wg.Wait)
		}
	})
}

// TestG5PastDeadline sets deadlines that are over before the call: it fails, even where it could succeed.
func TestG5PastDeadline(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		c, client := pair(t, newEngine(t, config), "tcp")
		client.Write([]byte("x"))
		b := make([]byte, 1)
		for _, past := range []time.Time{time.Unix(1, 0), time.Unix(0, 0), time.Now(), time.Unix(math.MinInt64/4, 0), (time.Time{}).Add(1)} {
			c.SetDeadline(past)
			if n, err := c.Read(b); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("deadline %v: Read: %d bytes, error %v", past, n, err)
			}
			if n, err := c.Write(b); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("deadline %v: Write: %d bytes, error %v", past, n, err)
			}
		}
		c.SetDeadline(time.Time{})
		if n, err := c.Read(b); n != 1 || err != nil {
			t.Errorf("without a deadline: Read: %d bytes, error %v", n, err)
		}
	})
}

// TestG7HugeDeadlines sets times and durations that no arithmetic must overflow on.
func TestG7HugeDeadlines(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		t.Run("net", func(t *testing.T) {
			testutil.CheckLeaks(t)
			e := newEngine(t, config)
			c, client := pair(t, e, "tcp")
			for _, huge := range []time.Time{time.Unix(1<<62, 0), time.Unix(1<<40, 0), time.Now().Add(math.MaxInt64), time.Unix(0, math.MaxInt64)} {
				if err := c.SetDeadline(huge); err != nil {
					t.Fatal(err)
				}
				b := make([]byte, 1)
				done := make(chan error, 1)
				go func() { _, err := c.Read(b); done <- err }()
				select {
				case err := <-done:
					t.Fatalf("deadline %v: Read: %v", huge, err)
				case <-time.After(5 * time.Millisecond):
				}
				client.Write(b)
				if err := receive(t, "Read", done); err != nil {
					t.Errorf("deadline %v: Read: %v", huge, err)
				}
			}
		})
		t.Run("event", func(t *testing.T) {
			testutil.CheckLeaks(t)
			config.Linger, config.Drain, config.KeepAlive = math.MaxInt64, math.MaxInt64, math.MaxInt64
			config.WriteLimit = 16 << 20
			e := newEngine(t, config)
			s, a := bind(t, e, "tcp", funcs{
				open: func(c *Conn) error { return c.SetIdleTimeout(math.MaxInt64) },
				data: func(c *Conn) error {
					c.Discard(-1)
					c.Write(patterned(1, 16<<20))
					return c.Close()
				},
			})
			client := dial(t, s.Addrs()[0])
			client.Write([]byte("x"))
			waitClosing(t, e, a)
			if err := checkPattern(client, 1, 16<<20); err != nil {
				t.Error(err)
			}
			a.wait(t, 1)
			if err := errors.Join(a.errs()...); err != nil {
				t.Errorf("OnClose got %v", err)
			}
			ctx, cancel := context.WithDeadline(t.Context(), time.Unix(1<<40, 0))
			defer cancel()
			c, err := e.DialContext(ctx, "tcp", s.Addrs()[0].String())
			if err != nil {
				t.Fatal(err)
			}
			c.Close()
		})
	})
}

// TestG8ManyDeadlinesAtOnce has a thousand idle timeouts be over when the loop comes back.
func TestG8ManyDeadlinesAtOnce(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		config.Loops = 1
		e := newEngine(t, config)
		var idle atomic.Bool
		idle.Store(true)
		s, a := bind(t, e, "tcp", funcs{
			open: func(c *Conn) error {
				if idle.Load() {
					return c.SetIdleTimeout(500 * time.Millisecond)
				}
				return nil
			},
			data: echo{}.OnData,
		})
		const n = 1000
		for range n {
			dial(t, s.Addrs()[0])
		}
		eventually(t, "the connections", func() bool { opened, _ := a.counts(); return opened == n })
		release := holdLoops(t, e)
		defer release()
		<-time.After(550 * time.Millisecond)
		idle.Store(false)
		late := dial(t, s.Addrs()[0])
		late.Write(testutil.AppendRecord(nil, 1, 0, 100))
		release()
		if err := testutil.ReadRecord(late, 1, 0); err != nil {
			t.Error(err)
		}
		late.Close()
		a.wait(t, n+1)
		timeouts := 0
		for _, err := range a.errs() {
			if errors.Is(err, ErrIdleTimeout) {
				timeouts++
			}
		}
		if timeouts != n {
			t.Errorf("%d of %d connections were closed for being idle", timeouts, n)
		}
	})
}

// TestG10TimersDoNotPileUp sets a deadline for each of very many requests.
func TestG10TimersDoNotPileUp(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		config.Loops = 1
		e := newEngine(t, config)
		c, _ := pair(t, e, "tcp")
		opened := make(chan *Conn, 1)
		s, _ := bind(t, e, "tcp", funcs{open: func(c *Conn) error { opened <- c; return nil }})
		dial(t, s.Addrs()[0])
		ec := receive(t, "OnOpen", opened)
		heap := func() int64 {
			var m runtime.MemStats
			onLoop(t, e, func(*loop) {})
			runtime.GC()
			runtime.ReadMemStats(&m)
			return int64(m.HeapAlloc)
		}
		set := func(n int) {
			for i := range n {
				c.SetDeadline(time.Now().Add(time.Hour + time.Duration(i%7)*time.Second))
				ec.SetIdleTimeout(time.Hour + time.Duration(i%7)*time.Second)
			}
		}
		set(1000)
		before := heap()
		set(100_000)
		if grown := heap() - before; grown > 1<<20 {
			t.Errorf("100,000 deadlines have left %d KiB behind", grown>>10)
		}
	})
}

// TestG11DeadlinesOfAcceptAndDial waits for connections that do not come.
func TestG11DeadlinesOfAcceptAndDial(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		for _, network := range []string{"tcp", "unix"} {
			t.Run(network, func(t *testing.T) {
				testutil.CheckLeaks(t)
				e := newEngine(t, config)
				ln, err := e.Listen(network, listenAddress(t, network))
				if err != nil {
					t.Fatal(err)
				}
				dl := ln.(interface{ SetDeadline(time.Time) error })
				for _, d := range []time.Duration{-time.Second, 5 * time.Millisecond} {
					dl.SetDeadline(time.Now().Add(d))
					if _, err := ln.Accept(); !errors.Is(err, os.ErrDeadlineExceeded) {
						t.Errorf("Accept with a deadline in %v: %v", d, err)
					}
				}
				dl.SetDeadline(time.Time{})
				dial(t, ln.Addr())
				c, err := ln.Accept()
				if err != nil {
					t.Fatal(err)
				}
				c.Close()
				ctx, cancel := context.WithTimeout(t.Context(), -time.Second)
				defer cancel()
				if _, err := e.DialContext(ctx, network, ln.Addr().String()); !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("DialContext with a context that has ended: %v", err)
				}
				if _, err := e.Dial(ctx, network+"://"+ln.Addr().String(), NopHandler{}); !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("Dial with a context that has ended: %v", err)
				}
			})
		}
	})
}
