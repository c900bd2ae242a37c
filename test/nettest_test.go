//go:build linux

package test

import (
	"context"
	"errors"
	"net"
	"testing"

	"golang.org/x/net/nettest"

	"github.com/pollux-go/pollux"
)

// TestNettest holds connections of package net, of the net API and of Detach against the contract of net.Conn, every
// kind with every other one. What is detached has been accepted or dialed by a loop of either backend, and given away by a
// handler; from then on it is the net API's. TestMixedBackends is the same for connections whose every byte goes through
// handlers.
func TestNettest(t *testing.T) {
	pairs := []struct{ name, server, client string }{
		{"both", "pollux", "pollux"},
		{"server", "pollux", "std"},
		{"client", "std", "pollux"},
		{"detached server", "detached", "std"},
		{"detached client", "std", "detached"},
		{"detached both", "detached", "detached"},
		{"detached and dialed", "detached", "pollux"},
	}
	for _, network := range []string{"tcp", "unix"} {
		for _, pair := range pairs {
			if pair.server != "detached" && pair.client != "detached" {
				t.Run(network+"/"+pair.name, func(t *testing.T) { testPipe(t, ours(t), pair.server, pair.client, network) })
				continue
			}
			for _, kind := range kinds() {
				t.Run(network+"/"+pair.name+" from "+string(kind), func(t *testing.T) {
					testPipe(t, oursOn(t, kind), pair.server, pair.client, network)
				})
			}
		}
	}
}

func testPipe(t *testing.T, us stack, server, client, network string) {
	nettest.TestConn(t, func() (s, c net.Conn, stop func(), err error) { return makePipe(t, us, server, client, network) })
}

func makePipe(t *testing.T, us stack, server, client, network string) (s, c net.Conn, stop func(), err error) {
	address := localAddress(t, network)
	if server != "detached" && client != "detached" {
		sides := map[string]stack{"pollux": us, "std": std}
		return connect(sides[server], sides[client], network, address)
	}
	var target string
	accepted := make(chan net.Conn, 1)
	if server == "detached" {
		service, err := us.engine.Bind(&detacher{conns: accepted}, network+"://"+address)
		if err != nil {
			return nil, nil, nil, err
		}
		defer service.Shutdown(context.Background())
		target = service.Addrs()[0].String()
	} else {
		ln, err := net.Listen(network, address)
		if err != nil {
			return nil, nil, nil, err
		}
		defer ln.Close()
		target = ln.Addr().String()
		go func() {
			if conn, err := ln.Accept(); err == nil {
				accepted <- conn
			}
		}()
	}
	switch client {
	case "std":
		c, err = net.Dial(network, target)
	case "pollux":
		c, err = us.dial(network, target)
	case "detached":
		dialed := make(chan net.Conn, 1)
		_, err = us.engine.Dial(context.Background(), network+"://"+target, &detacher{conns: dialed})
		if err == nil {
			c = await(t, "the Detach of the dialed connection", dialed)
		}
	}
	if err != nil {
		return nil, nil, nil, err
	}
	s = await(t, "the accept", accepted)
	return s, c, func() { s.Close(); c.Close() }, nil
}

// detacher turns every connection into a net.Conn at once.
type detacher struct {
	pollux.NopHandler
	conns chan net.Conn
}

func (d *detacher) OnOpen(c *pollux.Conn) error {
	conn, err := c.Detach()
	if err == nil {
		d.conns <- conn
	}
	return err
}

// TestDetachedReadsWhatWasBuffered checks that a connection which is detached in the middle of a stream loses and
// repeats no byte, however small the reads are, and that a past deadline does not consume what was buffered either.
func TestDetachedReadsWhatWasBuffered(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		for _, kind := range kinds() {
			t.Run(network+" from "+string(kind), func(t *testing.T) { testDetachedReads(t, oursOn(t, kind), network) })
		}
	}
}

func testDetachedReads(t *testing.T, us stack, network string) {
	h := &lateDetacher{conns: make(chan net.Conn, 1), closed: make(chan error, 1)}
	service, err := us.engine.Bind(h, network+"://"+localAddress(t, network))
	if err != nil {
		t.Fatal(err)
	}
	client, err := net.Dial(network, service.Addrs()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Write([]byte("GET buffered")); err != nil {
		t.Fatal(err)
	}
	conn := await(t, "Detach", h.conns)
	defer conn.Close()
	if err := await(t, "OnClose", h.closed); !errors.Is(err, pollux.ErrDetached) {
		t.Errorf("OnClose got %v, want ErrDetached", err)
	}
	if err := conn.SetReadDeadline(past); err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Read(make([]byte, 3)); n != 0 || !isTimeout(err) {
		t.Errorf("Read after a past deadline = %d, %v; want 0 and a timeout", n, err)
	}
	if err := conn.SetReadDeadline(never); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Write([]byte(", and what came after")); err != nil {
		t.Fatal(err)
	}
	if err := client.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	var all []byte
	for piece := make([]byte, 3); ; {
		n, err := conn.Read(piece)
		all = append(all, piece[:n]...)
		if err != nil {
			expectEOF(t, err)
			break
		}
	}
	if want := "buffered, and what came after"; string(all) != want {
		t.Errorf("read %q, want %q", all, want)
	}
}

// lateDetacher consumes four bytes and detaches with what came along.
type lateDetacher struct {
	pollux.NopHandler
	conns  chan net.Conn
	closed chan error
}

func (d *lateDetacher) OnData(c *pollux.Conn) error {
	if _, err := c.Next(4); err != nil {
		return nil
	}
	conn, err := c.Detach()
	if err == nil {
		d.conns <- conn
	}
	return err
}

func (d *lateDetacher) OnClose(_ *pollux.Conn, err error) { d.closed <- err }
