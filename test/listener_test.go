//go:build linux

package test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

type deadliner interface{ SetDeadline(time.Time) error }

// TestAcceptDeadline checks deadlines of Accept: passed, to come, cleared, and with a connection waiting.
func TestAcceptDeadline(t *testing.T) {
	parityNetworks(t, func(t *testing.T, s stack, network string, tr *trace) {
		ln := s.mustListen(t, network)
		tr.name(ln.Addr().String(), "<listener>")
		d := ln.(deadliner)
		expectNil(t, d.SetDeadline(past))
		_, err := ln.Accept()
		tr.see("passed", 0, err)
		expectTimeout(t, err)
		at := time.Now().Add(soon)
		expectNil(t, d.SetDeadline(at))
		_, err = ln.Accept()
		tr.see("to come", 0, err)
		expectTimeout(t, err)
		if early := time.Until(at); early > 0 {
			t.Errorf("Accept has ended %v before its deadline", early)
		}
		c := std.mustDial(t, ln)
		expectNil(t, d.SetDeadline(past))
		_, err = ln.Accept()
		tr.see("passed, with a connection waiting", 0, err)
		expectTimeout(t, err)
		expectNil(t, d.SetDeadline(never))
		conn, err := ln.Accept()
		tr.see("cleared", conn != nil, err)
		if err == nil {
			expectNil(t, conn.Close())
		}
		_, err = readNothing(c)
		tr.see("the client's Read", 0, err)
	})
}

// TestListenerAfterClose checks every method of a closed listener, and that Close ends all the Accepts that wait.
func TestListenerAfterClose(t *testing.T) {
	parityNetworks(t, func(t *testing.T, s stack, network string, tr *trace) {
		ln := s.mustListen(t, network)
		tr.name(ln.Addr().String(), "<listener>")
		const accepts = 8
		results := make(chan error, accepts)
		var started sync.WaitGroup
		for range accepts {
			started.Add(1)
			go func() {
				started.Done()
				_, err := ln.Accept()
				results <- err
			}()
		}
		started.Wait()
		within(t, "Close", func() { tr.see("Close", 0, ln.Close()) })
		seen := map[string]bool{}
		for range accepts {
			err := await(t, "the end of an Accept", results)
			expectClosed(t, err)
			seen[describe(err)] = true
		}
		if len(seen) != 1 {
			t.Errorf("the Accepts returned different errors: %v", seen)
		}
		_, err := ln.Accept()
		tr.see("Accept", 0, err)
		expectClosed(t, err)
		err = ln.Close()
		tr.see("second Close", 0, err)
		expectClosed(t, err)
		expectClosed(t, ln.(deadliner).SetDeadline(past))
		raw, err := ln.(syscall.Conn).SyscallConn()
		if err == nil {
			err = raw.Control(func(uintptr) { t.Error("Control was given the descriptor of a closed listener") })
		}
		expectClosed(t, err)
		_, err = std.dial(network, ln.Addr().String())
		tr.see("Dial", 0, err)
		if network == "unix" {
			_, err := os.Lstat(ln.Addr().String())
			tr.see("the socket's file", 0, asNotExist(err))
		}
	})
}

func asNotExist(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return os.ErrNotExist
	}
	return err
}

// TestListenErrors checks addresses that cannot be listened on.
func TestListenErrors(t *testing.T) {
	parity(t, func(t *testing.T, s stack, tr *trace) {
		used, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer used.Close()
		usedPath := filepath.Join(shortDir(t), "used")
		usedUnix, err := net.Listen("unix", usedPath)
		if err != nil {
			t.Fatal(err)
		}
		defer usedUnix.Close()
		tr.name(used.Addr().String(), "<used>")
		tr.name(usedPath, "<path>")
		for _, a := range []struct{ network, address string }{
			{"tcp", used.Addr().String()},
			{"tcp4", used.Addr().String()},
			{"tcp", "127.0.0.1"},
			{"tcp", "127.0.0.1:"},
			{"tcp", "127.0.0.1:65536"},
			{"tcp", "127.0.0.1:-1"},
			{"tcp", "127.0.0.1:no-such-service"},
			{"tcp", "[::1"},
			{"tcp", "::1:80"},
			{"tcp", "1.2.3.4:0"}, // Not an address of this host.
			{"tcp4", "[::1]:0"},
			{"tcp6", "127.0.0.1:0"},
			{"tcp", ""},
			{"", "127.0.0.1:0"},
			{"sctp", "127.0.0.1:0"},
			{"tcp5", "127.0.0.1:0"},
			{"unix", "/no/such/directory/socket"},
		} {
			ln, err := s.listen(a.network, a.address)
			if err == nil {
				ln.Close()
			}
			tr.see("Listen "+a.network+" "+a.address, ln != nil, err)
		}
		// A file that somebody listens on.
		_, err = s.listen("unix", usedPath)
		expectErrno(t, err, syscall.EADDRINUSE)
		// One that is no socket is left alone.
		plain := filepath.Join(shortDir(t), "plain")
		expectNil(t, os.WriteFile(plain, []byte("precious"), 0o600))
		_, err = s.listen("unix", plain)
		expectErrno(t, err, syscall.EADDRINUSE)
		if b, err := os.ReadFile(plain); string(b) != "precious" || err != nil {
			t.Errorf("the file holds %q now: %v", b, err)
		}
	})
}

// TestListenUnsupported checks that what pollux does not serve is refused with an error that says so.
func TestListenUnsupported(t *testing.T) {
	s := ours(t)
	for _, network := range []string{"udp", "udp4", "ip", "unixgram", "unixpacket", "fd"} {
		ln, err := s.listen(network, "127.0.0.1:0")
		if err == nil {
			ln.Close()
			t.Errorf("Listen %s succeeded", network)
			continue
		}
		expectUnknownNetwork(t, err, "listen", network)
		_, err = s.dial(network, "127.0.0.1:1")
		expectUnknownNetwork(t, err, "dial", network)
	}
}

func expectUnknownNetwork(t *testing.T, err error, op, network string) {
	t.Helper()
	opErr, ok := errors.AsType[*net.OpError](err)
	if !ok || opErr.Op != op || opErr.Net != network || opErr.Err != error(net.UnknownNetworkError(network)) {
		t.Errorf("%s %s: got %v, want a *net.OpError with net.UnknownNetworkError", op, network, err)
	}
}

// TestAddresses checks the addresses of listeners and of both ends of connections, for every kind of address.
func TestAddresses(t *testing.T) {
	path := filepath.Join(shortDir(t), "socket")
	for _, a := range []struct{ network, address string }{
		{"tcp", "127.0.0.1:0"},
		{"tcp4", "127.0.0.1:0"},
		{"tcp6", "[::1]:0"},
		{"tcp", "[::1]:0"},
		{"tcp", "localhost:0"},
		{"tcp4", "localhost:0"},
		{"tcp", ":0"},
		{"tcp4", ":0"},
		{"tcp6", ":0"},
		{"tcp", "[::]:0"},
		{"tcp4", "0.0.0.0:0"},
		{"tcp", "[::ffff:127.0.0.1]:0"},
		{"unix", path},
		{"unix", "@pollux-conformance-" + strconv.Itoa(os.Getpid())},
	} {
		t.Run(a.network+" "+a.address, func(t *testing.T) {
			parity(t, func(t *testing.T, s stack, tr *trace) {
				ln, err := s.listen(a.network, a.address)
				if err != nil {
					t.Fatal(err)
				}
				defer ln.Close()
				if tcp, ok := ln.Addr().(*net.TCPAddr); ok {
					tr.name(strconv.Itoa(tcp.Port), "<port>")
				}
				seeAddr(tr, "Listener.Addr", ln.Addr())
				target := ln.Addr().String()
				for _, client := range []stack{std, s} {
					accepted := make(chan net.Conn, 1)
					go func() {
						conn, err := ln.Accept()
						if err != nil {
							t.Error(err)
							close(accepted)
							return
						}
						accepted <- conn
					}()
					c, err := client.dial(a.network, target)
					if err != nil {
						t.Fatal(err)
					}
					conn := await(t, "Accept", accepted)
					if local, ok := c.LocalAddr().(*net.TCPAddr); ok {
						tr.name(strconv.Itoa(local.Port), "<client>")
					}
					seeAddr(tr, "client local", c.LocalAddr())
					seeAddr(tr, "client remote", c.RemoteAddr())
					seeAddr(tr, "server local", conn.LocalAddr())
					seeAddr(tr, "server remote", conn.RemoteAddr())
					// What the network is called in errors.
					expectNil(t, conn.SetReadDeadline(past))
					_, err = readNothing(conn)
					tr.see("server Read", 0, err)
					expectNil(t, c.SetReadDeadline(past))
					_, err = readNothing(c)
					tr.see("client Read", 0, err)
					expectNil(t, c.Close())
					expectNil(t, conn.Close())
				}
			})
		})
	}
}

func seeAddr(tr *trace, what string, a net.Addr) {
	if tcp, ok := a.(*net.TCPAddr); ok {
		tr.see(what, []any{a.Network(), a.String(), len(tcp.IP), tcp.Zone}, nil)
		return
	}
	tr.see(what, []any{a.Network(), a.String(), a}, nil)
}

// TestDualStack checks that the wildcard of "tcp" serves both families, and those of "tcp4" and "tcp6" one each.
func TestDualStack(t *testing.T) {
	parity(t, func(t *testing.T, s stack, tr *trace) {
		for _, network := range []string{"tcp", "tcp4", "tcp6"} {
			ln, err := s.listen(network, ":0")
			if err != nil {
				t.Fatal(err)
			}
			port := strconv.Itoa(ln.Addr().(*net.TCPAddr).Port)
			tr.name(port, "<port>")
			for _, host := range []string{"127.0.0.1", "::1"} {
				c, err := std.dial("tcp", net.JoinHostPort(host, port))
				tr.see(network+" from "+host, err == nil, err)
				if err == nil {
					conn, err := ln.Accept()
					if err != nil {
						t.Fatal(err)
					}
					tr.see("its host", conn.RemoteAddr().(*net.TCPAddr).IP.String(), nil)
					conn.Close()
					c.Close()
				}
			}
			expectNil(t, ln.Close())
		}
	})
}

// TestStaleUnixSocket checks that the file which a killed server has left behind is replaced: unlike package net does it.
func TestStaleUnixSocket(t *testing.T) {
	s := ours(t)
	path := filepath.Join(shortDir(t), "socket")
	left, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	left.(*net.UnixListener).SetUnlinkOnClose(false)
	expectNil(t, left.Close())
	ln, err := s.listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if info, err := os.Lstat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file is %v (%v), want the mode 0600", info, err)
	}
	std.mustDial(t, ln).Close()
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	// A file that somebody else has put there since is not ours to remove.
	expectNil(t, os.Remove(path))
	other, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	expectNil(t, ln.Close())
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("Close has removed the socket of another server: %v", err)
	}
}

// TestOutOfDescriptors checks that Accept and Dial say so when there are no descriptors left, with an error that accept
// loops take for temporary, and that the connection which waited is served when there are.
func TestOutOfDescriptors(t *testing.T) {
	parity(t, func(t *testing.T, s stack, tr *trace) {
		ln := s.mustListen(t, "tcp")
		tr.name(ln.Addr().String(), "<listener>")
		// Everything is made that is made on first use.
		warm := s.mustDial(t, ln)
		first, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer first.Close()
		defer warm.Close()
		waiting := std.mustDial(t, ln)
		defer waiting.Close()

		release := exhaust(t)
		defer release()
		conn, err := ln.Accept()
		if err == nil {
			conn.Close()
			t.Fatal("Accept has found a descriptor")
		}
		tr.see("Accept", 0, err)
		expectErrno(t, err, syscall.EMFILE)
		//lint:ignore SA1019 Temporary is deprecated, and accept loops ask for it.
		if ne, ok := errors.AsType[net.Error](err); !ok || !ne.Temporary() {
			t.Error("the error is not temporary")
		}
		_, err = s.dial("tcp", ln.Addr().String())
		tr.see("Dial", 0, err)
		expectErrno(t, err, syscall.EMFILE)
		release()
		conn, err = ln.Accept()
		tr.see("Accept afterwards", conn != nil, err)
		if err == nil {
			tr.see("of the client that waited", conn.RemoteAddr().String() == waiting.LocalAddr().String(), nil)
			conn.Close()
		}
	})
}

// exhaust opens descriptors until there are no more.
func exhaust(t *testing.T) (release func()) {
	t.Helper()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	low := limit
	low.Cur = 128
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	var fds []int
	for {
		fd, err := syscall.Dup(0)
		if err != nil {
			break
		}
		syscall.CloseOnExec(fd)
		fds = append(fds, fd)
	}
	return sync.OnceFunc(func() {
		for _, fd := range fds {
			syscall.Close(fd)
		}
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
			t.Error(err)
		}
	})
}

// TestConcurrentAccept has many goroutines accept from one listener: every connection is given to exactly one.
func TestConcurrentAccept(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			s := ours(t)
			ln := s.mustListen(t, network)
			const accepters, clients = 8, 200
			var accepting sync.WaitGroup
			for range accepters {
				accepting.Go(func() {
					for {
						c, err := ln.Accept()
						if err != nil {
							expectClosed(t, err)
							return
						}
						b := make([]byte, 8)
						n, err := io.ReadFull(c, b)
						expectNil(t, err)
						if _, err := c.Write(b[:n]); err != nil {
							t.Error(err)
						}
						c.Close()
					}
				})
			}
			var dialing sync.WaitGroup
			for worker := range 8 {
				dialing.Go(func() {
					for i := range clients / 8 {
						c, err := s.dial(network, ln.Addr().String())
						if err != nil {
							t.Error(err)
							return
						}
						want := []byte(strconv.Itoa(1e7 + worker*1000 + i))
						if _, err := c.Write(want); err != nil {
							t.Error(err)
						}
						got, err := io.ReadAll(c)
						if !bytes.Equal(got, want) || err != nil {
							t.Errorf("read %q (%v), want %q", got, err, want)
						}
						c.Close()
					}
				})
			}
			within(t, "the end of the clients", dialing.Wait)
			expectNil(t, ln.Close())
			within(t, "the end of the Accepts", accepting.Wait)
		})
	}
}

// TestChildInheritsNothing checks that a child process gets none of the descriptors: of pollers, listeners, and both
// ends of connections, whether they were accepted, dialed or detached.
func TestChildInheritsNothing(t *testing.T) {
	s := ours(t)
	for _, network := range []string{"tcp", "unix"} {
		ln := s.mustListen(t, network)
		s.mustDial(t, ln)
		c, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		a, b, stop, err := makePipe(t, s, "detached", "detached", network)
		if err != nil {
			t.Fatal(err)
		}
		defer stop()
		_, _ = a, b
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, "sh", "-c", `for f in /proc/$$/fd/*; do echo "$f $(readlink $f)"; done`).Output()
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for line := range strings.Lines(string(out)) {
		path, target, _ := strings.Cut(strings.TrimSpace(line), " ")
		fd, err := strconv.Atoi(filepath.Base(path))
		if err != nil {
			continue
		}
		found++
		if strings.HasPrefix(target, "socket:") || strings.HasPrefix(target, "anon_inode:") {
			t.Errorf("the child has inherited fd %d: %s", fd, target)
		}
	}
	if found < 3 {
		t.Errorf("only %d descriptors of the child were seen: %q", found, out)
	}
}

// TestCloseWhileAccepting closes listeners under a storm of clients. No descriptor may be left over, and no connection
// that was accepted may be anything but whole.
func TestCloseWhileAccepting(t *testing.T) {
	s := ours(t)
	for range 20 {
		ln := s.mustListen(t, "tcp")
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for {
					c, err := s.dial("tcp", ln.Addr().String())
					if err != nil {
						return
					}
					c.Close()
				}
			})
		}
		for range 5 {
			c, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			c.Close()
		}
		runtime.Gosched()
		expectNil(t, ln.Close())
		within(t, "the end of the clients", wg.Wait)
	}
}
