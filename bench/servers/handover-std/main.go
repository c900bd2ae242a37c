// Command handover-std is an echo server on Go's net package in which another goroutine answers: the one of the connection
// sends it what has come, over a channel.
package main

import (
	"errors"
	"fmt"
	"net"

	"github.com/pollux-go/pollux/bench/internal/server"
)

func main() {
	o := server.Parse()
	ln, err := net.Listen("tcp", o.Addr)
	if err != nil {
		server.Fatal(err)
	}
	ctx, stop := server.Context()
	defer stop()
	h := server.NewHandover()
	go func() {
		for {
			c, err := ln.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				server.Fatal(fmt.Errorf("accept: %w", err))
			}
			go serve(c, h)
		}
	}()
	server.Ready(ln.Addr().String())
	<-ctx.Done()
	h.Report()
}

func serve(c net.Conn, h *server.Handover) {
	defer func() { _ = c.Close() }()
	for {
		buf := make([]byte, 4<<10)
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		h.Hand(func() { _, _ = c.Write(buf[:n]) })
	}
}
