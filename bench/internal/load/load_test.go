package load

import (
	"context"
	"errors"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pollux-go/pollux/bench/internal/proc"
)

// serve runs handle for each connection to a loopback listener until the test ends.
func serve(t *testing.T, handle func(net.Conn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				handle(c)
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		wg.Wait()
	})
	return ln.Addr().String()
}

// echo sends back what edit makes of each piece; nil ends the connection.
func echo(edit func(b []byte) []byte) func(net.Conn) {
	return func(c net.Conn) {
		buf := make([]byte, 64<<10)
		for {
			n, err := c.Read(buf)
			if err != nil {
				return
			}
			b := edit(buf[:n])
			if b == nil {
				return
			}
			if _, err := c.Write(b); err != nil {
				return
			}
		}
	}
}

func same(b []byte) []byte { return b }

func config(addr string) Config {
	return Config{Addr: addr, Conns: 4, Size: 64, Pipeline: 1, Warmup: 20 * time.Millisecond, Duration: 150 * time.Millisecond}
}

func run(t *testing.T, cfg Config) (Result, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	return Run(ctx, cfg)
}

func TestClosedLoop(t *testing.T) {
	for _, test := range []struct {
		name                  string
		conns, size, pipeline int
	}{
		{"conns=1", 1, 64, 1},
		{"conns=100", 100, 64, 1},
		{"size=1", 4, 1, 1},
		{"pipeline=16", 4, 64, 16},
		{"size=1MiB", 2, 1 << 20, 1},
		{"size=odd,pipeline=3", 3, 100_003, 3},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg := config(serve(t, echo(same)))
			cfg.Conns, cfg.Size, cfg.Pipeline = test.conns, test.size, test.pipeline
			var starts, ends int
			cfg.Start = func() { starts++ }
			cfg.End = func() { ends++ }
			r, err := run(t, cfg)
			if err != nil {
				t.Fatal(err)
			}
			if r.Requests == 0 {
				t.Error("no request was counted")
			}
			if got := uint64(r.Latency.TotalCount()); got != r.Requests {
				t.Errorf("%d latencies of %d requests", got, r.Requests)
			}
			if r.Elapsed < cfg.Duration || r.Elapsed > cfg.Duration+5*time.Second {
				t.Errorf("the window was %v, asked for was %v", r.Elapsed, cfg.Duration)
			}
			if starts != 1 || ends != 1 {
				t.Errorf("Start was called %d times, End %d times", starts, ends)
			}
		})
	}
}

func TestOpenLoop(t *testing.T) {
	for _, spin := range []bool{false, true} {
		cfg := config(serve(t, echo(same)))
		cfg.Rate, cfg.Spin = 2000, spin
		r, err := run(t, cfg)
		if err != nil {
			t.Fatal(err)
		}
		// Every request that was due in the window is in the histogram, exactly once.
		want := cfg.Rate * cfg.Duration.Seconds()
		if got := float64(r.Latency.TotalCount()); got < want-1 || got > want+1 {
			t.Errorf("spin=%v: %v latencies, %v were due", spin, got, want)
		}
		if r.Lag.TotalCount() == 0 {
			t.Errorf("spin=%v: no lag was recorded", spin)
		}
		if r.Unfinished != 0 {
			t.Errorf("spin=%v: %d requests without an answer", spin, r.Unfinished)
		}
	}
}

// A generator that has no time to sleep is not realtime: the kernel would stop it. The process's other threads are what it is, as it
// may have to wait for one of them on its CPU. All are what they were, afterwards.
func TestPrefer(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	attrOf := func(tid int) unix.SchedAttr {
		a, err := unix.SchedGetAttr(tid, 0)
		if err != nil && err != unix.ESRCH {
			t.Fatal(err)
		}
		return *a
	}
	before := attrOf(0)
	all := func(want unix.SchedAttr) {
		t.Helper()
		if err := proc.EachThread(func(tid int) error {
			if a := attrOf(tid); a != want && a.Size != 0 {
				t.Errorf("thread %d has %+v, want %+v", tid, a, want)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		rate     float64
		realtime bool
	}{{1, true}, {5000, true}, {20_000, false}, {1e6, false}} {
		realtime, release := prefer(test.rate)
		a := attrOf(0)
		if a == before {
			t.Skip("the process may not come before others")
		}
		if realtime != test.realtime || (a.Policy == unix.SCHED_FIFO) != test.realtime || !realtime && a.Nice != -20 {
			t.Errorf("at %v/s it is realtime: %v, with %+v", test.rate, realtime, a)
		}
		all(a)
		release()
		all(before)
	}
}

// A server that stands still for a while has made late all requests that were due
// meanwhile, not only the one that it happened to hold.
func TestOpenLoopCountsFromIntendedTime(t *testing.T) {
	const pause = 100 * time.Millisecond
	var pieces atomic.Int64
	addr := serve(t, echo(func(b []byte) []byte {
		if pieces.Add(1) == 200 {
			time.Sleep(pause)
		}
		return b
	}))
	cfg := config(addr)
	cfg.Conns, cfg.Rate, cfg.Duration = 1, 2000, 400*time.Millisecond
	r, err := run(t, cfg)
	if err != nil {
		t.Fatal(err)
	}
	// 200 requests were due during the pause; those of its first half waited for 50 ms
	// or more.
	var late int64
	for _, bar := range r.Latency.Distribution() {
		if bar.From >= int64(pause/2) {
			late += bar.Count
		}
	}
	if late < 90 {
		t.Errorf("%d requests waited for half of the pause or longer, about 100 did", late)
	}
	if r.Latency.Max() < int64(pause*9/10) {
		t.Errorf("the longest latency is %v, the pause was %v", time.Duration(r.Latency.Max()), pause)
	}
}

func TestWrongBytesAreFound(t *testing.T) {
	// Each server does right for a while and then wrong once, on one connection.
	nth := func(wrong func([]byte) []byte) func([]byte) []byte {
		var pieces atomic.Int64
		return func(b []byte) []byte {
			if pieces.Add(1) == 100 {
				return wrong(b)
			}
			return b
		}
	}
	var held atomic.Pointer[[]byte]
	for _, test := range []struct {
		name string
		edit func([]byte) []byte
		want string
	}{
		{"flipped bit", nth(func(b []byte) []byte { b[len(b)-1] ^= 4; return b }), "of the stream is"},
		{"lost byte", nth(func(b []byte) []byte { return b[1:] }), "of the stream is"},
		{"doubled byte", nth(func(b []byte) []byte { return append(b[:1:1], b[:len(b)-1]...) }), "of the stream is"},
		{"doubled message", nth(func(b []byte) []byte { return append(b[:len(b):len(b)], b...) }), "were sent"},
		{"lost message", nth(func(b []byte) []byte { return b[:0] }), "no answer for"},
		{"another connection's", func() func([]byte) []byte {
			var pieces atomic.Int64
			return func(b []byte) []byte {
				switch n := pieces.Add(1); {
				case n == 90:
					held.Store(new(append([]byte(nil), b...)))
				case n > 90:
					// Whose answer this is depends on chance; that it is wrong does not.
					if h := held.Swap(nil); h != nil {
						return *h
					}
				}
				return b
			}
		}(), "of the stream is"},
		{"closed early", nth(func([]byte) []byte { return nil }), "the server closed it"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			cfg := config(serve(t, echo(test.edit)))
			cfg.Duration = time.Second
			_, err := run(t, cfg)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error is %v, want one with %q", err, test.want)
			}
		})
	}
}

func TestUnreachable(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	if _, err := run(t, config(ln.Addr().String())); err == nil {
		t.Error("no error, with nobody listening")
	}
}

func TestCancel(t *testing.T) {
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cfg := config(serve(t, echo(same)))
	cfg.Duration = time.Minute
	cfg.Start = func() { cancel(cause) }
	if _, err := Run(ctx, cfg); !errors.Is(err, cause) {
		t.Errorf("error is %v, want %v", err, cause)
	}
}

func TestIdle(t *testing.T) {
	s, err := OpenIdle(t.Context(), serve(t, echo(same)), 600, 64)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for range 2 {
		if err := s.Ping(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestStreamsDiffer(t *testing.T) {
	seen := map[int]bool{}
	for i := range patternPeriod {
		seen[streamStart(i)] = true
	}
	if len(seen) != patternPeriod {
		t.Errorf("%d different starts of %d streams", len(seen), patternPeriod)
	}
	if len(pattern) < patternPeriod+sendSize {
		t.Errorf("the pattern has %d bytes, a piece from its last place needs %d", len(pattern), patternPeriod+sendSize)
	}
}

func BenchmarkCheckStream(b *testing.B) {
	piece := append([]byte(nil), pattern[100:164]...)
	b.SetBytes(int64(len(piece)))
	for b.Loop() {
		if _, err := checkStream(piece, 100, 0); err != nil {
			b.Fatal(err)
		}
	}
}
