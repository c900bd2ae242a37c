//go:build linux

package conformance

import (
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/poller"
)

func closeUnblocks(e *env) {
	r := e.rig()
	d, _ := e.desc(r)
	e.fill(d)
	e.settle(r)
	e.noError(d.Reset(poller.ModeRead | poller.ModeWrite))
	lfd, _ := e.listenTCP()
	listener, err := r.OpenStream(lfd, true)
	e.noError(err)
	defer listener.Close()

	const each = 3
	var tasks []*task
	for range each {
		tasks = append(tasks,
			e.start(func() (int, error) { return d.Read(make([]byte, 1)) }),
			e.start(func() (int, error) { return d.Write([]byte("x")) }),
			e.start(func() (int, error) { n, _, err := listener.Accept(); return n, err }))
	}
	e.parked(inWait, 3, tasks...)
	e.parked(inLock, 3*(each-1), tasks...)
	e.noError(d.Close())
	e.noError(listener.Close())
	for _, t := range tasks {
		_, err := t.wait()
		e.wantError(err, poller.ErrClosed)
	}
}

func secondClose(e *env) {
	r := e.rig()
	d, _ := e.desc(r)
	closes := 0
	var mu sync.Mutex
	e.inject(func(op sys.Op, fd int) sys.Fault {
		if op == sys.OpClose && fd == d.Fd() {
			mu.Lock()
			closes++
			mu.Unlock()
		}
		return sys.Fault{}
	})
	e.noError(d.Close())
	e.wantError(d.Close(), poller.ErrClosed)
	for _, err := range []error{d.WaitRead(), d.WaitWrite(), d.Reset(poller.ModeRead), d.Use(0, nil)} {
		e.wantError(err, poller.ErrClosed)
	}
	_, err := d.Release()
	e.wantError(err, poller.ErrClosed)
	mu.Lock()
	defer mu.Unlock()
	// A backend that is kicked looks at descriptors by one of its own, which may get the number meanwhile.
	if closes != 1 && e.target.Kick == nil {
		e.Errorf("the descriptor was closed %d times", closes)
	}
}

func isOpen(fd int) bool {
	_, errno := sys.GetsockoptInt(fd, sys.SOL_SOCKET, sys.SO_TYPE)
	return errno == 0
}

func closeWaits(e *env) {
	r := e.rig()
	d, _ := e.desc(r)
	entered, leave := make(chan struct{}), make(chan struct{})
	var once sync.Once
	e.inject(func(op sys.Op, fd int) sys.Fault {
		if op != sys.OpRecv || fd != d.Fd() {
			return sys.Fault{}
		}
		return sys.Fault{Before: func() {
			once.Do(func() {
				close(entered)
				<-leave
			})
		}}
	})
	reader := e.start(func() (int, error) { return d.Read(make([]byte, 1)) })
	<-entered
	// The reader is about to make a system call with the number.
	closer := e.run(d.Close)
	e.parked(inClose, 1, closer)
	if !isOpen(d.Fd()) {
		e.Error("the descriptor was closed under a system call")
	}
	for range 8 {
		fd, errno := sys.Dup(r.sentinel.Fd())
		if errno != 0 {
			e.Fatal(errno)
		}
		defer sys.Close(fd)
		if fd == d.Fd() {
			e.Error("the number came back under a system call")
		}
	}
	_, err := d.Read(make([]byte, 1))
	e.wantError(err, poller.ErrClosed)
	e.wantError(d.Close(), poller.ErrClosed)
	if closer.ended() {
		e.Error("Close has returned while a system call used the descriptor")
	}
	close(leave)
	_, err = reader.wait()
	e.wantError(err, poller.ErrClosed)
	_, err = closer.wait()
	e.noError(err)
	if isOpen(d.Fd()) {
		e.Error("Close has returned and the descriptor is open")
	}
}

// replace closes d and opens other in its slot and under its number.
func (e *env) replace(r *rig, d *poller.Desc, other int, s *stream) *poller.Desc {
	before := r.spy.token(d.Fd())
	e.noError(d.Close())
	e.noError(syscall.Dup3(other, d.Fd(), syscall.O_CLOEXEC))
	sys.Close(other)
	s.fd = d.Fd()
	next := e.open(r, d.Fd())
	if after := r.spy.token(d.Fd()); after.Slot() != before.Slot() || after == before {
		e.Fatalf("the slot was not used again: %v, %v", before, after)
	}
	return next
}

func staleEvent(e *env) {
	r := e.rig()
	old, s := e.desc(r)
	fd, s2 := e.pair(r.spy.Backend)
	e.settle(r)
	// The window held open: the kernel has given the event away, and before it is delivered the descriptor is closed,
	// and its number and its slot have another owner.
	token := r.spy.token(old.Fd())
	var next atomic.Pointer[poller.Desc]
	replaced := make(chan struct{})
	r.spy.mu.Lock()
	r.spy.after = func(events []poller.Event) {
		for _, ev := range events {
			if ev.Token == token && next.Load() == nil {
				next.Store(e.replace(r, old, fd, s2))
				close(replaced)
			}
		}
	}
	r.spy.mu.Unlock()
	stale := r.Stale()
	s.send(e, "old")
	<-replaced
	d := next.Load()
	e.noError(d.Reset(poller.ModeWrite))
	e.settle(r)
	if got := r.Stale() - stale; got != 1 {
		e.Errorf("%d events were stale, not 1", got)
	}
	reader := e.run(d.WaitRead)
	e.parked(inWait, 1, reader)
	s2.send(e, "new")
	_, err := reader.wait()
	e.noError(err)
	if got, err := read(d, 3); string(got) != "new" || err != nil {
		e.Fatalf("%q, %v", got, err)
	}
	r.spy.mu.Lock()
	r.spy.after = nil
	r.spy.mu.Unlock()
	if e.target.Kick != nil {
		return // What follows happens in the kernel's interest list.
	}

	// A copy keeps the registration alive, and the number is replaced behind the poller's back: the kernel goes on
	// reporting the old token.
	thief, errno := sys.Dup(d.Fd())
	if errno != 0 {
		e.Fatal(errno)
	}
	defer sys.Close(thief)
	between, s3 := e.pair(r.spy.Backend)
	e.noError(syscall.Dup3(between, d.Fd(), syscall.O_CLOEXEC))
	s3.Close()
	sys.Close(between)
	fd, s4 := e.pair(r.spy.Backend)
	last := e.replace(r, d, fd, s4)
	e.settle(r)
	reader = e.run(last.WaitRead)
	e.parked(inWait, 1, reader)
	stale = r.Stale()
	s2.send(e, "ghost")
	for r.Stale() == stale {
		e.settle(r)
	}
	e.parked(inWait, 1, reader)
	s4.send(e, "last")
	_, err = reader.wait()
	e.noError(err)
}

func staleError(e *env) {
	r := e.rig()
	old, _ := e.desc(r)
	fd, s := e.pair(r.spy.Backend)
	e.settle(r)
	token := r.spy.token(old.Fd())
	d := e.replace(r, old, fd, s)
	e.settle(r)
	calls := e.countCalls(d.Fd())
	var p [16]byte
	reader := e.start(func() (int, error) { return d.Read(p[:]) })
	e.parked(inWait, 1, reader)
	stale := r.Stale()
	e.say(r, poller.Event{Token: token, Ready: poller.Failed}, poller.Event{Token: token, Ready: poller.HungUp | poller.Failed})
	if got := r.Stale() - stale; got != 2 {
		e.Errorf("%d events were stale, not 2", got)
	}
	e.parked(inWait, 1, reader)
	s.send(e, "a")
	if n, err := reader.wait(); n != 1 || err != nil {
		e.Fatalf("%d, %v", n, err)
	}
	if e.network != "tcp" {
		return
	}
	// An error would have ended the trust in short reads, and the next one would begin with a call.
	before := calls()
	reader = e.start(func() (int, error) { return d.Read(p[:]) })
	e.parked(inWait, 1, reader)
	if n := calls() - before; n != 0 {
		e.Errorf("a drained descriptor was read %d times before waiting: the old error marks it", n)
	}
	s.send(e, "b")
	if n, err := reader.wait(); n != 1 || err != nil {
		e.Fatalf("%d, %v", n, err)
	}
}

// sink is a [poller.Sink] of functions.
type sink struct {
	ready func([]poller.Event)
	end   func() bool
}

func (s *sink) Ready(events []poller.Event) { s.ready(events) }
func (s *sink) Due(poller.Token)            {}
func (s *sink) EndTurn() (more, lent bool)  { return s.end != nil && s.end(), false }

func closeInCallback(e *env) {
	b := e.backend()
	type conn struct {
		fd int
		s  *stream
	}
	var table poller.Table[*conn]
	add := func() *conn {
		fd, s := e.pair(b)
		c := &conn{fd, s}
		token, err := table.Put(c)
		e.noError(err)
		e.noError(b.Add(fd, token))
		return c
	}
	drop := func(token poller.Token, c *conn) {
		table.Delete(token)
		e.noError(b.Remove(c.fd))
		sys.Close(c.fd)
	}
	const conns = 8
	for range conns {
		add().s.send(e, "x")
	}
	var loop *poller.Loop
	var late *conn
	handled, stale, lateRead := 0, 0, 0
	loop = poller.NewLoop(b, &sink{ready: func(events []poller.Event) {
		for _, ev := range events {
			c, ok := table.Get(ev.Token)
			switch {
			case !ok:
				stale++
			case c == late:
				if ev.Ready&poller.Readable != 0 {
					lateRead++
				}
				loop.Stop()
			case ev.Ready&poller.Readable != 0:
				handled++
				// The callback of one closes all of them, itself too, and opens another one in a slot of theirs, while
				// their events are in the batch.
				for token, c := range table.All {
					drop(token, c)
				}
				late = add()
			}
		}
	}})
	loop1 := e.run(loop.Run)
	_, err := loop1.wait()
	e.noError(err)
	if handled != 1 || stale != conns-1 || lateRead != 0 {
		e.Errorf("%d were handled, %d stale, %d delivered to a stranger; not 1, %d, 0", handled, stale, lateRead, conns-1)
	}
	for token, c := range table.All {
		drop(token, c)
	}
}

func noCallbackAfterClose(e *env) {
	r := e.rig()
	d, s := e.desc(r)
	s.send(e, "a")
	entered, leave := make(chan struct{}), make(chan struct{})
	calls := 0
	user := e.run(func() error {
		return d.Use(poller.ModeRead, func(int) bool {
			calls++
			close(entered)
			<-leave
			return false // It wants to be called again, which must not happen.
		})
	})
	<-entered
	closer := e.run(d.Close)
	e.parked(inClose, 1, closer)
	s.send(e, "b")
	close(leave)
	_, err := closer.wait()
	e.noError(err)
	_, err = user.wait()
	e.wantError(err, poller.ErrClosed)
	if calls != 1 {
		e.Errorf("the callback ran %d times", calls)
	}
	e.wantError(d.Use(0, func(int) bool { e.Error("a callback after the close"); return true }), poller.ErrClosed)
}
