package main

import (
	"bytes"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

func TestVersion(t *testing.T) {
	out, errs, status := output(t, []string{"version"})
	if !regexp.MustCompile(`^pollux \S+( \S+)? go\S+.* linux/\S+\n$`).MatchString(out) || errs != "" || status != 0 {
		t.Errorf("%q, %q, status %d", out, errs, status)
	}
}

// servers are the command lines of everything that serves.
var servers = map[string][]string{
	"echo":     {"echo"},
	"echo-net": {"echo", "-net"},
	"resp":     {"resp"},
	"http":     {"http"},
	"http-std": {"http", "-std"},
}

// eachServer runs a test on all servers. Its arguments lack the address.
func eachServer(t *testing.T, test func(t *testing.T, args []string)) {
	for name, args := range servers {
		t.Run(name, func(t *testing.T) { test(t, append([]string(nil), args...)) })
	}
}

func TestBanner(t *testing.T) {
	want := regexp.MustCompile(`^pollux (echo|resp|http): backend=\w+ loops=\d+ cpus=\d+ gomaxprocs=\d+ api=(events|net) addr=tcp://127\.0\.0\.1:[1-9]\d*,unix://\S+\n$`)
	eachServer(t, func(t *testing.T, args []string) {
		path := filepath.Join(t.TempDir(), "s")
		p := start(t, append(args, "-addr", "tcp://127.0.0.1:0, unix://"+path))
		if !want.MatchString(p.banner) {
			t.Errorf("%q", p.banner)
		}
		if p.addrs[1] != "unix://"+path {
			t.Errorf("unix address %q", p.addrs[1])
		}
		for _, addr := range p.addrs {
			dialAddr(t, addr).Close()
		}
		p.stop(t)
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("the socket's file is still there: %v", err)
		}
	})
}

// Idle connections do not hold a shutdown up, and see an orderly end.
func TestShutdownWithIdleConnections(t *testing.T) {
	for _, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		eachServer(t, func(t *testing.T, args []string) {
			p := start(t, append(args, "-addr", "tcp://127.0.0.1:0"))
			c := p.dial(t)
			p.greet(t, c)
			p.signal(t, s)
			if b, err := io.ReadAll(c); len(b) > 0 || err != nil {
				t.Errorf("the connection ended with %q, %v", b, err)
			}
			p.ends(t)
			if p.ProcessState.ExitCode() != 0 {
				t.Errorf("%v after %v; stderr: %s", p.ProcessState, s, p.stderr.String())
			}
		})
	}
}

// greet makes sure that the server has accepted c and answers it.
func (p *proc) greet(t *testing.T, c net.Conn) {
	t.Helper()
	request, want := "hi", "hi"
	switch {
	case strings.HasPrefix(p.banner, "pollux resp"):
		request, want = "PING\r\n", "+PONG\r\n"
	case strings.HasPrefix(p.banner, "pollux http"):
		request, want = "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 200 OK\r\n"
		if _, err := io.WriteString(c, request); err != nil {
			t.Fatal(err)
		}
		var got []byte
		for !bytes.HasSuffix(got, []byte(hello)) {
			b := make([]byte, 1024)
			n, err := c.Read(b)
			if got = append(got, b[:n]...); err != nil {
				t.Fatalf("%q, %v", got, err)
			}
		}
		if !bytes.HasPrefix(got, []byte(want)) {
			t.Fatalf("%q", got)
		}
		return
	}
	exchange(t, c, request, want)
}

func TestAddressInUse(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	eachServer(t, func(t *testing.T, args []string) {
		out, errs, status := output(t, append(args, "-addr", "tcp://"+ln.Addr().String()))
		if status != exitFailed || out != "" || !strings.Contains(errs, "address already in use") || !strings.Contains(errs, ln.Addr().String()) {
			t.Errorf("status %d, %q, %q", status, out, errs)
		}
	})
}

func TestWrongAddress(t *testing.T) {
	eachServer(t, func(t *testing.T, args []string) {
		for _, addr := range []string{"", "gopher://x", "tcp://127.0.0.1", "tcp://127.0.0.1:0,,"} {
			out, errs, status := output(t, append(args, "-addr", addr))
			if status != exitFailed && status != exitUsage || out != "" || strings.Count(errs, "\n") != 1 {
				t.Errorf("%q: status %d, %q, %q", addr, status, out, errs)
			}
		}
	})
}

func TestWrongEnvironment(t *testing.T) {
	commands := map[string][]string{"env": {"env"}, "env-json": {"env", "-json"}}
	for name, args := range servers {
		commands[name] = args
	}
	for name, args := range commands {
		t.Run(name, func(t *testing.T) {
			out, errs, status := output(t, args, "POLLUX_BACKEND=abacus")
			if status != exitUsage || out != "" || !strings.Contains(errs, "POLLUX_BACKEND") || !strings.Contains(errs, "abacus") {
				t.Errorf("status %d, %q, %q", status, out, errs)
			}
		})
	}
}

// An inherited socket is served, as a supervisor would pass it.
func TestInheritedSocket(t *testing.T) {
	for _, name := range []string{"echo", "resp", "http"} {
		t.Run(name, func(t *testing.T) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			f, err := ln.(*net.TCPListener).File()
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			p := start(t, []string{name, "-addr", "fd://3"}, withFile(f))
			if p.hostPort() != ln.Addr().String() {
				t.Errorf("the banner says %q", p.banner)
			}
			p.greet(t, p.dial(t))
			p.stop(t)
		})
	}
}

func TestBurn(t *testing.T) {
	if testing.Short() {
		t.Skip("burns a CPU")
	}
	eachServer(t, func(t *testing.T, args []string) {
		p := start(t, append(args, "-addr", "tcp://127.0.0.1:0", "-burn", "1"))
		p.greet(t, p.dial(t))
		p.stop(t)
	})
}
