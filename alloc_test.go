//go:build linux

package pollux

import (
	"fmt"
	"net"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/pollux-go/pollux/internal/testutil"
)

// rawClient is a client that allocates nothing: a socket that blocks, and one buffer.
type rawClient struct {
	fd     int
	buffer [64]byte
}

// newRawClient connects to a TCP address of 127.0.0.1.
func newRawClient(t testing.TB, addr net.Addr) *rawClient {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	timeout := syscall.NsecToTimeval(int64(patience))
	syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &timeout)
	syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1)
	sa := &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: addr.(*net.TCPAddr).Port}
	if err := syscall.Connect(fd, sa); err != nil {
		t.Fatal(err)
	}
	return &rawClient{fd: fd}
}

func (c *rawClient) send() error {
	_, err := syscall.Write(c.fd, c.buffer[:])
	return err
}

func (c *rawClient) receive() error {
	for n := 0; n < len(c.buffer); {
		m, err := syscall.Read(c.fd, c.buffer[n:])
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if m == 0 {
			return net.ErrClosed
		}
		n += m
	}
	return nil
}

// echoAll exchanges one message with every client.
func echoAll(t testing.TB, clients []*rawClient) {
	for _, c := range clients {
		if err := c.send(); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range clients {
		if err := c.receive(); err != nil {
			t.Fatal(err)
		}
	}
}

// serveEchoes starts an echo server of one of echoKinds and returns its address.
func serveEchoes(t testing.TB, config Config, kind string) net.Addr {
	e := newEngine(t, config)
	switch kind {
	case "event":
		return mustBind(t, e, echo{})
	case "event with an idle timeout a request":
		return mustBind(t, e, funcs{data: func(c *Conn) error {
			if err := c.SetIdleTimeout(time.Minute); err != nil {
				return err
			}
			return echo{}.OnData(c)
		}})
	}
	ln, err := e.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b := make([]byte, 4096)
				for {
					if kind == "net with a deadline a request" {
						c.SetDeadline(time.Now().Add(time.Minute))
					}
					n, err := c.Read(b)
					if err != nil {
						return
					}
					if _, err := c.Write(b[:n]); err != nil {
						return
					}
				}
			}()
		}
	}()
	return ln.Addr()
}

func mustBind(t testing.TB, e *Engine, h Handler) net.Addr {
	s, err := e.Bind(h, "tcp://127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return s.Addrs()[0]
}

var echoKinds = []string{"event", "event with an idle timeout a request", "net", "net with a deadline a request"}

// TestEchoAllocates0 counts what the whole process allocates during 10,000 echoes.
func TestEchoAllocates0(t *testing.T) {
	const echoes, conns = 10_000, 10
	eachBackend(t, func(t *testing.T, config Config) {
		for _, kind := range echoKinds {
			t.Run(kind, func(t *testing.T) {
				testutil.CheckLeaks(t)
				fakeSurroundings(t, surroundingsNow()) // To read them, once a second, allocates, however many echoes there are.
				addr := serveEchoes(t, config, kind)
				clients := make([]*rawClient, conns)
				for i := range clients {
					clients[i] = newRawClient(t, addr)
				}
				for range 100 {
					echoAll(t, clients) // Everything that is made once is made.
				}
				count := func() float64 {
					var before, after runtime.MemStats
					runtime.ReadMemStats(&before)
					for range echoes / conns {
						echoAll(t, clients)
					}
					runtime.ReadMemStats(&after)
					return float64(after.Mallocs-before.Mallocs) / echoes
				}
				// Other goroutines of the process may allocate meanwhile, the race detector's and the tests' own: the best of
				// three is ours.
				if n := min(count(), count(), count()); n >= 0.01 {
					t.Errorf("%.3f allocations an echo", n)
				}
			})
		}
	})
}

// BenchmarkEcho measures an echo of 64 bytes with a client in the same process, which takes its part of the time.
func BenchmarkEcho(b *testing.B) {
	for _, backend := range testBackends(b) {
		for _, kind := range echoKinds {
			for _, conns := range []int{1, 64} {
				b.Run(fmt.Sprintf("backend=%s/api=%s/conns=%d", backend, kind, conns), func(b *testing.B) {
					addr := serveEchoes(b, Config{Loops: 1, Backend: backend, UringFeatures: testFeatures()}, kind)
					clients := make([]*rawClient, conns)
					for i := range clients {
						clients[i] = newRawClient(b, addr)
					}
					echoAll(b, clients)
					b.ReportAllocs()
					b.SetBytes(64)
					b.ResetTimer()
					for n := 0; n < b.N; n += conns {
						echoAll(b, clients[:min(conns, b.N-n)])
					}
				})
			}
		}
	}
}
