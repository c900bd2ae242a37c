package main

import (
	"context"
	"errors"
	"net"
	"sync"
	"syscall"
	"time"
)

// echoServer echoes on the net API, a goroutine per connection. Its methods are those of [http.Server].
type echoServer struct {
	mu        sync.Mutex
	closed    bool                  // guarded by mu
	listeners []net.Listener        // guarded by mu
	conns     map[net.Conn]struct{} // guarded by mu
	handlers  sync.WaitGroup
}

var errServerClosed = errors.New("server closed")

func newEchoServer() netServer {
	return &echoServer{conns: make(map[net.Conn]struct{})}
}

// Serve accepts until the server is closed.
func (s *echoServer) Serve(ln net.Listener) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		ln.Close()
		return errServerClosed
	}
	s.listeners = append(s.listeners, ln)
	s.mu.Unlock()
	for {
		c, err := ln.Accept()
		if err != nil {
			// Out of descriptors is no reason to end; the wait lets connections close.
			if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
				time.Sleep(10 * time.Millisecond)
				continue
			}
			return err
		}
		if s.add(c) {
			go s.echo(c)
		}
	}
}

func (s *echoServer) add(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		c.Close()
		return false
	}
	s.conns[c] = struct{}{}
	s.handlers.Add(1)
	return true
}

// echo serves one connection. The copy ends with the peer's EOF or with Shutdown's read deadline, behind the last
// byte that was read.
func (s *echoServer) echo(c net.Conn) {
	defer s.handlers.Done()
	buf := make([]byte, 16<<10)
	for {
		n, err := c.Read(buf)
		if n > 0 {
			if _, werr := c.Write(buf[:n]); werr != nil {
				break
			}
		}
		if err != nil {
			break
		}
	}
	c.Close()
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
}

// Shutdown stops accepting and reading, and waits until what was read is echoed.
func (s *echoServer) Shutdown(ctx context.Context) error {
	s.end(func(c net.Conn) { c.SetReadDeadline(time.Unix(1, 0)) })
	done := make(chan struct{})
	go func() {
		s.handlers.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close cuts all connections.
func (s *echoServer) Close() error {
	s.end(func(c net.Conn) { c.Close() })
	return nil
}

func (s *echoServer) end(each func(net.Conn)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, ln := range s.listeners {
		ln.Close()
	}
	for c := range s.conns {
		each(c)
	}
}
