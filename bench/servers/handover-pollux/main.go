// Command handover-pollux is an echo server on pollux's event API in which an ordinary goroutine answers: the handler sends
// it what has come, over a channel. What the command line does not say is taken from the environment (POLLUX_*).
package main

import (
	"bytes"
	"os"

	"github.com/pollux-go/pollux"
	"github.com/pollux-go/pollux/bench/internal/server"
)

type echo struct {
	pollux.NopHandler
	handover *server.Handover
}

// OnData has the goroutine send back whatever has arrived.
func (e echo) OnData(c *pollux.Conn) error {
	b, _ := c.Next(-1)
	b = bytes.Clone(b)
	e.handover.Hand(func() { _, _ = c.Write(b) })
	return nil
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
	h := server.NewHandover()
	service, err := engine.Bind(echo{handover: h}, "tcp://"+o.Addr)
	if err != nil {
		server.Fatal(err)
	}
	ctx, stop := server.Context()
	defer stop()
	server.Ready(service.Addrs()[0].String())
	<-ctx.Done()
	if err := engine.Close(); err != nil {
		server.Fatal(err)
	}
	h.Report()
}
