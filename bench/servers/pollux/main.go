// Command pollux is the echo server on pollux's event API. What the command line
// does not say is taken from the environment (POLLUX_*), as in any pollux program.
package main

import (
	"context"
	"os"

	"github.com/pollux-go/pollux"
	"github.com/pollux-go/pollux/bench/internal/server"
)

type echo struct{ pollux.NopHandler }

// OnData sends back whatever has arrived.
func (echo) OnData(c *pollux.Conn) error {
	b, _ := c.Next(-1)
	server.Serve(b)
	_, err := c.Write(b)
	return err
}

func main() {
	o := server.Parse()
	cfg, err := pollux.ConfigFromEnv(os.LookupEnv)
	if err != nil {
		server.Fatal(err)
	}
	cfg.Loops = o.Loops
	engine, err := pollux.New(cfg)
	if err != nil {
		server.Fatal(err)
	}
	service, err := engine.Bind(echo{}, "tcp://"+o.Addr)
	if err != nil {
		server.Fatal(err)
	}
	ctx, stop := server.Context()
	defer stop()
	server.Ready(service.Addrs()[0].String())
	<-ctx.Done()
	if err := engine.Shutdown(context.Background()); err != nil {
		server.Fatal(err)
	}
}
