// Command pollux-net is the same program as std, word for word, on
// pollux.Listen in the place of net.Listen: a goroutine a connection.
package main

import (
	"github.com/pollux-go/pollux"
	"github.com/pollux-go/pollux/bench/internal/server"
)

func main() {
	o := server.ParseBlocking()
	ln, err := pollux.Listen("tcp", o.Addr)
	if err != nil {
		server.Fatal(err)
	}
	server.ServeConns(ln, o)
}
