// Command nbio is the echo server on lesismal/nbio with its defaults: the poller
// reads level-triggered and calls OnData itself. Write copies what the socket
// does not take, so the examples' copy before it is not made here.
package main

import (
	"github.com/lesismal/nbio"
	"github.com/lesismal/nbio/logging"

	"github.com/pollux-go/pollux/bench/internal/server"
)

func main() {
	o := server.Parse()
	logging.SetLevel(logging.LevelError)
	engine := nbio.NewEngine(nbio.Config{
		Network: "tcp",
		Addrs:   []string{o.Addr},
		NPoller: o.Loops,
	})
	engine.OnData(func(c *nbio.Conn, data []byte) {
		server.Serve(data)
		// An error has closed the connection already.
		_, _ = c.Write(data)
	})
	if err := engine.Start(); err != nil {
		server.Fatal(err)
	}
	ctx, stop := server.Context()
	defer stop()
	server.Ready(o.Addr)
	<-ctx.Done()
	engine.Stop()
}
