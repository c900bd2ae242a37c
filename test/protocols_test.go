//go:build linux

package test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/rpc"
	"net/textproto"
	"strings"
	"sync"
	"testing"
	"time"
)

// certificate returns a server's configuration and a client's that trusts it.
func certificate(t *testing.T) (server, client *tls.Config) {
	t.Helper()
	ts := httptest.NewTLSServer(nil)
	defer ts.Close()
	client = ts.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	client.ServerName = "example.com"
	return &tls.Config{Certificates: ts.TLS.Certificates}, client
}

// TestTLS runs crypto/tls over connections of both stacks: data both ways at once, close_notify as an end of stream, a
// half-close, deadlines, and a peer that goes without a word.
func TestTLS(t *testing.T) {
	for _, ends := range []string{"both", "server", "client"} {
		for _, network := range []string{"tcp", "unix"} {
			t.Run(ends+"/"+network, func(t *testing.T) {
				us := ours(t)
				sides := map[string][2]stack{"both": {us, us}, "server": {us, std}, "client": {std, us}}[ends]
				serverConfig, clientConfig := certificate(t)
				handshake := func() (server, client *tls.Conn) {
					s, c := pair(t, sides[0], sides[1], network)
					server, client = tls.Server(s, serverConfig), tls.Client(c, clientConfig)
					done := make(chan error, 1)
					go func() { done <- server.Handshake() }()
					expectNil(t, client.Handshake())
					expectNil(t, await(t, "the handshake", done))
					return server, client
				}
				server, client := handshake()
				const size = 3 << 20
				var wg sync.WaitGroup
				for _, c := range []*tls.Conn{server, client} {
					wg.Go(func() {
						if n, err := io.Copy(c, io.LimitReader(&pattern{}, size)); n != size || err != nil {
							t.Errorf("written: %d, %v", n, err)
						}
						expectNil(t, c.CloseWrite())
					})
					wg.Go(func() {
						if n, err := io.Copy(struct{ io.Writer }{&pattern{}}, c); n != size || err != nil {
							t.Errorf("read: %d, %v", n, err)
						}
					})
				}
				within(t, "the end of the transfer", wg.Wait)
				expectNil(t, client.Close())
				expectNil(t, server.Close())

				server, client = handshake()
				expectNil(t, client.SetReadDeadline(time.Now().Add(soon)))
				_, err := readNothing(client)
				expectTimeout(t, err)
				expectNil(t, client.SetReadDeadline(never))
				if _, err := server.Write([]byte("after the timeout")); err != nil { // TLS survives one of reading.
					t.Error(err)
				}
				b := make([]byte, 17)
				if _, err := io.ReadFull(client, b); string(b) != "after the timeout" || err != nil {
					t.Errorf("read %q: %v", b, err)
				}
				expectNil(t, server.NetConn().Close())
				_, err = readNothing(client)
				if err != io.ErrUnexpectedEOF && err != io.EOF {
					t.Errorf("the peer went without a word: got %v", err)
				}
				_, err = readNothing(server)
				expectClosed(t, err)
			})
		}
	}
}

// TestTLSListener runs tls.NewListener on our listener, with handshakes that fail among those that do not.
func TestTLSListener(t *testing.T) {
	us := ours(t)
	serverConfig, clientConfig := certificate(t)
	ln := tls.NewListener(us.mustListen(t, "tcp"), serverConfig)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				expectClosed(t, err)
				return
			}
			wg.Go(func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			})
		}
	})
	for i := range 20 {
		raw, err := us.dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if i%4 == 3 {
			_, _ = io.WriteString(raw, "this is no handshake\r\n\r\n")
			_, _ = io.Copy(io.Discard, raw)
			raw.Close()
			continue
		}
		c := tls.Client(raw, clientConfig)
		want := bytes.Repeat([]byte{byte(i)}, 50000)
		go func() { _, _ = c.Write(want) }()
		got := make([]byte, len(want))
		if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want) {
			t.Errorf("the echo is wrong: %v", err)
		}
		expectNil(t, c.Close())
	}
	expectNil(t, ln.Close())
	within(t, "the end of the server", wg.Wait)
}

// Arith is a service for net/rpc.
type Arith struct{}

// Product is what a client asks for.
type Product struct{ A, B int }

// Multiply multiplies.
func (Arith) Multiply(p Product, result *int) error {
	*result = p.A * p.B
	return nil
}

// Fail fails.
func (Arith) Fail(text string, _ *int) error { return errors.New(text) }

// TestRPC runs net/rpc: many calls at once on one connection, errors, and a server that goes.
func TestRPC(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			us := ours(t)
			ln := us.mustListen(t, network)
			server := rpc.NewServer()
			if err := server.Register(Arith{}); err != nil {
				t.Fatal(err)
			}
			var serving sync.WaitGroup
			conns := make(chan net.Conn, 1)
			serving.Go(func() {
				c, err := ln.Accept()
				if err != nil {
					t.Error(err)
					return
				}
				conns <- c
				server.ServeConn(c)
			})
			client := rpc.NewClient(us.mustDial(t, ln))
			var wg sync.WaitGroup
			for a := range 16 {
				wg.Go(func() {
					for b := range 100 {
						var got int
						if err := client.Call("Arith.Multiply", Product{a, b}, &got); err != nil || got != a*b {
							t.Errorf("%d x %d = %d, %v", a, b, got, err)
						}
					}
				})
			}
			within(t, "the end of the calls", wg.Wait)
			if err := client.Call("Arith.Fail", "on purpose", new(int)); err == nil || err.Error() != "on purpose" {
				t.Errorf("got %v", err)
			}
			await(t, "the connection", conns).Close()
			if err := client.Call("Arith.Multiply", Product{1, 2}, new(int)); err == nil {
				t.Error("a call succeeded after the server had gone")
			}
			within(t, "the end of the server", serving.Wait)
			expectNil(t, ignore(client.Close(), rpc.ErrShutdown))
		})
	}
}

func ignore(err, which error) error {
	if errors.Is(err, which) {
		return nil
	}
	return err
}

// TestLineProtocol talks as SMTP does, with net/textproto at both ends: commands, pipelined ones too, and a text that
// ends with a dot.
func TestLineProtocol(t *testing.T) {
	parityNetworks(t, func(t *testing.T, s stack, network string, tr *trace) {
		ln := s.mustListen(t, network)
		var serving sync.WaitGroup
		serving.Go(func() {
			conn, err := ln.Accept()
			if err != nil {
				t.Error(err)
				return
			}
			c := textproto.NewConn(conn)
			defer c.Close()
			expectNil(t, c.PrintfLine("220 ready"))
			for {
				line, err := c.ReadLine()
				if err != nil {
					expectEOF(t, err)
					return
				}
				switch verb, rest, _ := strings.Cut(line, " "); verb {
				case "DATA":
					expectNil(t, c.PrintfLine("354 go on"))
					text, err := c.ReadDotLines()
					expectNil(t, err)
					expectNil(t, c.PrintfLine("250 %d lines", len(text)))
				case "QUIT":
					expectNil(t, c.PrintfLine("221 bye"))
					return
				default:
					expectNil(t, c.PrintfLine("250-%s\r\n250 %s", verb, rest))
				}
			}
		})
		conn := s.mustDial(t, ln)
		c := textproto.NewConn(conn)
		code, text, err := c.ReadResponse(220)
		tr.see("greeting", []any{code, text}, err)
		const pipelined = 100
		for i := range pipelined {
			expectNil(t, c.PrintfLine("RCPT number %d", i))
		}
		for i := range pipelined {
			_, text, err := c.ReadResponse(250)
			if want := fmt.Sprintf("RCPT\nnumber %d", i); text != want || err != nil {
				t.Errorf("answer %d is %q: %v", i, text, err)
			}
		}
		expectNil(t, c.PrintfLine("DATA"))
		code, text, err = c.ReadResponse(354)
		tr.see("DATA", []any{code, text}, err)
		w := c.DotWriter()
		for i := range 5000 {
			fmt.Fprintf(w, ".line %d\n", i)
		}
		expectNil(t, w.Close())
		code, text, err = c.ReadResponse(250)
		tr.see("text", []any{code, text}, err)
		expectNil(t, c.PrintfLine("QUIT"))
		code, text, err = c.ReadResponse(221)
		tr.see("QUIT", []any{code, text}, err)
		_, err = c.ReadLine()
		tr.see("end", 0, err)
		expectNil(t, c.Close())
		within(t, "the end of the server", serving.Wait)
	})
}
