// Command netpoll is the echo server on cloudwego/netpoll, in the shape of its
// guide: read without a copy, write, flush once, release.
package main

import (
	"context"
	"time"

	"github.com/cloudwego/netpoll"

	"github.com/pollux-go/pollux/bench/internal/server"
)

func onRequest(_ context.Context, c netpoll.Connection) error {
	r, w := c.Reader(), c.Writer()
	b, err := r.Next(r.Len())
	if err != nil {
		return err
	}
	server.Serve(b)
	if _, err := w.WriteBinary(b); err != nil {
		return err
	}
	// The written bytes may still be those of the reader: flush before release.
	if err := w.Flush(); err != nil {
		return err
	}
	return r.Release()
}

func main() {
	o := server.Parse()
	if err := netpoll.Configure(netpoll.Config{PollerNum: o.Loops}); err != nil {
		server.Fatal(err)
	}
	ln, err := netpoll.CreateListener("tcp", o.Addr)
	if err != nil {
		server.Fatal(err)
	}
	loop, err := netpoll.NewEventLoop(onRequest)
	if err != nil {
		server.Fatal(err)
	}
	ctx, stop := server.Context()
	defer stop()
	context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = loop.Shutdown(grace)
	})
	server.Ready(ln.Addr().String())
	if err := loop.Serve(ln); err != nil && ctx.Err() == nil {
		server.Fatal(err)
	}
}
