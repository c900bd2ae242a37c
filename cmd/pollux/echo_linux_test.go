package main

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// eachEcho runs a test on both ways to echo.
func eachEcho(t *testing.T, test func(t *testing.T, p *proc), options ...option) {
	for _, name := range []string{"echo", "echo-net"} {
		t.Run(name, func(t *testing.T) {
			p := start(t, append(append([]string(nil), servers[name]...), "-addr", "tcp://127.0.0.1:0"), options...)
			test(t, p)
			p.stop(t)
		})
	}
}

// noise is bytes that do not look like any others, so that a piece lost, doubled or out of order is found.
func noise(n int) []byte {
	var (
		b = make([]byte, n)
		r = rand.NewChaCha8([32]byte{byte(n)})
	)
	r.Read(b)
	return b
}

func TestEchoSizes(t *testing.T) {
	eachEcho(t, func(t *testing.T, p *proc) {
		c := p.dial(t)
		for _, n := range []int{1, 2, 64, 4095, 4096, 65536, 65537, 1 << 20, 3<<20 + 1} {
			exchange(t, c, string(noise(n)), string(noise(n)))
		}
	})
}

// Everything that was sent before the half-close comes back before the end of the stream.
func TestEchoHalfClose(t *testing.T) {
	eachEcho(t, func(t *testing.T, p *proc) {
		for _, n := range []int{0, 1, 100_000, 5 << 20} {
			c := p.dial(t).(*net.TCPConn)
			go func() {
				c.Write(noise(n))
				c.CloseWrite()
			}()
			if got := ended(t, c); got != string(noise(n)) {
				t.Errorf("%d bytes came back of %d", len(got), n)
			}
		}
	})
}

// A peer that sends for a while before it reads fills every buffer on the way: the server has to stop reading, and to
// go on where it stopped. The limits are small to get there often.
func TestEchoSlowReader(t *testing.T) {
	eachEcho(t, func(t *testing.T, p *proc) {
		c := p.dial(t).(*net.TCPConn)
		const total = 24 << 20
		want := noise(total)
		var wg sync.WaitGroup
		wg.Go(func() {
			c.Write(want)
			c.CloseWrite()
		})
		// Once no more is taken, the server is blocked; how long that takes does not matter for what is tested.
		time.Sleep(200 * time.Millisecond)
		other := p.dial(t)
		exchange(t, other, "not held up", "not held up")
		got, err := io.ReadAll(c)
		wg.Wait()
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d of %d bytes, equal up to %d, %v", len(got), total, common(got, want), err)
		}
	}, withEnv("POLLUX_WRITE_LIMIT=65536"))
}

func common(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// A client that never reads holds a shutdown up until its deadline, not longer, and not at all after a second signal.
func TestShutdownDeadline(t *testing.T) {
	stuff := func(t *testing.T, p *proc) {
		c := p.dial(t)
		c.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
		c.Write(make([]byte, 64<<20))
	}
	for _, name := range []string{"echo", "echo-net"} {
		args := append(append([]string(nil), servers[name]...), "-addr", "tcp://127.0.0.1:0")
		t.Run(name+"/deadline", func(t *testing.T) {
			p := start(t, args, withEnv("POLLUX_DRAIN=200ms"))
			stuff(t, p)
			p.stop(t)
		})
		t.Run(name+"/second signal", func(t *testing.T) {
			p := start(t, args, withEnv("POLLUX_DRAIN=1h", "POLLUX_LINGER=1h"))
			stuff(t, p)
			p.signal(t, syscall.SIGTERM)
			// The first signal is handled when nothing listens any more; the second one is for the process then.
			until(t, "the listener is closed", func() bool {
				c, err := net.Dial("tcp", p.hostPort())
				if err == nil {
					c.Close()
				}
				return err != nil
			})
			p.signal(t, syscall.SIGTERM)
			p.ends(t)
			if s, ok := p.ProcessState.Sys().(syscall.WaitStatus); !ok || !s.Signaled() || s.Signal() != syscall.SIGTERM {
				t.Errorf("%v; stderr: %s", p.ProcessState, p.stderr.String())
			}
		})
	}
}

// until waits for something that has no event to wait for.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited for %v: %s", patience, what)
		}
	}
}

func TestEchoNetRefusesInheritedSockets(t *testing.T) {
	_, errs, status := output(t, []string{"echo", "-net", "-addr", "fd://3"})
	if status != exitFailed || !strings.Contains(errs, "fd://3") {
		t.Errorf("status %d, %q", status, errs)
	}
}
