// Proxy passes TCP connections on to another server, with handlers on pollux's event loops. It shows two connections
// that belong together: one is accepted, the other dialed, and each may live on a loop of its own.
//
//   - Backpressure goes through: who does not read what the proxy has for him stops the proxy from reading for him.
//   - A half-close goes through: a client that has only finished writing gets its answer, however late that comes.
//   - When one connection ends, the other one does after it has got what was queued for it.
//
// To run it in front of a web server:
//
//	go run ./examples/proxy -addr tcp://127.0.0.1:9001 -to tcp://127.0.0.1:8080
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/pollux-go/pollux"
)

// dialTimeout is how long the server may take to accept.
const dialTimeout = 5 * time.Second

// pair is a client's connection and the server's that was dialed for it. It is the context of both.
type pair struct {
	client *pollux.Conn
	server atomic.Pointer[pollux.Conn] // nil until it is open

	clientGone atomic.Bool
	finished   atomic.Int32 // directions that have come to their end
}

// other returns the other end, or nil if it is not open yet.
func (p *pair) other(c *pollux.Conn) *pollux.Conn {
	if c == p.client {
		return p.server.Load()
	}
	return p.client
}

// relay is what both ends do alike. Write, CloseWrite, Close and Resume may be called for a connection by the callbacks of
// another one, which is all that this needs.
type relay struct{ pollux.NopHandler }

func (relay) OnData(c *pollux.Conn) error {
	other := c.Context().(*pair).other(c)
	if err := pump(c, other); !errors.Is(err, pollux.ErrWouldBlock) {
		return err
	}
	// The other end is slow. Its OnWritable will resume this one; but that runs on another loop, and may have been here
	// already, between the Write and the Pause. So it is tried once more: either there is room, or OnWritable comes again.
	c.Pause()
	if err := pump(c, other); !errors.Is(err, pollux.ErrWouldBlock) {
		c.Resume()
		return err
	}
	return nil
}

// pump passes on what is buffered, as far as it is taken.
func pump(from, to *pollux.Conn) error {
	b, _ := from.Peek(-1)
	n, err := to.Write(b)
	_, _ = from.Discard(n) // They are there.
	return err
}

func (relay) OnWritable(c *pollux.Conn) error {
	c.Context().(*pair).other(c).Resume()
	return nil
}

// OnEOF passes the end of a stream on, behind the bytes that are still queued. The connections are closed when both
// directions have ended.
func (relay) OnEOF(c *pollux.Conn) error {
	p := c.Context().(*pair)
	err := p.other(c).CloseWrite()
	if p.finished.Add(1) == 2 {
		_ = p.other(c).Close()
		return c.Close()
	}
	return err
}

func (relay) OnClose(c *pollux.Conn, _ error) {
	p := c.Context().(*pair)
	if c == p.client {
		p.clientGone.Store(true)
	}
	if other := p.other(c); other != nil {
		_ = other.Close() // It may be closed already.
	}
}

// front is the handler of clients.
type front struct {
	relay
	engine *pollux.Engine
	to     string
}

// OnOpen has the server dialed. That waits, so it happens on a goroutine; the client is paused until there is somebody to
// send its bytes to.
func (f *front) OnOpen(c *pollux.Conn) error {
	p := &pair{client: c}
	c.SetContext(p)
	c.Pause()
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
		defer cancel()
		if _, err := f.engine.Dial(ctx, f.to, &back{pair: p}); err != nil {
			log.Print(err)
			_ = c.Close()
		}
	}()
	return nil
}

// back is the handler of one connection to the server.
type back struct {
	relay
	pair *pair
}

func (b *back) OnOpen(c *pollux.Conn) error {
	c.SetContext(b.pair)
	b.pair.server.Store(c) // Before the Resume, and before the look at clientGone, which OnClose sets before it looks here.
	if b.pair.clientGone.Load() {
		return c.Close()
	}
	b.pair.client.Resume()
	return nil
}

func main() {
	addr := flag.String("addr", "tcp://127.0.0.1:9001", "address to listen on")
	to := flag.String("to", "tcp://127.0.0.1:8080", "address of the server")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *addr, *to); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, addr, to string) error {
	engine, err := pollux.DefaultEngine()
	if err != nil {
		return err
	}
	service, err := engine.Bind(&front{engine: engine, to: to}, addr)
	if err != nil {
		return err
	}
	fmt.Println("listening on", service.Addrs()[0])
	<-ctx.Done()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return service.Shutdown(ctx)
}
