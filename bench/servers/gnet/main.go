// Command gnet is the echo server on panjf2000/gnet, as its README writes it:
// Next(-1) lends the inbound bytes without a copy and Write sends them at once.
//
// SO_REUSEPORT lets the loop accept its connections itself; without it gnet
// starts one more loop for the listener alone.
package main

import (
	"context"
	"time"

	"github.com/panjf2000/gnet/v2"

	"github.com/pollux-go/pollux/bench/internal/server"
)

type echo struct {
	gnet.BuiltinEventEngine
	addr   string
	booted chan gnet.Engine
}

// OnBoot says that the engine is up.
func (h *echo) OnBoot(e gnet.Engine) gnet.Action {
	server.Ready(h.addr)
	h.booted <- e
	return gnet.None
}

// OnTraffic sends back whatever has arrived.
func (h *echo) OnTraffic(c gnet.Conn) gnet.Action {
	b, err := c.Next(-1)
	if err != nil {
		return gnet.Close
	}
	server.Serve(b)
	if _, err := c.Write(b); err != nil {
		return gnet.Close
	}
	return gnet.None
}

func main() {
	o := server.Parse()
	h := &echo{addr: o.Addr, booted: make(chan gnet.Engine, 1)}
	ctx, stop := server.Context()
	defer stop()
	go func() {
		e := <-h.booted
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = e.Stop(grace)
	}()
	err := gnet.Run(h, "tcp://"+o.Addr,
		gnet.WithMulticore(o.Loops > 1),
		gnet.WithNumEventLoop(o.Loops),
		gnet.WithReusePort(true),
	)
	if err != nil {
		server.Fatal(err)
	}
}
