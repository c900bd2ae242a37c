package testutil

import (
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"
)

// A Plan says what a [Proxy] does to the bytes that pass. Each connection takes its decisions from the seed and its own
// number, so that a failure can be repeated.
type Plan struct {
	Seed       uint64
	Chunk      int           // above 0: pass on from 1 to so many bytes at a time
	Stall      time.Duration // above 0: wait up to so long before one chunk in eight
	ResetAfter int64         // above 0: reset both sides after so many bytes from the server
	EndAfter   int64         // above 0: shut the client's writing direction down after so many of its bytes, and drop the rest
}

// A Proxy stands between clients and a server of the stream network, and behaves as a bad network does.
type Proxy struct {
	plan Plan
	to   net.Addr
	ln   net.Listener

	mu     sync.Mutex // protects conns and closed
	conns  map[net.Conn]struct{}
	closed bool
	wg     sync.WaitGroup
}

// NewProxy starts a proxy on a TCP address in front of the server at to. It ends with the test.
func NewProxy(t testing.TB, to net.Addr, plan Plan) *Proxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{plan: plan, to: to, ln: ln, conns: map[net.Conn]struct{}{}}
	p.wg.Go(p.run)
	t.Cleanup(p.close)
	return p
}

// Addr is where clients connect to.
func (p *Proxy) Addr() net.Addr { return p.ln.Addr() }

func (p *Proxy) run() {
	for number := uint64(0); ; number++ {
		client, err := p.ln.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial(p.to.Network(), p.to.String())
		if err != nil {
			client.Close()
			continue
		}
		if !p.keep(client, server) {
			return
		}
		var both sync.WaitGroup
		both.Go(func() { p.pass(server, client, 2*number, p.plan.EndAfter, 0) })
		both.Go(func() { p.pass(client, server, 2*number+1, 0, p.plan.ResetAfter) })
		p.wg.Go(func() {
			both.Wait()
			client.Close()
			server.Close()
			p.mu.Lock()
			delete(p.conns, client)
			delete(p.conns, server)
			p.mu.Unlock()
		})
	}
}

func (p *Proxy) keep(conns ...net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range conns {
		if p.closed {
			c.Close()
		}
		p.conns[c] = struct{}{}
	}
	return !p.closed
}

// pass passes one direction on.
func (p *Proxy) pass(to, from net.Conn, number uint64, endAfter, resetAfter int64) {
	random := rand.New(rand.NewPCG(p.plan.Seed, number))
	buffer := make([]byte, 32<<10)
	passed := int64(0)
	for {
		size := len(buffer)
		if p.plan.Chunk > 0 {
			size = 1 + random.IntN(p.plan.Chunk)
		}
		for _, after := range [...]int64{endAfter, resetAfter} {
			if after > passed {
				size = int(min(int64(size), after-passed))
			}
		}
		n, err := from.Read(buffer[:size])
		if p.plan.Stall > 0 && random.IntN(8) == 0 {
			time.Sleep(time.Duration(random.Int64N(int64(p.plan.Stall))))
		}
		if endAfter > 0 && passed >= endAfter {
			n = 0 // The client goes on to speak, and nobody hears it.
		} else if n > 0 {
			if _, err := to.Write(buffer[:n]); err != nil {
				from.Close()
				return
			}
		}
		passed += int64(n)
		if endAfter > 0 && n > 0 && passed >= endAfter {
			closeWrite(to)
		}
		if resetAfter > 0 && passed >= resetAfter {
			abort(to)
			abort(from)
			return
		}
		if err == io.EOF {
			closeWrite(to)
			return
		}
		if err != nil {
			to.Close()
			return
		}
	}
}

func closeWrite(c net.Conn) {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
	}
}

// abort closes with a reset, where the network knows that.
func abort(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	c.Close()
}

func (p *Proxy) close() {
	p.ln.Close()
	p.mu.Lock()
	p.closed = true
	for c := range p.conns {
		c.Close()
	}
	p.mu.Unlock()
	p.wg.Wait()
}
