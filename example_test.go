//go:build linux

package pollux_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/pollux-go/pollux"
	"github.com/pollux-go/pollux/poller"
)

// upper answers in capitals.
type upper struct{ pollux.NopHandler }

func (upper) OnData(c *pollux.Conn) error {
	b, _ := c.Next(-1)
	_, err := c.Write(bytes.ToUpper(b))
	return err
}

// A server of the event API is a handler and an address. NopHandler has what it does not care about: here the end of
// the client's stream, at which it closes the connection after everything has been sent.
func ExampleListenAndServe() {
	dir, err := os.MkdirTemp("", "pollux")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "socket")

	ctx, stop := context.WithCancel(context.Background()) // A server has signal.NotifyContext here.
	ended := make(chan error)
	go func() { ended <- pollux.ListenAndServe(ctx, "unix://"+path, upper{}) }()

	var conn net.Conn
	for conn == nil { // Until it listens.
		conn, _ = net.Dial("unix", path)
	}
	fmt.Fprint(conn, "hello")
	_ = conn.(*net.UnixConn).CloseWrite()
	answer, err := io.ReadAll(conn)
	fmt.Printf("%s %v\n", answer, err)
	conn.Close()

	stop()
	fmt.Println(<-ended)
	// Output:
	// HELLO <nil>
	// <nil>
}

// Listen and Dial take the place of those of package net: everything that is built on net.Conn works.
func ExampleListen() {
	ln, err := pollux.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s", r.Method, r.URL.Path)
	})}
	ended := make(chan error)
	go func() { ended <- server.Serve(ln) }()

	client := &http.Client{Transport: &http.Transport{DialContext: pollux.DialContext}}
	resp, err := client.Get("http://" + ln.Addr().String() + "/index.html")
	if err != nil {
		fmt.Println(err)
		return
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	fmt.Printf("%s: %s %v\n", resp.Status, body, err)

	client.CloseIdleConnections()
	fmt.Println(server.Shutdown(context.Background()), <-ended)
	// Output:
	// 200 OK: GET /index.html <nil>
	// <nil> http: Server closed
}

// Errors are those of package net, so what decides on them need not be changed.
func ExampleDial() {
	ln, err := pollux.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	conn, err := pollux.Dial("tcp", ln.Addr().String())
	if err != nil {
		fmt.Println(err)
		return
	}
	_ = conn.SetReadDeadline(time.Now().Add(time.Millisecond))
	_, err = conn.Read(make([]byte, 10))
	fmt.Println(errors.Is(err, os.ErrDeadlineExceeded), err.(net.Error).Timeout())

	fmt.Println(ln.Close())
	_, err = ln.Accept()
	fmt.Println(errors.Is(err, net.ErrClosed))

	fmt.Println(conn.Close())
	_, err = conn.Write([]byte("too late"))
	fmt.Println(errors.Is(err, net.ErrClosed))
	// Output:
	// true true
	// <nil>
	// true
	// <nil>
	// true
}

// Any descriptor that can be polled will do: here it is a pipe. A goroutine that waits for it takes up no thread.
func ExampleOpen() {
	var fds [2]int
	if err := syscall.Pipe2(fds[:], syscall.O_CLOEXEC); err != nil {
		fmt.Println(err)
		return
	}
	r, err := pollux.Open(fds[0]) // It owns the descriptor from here on.
	if err != nil {
		fmt.Println(err)
		return
	}
	w, err := pollux.Open(fds[1])
	if err != nil {
		fmt.Println(err)
		return
	}
	go func() {
		_, _ = w.Write([]byte("through a pipe"))
		_ = w.Close()
	}()
	b, err := io.ReadAll(r)
	fmt.Printf("%s %v\n", b, err)
	fmt.Println(r.Close())
	fmt.Println(errors.Is(r.Close(), poller.ErrClosed))
	// Output:
	// through a pipe <nil>
	// <nil>
	// true
}

// printer prints what it gets.
type printer struct {
	pollux.NopHandler
	closed chan error
}

func (p *printer) OnData(c *pollux.Conn) error {
	b, _ := c.Peek(-1)
	if !bytes.HasSuffix(b, []byte("\n")) {
		return nil // The rest comes with the next bytes.
	}
	line, err := c.Next(-1)
	fmt.Printf("got %s", line)
	if err != nil {
		return err
	}
	return c.Close()
}

func (p *printer) OnClose(_ *pollux.Conn, err error) { p.closed <- err }

// An engine of one's own has its own configuration, and an end. Clients are handlers as well: what a connection gets is
// told to the handler, and Write may be called from anywhere.
func ExampleEngine_Dial() {
	engine, err := pollux.New(pollux.Config{Loops: 1, WriteLimit: 64 << 10})
	if err != nil {
		fmt.Println(err)
		return
	}
	service, err := engine.Bind(upper{}, "tcp://127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	p := &printer{closed: make(chan error, 1)}
	conn, err := engine.Dial(context.Background(), "tcp://"+service.Addrs()[0].String(), p)
	if err != nil {
		fmt.Println(err)
		return
	}
	_, err = conn.Write([]byte("a line\n"))
	fmt.Println(err)
	fmt.Println(<-p.closed)
	fmt.Println(engine.Shutdown(context.Background()))
	// Unordered output:
	// <nil>
	// got A LINE
	// <nil>
	// <nil>
}

// Detach turns a connection into a net.Conn, with what it has read already: for a protocol that begins with events and
// goes on with calls that block, or for one that only one of several connections asks for.
func ExampleConn_Detach() {
	engine, err := pollux.New(pollux.Config{Loops: 1})
	if err != nil {
		fmt.Println(err)
		return
	}
	taken := make(chan net.Conn, 1)
	service, err := engine.Bind(detacher{conns: taken}, "tcp://127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	client, err := net.Dial("tcp", service.Addrs()[0].String())
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Fprint(client, "the first bytes, ")
	conn := <-taken
	fmt.Fprint(client, "and the rest")
	client.Close()
	b, err := io.ReadAll(conn)
	fmt.Printf("%s %v\n", b, err)
	conn.Close()
	fmt.Println(engine.Shutdown(context.Background()))
	// Output:
	// the first bytes, and the rest <nil>
	// <nil>
}

type detacher struct {
	pollux.NopHandler
	conns chan<- net.Conn
}

func (d detacher) OnData(c *pollux.Conn) error {
	conn, err := c.Detach()
	if err == nil {
		d.conns <- conn // Has room: a callback must not wait.
	}
	return err
}

// A configuration can come from the environment, or from whatever else has names and values. What is not allowed is
// said by name.
func ExampleConfigFromEnv() {
	environment := map[string]string{
		"POLLUX_LOOPS":       "2",
		"POLLUX_WRITE_LIMIT": "256KiB",
	}
	lookup := func(name string) (string, bool) {
		value, ok := environment[name]
		return value, ok
	}
	config, err := pollux.ConfigFromEnv(lookup)
	fmt.Println(config.Loops, config.WriteLimit, config.Linger, err)

	environment["POLLUX_BACKEND"] = "kqueue"
	_, err = pollux.ConfigFromEnv(lookup)
	fmt.Println(strings.Contains(err.Error(), `POLLUX_BACKEND="kqueue"`))
	// Output:
	// 2 262144 5s <nil>
	// true
}
