//go:build linux

package test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/pollux-go/pollux"
	"github.com/pollux-go/pollux/internal/testutil"
)

// patience is how long anything may take that is sure to happen. It only ever ends a test that fails.
const patience = 20 * time.Second

// A stack is one of the two that are compared: package net, or pollux on an engine of the test's own.
type stack struct {
	name   string
	engine *pollux.Engine // nil: package net
}

// std is package net.
var std = stack{name: "std"}

// ours returns pollux. The test fails if it leaves behind a descriptor or a goroutine. It is for the net API, whose poller is
// epoll and an ordinary goroutine whatever the configuration says: neither the backend nor Dispatch reaches it.
func ours(t testing.TB) stack {
	t.Helper()
	return oursOn(t, "")
}

// kinds are the backends that handlers are tested on: both, or the one that POLLUX_BACKEND names.
func kinds() []pollux.Kind {
	if kind := os.Getenv("POLLUX_BACKEND"); kind != "" {
		return []pollux.Kind{pollux.Kind(kind)}
	}
	return []pollux.Kind{pollux.KindEpoll, pollux.KindUring}
}

// oursOn is ours for what has handlers, which run on a backend's loops as POLLUX_DISPATCH says. The test is skipped where the
// backend does not work.
func oursOn(t testing.TB, kind pollux.Kind) stack {
	t.Helper()
	testutil.CheckLeaks(t)
	config, err := pollux.ConfigFromEnv(os.LookupEnv)
	if err != nil {
		t.Fatal(err)
	}
	config.Loops = 1
	if kind != "" {
		config.Backend = kind
	}
	if config.Backend == pollux.KindEpoll {
		config.UringFeatures = ""
	}
	e, err := pollux.New(config)
	if err != nil && kind == pollux.KindUring {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// Who uses the net API closes what it opens: a descriptor that is still open by now is a leak of the test's or
		// of ours.
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := e.Shutdown(ctx); err != nil && err != pollux.ErrClosed { // The test has closed it itself.
			t.Errorf("shutdown: %v", err)
		}
	})
	return stack{name: "pollux", engine: e}
}

func (s stack) listen(network, address string) (net.Listener, error) {
	if s.engine == nil {
		return net.Listen(network, address)
	}
	return s.engine.Listen(network, address)
}

func (s stack) dialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if s.engine == nil {
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	return s.engine.DialContext(ctx, network, address)
}

func (s stack) dial(network, address string) (net.Conn, error) {
	return s.dialContext(context.Background(), network, address)
}

// mustListen listens until the test ends.
func (s stack) mustListen(t testing.TB, network string) net.Listener {
	t.Helper()
	ln, err := s.listen(network, localAddress(t, network))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

// mustDial dials for the rest of the test.
func (s stack) mustDial(t testing.TB, ln net.Listener) net.Conn {
	t.Helper()
	c, err := s.dial(ln.Addr().Network(), ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// localAddress returns an address to listen on that nobody else uses.
func localAddress(t testing.TB, network string) string {
	t.Helper()
	switch network {
	case "unix":
		return filepath.Join(shortDir(t), "socket")
	case "tcp6":
		return "[::1]:0"
	}
	return "127.0.0.1:0"
}

// shortDir is t.TempDir with a name that fits into the address of a unix socket, whatever the test is called.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "px")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// connect makes a connection between two stacks.
func connect(server, client stack, network, address string) (s, c net.Conn, stop func(), err error) {
	ln, err := server.listen(network, address)
	if err != nil {
		return nil, nil, nil, err
	}
	defer ln.Close()
	type accepted struct {
		conn net.Conn
		err  error
	}
	got := make(chan accepted, 1)
	go func() {
		conn, err := ln.Accept()
		got <- accepted{conn, err}
	}()
	c, err = client.dial(network, ln.Addr().String())
	if err != nil {
		ln.Close()
		if a := <-got; a.err == nil {
			a.conn.Close()
		}
		return nil, nil, nil, err
	}
	a := <-got
	if a.err != nil {
		c.Close()
		return nil, nil, nil, a.err
	}
	return a.conn, c, func() { c.Close(); a.conn.Close() }, nil
}

// pair is connect for the rest of the test.
func pair(t testing.TB, server, client stack, network string) (s, c net.Conn) {
	t.Helper()
	s, c, stop, err := connect(server, client, network, localAddress(t, network))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return s, c
}

// within fails the test if f does not return in time. f runs on a goroutine of its own, and must not fail the test
// itself by FailNow.
func within(t testing.TB, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	await(t, what, done)
}

// await waits for a channel that is sure to be closed, or to be sent on.
func await[T any](t testing.TB, what string, ch <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-ch:
	case <-time.After(patience):
		t.Fatalf("%s has not happened in %v", what, patience)
	}
	return v
}
