// Command evio is the echo server on tidwall/evio, as its README writes it, with
// the shared input buffer that it offers to handlers that do not keep the bytes.
// evio has no option for TCP_NODELAY and leaves Nagle's algorithm on.
package main

import (
	"os"

	"github.com/tidwall/evio"

	"github.com/pollux-go/pollux/bench/internal/server"
)

func main() {
	o := server.Parse()
	events := evio.Events{
		NumLoops: o.Loops,
		Serving: func(evio.Server) evio.Action {
			server.Ready(o.Addr)
			return evio.None
		},
		Opened: func(evio.Conn) ([]byte, evio.Options, evio.Action) {
			return nil, evio.Options{ReuseInputBuffer: true}, evio.None
		},
		Data: func(_ evio.Conn, in []byte) ([]byte, evio.Action) {
			server.Serve(in)
			return in, evio.None
		},
	}
	ctx, stop := server.Context()
	defer stop()
	go func() {
		<-ctx.Done()
		// Serve ends only from inside an event; a process without state may just go.
		os.Exit(0)
	}()
	if err := evio.Serve(events, "tcp://"+o.Addr); err != nil {
		server.Fatal(err)
	}
}
