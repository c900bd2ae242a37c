// Command std is the echo server on Go's own net package, one goroutine a
// connection: the base that the others are compared with.
package main

import (
	"net"

	"github.com/pollux-go/pollux/bench/internal/server"
)

func main() {
	o := server.ParseBlocking()
	ln, err := net.Listen("tcp", o.Addr)
	if err != nil {
		server.Fatal(err)
	}
	server.ServeConns(ln, o)
}
