//go:build linux

package conformance

import (
	"bytes"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/poller"
)

func pastDeadlineWakes(e *env) {
	r := e.rig()
	d, _ := e.desc(r)
	e.fill(d)
	e.settle(r)
	e.noError(d.Reset(poller.ModeRead | poller.ModeWrite))
	reader := e.start(func() (int, error) { return d.Read(make([]byte, 1)) })
	writer := e.start(func() (int, error) { return d.Write(make([]byte, 1)) })
	e.parked(inWait, 2, reader, writer)
	e.noError(d.SetReadDeadline(r.clock.Time())) // Now is past.
	_, err := reader.wait()
	e.wantError(err, poller.ErrTimeout)
	e.parked(inWait, 1, writer)
	e.noError(d.SetWriteDeadline(time.Unix(1, 0)))
	_, err = writer.wait()
	e.wantError(err, poller.ErrTimeout)
	if r.clock.Sets() != 0 {
		e.Error("a timer was set for what is past already")
	}
}

func pastDeadlineWithData(e *env) {
	r := e.rig()
	d, s := e.desc(r)
	s.send(e, "a")
	e.settle(r)
	calls := e.countCalls(d.Fd())
	e.noError(d.SetDeadline(r.clock.Time().Add(-time.Nanosecond)))
	_, err := d.Read(make([]byte, 1))
	e.wantError(err, poller.ErrTimeout)
	e.wantError(d.WaitRead(), poller.ErrTimeout)
	_, err = d.Write([]byte("x"))
	e.wantError(err, poller.ErrTimeout)
	_, err = d.Writev([][]byte{[]byte("x")})
	e.wantError(err, poller.ErrTimeout)
	e.wantError(d.Use(poller.ModeRead, func(int) bool { return true }), poller.ErrTimeout)
	if n := calls(); n != 0 {
		e.Errorf("%d system calls were made after the deadline", n)
	}
	e.noError(d.SetDeadline(time.Time{}))
	if got, err := read(d, 1); string(got) != "a" || err != nil {
		e.Fatalf("%q, %v", got, err)
	}
}

// countCalls counts the reads and writes of fd.
func (e *env) countCalls(fd int) func() int {
	var mu sync.Mutex
	n := 0
	e.inject(func(op sys.Op, at int) sys.Fault {
		if at == fd && (op == sys.OpRecv || op == sys.OpSend || op == sys.OpRead || op == sys.OpWrite) {
			mu.Lock()
			n++
			mu.Unlock()
		}
		return sys.Fault{}
	})
	return func() int {
		mu.Lock()
		defer mu.Unlock()
		return n
	}
}

func deadlineMovedLater(e *env) {
	r := e.rig()
	d, s := e.desc(r)
	e.noError(d.SetReadDeadline(r.clock.Time().Add(time.Second)))
	reader := e.start(func() (int, error) { return d.Read(make([]byte, 1)) })
	e.parked(inWait, 1, reader)
	e.noError(d.SetReadDeadline(r.clock.Time().Add(time.Minute)))
	r.clock.Advance(2 * time.Second)
	e.parked(inWait, 1, reader)
	s.send(e, "a")
	if n, err := reader.wait(); n != 1 || err != nil {
		e.Fatalf("%d, %v", n, err)
	}
	// It passes, and is moved before the reader has run: both outcomes are right, and neither may hang or lose a byte.
	for range 200 {
		e.noError(d.SetReadDeadline(r.clock.Time().Add(time.Second)))
		reader := e.start(func() (int, error) { return d.Read(make([]byte, 1)) })
		runtime.Gosched()
		r.clock.Advance(time.Second)
		e.noError(d.SetReadDeadline(r.clock.Time().Add(time.Minute)))
		s.send(e, "a")
		n, err := reader.wait()
		if errors.Is(err, poller.ErrTimeout) && n == 0 {
			n, err = d.Read(make([]byte, 1))
		}
		if n != 1 || err != nil {
			e.Fatalf("%d, %v", n, err)
		}
	}
}

func clearedDeadline(e *env) {
	r := e.rig()
	d, s := e.desc(r)
	e.noError(d.SetDeadline(r.clock.Time().Add(time.Second)))
	reader := e.start(func() (int, error) { return d.Read(make([]byte, 1)) })
	e.parked(inWait, 1, reader)
	r.clock.Advance(time.Second)
	_, err := reader.wait()
	e.wantError(err, poller.ErrTimeout)
	s.send(e, "ab")
	e.settle(r)
	_, err = d.Read(make([]byte, 1))
	e.wantError(err, poller.ErrTimeout)
	e.noError(d.SetDeadline(time.Time{}))
	if got, err := read(d, 2); string(got) != "ab" || err != nil {
		e.Fatalf("%q, %v", got, err)
	}
	if _, err := d.Write([]byte("x")); err != nil {
		e.Fatal(err)
	}
	// The same without a read in between: the edge was latched while the deadline had passed.
	e.noError(d.SetReadDeadline(time.Unix(1, 0)))
	s.send(e, "c")
	e.settle(r)
	e.noError(d.SetReadDeadline(r.clock.Time().Add(time.Hour)))
	if got, err := read(d, 1); string(got) != "c" || err != nil {
		e.Fatalf("%q, %v", got, err)
	}
}

func deadlinesSeparate(e *env) {
	r := e.rig()
	d, s := e.desc(r)
	full := e.fill(d)
	e.settle(r)
	e.noError(d.Reset(poller.ModeWrite))
	writer := e.start(func() (int, error) { return d.Write([]byte("x")) })
	e.parked(inWait, 1, writer)
	e.noError(d.SetReadDeadline(r.clock.Time().Add(time.Second)))
	r.clock.Advance(time.Minute)
	_, err := d.Read(make([]byte, 1))
	e.wantError(err, poller.ErrTimeout)
	e.parked(inWait, 1, writer)
	if _, err := io.ReadFull(s, make([]byte, full+1)); err != nil {
		e.Fatal(err)
	}
	if n, err := writer.wait(); n != 1 || err != nil {
		e.Fatalf("%d, %v", n, err)
	}
	e.noError(d.SetReadDeadline(time.Time{}))
	reader := e.start(func() (int, error) { return d.Read(make([]byte, 1)) })
	e.parked(inWait, 1, reader)
	e.noError(d.SetWriteDeadline(r.clock.Time().Add(time.Second)))
	r.clock.Advance(time.Minute)
	_, err = d.Write([]byte("x"))
	e.wantError(err, poller.ErrTimeout)
	e.parked(inWait, 1, reader)
	s.send(e, "a")
	if n, err := reader.wait(); n != 1 || err != nil {
		e.Fatalf("%d, %v", n, err)
	}
}

func deadlineSplit(e *env) {
	r := e.rig()
	d, _ := e.desc(r)
	e.fill(d)
	e.settle(r)
	both := func() (reader, writer *task) {
		e.noError(d.Reset(poller.ModeRead | poller.ModeWrite))
		reader = e.start(func() (int, error) { return d.Read(make([]byte, 1)) })
		writer = e.start(func() (int, error) { return d.Write([]byte("x")) })
		e.parked(inWait, 2, reader, writer)
		return reader, writer
	}
	e.noError(d.SetDeadline(r.clock.Time().Add(time.Second)))
	if n := r.clock.Armed(); n != 1 {
		e.Errorf("one deadline for both directions has set %d timers", n)
	}
	reader, writer := both()
	r.clock.Advance(time.Second)
	for _, t := range []*task{reader, writer} {
		_, err := t.wait()
		e.wantError(err, poller.ErrTimeout)
	}
	// Split, the reader's to later and then to sooner than the writer's.
	e.noError(d.SetDeadline(r.clock.Time().Add(2 * time.Second)))
	reader, writer = both()
	e.noError(d.SetReadDeadline(r.clock.Time().Add(3 * time.Second)))
	r.clock.Advance(2 * time.Second)
	_, err := writer.wait()
	e.wantError(err, poller.ErrTimeout)
	e.parked(inWait, 1, reader)
	r.clock.Advance(time.Second)
	_, err = reader.wait()
	e.wantError(err, poller.ErrTimeout)

	e.noError(d.SetDeadline(r.clock.Time().Add(2 * time.Second)))
	reader, writer = both()
	e.noError(d.SetReadDeadline(r.clock.Time().Add(time.Second)))
	r.clock.Advance(time.Second)
	_, err = reader.wait()
	e.wantError(err, poller.ErrTimeout)
	e.parked(inWait, 1, writer)
	r.clock.Advance(time.Second)
	_, err = writer.wait()
	e.wantError(err, poller.ErrTimeout)
}

func deadlineAfterClose(e *env) {
	r := e.rig()
	d, _ := e.desc(r)
	e.noError(d.SetDeadline(r.clock.Time().Add(time.Minute)))
	e.noError(d.Close())
	if n := r.clock.Armed(); n != 0 {
		e.Errorf("%d timers are left of what is closed", n)
	}
	for _, at := range []time.Time{{}, time.Unix(1, 0), r.clock.Time().Add(time.Second)} {
		e.wantError(d.SetDeadline(at), poller.ErrClosed)
		e.wantError(d.SetReadDeadline(at), poller.ErrClosed)
		e.wantError(d.SetWriteDeadline(at), poller.ErrClosed)
	}
	if n := r.clock.Armed(); n != 0 {
		e.Errorf("%d timers were set for what is closed", n)
	}
	_, err := d.Read(make([]byte, 1))
	e.wantError(err, poller.ErrClosed)
}

func timeoutError(e *env) {
	r := e.rig()
	d, _ := e.desc(r)
	e.noError(d.SetReadDeadline(time.Unix(1, 0)))
	_, err := d.Read(make([]byte, 1))
	e.wantError(err, os.ErrDeadlineExceeded)
	var timeout net.Error
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		e.Errorf("%v is no timeout to package net", err)
	}
	e.noError(d.Close())
	_, err = d.Read(make([]byte, 1))
	e.wantError(err, net.ErrClosed)
}

func partialWrite(e *env) {
	r := e.rig()
	d, s := e.desc(r)
	const size = 16 << 20
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(i ^ i>>8 ^ i>>16)
	}
	e.noError(d.SetWriteDeadline(r.clock.Time().Add(time.Second)))
	writer := e.start(func() (int, error) { return d.Write(data) })
	e.parked(inWait, 1, writer)
	// The waiter may be at one of several waits: room comes in pieces. None comes without a reader, in the end.
	r.clock.Advance(time.Second)
	n, err := writer.wait()
	e.wantError(err, os.ErrDeadlineExceeded)
	if n <= 0 || n >= size {
		e.Fatalf("%d bytes were written", n)
	}
	e.noError(d.Close())
	got, err := io.ReadAll(s)
	e.noError(err)
	if !bytes.Equal(got, data[:n]) {
		e.Fatalf("%d bytes arrived, %d were said to be written, or they differ", len(got), n)
	}
}

func overflowingDeadline(e *env) {
	b, err := e.target.Open()
	e.noError(err)
	p, err := poller.New(b) // The real clock: its arithmetic is what can overflow.
	e.noError(err)
	defer p.Close()
	fd, s := e.pair(b)
	d, err := p.OpenStream(fd, e.network == "tcp")
	e.noError(err)
	defer d.Close()
	for _, at := range []time.Time{
		time.Now().Add(math.MaxInt64), time.Now().Add(math.MaxInt64).Round(0), time.Unix(1<<62, 0),
		time.Now().Add(290 * 365 * 24 * time.Hour).Round(0),
	} {
		e.noError(d.SetDeadline(at))
		s.send(e, "a")
		if got, err := read(d, 1); string(got) != "a" || err != nil {
			e.Fatalf("with a deadline at %v: %q, %v", at, got, err)
		}
		reader := e.start(func() (int, error) { return d.Read(make([]byte, 1)) })
		e.parked(inWait, 1, reader)
		e.noError(d.SetReadDeadline(time.Time{}))
		s.send(e, "b")
		_, err := reader.wait()
		e.noError(err)
	}
	for _, at := range []time.Time{
		time.Unix(1, 0), time.Unix(-1<<62, 0), time.Unix(math.MinInt64, 0), time.Now().Add(math.MinInt64),
		time.Now().Add(math.MinInt64).Round(0), time.Now().Round(0).Add(-time.Nanosecond), time.Time{}.Add(1),
	} {
		e.noError(d.SetDeadline(at))
		_, err := d.Read(make([]byte, 1))
		e.wantError(err, poller.ErrTimeout)
	}
	// And one of the usual kind, which the real timer must meet.
	for _, at := range []time.Time{time.Now().Add(5 * time.Millisecond), time.Now().Add(5 * time.Millisecond).Round(0)} {
		e.noError(d.SetReadDeadline(at))
		reader := e.start(func() (int, error) { return d.Read(make([]byte, 1)) })
		_, err := reader.wait()
		e.wantError(err, poller.ErrTimeout)
	}
}

func staleTimer(e *env) {
	r := e.rig()
	d, s := e.desc(r)
	// Of an earlier deadline.
	e.noError(d.SetReadDeadline(r.clock.Time().Add(time.Second)))
	e.noError(d.SetReadDeadline(time.Time{}))
	reader := e.start(func() (int, error) { return d.Read(make([]byte, 1)) })
	e.parked(inWait, 1, reader)
	r.clock.Advance(time.Minute)
	e.parked(inWait, 1, reader)
	s.send(e, "a")
	_, err := reader.wait()
	e.noError(err)
	e.noError(d.SetReadDeadline(r.clock.Time().Add(time.Second)))
	e.noError(d.SetReadDeadline(r.clock.Time().Add(time.Hour)))
	reader = e.start(func() (int, error) { return d.Read(make([]byte, 1)) })
	e.parked(inWait, 1, reader)
	r.clock.Advance(time.Minute)
	e.parked(inWait, 1, reader)
	s.send(e, "a")
	_, err = reader.wait()
	e.noError(err)
	// Of an earlier owner of the slot and of the number.
	e.noError(d.SetDeadline(r.clock.Time().Add(time.Second)))
	before := r.spy.token(d.Fd())
	e.noError(d.Close())
	d, s = e.desc(r)
	if after := r.spy.token(d.Fd()); after.Slot() != before.Slot() {
		e.Fatalf("the slot was not used again: %v, %v", before, after)
	}
	reader = e.start(func() (int, error) { return d.Read(make([]byte, 1)) })
	e.parked(inWait, 1, reader)
	r.clock.Advance(time.Minute)
	e.parked(inWait, 1, reader)
	s.send(e, "b")
	if n, err := reader.wait(); n != 1 || err != nil {
		e.Fatalf("%d, %v", n, err)
	}
}

// storm does everything at once, with the real clock. Each operation may end in its ways, and none may hang.
func storm(e *env) {
	const rounds = 40
	b, err := e.target.Open()
	e.noError(err)
	p, err := poller.New(b)
	e.noError(err)
	defer p.Close()
	for range rounds {
		fd, s := e.pair(b)
		d, err := p.OpenStream(fd, e.network == "tcp")
		e.noError(err)
		over := make(chan struct{})
		var tasks []*task
		beside := func(f func() error) {
			tasks = append(tasks, e.run(func() error {
				for {
					if err := f(); err != nil && !errors.Is(err, poller.ErrTimeout) {
						return err
					}
					select {
					case <-over:
						return nil
					default:
						runtime.Gosched() // With one P, operations that fail at once would have it for 10 ms each.
					}
				}
			}))
		}
		buf := make([]byte, 1024)
		for range 2 {
			beside(func() error { _, err := d.Read(make([]byte, 100)); return err })
			beside(func() error { _, err := d.Write(buf); return err })
			beside(func() error {
				return d.SetDeadline(time.Now().Add(time.Duration(rand.IntN(200)-50) * time.Microsecond))
			})
			beside(func() error {
				return d.SetReadDeadline(time.Now().Add(time.Duration(rand.IntN(100)) * time.Microsecond))
			})
			beside(func() error { return d.SetWriteDeadline(time.Time{}) })
		}
		beside(func() error {
			if err := d.WaitRead(); !errors.Is(err, poller.ErrBusy) {
				return err
			}
			return nil
		})
		peerReads := e.run(func() error { _, err := io.Copy(io.Discard, struct{ io.Reader }{s}); return err })
		peerWrites := e.run(func() error {
			for {
				if _, err := s.Write(buf); err != nil {
					return nil // We have closed.
				}
				runtime.Gosched()
			}
		})
		for range rand.IntN(30) {
			runtime.Gosched()
		}
		closers := []*task{e.run(d.Close), e.run(d.Close)}
		won := 0
		for _, t := range closers {
			if _, err := t.wait(); err == nil {
				won++
			} else {
				e.wantError(err, poller.ErrClosed)
			}
		}
		if won != 1 {
			e.Fatalf("%d closes have succeeded", won)
		}
		close(over)
		for _, t := range tasks {
			if _, err := t.wait(); err != nil {
				e.wantError(err, poller.ErrClosed)
			}
		}
		peerReads.wait()
		peerWrites.wait()
		s.Close()
	}
	if n := p.Len(); n != 0 {
		e.Errorf("%d descriptors are left", n)
	}
}
