// Echo sends back what it gets, with a handler on pollux's event loops, for as long as the client keeps up: one that
// sends without reading is not read from any more, so that it costs a bounded amount of memory and nobody else's time.
//
//	go run ./examples/echo -addr tcp://127.0.0.1:9000
//	nc 127.0.0.1 9000
//
// It ends by SIGINT or SIGTERM, after it has sent what it owes.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os/signal"
	"syscall"
	"time"

	"github.com/pollux-go/pollux"
)

// echo needs no state: what a connection has not taken yet lies in its buffers.
type echo struct{ pollux.NopHandler }

// OnData writes what has arrived. A Write never waits: when the client does not read, it takes what fits below the write
// limit and returns ErrWouldBlock. The rest stays unread here, and Pause leaves what follows to the client's own kernel.
func (echo) OnData(c *pollux.Conn) error {
	b, _ := c.Peek(-1)
	n, err := c.Write(b)
	_, _ = c.Discard(n) // They are there.
	if errors.Is(err, pollux.ErrWouldBlock) {
		c.Pause()
		return nil
	}
	return err
}

// OnWritable is called once the client has read most of what was queued. Resume has OnData called again for the rest.
func (echo) OnWritable(c *pollux.Conn) error {
	c.Resume()
	return nil
}

func main() {
	addr := flag.String("addr", "tcp://127.0.0.1:9000", "address to listen on")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *addr); err != nil {
		log.Fatal(err)
	}
}

// run is pollux.ListenAndServe with a word in between: where it listens, since the port may be 0.
func run(ctx context.Context, addr string) error {
	engine, err := pollux.DefaultEngine()
	if err != nil {
		return err
	}
	service, err := engine.Bind(echo{}, addr)
	if err != nil {
		return err
	}
	fmt.Println("listening on", service.Addrs()[0])
	<-ctx.Done()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return service.Shutdown(ctx)
}
