// Http is a net/http server whose connections pollux polls. The one line that differs from one on package net is the
// call of Listen.
//
//	go run ./examples/http -addr 127.0.0.1:8080
//	curl http://127.0.0.1:8080/hello/you
//
// It ends by SIGINT or SIGTERM, when the requests that it has begun are answered.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net/http"
	"os/signal"
	"syscall"
	"time"

	"github.com/pollux-go/pollux"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8080", "address to listen on")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *addr); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, addr string) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /hello/{name}", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "Hello, %s!\n", r.PathValue("name"))
	})
	server := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second, // Deadlines work as they do on package net.
		IdleTimeout:       time.Minute,
	}

	ln, err := pollux.Listen("tcp", addr) // Was: net.Listen("tcp", addr).
	if err != nil {
		return err
	}
	fmt.Println("listening on", ln.Addr())

	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		return err
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
