//go:build linux

package pollux

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"math"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pollux-go/pollux/internal/testutil"
)

func TestBacklogWorth(t *testing.T) {
	if backlogWorth == 0 {
		t.Skip("POLLUX_TEST_BACKLOG is set")
	}
	const us = int64(time.Microsecond)
	for _, tc := range []struct {
		mean      int64
		callbacks int
		want      bool
	}{
		{100 * us, 1, false}, {100 * us, 2, true}, {99 * us, 2, false}, {20 * us, 9, false}, {20 * us, 10, true}, {19 * us, 256, false}, {0, 256, false},
	} {
		if b := (&backlog{mean: tc.mean}); b.worth(tc.callbacks) != tc.want {
			t.Errorf("%d callbacks of %d ns: %v, want %v", tc.callbacks, tc.mean, !tc.want, tc.want)
		}
	}
	for _, tc := range []struct{ callbacks, spare, want int }{
		{10, 1, 5}, {11, 1, 5}, {10, 4, 8}, {2, 1, 1}, {2, 100, 1}, {256, 255, 255}, {10, 0, 0}, {10, -3, 0},
	} {
		if got := new(backlog).share(tc.callbacks, tc.spare); got != tc.want {
			t.Errorf("of %d callbacks, %d are for %d idle CPUs, want %d", tc.callbacks, got, tc.spare, tc.want)
		}
	}
	// The mean comes near to what callbacks take, from above and from below; a slow one does not make a backlog.
	var b backlog
	turns := func(n, ran int, took int64) {
		for range n {
			b.ran = ran
			b.turn(took)
		}
	}
	if turns(100, 4, 200*us); b.mean < 49*us || b.mean > 50*us {
		t.Errorf("callbacks take 50 us, and %d ns in the mean", b.mean)
	}
	if turns(100, 4, 8*us); b.mean < 2*us || b.mean > 3*us {
		t.Errorf("callbacks take 2 us, and %d ns in the mean", b.mean)
	}
	before := b.mean
	if turns(100, 0, 1000*us); b.mean != before {
		t.Errorf("turns without a callback have changed the mean to %d ns", b.mean)
	}
	turns(1, 1, 1e9)
	if turns(3, 4, 8*us); b.worth(256) {
		t.Errorf("after a callback of 1 s and three turns, the mean is %d ns", b.mean)
	}
}

// herd is a service with clients, whose bytes come in one turn of the only loop, which takes it for a backlog.
type herd struct {
	engine  *Engine
	service *Service
	audit   *audit
	clients [16]net.Conn
}

func newHerd(t *testing.T, config Config, h Handler) *herd {
	t.Helper()
	config.Loops, config.Dispatch = 1, DispatchSteal
	w := &herd{engine: newEngine(t, config)}
	w.service, w.audit = bind(t, w.engine, "tcp", h)
	w.service.pace.bucket.Store(math.MinInt32 / 2) // It is never slow, whatever the machine makes of it.
	for i := range w.clients {
		w.clients[i] = dial(t, w.service.Addrs()[0])
	}
	eventually(t, "the connections", func() bool { return w.service.Conns() == len(w.clients) })
	return w
}

// send has all clients send text.
func (w *herd) send(t *testing.T, text string) {
	t.Helper()
	l := w.engine.loops[0]
	if err := l.inner.PostAlways(func() { l.engine.cpus.Store(2); l.backlog.mean = int64(time.Millisecond) }); err != nil {
		t.Fatal(err)
	}
	release := holdLoops(t, w.engine) // The next turn has what is sent.
	defer release()
	for _, c := range w.clients {
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
	}
}

func (w *herd) end(t *testing.T) {
	t.Helper()
	for _, c := range w.clients {
		c.Close()
	}
	w.audit.wait(t, len(w.clients))
}

// TestBacklogIsShared has the loop's callbacks wait until a worker has run one.
func TestBacklogIsShared(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		var w *herd
		helped := make(chan struct{})
		var once atomic.Bool
		w = newHerd(t, config, funcs{data: func(c *Conn) error {
			if w.engine.onWorker() {
				if once.CompareAndSwap(false, true) {
					close(helped)
				}
			} else {
				select {
				case <-helped:
				case <-time.After(patience):
					return errors.New("no worker has come")
				}
			}
			return echo{}.OnData(c)
		}})
		w.send(t, "hello")
		for _, c := range w.clients {
			expect(t, c, "hello")
		}
		eventually(t, "the workers' callbacks to be counted", func() bool {
			s := w.engine.Stats()
			return s.Workers.Run >= s.Loops[0].Shared-s.Loops[0].TakenBack
		})
		if l := w.engine.Stats().Loops[0]; l.Shared == 0 || l.Shared > 8 || l.Shared == l.TakenBack {
			t.Errorf("%d callbacks were shared, and %d taken back", l.Shared, l.TakenBack)
		}
		w.end(t)
	})
}

// TestBacklogIsTakenBack has the only worker busy: the loop runs what it has offered, and leaves alone what is slow.
func TestBacklogIsTakenBack(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		config.Workers = 1
		w := newHerd(t, config, echo{})
		release := w.blockWorker(t)
		w.send(t, "hello")
		for _, c := range w.clients {
			expect(t, c, "hello")
		}
		if l := w.engine.Stats().Loops[0]; l.Shared == 0 || l.TakenBack != l.Shared {
			t.Errorf("%d callbacks were shared, and %d taken back", l.Shared, l.TakenBack)
		}
		release()
		w.end(t)
	})
}

// blockWorker has the only worker blocked, and something slow wait for it, until release is called.
func (w *herd) blockWorker(t *testing.T) (release func()) {
	t.Helper()
	blocked, goOn := make(chan struct{}, 2), make(chan struct{})
	slow, audit := bind(t, w.engine, "tcp", funcs{data: func(c *Conn) error {
		if !w.engine.onWorker() {
			t.Error("a slow callback was taken back")
		}
		blocked <- struct{}{}
		<-goOn
		return echo{}.OnData(c)
	}})
	slow.pace.bucket.Store(slowMost)
	slow.pace.isSlow.Store(true)
	first, second := dial(t, slow.Addrs()[0]), dial(t, slow.Addrs()[0])
	io.WriteString(first, "first")
	receive(t, "the worker", blocked)
	io.WriteString(second, "second")
	eventually(t, "the second one to wait", func() bool { return w.engine.loops[0].away.Load() == 2 })
	return func() {
		t.Helper()
		close(goOn)
		expect(t, first, "first")
		expect(t, second, "second")
		first.Close()
		second.Close()
		audit.wait(t, 2)
	}
}

// TestBacklogDetach takes out connections in callbacks that the loop has taken back, while more of their bytes have come
// already: each byte is there, in order.
func TestBacklogDetach(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		config.Workers, config.RingBufferSize = 1, 256
		sent := string(patterned(1, 1000))
		var out sync.WaitGroup
		w := newHerd(t, config, funcs{data: func(c *Conn) error {
			b, _ := c.Next(100)
			got := bytes.Clone(b)
			d, err := c.Detach()
			if err != nil {
				return err
			}
			go func() {
				defer out.Done()
				defer d.Close()
				_ = d.SetDeadline(time.Now().Add(patience))
				rest := make([]byte, len(sent)-len(got))
				if _, err := io.ReadFull(d, rest); err != nil {
					t.Error(err)
				}
				_, _ = d.Write(append(got, rest...))
			}()
			return nil
		}})
		out.Add(len(w.clients))
		release := w.blockWorker(t)
		w.send(t, sent)
		for _, c := range w.clients {
			expect(t, c, sent)
		}
		within(t, "those that were taken out", out.Wait)
		if l := w.engine.Stats().Loops[0]; l.TakenBack == 0 {
			t.Error("nothing was taken back")
		}
		release()
		w.end(t)
	})
}

// TestBacklogEnds has callbacks that are offered end in every way, whether a worker runs them or the loop.
func TestBacklogEnds(t *testing.T) {
	boom := errors.New("boom")
	for name, end := range map[string]func(c *Conn) error{
		"error":   func(*Conn) error { return boom },
		"close":   func(c *Conn) error { return c.Close() },
		"panic":   func(*Conn) error { panic(boom) },
		"goexit":  func(*Conn) error { runtime.Goexit(); return nil },
		"keep":    func(c *Conn) error { c.SetIdleTimeout(time.Millisecond); return nil },
		"pause":   func(c *Conn) error { c.Pause(); c.Resume(); return c.Close() },
		"async":   func(c *Conn) error { return c.Async(func(c *Conn) { c.Close() }) },
		"big":     func(c *Conn) error { c.Write(bytes.Repeat([]byte("x"), 1<<20)); return c.Close() },
		"release": func(c *Conn) error { go c.Close(); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			eachBackend(t, func(t *testing.T, config Config) {
				testutil.CheckLeaks(t)
				if name == "goexit" && config.Backend == KindUring {
					t.Skip("the engine closes")
				}
				config.Logger = slog.New(slog.DiscardHandler)
				w := newHerd(t, config, funcs{data: func(c *Conn) error {
					b, _ := c.Peek(1)
					if b[0] == '!' {
						return end(c)
					}
					return echo{}.OnData(c)
				}})
				w.send(t, "hello")
				for _, c := range w.clients {
					expect(t, c, "hello")
				}
				w.send(t, "!")
				for _, c := range w.clients {
					_ = c.SetReadDeadline(time.Now().Add(patience))
					if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
						t.Errorf("a connection was not closed: %v", err)
					}
				}
				if l := w.engine.Stats().Loops[0]; l.Shared == 0 {
					t.Error("nothing was shared")
				}
				w.end(t)
			})
		})
	}
}
