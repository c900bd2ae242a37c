//go:build linux

package test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/nettest"

	"github.com/pollux-go/pollux"
	"github.com/pollux-go/pollux/internal/testutil"
)

// mixed runs f with every backend on either side.
func mixed(t *testing.T, f func(t *testing.T, there, here *pollux.Engine)) {
	kinds := []pollux.Kind{pollux.KindEpoll, pollux.KindUring}
	for _, server := range kinds {
		for _, client := range kinds {
			t.Run(string(server)+" and "+string(client), func(t *testing.T) {
				testutil.CheckLeaks(t)
				f(t, engineOn(t, server), engineOn(t, client))
			})
		}
	}
}

// TestMixedBackends holds the event API against the contract of net.Conn.
func TestMixedBackends(t *testing.T) {
	mixed(t, func(t *testing.T, there, here *pollux.Engine) {
		nettest.TestConn(t, func() (s, c net.Conn, stop func(), err error) {
			accepted, dialed := newEventConn(), newEventConn()
			service, err := there.Bind(accepted, "tcp://127.0.0.1:0")
			if err != nil {
				return nil, nil, nil, err
			}
			if _, err := here.Dial(t.Context(), "tcp://"+service.Addrs()[0].String(), dialed); err != nil {
				return nil, nil, nil, err
			}
			await(t, "OnOpen", accepted.opened)
			await(t, "OnOpen", dialed.opened)
			return accepted, dialed, func() {
				accepted.Close()
				dialed.Close()
				if err := service.Shutdown(context.Background()); err != nil {
					t.Error(err)
				}
			}, nil
		})
	})
}

// TestMixedStreams sends records of many sizes there and back, on many connections at once, up to the end of each stream.
func TestMixedStreams(t *testing.T) {
	mixed(t, func(t *testing.T, there, here *pollux.Engine) {
		service, err := there.Bind(echoes{}, "tcp://127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		var all sync.WaitGroup
		for id := range uint64(12) {
			all.Go(func() {
				c := newEventConn()
				if _, err := here.Dial(t.Context(), "tcp://"+service.Addrs()[0].String(), c); err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				c.SetDeadline(time.Now().Add(patience))
				const records = 120
				size := func(i int) int { return []int{10, 100, 3000, 5000, 20_000, 150_000}[(i/8+int(id))%6] }
				all.Go(func() {
					var b []byte
					for i := range records {
						b = testutil.AppendRecord(b[:0], id, uint64(i), size(i))
						if _, err := c.Write(b); err != nil {
							t.Errorf("stream %d: write record %d: %v", id, i, err)
							return
						}
					}
					if err := c.CloseWrite(); err != nil {
						t.Error(err)
					}
				})
				for i := range uint64(records) {
					if err := testutil.ReadRecord(c, id, i); err != nil {
						t.Errorf("stream %d: read record %d: %v", id, i, err)
						return
					}
				}
				if n, err := c.Read(make([]byte, 1)); err != io.EOF {
					t.Errorf("stream %d: %d bytes, %v after the last record", id, n, err)
				}
			})
		}
		all.Wait()
	})
}

// echoes sends back what arrives, and waits when the peer does not read.
type echoes struct{ pollux.NopHandler }

func (echoes) OnData(c *pollux.Conn) error {
	b, _ := c.Peek(-1)
	n, err := c.Write(b)
	if _, err := c.Discard(n); err != nil {
		return err
	}
	if errors.Is(err, pollux.ErrWouldBlock) {
		c.Pause()
		return nil
	}
	return err
}

func (echoes) OnWritable(c *pollux.Conn) error { c.Resume(); return nil }

// engineOn starts an engine that ends with the test.
func engineOn(t *testing.T, kind pollux.Kind) *pollux.Engine {
	t.Helper()
	mask := ""
	if kind == pollux.KindUring {
		mask = os.Getenv("POLLUX_URING_FEATURES")
	}
	e, err := pollux.New(pollux.Config{Backend: kind, UringFeatures: mask, Loops: 2, Dispatch: pollux.Dispatch(os.Getenv("POLLUX_DISPATCH")), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

// eventConn is a net.Conn on the event API, for one connection: reads and writes wait for its callbacks.
type eventConn struct {
	pollux.NopHandler
	opened chan struct{}
	conn   *pollux.Conn

	mu       sync.Mutex
	changed  chan struct{} // closed and replaced at each change of what follows
	in       []byte
	eof      bool
	err      error // of OnClose
	closed   bool
	drained  int // calls of OnWritable
	deadline [2]time.Time
}

const (
	reading = iota
	writing
)

// inMost is how much a connection holds before it is paused.
const inMost = 256 << 10

func newEventConn() *eventConn {
	return &eventConn{opened: make(chan struct{}), changed: make(chan struct{})}
}

// change runs f and wakes all who wait.
func (e *eventConn) change(f func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f()
	close(e.changed)
	e.changed = make(chan struct{})
}

func (e *eventConn) OnOpen(c *pollux.Conn) error {
	e.conn = c
	close(e.opened)
	return nil
}

func (e *eventConn) OnData(c *pollux.Conn) error {
	b, err := c.Next(-1)
	e.change(func() {
		e.in = append(e.in, b...)
		if len(e.in) > inMost {
			c.Pause()
		}
	})
	return err
}

func (e *eventConn) OnEOF(*pollux.Conn) error {
	e.change(func() { e.eof = true })
	return nil
}

func (e *eventConn) OnWritable(*pollux.Conn) error {
	e.change(func() { e.drained++ })
	return nil
}

func (e *eventConn) OnClose(_ *pollux.Conn, err error) {
	e.change(func() {
		if e.err = err; err == nil {
			e.err = io.EOF
		}
	})
}

// wait waits for a change or the deadline. mu is held, and given up meanwhile.
func (e *eventConn) wait(direction int) error {
	changed, at := e.changed, e.deadline[direction]
	var timeout <-chan time.Time
	if !at.IsZero() {
		timer := time.NewTimer(time.Until(at))
		defer timer.Stop()
		timeout = timer.C
	}
	e.mu.Unlock()
	defer e.mu.Lock()
	select {
	case <-changed:
		return nil
	case <-timeout:
		return os.ErrDeadlineExceeded
	}
}

func (e *eventConn) past(direction int) bool {
	at := e.deadline[direction]
	return !at.IsZero() && !at.After(time.Now())
}

func (e *eventConn) Read(p []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for {
		switch {
		case e.closed:
			return 0, net.ErrClosed
		case e.past(reading):
			return 0, os.ErrDeadlineExceeded
		case len(p) == 0:
			return 0, nil
		case len(e.in) > 0:
			n := copy(p, e.in)
			if e.in = e.in[n:]; len(e.in) <= inMost {
				e.conn.Resume()
			}
			return n, nil
		case e.eof:
			return 0, io.EOF
		case e.err != nil:
			return 0, e.err
		}
		if err := e.wait(reading); err != nil {
			return 0, err
		}
	}
}

func (e *eventConn) Write(p []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	sum := 0
	for {
		switch {
		case e.closed:
			return sum, net.ErrClosed
		case e.past(writing):
			return sum, os.ErrDeadlineExceeded
		case e.err != nil:
			return sum, e.err
		}
		before := e.drained // Before the Write: OnWritable may come before it has returned.
		e.mu.Unlock()
		n, err := e.conn.Write(p[sum:])
		e.mu.Lock()
		sum += n
		if !errors.Is(err, pollux.ErrWouldBlock) {
			return sum, err
		}
		for e.drained == before && e.err == nil && !e.closed && !e.past(writing) {
			if err := e.wait(writing); err != nil {
				return sum, err
			}
		}
	}
}

func (e *eventConn) Close() error {
	e.change(func() { e.closed = true })
	return e.conn.Close()
}

func (e *eventConn) CloseWrite() error    { return e.conn.CloseWrite() }
func (e *eventConn) LocalAddr() net.Addr  { return e.conn.LocalAddr() }
func (e *eventConn) RemoteAddr() net.Addr { return e.conn.RemoteAddr() }

func (e *eventConn) setDeadline(t time.Time, directions ...int) error {
	e.change(func() {
		for _, d := range directions {
			e.deadline[d] = t
		}
	})
	return nil
}

func (e *eventConn) SetDeadline(t time.Time) error      { return e.setDeadline(t, reading, writing) }
func (e *eventConn) SetReadDeadline(t time.Time) error  { return e.setDeadline(t, reading) }
func (e *eventConn) SetWriteDeadline(t time.Time) error { return e.setDeadline(t, writing) }

// An eventListener is a net.Listener whose connections are of the event API.
type eventListener struct {
	service  *pollux.Service
	accepted chan *eventConn
	closed   chan struct{}
	once     sync.Once
}

// newEventListener listens until the test ends. A service closes its listener together with its connections, so that Close only
// ends Accept: what is accepted later is closed at once.
func newEventListener(t *testing.T, e *pollux.Engine) *eventListener {
	t.Helper()
	l := &eventListener{accepted: make(chan *eventConn), closed: make(chan struct{})}
	service, err := e.Bind(eventConns{l}, "tcp://127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.service = service
	t.Cleanup(func() {
		if err := service.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return l
}

func (l *eventListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.accepted:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *eventListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *eventListener) Addr() net.Addr { return l.service.Addrs()[0] }

// eventConns is the handler of many eventConn.
type eventConns struct{ l *eventListener }

func (h eventConns) OnOpen(c *pollux.Conn) error {
	e := newEventConn()
	c.SetContext(e)
	_ = e.OnOpen(c)
	select {
	case h.l.accepted <- e: // Accept is about to be called again, if it is not waiting.
		return nil
	case <-h.l.closed:
		return net.ErrClosed
	}
}

func (eventConns) OnData(c *pollux.Conn) error       { return c.Context().(*eventConn).OnData(c) }
func (eventConns) OnEOF(c *pollux.Conn) error        { return c.Context().(*eventConn).OnEOF(c) }
func (eventConns) OnWritable(c *pollux.Conn) error   { return c.Context().(*eventConn).OnWritable(c) }
func (eventConns) OnClose(c *pollux.Conn, err error) { c.Context().(*eventConn).OnClose(c, err) }
