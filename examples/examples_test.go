//go:build linux

// Package examples_test builds every example and runs it as a user would: as a process of its own, with clients of
// package net, to an end by SIGTERM.
package examples_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is how long anything may take that is sure to happen. It only ever ends a test that fails.
const patience = 30 * time.Second

var binaries struct {
	once sync.Once
	dir  string
	err  error
}

func TestMain(m *testing.M) {
	code := m.Run()
	os.RemoveAll(binaries.dir)
	os.Exit(code)
}

// binary builds all examples, once, and returns the path of one.
func binary(t *testing.T, name string) string {
	t.Helper()
	b := &binaries
	b.once.Do(func() {
		if b.dir, b.err = os.MkdirTemp("", "pollux-examples"); b.err != nil {
			return
		}
		args := []string{"build", "-o", b.dir}
		entries, err := os.ReadDir(".")
		for _, e := range entries {
			if e.IsDir() {
				args = append(args, "./"+e.Name())
			}
		}
		if b.err = err; err != nil {
			return
		}
		if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
			b.err = fmt.Errorf("%w\n%s", err, out)
		}
	})
	if b.err != nil {
		t.Fatal(b.err)
	}
	return filepath.Join(b.dir, name)
}

// program is an example that runs.
type program struct {
	t     *testing.T
	cmd   *exec.Cmd
	lines chan string
	log   bytes.Buffer
}

// start runs an example. It is told to end, and must do so well, when the test is over.
func start(t *testing.T, name string, args ...string) *program {
	t.Helper()
	path := binary(t, name)
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	p := &program{t: t, cmd: exec.CommandContext(ctx, path, args...), lines: make(chan string, 100)}
	p.cmd.Stderr = &p.log
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			p.lines <- s.Text()
		}
	}()
	t.Cleanup(func() {
		defer cancel()
		if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for range p.lines { // Until its standard output is closed.
		}
		if err := p.cmd.Wait(); err != nil {
			t.Errorf("%s has ended badly: %v\n%s", name, err, &p.log)
		}
	})
	return p
}

// line returns what follows prefix in the next line that the example prints.
func (p *program) line(prefix string) string {
	p.t.Helper()
	select {
	case l, ok := <-p.lines:
		rest, found := strings.CutPrefix(l, prefix)
		if !ok || !found {
			p.t.Fatalf("the example printed %q, want %q and more", l, prefix)
		}
		return rest
	case <-time.After(patience):
		p.t.Fatalf("the example has printed nothing that begins with %q", prefix)
	}
	return ""
}

// address is where the example listens.
func (p *program) address() string { return p.line("listening on ") }

func dial(t *testing.T, address string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn)
}

// exchange sends a large message, finishes, and reads what comes back only then: the other side has to hold it up.
func exchange(t *testing.T, c *net.TCPConn, size int) []byte {
	t.Helper()
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(message(size))
		if err == nil {
			err = c.CloseWrite()
		}
		sent <- err
	}()
	// Nothing is read until the buffers on the way are full, so that the backpressure is felt.
	select {
	case err := <-sent:
		if err != nil {
			t.Fatal(err)
		}
		sent <- nil
	case <-time.After(100 * time.Millisecond):
	}
	got, err := io.ReadAll(c)
	if err != nil {
		t.Fatalf("after %d bytes: %v", len(got), err)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	return got
}

func message(size int) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(i) ^ byte(i>>8) ^ byte(i>>16)
	}
	return b
}

// size is more than the sockets and the write limit hold.
const size = 32 << 20

func TestEcho(t *testing.T) {
	address := start(t, "echo", "-addr", "tcp://127.0.0.1:0").address()
	c := dial(t, address)
	for i := range 100 {
		fmt.Fprintf(c, "line %02d", i)
		b := make([]byte, 7)
		if _, err := io.ReadFull(c, b); err != nil || string(b) != fmt.Sprintf("line %02d", i) {
			t.Fatalf("read %q: %v", b, err)
		}
	}
	var wg sync.WaitGroup
	for range 4 {
		c := dial(t, address)
		wg.Go(func() {
			if got := exchange(t, c, size/4); !bytes.Equal(got, message(size/4)) {
				t.Errorf("%d bytes came back, which are not what was sent", len(got))
			}
		})
	}
	wg.Wait()
}

func TestHTTP(t *testing.T) {
	address := start(t, "http", "-addr", "127.0.0.1:0").address()
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: patience}
	for range 3 {
		resp, err := client.Get("http://" + address + "/hello/pollux")
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(b) != "Hello, pollux!\n" || err != nil {
			t.Fatalf("got %q: %v", b, err)
		}
	}
}

func TestFD(t *testing.T) {
	dir := t.TempDir()
	p := start(t, "fd", "-dir", dir, "-quiet", "50ms")
	p.line("watching " + dir)
	p.line("all quiet for 50ms")
	file := filepath.Join(dir, "something")
	if err := os.WriteFile(file, []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"created something", "written something", "deleted something"} {
		for {
			if l := p.line(""); l == want {
				break
			} else if l != "all quiet for 50ms" {
				t.Fatalf("the example printed %q, want %q", l, want)
			}
		}
	}
}

func TestProxy(t *testing.T) {
	// Behind it stands a server that answers only after the end of the request, and then for long.
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer ln.Close()
	ended := make(chan error, 100)
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				b, err := io.ReadAll(c)
				ended <- err
				_, _ = c.Write(b)
			})
		}
	})
	address := start(t, "proxy", "-addr", "tcp://127.0.0.1:0", "-to", "tcp://"+ln.Addr().String()).address()
	var clients sync.WaitGroup
	for range 4 {
		c := dial(t, address)
		clients.Go(func() {
			if got := exchange(t, c, size/4); !bytes.Equal(got, message(size/4)) {
				t.Errorf("%d bytes came back, which are not what was sent", len(got))
			}
		})
	}
	clients.Wait()
	for range 4 {
		if err := <-ended; err != nil {
			t.Errorf("the server read %v", err)
		}
	}
	// A client that goes in the middle takes the server's connection with it.
	c := dial(t, address)
	if _, err := c.Write([]byte("half a request")); err != nil {
		t.Fatal(err)
	}
	c.Close()
	select {
	case <-ended:
	case <-time.After(patience):
		t.Error("the server's connection has not ended with the client's")
	}
	// A server that is not there ends the client's connection.
	ln.Close()
	if b, err := io.ReadAll(dial(t, address)); len(b) > 0 || err != nil {
		t.Errorf("without a server the client reads %q: %v", b, err)
	}
}

func TestChat(t *testing.T) {
	address := start(t, "chat", "-addr", "tcp://127.0.0.1:0").address()
	type member struct {
		*net.TCPConn
		*bufio.Reader
	}
	expect := func(m member, want string) {
		t.Helper()
		if got, err := m.ReadString('\n'); got != want+"\n" || err != nil {
			t.Fatalf("read %q (%v), want %q", got, err, want)
		}
	}
	join := func(i int, others ...member) member {
		c := dial(t, address)
		m := member{c, bufio.NewReader(c)}
		expect(m, fmt.Sprintf("* you are guest%d, of %d", i, i))
		for _, o := range others {
			expect(o, fmt.Sprintf("* guest%d has joined", i))
		}
		return m
	}
	a := join(1)
	b := join(2, a)
	c := join(3, a, b)
	fmt.Fprint(a.TCPConn, "hello\nhow ar")
	expect(b, "guest1: hello")
	expect(c, "guest1: hello")
	fmt.Fprint(a.TCPConn, "e you?\n")
	expect(b, "guest1: how are you?")
	expect(c, "guest1: how are you?")
	fmt.Fprint(c.TCPConn, "fine\n")
	expect(a, "guest3: fine")
	expect(b, "guest3: fine")
	c.TCPConn.Close()
	expect(a, "* guest3 has left")
	expect(b, "* guest3 has left")

	// b stops reading. Lines go to it until it is thrown out, of which a is told.
	go func() {
		line := bytes.Repeat([]byte("x"), 1<<10)
		line[len(line)-1] = '\n'
		for {
			if _, err := a.TCPConn.Write(line); err != nil {
				return
			}
		}
	}()
	got, err := a.ReadString('\n')
	if !strings.HasPrefix(got, "* guest2 has left") || err != nil {
		t.Errorf("read %q (%v), want that guest2 has left", got, err)
	}
	a.TCPConn.Close()
}
