//go:build linux

package test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestDialErrors checks addresses that cannot be dialed.
func TestDialErrors(t *testing.T) {
	parity(t, func(t *testing.T, s stack, tr *trace) {
		refused := refusedAddress(t)
		dir := shortDir(t)
		plain := filepath.Join(dir, "plain")
		expectNil(t, os.WriteFile(plain, nil, 0o600))
		tr.name(refused, "<refused>")
		tr.name(dir, "<dir>")
		for _, a := range []struct{ network, address string }{
			{"tcp", refused},
			{"tcp4", refused},
			{"tcp", "127.0.0.1"},
			{"tcp", "127.0.0.1:65536"},
			{"tcp", "127.0.0.1:-1"},
			{"tcp", "127.0.0.1:no-such-service"},
			{"tcp", "[::1"},
			{"tcp", "::1:80"},
			{"tcp4", "[::1]:1"},
			{"tcp6", "127.0.0.1:1"},
			{"tcp", "255.255.255.255:1"}, // Not an address that TCP reaches.
			{"tcp", ""},
			{"", "127.0.0.1:1"},
			{"sctp", "127.0.0.1:1"},
			{"unix", filepath.Join(dir, "nothing")},
			{"unix", plain},
			{"unix", "@nobody-listens-here"},
		} {
			c, err := s.dial(a.network, a.address)
			if err == nil {
				c.Close()
			}
			tr.see("Dial "+a.network+" "+a.address, c != nil, err)
		}
		_, err := s.dial("tcp", refused)
		expectErrno(t, err, syscall.ECONNREFUSED)
		_, err = s.dial("unix", filepath.Join(dir, "nothing"))
		expectErrno(t, err, syscall.ENOENT)
	})
}

// refusedAddress returns an address that nobody listens on. The port is held, so that it stays so.
func refusedAddress(t *testing.T) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return "127.0.0.1:" + strconv.Itoa(sa.(*syscall.SockaddrInet4).Port)
}

// TestDialByName checks hosts and ports that are names.
func TestDialByName(t *testing.T) {
	parity(t, func(t *testing.T, s stack, tr *trace) {
		ln := s.mustListen(t, "tcp")
		port := strconv.Itoa(ln.Addr().(*net.TCPAddr).Port)
		tr.name(port, "<port>")
		// localhost may have an IPv6 address too, which refuses: the other one has its turn.
		c, err := s.dial("tcp", "localhost:"+port)
		if err != nil {
			t.Fatal(err)
		}
		tr.see("localhost", c.RemoteAddr().String(), err)
		expectNil(t, c.Close())
		conn, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		c, err = s.dial("tcp", ":"+port)
		if err != nil {
			t.Fatal(err)
		}
		tr.see("no host", c.RemoteAddr().String(), err)
		expectNil(t, c.Close())

		// A port by name: that of the service, whether anybody listens on it or not.
		_, err = s.dial("tcp", "255.255.255.255:http")
		tr.see("port http", 0, err)
		named, err := s.listen("tcp", "127.0.0.1:9")
		if err != nil {
			t.Skipf("no right to listen on port 9: %v", err)
		}
		expectNil(t, named.Close())
		named, err = s.listen("tcp", "127.0.0.1:discard")
		if err != nil {
			t.Fatal(err)
		}
		tr.see("port discard", named.Addr().String(), err)
		expectNil(t, named.Close())
	})
}

// TestDialContextEnded checks contexts that have ended before the Dial.
func TestDialContextEnded(t *testing.T) {
	parityNetworks(t, func(t *testing.T, s stack, network string, tr *trace) {
		ln := s.mustListen(t, network)
		tr.name(ln.Addr().String(), "<listener>")
		canceled, cancel := context.WithCancel(context.Background())
		cancel()
		_, err := s.dialContext(canceled, network, ln.Addr().String())
		tr.see("canceled", 0, err)
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want a context.Canceled", err)
		}
		cause, cancelCause := context.WithCancelCause(context.Background())
		cancelCause(errors.New("a cause of its own"))
		_, err = s.dialContext(cause, network, ln.Addr().String())
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want a context.Canceled", err)
		}
		late, cancelLate := context.WithDeadline(context.Background(), past)
		defer cancelLate()
		_, err = s.dialContext(late, network, ln.Addr().String())
		tr.see("too late", 0, asTimeout(err)) // Here it is an os.ErrDeadlineExceeded too.
		if ne, ok := errors.AsType[net.Error](err); !ok || !ne.Timeout() || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want a timeout that is context.DeadlineExceeded", err)
		}
	})
}

// fullListener returns the address of a listener whose queue is full, so that dialing it takes for ever.
func fullListener(t *testing.T, network string) string {
	t.Helper()
	var fd int
	var err error
	var sa syscall.Sockaddr = &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}
	if network == "unix" {
		sa = &syscall.SockaddrUnix{Name: filepath.Join(shortDir(t), "full")}
		fd, err = syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	} else {
		fd, err = syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := errors.Join(syscall.Bind(fd, sa), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	if sa, err = syscall.Getsockname(fd); err != nil {
		t.Fatal(err)
	}
	address := ""
	switch sa := sa.(type) {
	case *syscall.SockaddrInet4:
		address = "127.0.0.1:" + strconv.Itoa(sa.Port)
	case *syscall.SockaddrUnix:
		address = sa.Name
	}
	for range 16 {
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		c, err := new(net.Dialer).DialContext(ctx, network, address)
		cancel()
		if network == "unix" && errors.Is(err, syscall.EAGAIN) {
			return address
		}
		if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
			return address
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Skip("the queue of a listener does not become full on this system")
	return ""
}

// TestDialTimeout checks that the context's deadline ends a Dial that gets no answer.
func TestDialTimeout(t *testing.T) {
	address := fullListener(t, "tcp")
	parity(t, func(t *testing.T, s stack, tr *trace) {
		ctx, cancel := context.WithTimeout(context.Background(), 2*soon)
		defer cancel()
		at, _ := ctx.Deadline()
		_, err := s.dialContext(ctx, "tcp", address)
		if early := time.Until(at); early > 0 {
			t.Errorf("Dial has ended %v before its deadline", early)
		}
		opErr, ok := errors.AsType[*net.OpError](err)
		if !ok || !opErr.Timeout() || opErr.Op != "dial" || opErr.Addr == nil || opErr.Addr.String() != address {
			t.Fatalf("got %v, want a timeout of dialing %s", err, address)
		}
		tr.see("Dial", 0, asTimeout(err)) // Which of its two timeouts package net returns is a race there.
	})
	t.Run("both timeouts", func(t *testing.T) {
		s := ours(t)
		ctx, cancel := context.WithTimeout(context.Background(), 2*soon)
		defer cancel()
		_, err := s.dialContext(ctx, "tcp", address)
		if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want both os.ErrDeadlineExceeded and context.DeadlineExceeded", err)
		}
	})
}

// TestDialCanceled checks that a context that is cancelled ends a Dial that gets no answer, at once and without a leak.
func TestDialCanceled(t *testing.T) {
	address := fullListener(t, "tcp")
	parity(t, func(t *testing.T, s stack, tr *trace) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		result := make(chan error, 1)
		go func() {
			c, err := s.dialContext(ctx, "tcp", address)
			if err == nil {
				c.Close()
			}
			result <- err
		}()
		select {
		case err := <-result:
			t.Fatalf("Dial has ended before it was canceled: %v", err)
		case <-time.After(soon):
		}
		cancel()
		err := await(t, "the end of Dial", result)
		tr.name(address, "<full>")
		tr.see("Dial", 0, err)
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want a context.Canceled", err)
		}
	})
}

// TestDialFullUnix checks that a Dial waits for room in the queue of a unix listener, until its context ends. Package
// net returns EAGAIN.
func TestDialFullUnix(t *testing.T) {
	address := fullListener(t, "unix")
	s := ours(t)
	ctx, cancel := context.WithTimeout(context.Background(), 2*soon)
	defer cancel()
	_, err := s.dialContext(ctx, "unix", address)
	expectTimeout(t, err)
	ctx, cancel = context.WithCancel(context.Background())
	time.AfterFunc(soon, cancel)
	_, err = s.dialContext(ctx, "unix", address)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want a context.Canceled", err)
	}
}

// TestContextEndsAfterDial checks that the context bounds the dialing and not the connection.
func TestContextEndsAfterDial(t *testing.T) {
	parityNetworks(t, func(t *testing.T, s stack, network string, tr *trace) {
		ln := s.mustListen(t, network)
		ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
		defer cancel()
		c, err := s.dialContext(ctx, network, ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conn, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		<-ctx.Done()
		// A deadline that was left behind would be due by now; that it is noticed a little later is no excuse.
		expectNil(t, conn.SetReadDeadline(time.Now().Add(soon)))
		n, err := readNothing(conn)
		tr.see("Read of nothing", n, asTimeout(err))
		expectNil(t, conn.SetReadDeadline(never))
		n, err = c.Write([]byte("alive"))
		tr.see("Write", n, err)
		b := make([]byte, 5)
		n, err = io.ReadFull(conn, b)
		tr.see("Read", string(b[:n]), err)
		if _, err := conn.Write(b); err != nil {
			t.Fatal(err)
		}
		n, err = io.ReadFull(c, b)
		tr.see("Read of the answer", string(b[:n]), err)
	})
}

// TestDialCancelRace cancels contexts at the moment at which connections come about. A Dial returns a connection that
// works, or an error and none.
func TestDialCancelRace(t *testing.T) {
	s := ours(t)
	ln := s.mustListen(t, "tcp")
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			accepting.Go(func() {
				_, _ = io.Copy(c, c)
				c.Close()
			})
		}
	})
	dialed := 0
	for i := range 600 {
		ctx, cancel := context.WithCancel(context.Background())
		go func() {
			for range i % 40 * 20 {
				_ = ctx.Err()
			}
			cancel()
		}()
		c, err := s.dialContext(ctx, "tcp", ln.Addr().String())
		if err != nil {
			if c != nil || !errors.Is(err, context.Canceled) {
				t.Errorf("Dial = %v, %v", c, err)
			}
			continue
		}
		dialed++
		b := []byte("x")
		if _, err := c.Write(b); err != nil {
			t.Errorf("Write: %v", err)
		}
		if _, err := io.ReadFull(c, b); err != nil {
			t.Errorf("Read: %v", err)
		}
		expectNil(t, c.Close())
	}
	t.Logf("%d of 600 dials were faster than their cancel", dialed)
	expectNil(t, ln.Close())
	within(t, "the end of the server", accepting.Wait)
}

// TestEngineClosed checks that the net API of an engine that was shut down says so, and that its connections end.
func TestEngineClosed(t *testing.T) {
	s := ours(t)
	ln := s.mustListen(t, "tcp")
	address := ln.Addr().String()
	c := s.mustDial(t, ln)
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	results := make(chan error, 2)
	go func() {
		_, err := readNothing(conn)
		results <- err
	}()
	go func() {
		_, err := ln.Accept()
		results <- err
	}()
	other := ours(t)
	expectNil(t, s.engine.Close())
	for range 2 {
		expectClosed(t, await(t, "the end of Read and Accept", results))
	}
	_, err = c.Write([]byte("x"))
	expectClosed(t, err)
	_, err = s.dial("tcp", address)
	expectClosed(t, err)
	_, err = s.listen("tcp", "127.0.0.1:0")
	expectClosed(t, err)
	expectNil(t, c.Close())
	expectNil(t, conn.Close())
	// Another engine is not concerned.
	pair(t, other, other, "tcp")
}
