//go:build linux

package pollux

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pollux-go/pollux/internal/invariants"
	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/internal/testutil"
)

// The sweep lets every system call of a scenario fail once: the 0th, the 1st, the 2nd, ... of each kind, until the
// scenario runs through without reaching the n-th. What may fail does fail then; what must hold is that nothing panics,
// hangs or leaks, that no wrong byte arrives, and that the engine still shuts down.
//
// By default it takes two error numbers for each kind of call, and skips some n beyond the first ones. With
// POLLUX_TEST_SWEEP=all it leaves out nothing.

// plausible are the errors that the kernel gives for each kind of call. EAGAIN is missing where the edge that follows a
// real one would be missing too.
var plausible = map[sys.Op][]sys.Errno{
	sys.OpAccept:      {sys.ECONNABORTED, sys.EMFILE, sys.ENFILE, sys.ENOBUFS, sys.ENOMEM, sys.EPROTO, sys.EPERM, sys.EINTR},
	sys.OpBind:        {sys.EADDRINUSE, sys.EACCES, sys.EADDRNOTAVAIL},
	sys.OpChmod:       {sys.EPERM},
	sys.OpClose:       {5 /* EIO */, sys.EINTR},
	sys.OpConnect:     {sys.ECONNREFUSED, sys.ETIMEDOUT, sys.EADDRNOTAVAIL},
	sys.OpEpollCreate: {sys.EMFILE, sys.ENOMEM},
	sys.OpEpollCtl:    {sys.ENOSPC, sys.ENOMEM},
	sys.OpEpollWait:   {sys.EINTR, sys.EBADF},
	sys.OpEventfd:     {sys.EMFILE, sys.ENOMEM},
	sys.OpFcntl:       {sys.EMFILE},
	sys.OpGetpeername: {sys.ENOBUFS, sys.ENOTCONN},
	sys.OpGetsockname: {sys.ENOBUFS},
	sys.OpGetsockopt:  {sys.ENOMEM},
	sys.OpListen:      {sys.EADDRINUSE},
	sys.OpLstat:       {sys.EACCES},
	sys.OpRead:        {sys.EAGAIN},
	sys.OpRecv:        {sys.ECONNRESET, sys.ENOMEM, sys.ETIMEDOUT, sys.EINTR},
	sys.OpSend:        {sys.EPIPE, sys.ENOBUFS, sys.ECONNRESET, sys.EAGAIN, sys.EINTR},
	sys.OpSetsockopt:  {sys.ENOMEM},
	sys.OpShutdown:    {sys.ENOTCONN, sys.ENOBUFS},
	sys.OpSocket:      {sys.EMFILE, sys.ENOMEM},
	sys.OpUnlink:      {sys.EACCES},
	sys.OpWrite:       {sys.EAGAIN},
}

// sweepPatience is how long a client waits in a scenario in which something fails.
const sweepPatience = 150 * time.Millisecond

// scenario is one life of an engine. Errors are what it must expect, wrong bytes are not.
func scenario(t *testing.T, config Config, api, network string, clean bool) {
	wait := sweepPatience
	if clean {
		wait = patience
	}
	e, err := New(config)
	if err != nil {
		if clean {
			t.Error(err)
		}
		return
	}
	var accepting sync.WaitGroup
	var accepted sync.Map
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
		defer cancel()
		accepted.Range(func(c, _ any) bool { c.(net.Conn).Close(); return true })
		within(t, "Shutdown", func() {
			err := e.Shutdown(ctx)
			if clean && err != nil {
				t.Error(err)
			}
		})
		accepted.Range(func(c, _ any) bool { c.(net.Conn).Close(); return true })
		within(t, "the acceptor", accepting.Wait)
	}()

	var addr net.Addr
	if api == "event" {
		a := &audit{inner: echo{}, conns: map[*Conn]*life{}}
		s, err := e.Bind(a, network+"://"+listenAddress(t, network))
		if err != nil {
			if clean {
				t.Error(err)
			}
			return
		}
		addr = s.Addrs()[0]
		defer func() {
			// Before the engine's shutdown: the service alone has to end too.
			ctx, cancel := context.WithTimeout(context.Background(), wait)
			defer cancel()
			within(t, "the service's Shutdown", func() { s.Shutdown(ctx) })
			a.mu.Lock()
			defer a.mu.Unlock()
			for _, fault := range a.faults {
				t.Error(fault)
			}
			if a.opened != a.closed {
				t.Errorf("OnOpen was called for %d connections and OnClose for %d", a.opened, a.closed)
			}
		}()
	} else {
		ln, err := e.Listen(network, listenAddress(t, network))
		if err != nil {
			if clean {
				t.Error(err)
			}
			return
		}
		addr = ln.Addr()
		accepting.Go(func() {
			for {
				c, err := ln.Accept()
				if errors.Is(err, net.ErrClosed) {
					return
				}
				if err != nil {
					time.Sleep(100 * time.Microsecond)
					continue
				}
				accepted.Store(c, nil)
				accepting.Go(func() {
					defer c.Close()
					b := make([]byte, 10_000)
					for {
						n, err := c.Read(b)
						if _, werr := c.Write(b[:n]); err != nil || werr != nil {
							return
						}
					}
				})
			}
		})
		defer ln.Close()
	}

	var clients sync.WaitGroup
	check := func(what string, err error) {
		if err != nil && (clean || errors.Is(err, errWrongBytes)) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for i := range uint64(3) {
		clients.Go(func() {
			c, err := net.DialTimeout(addr.Network(), addr.String(), wait)
			if err != nil {
				return
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(wait))
			check("a client of package net", careful(exchange(c, i, 3, 3000)))
		})
	}
	clients.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), wait)
		defer cancel()
		c, err := e.DialContext(ctx, network, addr.String())
		if err != nil {
			check("DialContext", err)
			return
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(wait))
		check("a client of the net API", careful(exchange(c, 10, 3, 3000)))
	})
	clients.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), wait)
		defer cancel()
		message := testutil.AppendRecord(nil, 11, 0, 3000)
		done := make(chan error, 1)
		var got []byte
		c, err := e.Dial(ctx, network+"://"+addr.String(), funcs{
			open: func(c *Conn) error {
				_, err := c.Write(message)
				return errors.Join(err, c.CloseWrite())
			},
			data: func(c *Conn) error { b, _ := c.Next(-1); got = append(got, b...); return nil },
			close: func(_ *Conn, err error) {
				if !bytes.HasPrefix(message, got) {
					t.Errorf("a client of the event API has got %d wrong bytes", len(got))
				}
				if err == nil && len(got) != len(message) {
					err = fmt.Errorf("%d of %d bytes: %w", len(got), len(message), errWrongBytes)
				}
				if err == nil || errors.Is(err, errWrongBytes) || clean {
					done <- err
				} else {
					done <- nil
				}
			},
		})
		if err != nil {
			check("Dial", err)
			return
		}
		select {
		case err := <-done:
			// An echo that was cut short by a fault on the server's side ends as any other does.
			if clean {
				check("a client of the event API", err)
			}
		case <-ctx.Done():
			if clean {
				t.Error("a client of the event API has not ended")
			}
			c.Close()
		}
	})
	within(t, "the clients", clients.Wait)
}

var errWrongBytes = errors.New("wrong bytes")

// careful marks the errors of a checked stream that mean wrong bytes, and not a stream that ended or broke.
func careful(err error) error {
	var ne net.Error
	if err == nil || errors.As(err, &ne) || isEnd(err) {
		return err
	}
	return fmt.Errorf("%w: %w", errWrongBytes, err)
}

func isEnd(err error) bool {
	var no sys.Errno
	return errors.As(err, &no) || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed) || isEOF(err)
}

// scenarios are the ways that the sweep goes.
func scenarios(t *testing.T, f func(t *testing.T, run func(t *testing.T, clean bool))) {
	eachBackend(t, func(t *testing.T, config Config) {
		config.Linger = 20 * time.Millisecond
		for _, api := range []string{"event", "net"} {
			for _, network := range []string{"tcp", "unix"} {
				t.Run(api+"/"+network, func(t *testing.T) {
					testutil.CheckLeaks(t)
					f(t, func(t *testing.T, clean bool) { scenario(t, config, api, network, clean) })
				})
			}
		}
	})
}

// checkLeaksNow waits until the descriptors are those of before.
func checkLeaksNow(t *testing.T, before map[string]string) {
	t.Helper()
	var extra string
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		extra = ""
		for fd, target := range testutil.Files() {
			if before[fd] == "" {
				extra = fd + ": " + target
			}
		}
		if extra == "" {
			return
		}
	}
	t.Errorf("a descriptor stays open: %s", extra)
}

func TestSweep(t *testing.T) {
	all := os.Getenv("POLLUX_TEST_SWEEP") == "all"
	each := int64(12) // Of the first calls; then fewer and fewer.
	if invariants.Enabled {
		each = 4 // The race detector makes it slow, and the other builds have had them all.
	}
	scenarios(t, func(t *testing.T, run func(t *testing.T, clean bool)) {
		run(t, true)
		before := testutil.Files()
		for op := range sys.Op(sys.Ops) {
			for i, errno := range plausible[op] {
				if i > 1 && !all {
					break
				}
				step := int64(1)
				for n := int64(0); ; n += step {
					fault := &testutil.Nth{Op: op, N: n, Fault: sys.Fault{Errno: errno}}
					restore := sys.Inject(fault.Hook)
					run(t, false)
					restore()
					checkLeaksNow(t, before)
					if t.Failed() {
						t.Fatalf("%v fails with %v at call %d", op, errno, n)
					}
					if !fault.Hit() {
						break
					}
					if !all && n >= each {
						step = n
					}
				}
			}
		}
	})
}

// TestSweepShort has sends take, and on unix sockets reads give, few bytes: at one call, and at all.
func TestSweepShort(t *testing.T) {
	all := os.Getenv("POLLUX_TEST_SWEEP") == "all"
	scenarios(t, func(t *testing.T, run func(t *testing.T, clean bool)) {
		ops := []sys.Op{sys.OpSend}
		if n := t.Name(); n[len(n)-4:] == "unix" {
			ops = append(ops, sys.OpRecv) // On TCP a short read says that nothing is left.
		}
		for _, op := range ops {
			for _, short := range []int{1, 7} {
				for n := int64(0); ; n++ {
					fault := &testutil.Nth{Op: op, N: n, Fault: sys.Fault{Short: short}}
					restore := sys.Inject(fault.Hook)
					run(t, true)
					restore()
					if t.Failed() {
						t.Fatalf("%v moves %d bytes at call %d", op, short, n)
					}
					if !fault.Hit() || n > 10 && !all {
						break
					}
				}
			}
			for seed := range uint64(3) {
				var mu sync.Mutex
				random := rand.New(rand.NewPCG(seed, 0))
				var calls atomic.Int64
				restore := sys.Inject(func(o sys.Op, _ int) sys.Fault {
					if o != op {
						return sys.Fault{}
					}
					calls.Add(1)
					mu.Lock()
					defer mu.Unlock()
					return sys.Fault{Short: 1 + random.IntN(200)}
				})
				run(t, true)
				restore()
				if t.Failed() || calls.Load() == 0 {
					t.Fatalf("%v moves few bytes each time, seed %d, %d calls", op, seed, calls.Load())
				}
			}
		}
	})
}

// TestSweepDelay holds one call of each kind up for a moment, so that everything else overtakes it.
func TestSweepDelay(t *testing.T) {
	scenarios(t, func(t *testing.T, run func(t *testing.T, clean bool)) {
		for op := range sys.Op(sys.Ops) {
			for n := range int64(3) {
				fault := &testutil.Nth{Op: op, N: n, Fault: sys.Fault{Before: func() { time.Sleep(2 * time.Millisecond) }}}
				restore := sys.Inject(fault.Hook)
				run(t, true)
				restore()
				if t.Failed() {
					t.Fatalf("%v is late at call %d", op, n)
				}
				if !fault.Hit() {
					break
				}
			}
		}
	})
}

func isEOF(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }
