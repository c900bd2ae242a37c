//go:build linux

package conformance

import (
	"bytes"
	"io"
	"runtime"
	"time"

	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/poller"
)

func latchedEdge(e *env) {
	r := e.rig()
	d, s := e.desc(r)
	s.send(e, "a")
	e.settle(r)
	e.noError(d.WaitRead()) // No edge comes any more: a lost latch would hang here.
	// It was taken. The next wait is a real one.
	w := e.run(d.WaitRead)
	e.parked(inWait, 1, w)
	s.send(e, "b")
	_, err := w.wait()
	e.noError(err)
}

func edgeBeforePark(e *env) {
	r := e.rig()
	d, s := e.desc(r)
	// The window held open: the edge is delivered after the reader has seen EAGAIN and before it waits.
	var p [8]byte
	calls := 0
	e.noError(d.Use(poller.ModeRead, func(fd int) bool {
		calls++
		n, errno := sys.Recv(fd, p[:])
		if calls == 1 {
			if errno != sys.EAGAIN {
				e.Fatalf("the first read: %d, %v", n, errno)
			}
			s.send(e, "a")
			e.settle(r)
		}
		return errno == 0 && n == 1
	}))
	if calls != 2 {
		e.Errorf("the reader tried %d times", calls)
	}
	// The window hit by chance: a byte there and back, many times.
	const rounds = 2000
	echo := e.run(func() error {
		var p [1]byte
		for i := range rounds {
			if _, err := s.Read(p[:]); err != nil {
				return err
			}
			for range i % 4 {
				runtime.Gosched()
			}
			if _, err := s.Write(p[:]); err != nil {
				return err
			}
		}
		return nil
	})
	ping := e.run(func() error {
		for i := range rounds {
			p := []byte{byte(i)}
			if _, err := d.Write(p); err != nil {
				return err
			}
			got, err := read(d, 1)
			if err != nil {
				return err
			}
			if got[0] != p[0] {
				return io.ErrShortBuffer
			}
		}
		return nil
	})
	_, err := ping.wait()
	e.noError(err)
	_, err = echo.wait()
	e.noError(err)
}

func edgesCoalesce(e *env) {
	r := e.rig()
	d, s := e.desc(r)
	s.send(e, "a")
	e.settle(r)
	s.send(e, "b")
	e.settle(r)
	e.noError(d.WaitRead()) // Two edges, one latch.
	w := e.run(d.WaitRead)
	e.parked(inWait, 1, w)
	s.send(e, "c")
	_, err := w.wait()
	e.noError(err)
	// After a reset there is no phantom of them either.
	s.send(e, "d")
	e.settle(r)
	s.send(e, "e")
	e.settle(r)
	e.noError(d.Reset(poller.ModeRead))
	w = e.run(d.WaitRead)
	e.parked(inWait, 1, w)
	s.send(e, "f")
	_, err = w.wait()
	e.noError(err)
	got, err := read(d, 6)
	if string(got) != "abcdef" || err != nil {
		e.Fatalf("%q, %v", got, err)
	}
}

func resetDropsLatch(e *env) {
	r := e.rig()
	d, s := e.desc(r)
	e.settle(r)
	e.noError(d.Reset(poller.ModeRead | poller.ModeWrite)) // The registration's own edge said that d can be written.
	w := e.run(d.WaitWrite)
	e.parked(inWait, 1, w)
	s.send(e, "a") // An edge says all that is there: room, too.
	_, err := w.wait()
	e.noError(err)

	e.noError(d.Reset(poller.ModeRead))
	// What came before the reset is not lost to a read, which looks for itself.
	got, err := read(d, 1)
	if string(got) != "a" || err != nil {
		e.Fatalf("%q, %v", got, err)
	}
	// Closing comes before timeouts, and both before the reset.
	e.noError(d.SetDeadline(r.clock.Time().Add(-time.Second)))
	e.wantError(d.Reset(poller.ModeRead), poller.ErrTimeout)
	d.Unblock()
	e.wantError(d.Reset(poller.ModeWrite), poller.ErrClosed)
}

func directionsIndependent(e *env) {
	r := e.rig()
	d, s := e.desc(r)
	full := e.fill(d)
	e.settle(r)
	e.noError(d.Reset(poller.ModeRead | poller.ModeWrite))
	reader, writer := e.run(d.WaitRead), e.run(d.WaitWrite)
	e.parked(inWait, 2, reader, writer)

	s.send(e, "a")
	_, err := reader.wait()
	e.noError(err)
	e.settle(r)
	e.parked(inWait, 1, writer) // There is no room yet.
	if got, err := read(d, 1); string(got) != "a" || err != nil {
		e.Fatalf("%q, %v", got, err)
	}
	reader = e.run(d.WaitRead)
	e.parked(inWait, 2, reader, writer)

	if _, err := io.ReadFull(s, make([]byte, full)); err != nil {
		e.Fatal(err)
	}
	_, err = writer.wait()
	e.noError(err)
	e.settle(r)
	e.parked(inWait, 1, reader) // There are no bytes yet.
	s.send(e, "b")
	_, err = reader.wait()
	e.noError(err)
}

func secondWaiter(e *env) {
	r := e.rig()
	d, s := e.desc(r)
	w := e.run(d.WaitRead)
	e.parked(inWait, 1, w)
	e.wantError(d.WaitRead(), poller.ErrBusy)
	e.wantError(d.Reset(poller.ModeRead), poller.ErrBusy)
	s.send(e, "a")
	_, err := w.wait()
	e.noError(err)
	_, err = read(d, 1)
	e.noError(err)
	// Reads queue instead. Each gets its byte.
	const readers = 4
	var tasks [readers]*task
	var bytes [readers]byte
	for i := range tasks {
		tasks[i] = e.start(func() (int, error) { return d.Read(bytes[i : i+1]) })
	}
	e.parked(inWait, 1, tasks[:]...)
	e.parked(inLock, readers-1, tasks[:]...)
	s.send(e, "wxyz")
	seen := map[byte]bool{}
	for i, t := range tasks {
		if n, err := t.wait(); n != 1 || err != nil {
			e.Fatalf("reader %d: %d, %v", i, n, err)
		}
		seen[bytes[i]] = true
	}
	if len(seen) != readers {
		e.Fatalf("the readers got %q", bytes)
	}
}

func hangUps(e *env) {
	r := e.rig()
	heard := map[poller.Token]poller.Ready{}
	r.spy.mu.Lock()
	r.spy.after = func(events []poller.Event) {
		r.spy.mu.Lock()
		defer r.spy.mu.Unlock()
		for _, ev := range events {
			heard[ev.Token] |= ev.Ready
		}
	}
	r.spy.mu.Unlock()
	bits := func(d *poller.Desc) poller.Ready {
		r.spy.mu.Lock()
		defer r.spy.mu.Unlock()
		return heard[r.spy.tokens[d.Fd()]]
	}
	fulfilled := func() (d *poller.Desc, s *stream, reader, writer *task) {
		d, s = e.desc(r)
		e.fill(d)
		e.settle(r)
		e.noError(d.Reset(poller.ModeRead | poller.ModeWrite))
		reader, writer = e.run(d.WaitRead), e.run(d.WaitWrite)
		e.parked(inWait, 2, reader, writer)
		return d, s, reader, writer
	}

	// The peer's half-close is the reader's business only.
	d, s, reader, writer := fulfilled()
	e.noError(s.CloseWrite())
	_, err := reader.wait()
	e.noError(err)
	e.settle(r)
	e.parked(inWait, 1, writer)
	if got := bits(d); got&(poller.Readable|poller.PeerClosed) != poller.Readable|poller.PeerClosed ||
		got&(poller.HungUp|poller.Failed) != 0 {
		e.Errorf("a half-close is %b", got)
	}
	if n, err := d.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		e.Errorf("the read after a half-close: %d, %v", n, err)
	}
	e.noError(d.Close())
	_, err = writer.wait()
	e.wantError(err, poller.ErrClosed)

	// A peer that goes with bytes unread takes both directions with it.
	d, s, reader, writer = fulfilled()
	e.noError(s.Close())
	for _, t := range []*task{reader, writer} {
		_, err := t.wait()
		e.noError(err)
	}
	if got := bits(d); got&poller.HungUp == 0 {
		e.Errorf("the end of the peer is %b", got)
	}
	if _, err := d.Write([]byte("x")); err == nil {
		e.Error("a write after the end of the peer succeeds")
	}
}

func spuriousWake(e *env) {
	r := e.rig()
	d, s := e.desc(r)
	var p [1]byte
	reader := e.start(func() (int, error) { return d.Read(p[:]) })
	e.parked(inWait, 1, reader)
	// Edges about nothing.
	token := r.spy.token(d.Fd())
	for range 3 {
		e.say(r, poller.Event{Token: token, Ready: poller.Readable | poller.Writable})
	}
	e.parked(inWait, 1, reader)
	// An edge about bytes that somebody else takes first.
	thief, errno := sys.Dup(d.Fd())
	if errno != 0 {
		e.Fatal(errno)
	}
	defer sys.Close(thief)
	stolen := make(chan int, 1)
	restore := e.inject(func(op sys.Op, fd int) sys.Fault {
		if op != sys.OpRecv || fd != d.Fd() {
			return sys.Fault{}
		}
		return sys.Fault{Before: func() {
			var p [1]byte
			if n, _ := sys.Recv(thief, p[:]); n > 0 {
				stolen <- n
			}
		}}
	})
	s.send(e, "a")
	<-stolen
	restore()
	e.settle(r)
	e.parked(inWait, 1, reader)
	s.send(e, "b")
	if n, err := reader.wait(); n != 1 || err != nil || p[0] != 'b' {
		e.Fatalf("%d, %v, %q", n, err, p)
	}
}

func zeroLengthRead(e *env) {
	r := e.rig()
	d, s := e.desc(r)
	zero := func(want string) {
		e.Helper()
		if n, err := d.Read(nil); n != 0 || err != nil {
			e.Fatalf("%s: %d, %v", want, n, err)
		}
	}
	zero("with nothing to read")
	s.send(e, "a")
	e.settle(r)
	zero("with a byte to read")
	got, err := read(d, 1)
	if !bytes.Equal(got, []byte("a")) || err != nil {
		e.Fatalf("%q, %v", got, err)
	}
	e.noError(s.CloseWrite())
	e.settle(r)
	zero("at the end")
	e.noError(d.Close())
	if _, err := d.Read(nil); err == nil {
		e.Error("a read of nothing on a closed descriptor succeeds")
	}
}
