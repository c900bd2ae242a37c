package poller_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/internal/testutil"
	"github.com/pollux-go/pollux/internal/testutil/fake"
	"github.com/pollux-go/pollux/poller"
)

// rig is a poller on a backend that delivers what the test says, and a clock that the test moves. The descriptors are
// real, since a Desc makes system calls; that they have changed is what the test says.
type rig struct {
	t       *testing.T
	backend *fake.Backend
	clock   *fake.Clock
	poller  *poller.Poller
}

func newRig(t *testing.T) *rig {
	t.Helper()
	testutil.CheckLeaks(t)
	r := &rig{t: t, backend: fake.New(), clock: fake.NewClock()}
	var err error
	if r.poller, err = poller.NewWithClock(r.backend, r.clock); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.poller.Close() })
	return r
}

// desc opens one end of a stream; the other end is returned as it is. The edge of the registration has been delivered
// and forgotten. tcp makes the Desc believe that a short read has drained it, which is true of this stream as well.
func (r *rig) desc(tcp bool) (d *poller.Desc, far int) {
	r.t.Helper()
	fds, errno := sys.Socketpair()
	if errno != 0 {
		r.t.Fatal(errno)
	}
	d, err := r.poller.OpenStream(fds[0], tcp)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { d.Close(); sys.Close(fds[1]) })
	r.backend.Settle()
	if err := d.Reset(poller.ModeRead | poller.ModeWrite); err != nil {
		r.t.Fatal(err)
	}
	return d, fds[1]
}

func send(t *testing.T, fd int, s string) {
	t.Helper()
	if n, errno := sys.Send(fd, []byte(s)); n != len(s) || errno != 0 {
		t.Fatalf("%d, %v", n, errno)
	}
}

// say delivers an event, whatever is true.
func (r *rig) say(d *poller.Desc, ready poller.Ready) {
	r.backend.Inject(poller.Event{Token: d.RegisteredAs(), Ready: ready})
	r.backend.Settle()
}

type result struct {
	n   int
	err error
}

// begin runs an operation until it waits, or has ended.
func (r *rig) begin(d *poller.Desc, mode poller.Mode, f func() (int, error)) chan result {
	r.t.Helper()
	done := make(chan result, 1)
	go func() {
		n, err := f()
		done <- result{n, err}
	}()
	for end := time.Now().Add(10 * time.Second); !d.WaiterParked(mode) && len(done) == 0; runtime.Gosched() {
		if time.Now().After(end) {
			r.t.Fatal("the operation neither waits nor ends")
		}
	}
	return done
}

func (r *rig) stillWaits(d *poller.Desc, mode poller.Mode, done chan result) {
	r.t.Helper()
	for end := time.Now().Add(10 * time.Second); !d.WaiterParked(mode); runtime.Gosched() {
		if len(done) != 0 || time.Now().After(end) {
			r.t.Fatalf("the operation does not wait any more: %v", <-done)
		}
	}
}

func (r *rig) end(done chan result) (int, error) {
	r.t.Helper()
	select {
	case res := <-done:
		return res.n, res.err
	case <-time.After(10 * time.Second):
		r.t.Fatal("the operation hangs")
	}
	return 0, nil
}

// counter counts the calls of one kind on one descriptor.
func counter(t *testing.T, op sys.Op, fd int) func() int {
	var mu sync.Mutex
	n := 0
	testutil.InjectFaults(t, func(o sys.Op, at int) sys.Fault {
		if o == op && at == fd {
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

// TestDelivery says which bit of an event concerns whom.
func TestDelivery(t *testing.T) {
	r := newRig(t)
	for _, c := range []struct {
		ready       poller.Ready
		read, write bool
	}{
		{poller.Readable, true, false},
		{poller.Writable, false, true},
		{poller.PeerClosed, true, false},
		{poller.Urgent, true, false},
		{poller.HungUp, true, true},
		{poller.Failed, true, true},
		{poller.Readable | poller.Writable, true, true},
		{0, false, false},
	} {
		d, _ := r.desc(false)
		r.say(d, c.ready)
		if d.Latched(poller.ModeRead) != c.read || d.Latched(poller.ModeWrite) != c.write {
			t.Errorf("%06b is latched for read %v, write %v", c.ready, d.Latched(poller.ModeRead), d.Latched(poller.ModeWrite))
		}
		// The same with somebody who waits.
		d, _ = r.desc(false)
		reader := r.begin(d, poller.ModeRead, func() (int, error) { return 0, d.WaitRead() })
		writer := r.begin(d, poller.ModeWrite, func() (int, error) { return 0, d.WaitWrite() })
		r.say(d, c.ready)
		for _, w := range []struct {
			woken bool
			mode  poller.Mode
			done  chan result
		}{{c.read, poller.ModeRead, reader}, {c.write, poller.ModeWrite, writer}} {
			if !w.woken {
				r.stillWaits(d, w.mode, w.done)
			} else if _, err := r.end(w.done); err != nil {
				t.Errorf("%06b: %v", c.ready, err)
			}
		}
		d.Close()
		if !c.read {
			r.end(reader)
		}
		if !c.write {
			r.end(writer)
		}
	}
}

// TestDoubledEvents delivers everything twice, and late.
func TestDoubledEvents(t *testing.T) {
	r := newRig(t)
	d, far := r.desc(true)
	for range 50 {
		reader := r.begin(d, poller.ModeRead, func() (int, error) { return d.Read(make([]byte, 8)) })
		r.backend.Hold()
		send(t, far, "a")
		ev := poller.Event{Token: d.RegisteredAs(), Ready: poller.Readable}
		r.backend.Inject(ev, ev, ev)
		r.stillWaits(d, poller.ModeRead, reader)
		r.backend.Step(1)
		if n, err := r.end(reader); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		r.backend.Step(1)
		r.backend.Step(1)
		r.backend.Release()
	}
}

// TestStaleEvents delivers events of all owners that a slot has had.
func TestStaleEvents(t *testing.T) {
	r := newRig(t)
	var old []poller.Event
	for range 20 {
		d, _ := r.desc(false)
		old = append(old, poller.Event{Token: d.RegisteredAs(), Ready: poller.Readable | poller.HungUp | poller.Failed})
		d.Close()
	}
	d, far := r.desc(false)
	if d.RegisteredAs().Slot() != old[0].Token.Slot() {
		t.Fatal("the slot was not used again")
	}
	reader := r.begin(d, poller.ModeRead, func() (int, error) { return d.Read(make([]byte, 8)) })
	before := r.poller.Stale()
	r.backend.Inject(old...)
	r.backend.Settle()
	if got := r.poller.Stale() - before; got != 20 {
		t.Errorf("%d events were stale, not 20", got)
	}
	r.stillWaits(d, poller.ModeRead, reader)
	send(t, far, "a")
	r.backend.Kick(d.Fd())
	if n, err := r.end(reader); n != 1 || err != nil {
		t.Fatal(n, err)
	}
}

// TestCancelWithoutAReason is the race of a timer that fires with a deadline that is moved before the waiter has run:
// the wake comes, its reason has gone.
func TestCancelWithoutAReason(t *testing.T) {
	r := newRig(t)
	d, far := r.desc(false)
	reader := r.begin(d, poller.ModeRead, func() (int, error) { return d.Read(make([]byte, 8)) })
	for range 100 {
		d.Cancel(poller.ModeRead)
		r.stillWaits(d, poller.ModeRead, reader)
	}
	d.Cancel(poller.ModeWrite) // Nobody is there.
	// An edge between the cancel and the waiter's run is not lost with it.
	send(t, far, "a")
	d.Cancel(poller.ModeRead)
	r.backend.Kick(d.Fd())
	if n, err := r.end(reader); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	// A cancel does not take a latched edge away.
	r.say(d, poller.Readable)
	d.Cancel(poller.ModeRead)
	if !d.Latched(poller.ModeRead) {
		t.Error("a cancel has taken the edge")
	}
}

// TestDeadlineIsLazy sets a deadline for each request, as services do: the timer is touched once a deadline's length.
func TestDeadlineIsLazy(t *testing.T) {
	r := newRig(t)
	d, far := r.desc(false)
	const requests = 10_000
	const timeout, each = 10 * time.Second, 10 * time.Millisecond
	var last time.Time
	for range requests {
		last = r.clock.Time().Add(timeout)
		if err := d.SetDeadline(last); err != nil {
			t.Fatal(err)
		}
		r.clock.Advance(each)
	}
	if n, most := r.clock.Sets(), int(requests*each/timeout)+2; n > most {
		t.Errorf("the timer was set %d times, %d are enough", n, most)
	}
	// It is as exact as any other, all the same.
	reader := r.begin(d, poller.ModeRead, func() (int, error) { return d.Read(make([]byte, 8)) })
	r.clock.Advance(last.Sub(r.clock.Time()) - 1)
	r.stillWaits(d, poller.ModeRead, reader)
	r.clock.Advance(1)
	if _, err := r.end(reader); !errors.Is(err, poller.ErrTimeout) {
		t.Fatal(err)
	}
	// Set and cleared for each request: the same.
	before := r.clock.Sets()
	for range requests {
		d.SetReadDeadline(r.clock.Time().Add(timeout))
		send(t, far, "a")
		r.backend.Kick(d.Fd())
		if n, err := d.Read(make([]byte, 8)); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		d.SetReadDeadline(time.Time{})
		r.clock.Advance(each)
	}
	if n, most := r.clock.Sets()-before, int(requests*each/timeout)+2; n > most {
		t.Errorf("the timer was set %d times, %d are enough", n, most)
	}
}

// TestSoonerDeadlineMovesTheTimer is the case where laziness must not apply.
func TestSoonerDeadlineMovesTheTimer(t *testing.T) {
	r := newRig(t)
	d, _ := r.desc(false)
	d.SetReadDeadline(r.clock.Time().Add(time.Hour))
	d.SetWriteDeadline(r.clock.Time().Add(time.Minute))
	reader := r.begin(d, poller.ModeRead, func() (int, error) { return 0, d.WaitRead() })
	d.SetReadDeadline(r.clock.Time().Add(time.Second))
	r.clock.Advance(time.Second - 1)
	r.stillWaits(d, poller.ModeRead, reader)
	r.clock.Advance(1)
	if _, err := r.end(reader); !errors.Is(err, poller.ErrTimeout) {
		t.Fatal(err)
	}
	writer := r.begin(d, poller.ModeWrite, func() (int, error) { return 0, d.WaitWrite() })
	r.clock.Advance(time.Minute - time.Second)
	if _, err := r.end(writer); !errors.Is(err, poller.ErrTimeout) {
		t.Fatal(err)
	}
	if n := r.clock.Armed(); n != 0 {
		t.Errorf("%d timers are set with nothing to come", n)
	}
}

// TestShortReadSavesACall counts system calls: after a short read on a TCP stream the next one waits first, elsewhere
// it looks first.
func TestShortReadSavesACall(t *testing.T) {
	for _, tcp := range []bool{true, false} {
		t.Run(map[bool]string{true: "tcp", false: "other"}[tcp], func(t *testing.T) {
			r := newRig(t)
			d, far := r.desc(tcp)
			calls := counter(t, sys.OpRecv, d.Fd())
			for i := range 5 {
				before := calls()
				reader := r.begin(d, poller.ModeRead, func() (int, error) { return d.Read(make([]byte, 8)) })
				looked := calls() - before
				want := 1 // The first read of all cannot know.
				if tcp && i > 0 {
					want = 0
				}
				if looked != want {
					t.Errorf("read %d made %d calls before it waited, not %d", i, looked, want)
				}
				send(t, far, "a")
				r.backend.Kick(d.Fd())
				if n, err := r.end(reader); n != 1 || err != nil {
					t.Fatal(n, err)
				}
			}
		})
	}
}

// TestFullReadLooksAgain has a read that fills its buffer: more may be there, and no edge tells.
func TestFullReadLooksAgain(t *testing.T) {
	r := newRig(t)
	d, far := r.desc(true)
	reader := r.begin(d, poller.ModeRead, func() (int, error) { return d.Read(make([]byte, 2)) })
	send(t, far, "abcde")
	r.backend.Kick(d.Fd())
	if n, err := r.end(reader); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	r.backend.Hold()
	for _, want := range []int{2, 1} {
		if n, err := r.end(r.begin(d, poller.ModeRead, func() (int, error) { return d.Read(make([]byte, 2)) })); n != want || err != nil {
			t.Fatal(n, err)
		}
	}
}

// TestShortReadIsNotTrusted lists what makes a short read mean less: the event whose bytes it took told of an end, of
// an error, or of urgent data, behind which there is more and no further edge.
func TestShortReadIsNotTrusted(t *testing.T) {
	for _, bit := range []poller.Ready{poller.PeerClosed, poller.HungUp, poller.Failed, poller.Urgent} {
		for _, waiting := range []bool{true, false} {
			t.Run(fmt.Sprintf("bit=%06b/waiting=%v", bit, waiting), func(t *testing.T) {
				r := newRig(t)
				d, far := r.desc(true)
				first := func() (int, error) { return d.Read(make([]byte, 8)) }
				var done chan result
				if waiting {
					done = r.begin(d, poller.ModeRead, first)
				}
				send(t, far, "a")
				r.say(d, poller.Readable|bit)
				if !waiting {
					done = r.begin(d, poller.ModeRead, first)
				}
				if n, err := r.end(done); n != 1 || err != nil {
					t.Fatal(n, err)
				}
				sys.Shutdown(far, sys.SHUT_WR) // It was behind the byte. Its edge has been, with the byte's.
				done = r.begin(d, poller.ModeRead, first)
				if d.WaiterParked(poller.ModeRead) {
					t.Error("a read waits for an edge that has been")
					d.Close()
				}
				if n, err := r.end(done); !t.Failed() && (n != 0 || err != io.EOF) {
					t.Fatal(n, err)
				}
			})
		}
	}
}

// TestEAGAINAtAnUrgentMark is what Linux does to a call that finds a signal pending there: EAGAIN, with a byte behind
// the mark whose edge has been.
func TestEAGAINAtAnUrgentMark(t *testing.T) {
	r := newRig(t)
	d, far := r.desc(true)
	send(t, far, "a")
	r.say(d, poller.Readable|poller.Urgent)
	fault := testutil.Nth{Op: sys.OpRecv, Fault: sys.Fault{Errno: sys.EAGAIN}}
	testutil.InjectFaults(t, fault.Hook)
	if n, err := r.end(r.begin(d, poller.ModeRead, func() (int, error) { return d.Read(make([]byte, 8)) })); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if !fault.Hit() {
		t.Error("no EAGAIN was met")
	}
	// An EAGAIN that is meant is believed in the end.
	reader := r.begin(d, poller.ModeRead, func() (int, error) { return d.Read(make([]byte, 8)) })
	r.stillWaits(d, poller.ModeRead, reader)
	send(t, far, "b")
	r.backend.Kick(d.Fd())
	if n, err := r.end(reader); n != 1 || err != nil {
		t.Fatal(n, err)
	}
}

// TestCancelMeetsPark has deadlines pass, and the poller close, at the moment when a goroutine goes to sleep. Whoever
// comes first must be seen by the other.
func TestCancelMeetsPark(t *testing.T) {
	r := newRig(t)
	d, _ := r.desc(false)
	// The two meet by spinning, which is exact to some nanoseconds: a channel's hand-over takes longer than the window.
	relax := func() {}
	if runtime.GOMAXPROCS(0) == 1 {
		relax = runtime.Gosched
	}
	const rounds = 10_000
	var round atomic.Int64
	done := make(chan error, 1)
	go func() {
		defer close(done)
		for i := range int64(rounds) {
			for round.Load() <= i {
				relax()
			}
			for range i % 97 {
				spin.Add(1)
			}
			done <- d.WaitRead()
		}
	}()
	for i := range int64(rounds) {
		round.Store(i + 1)
		for range i % 31 {
			spin.Add(1)
		}
		d.SetReadDeadline(time.Unix(1, 0))
		select {
		case err := <-done:
			if !errors.Is(err, poller.ErrTimeout) {
				t.Fatal(err)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("round %d: the deadline has passed and the waiter sleeps", i)
		}
		d.SetReadDeadline(time.Time{})
	}
	<-done
}

var spin atomic.Int64

// TestEdgeDuringAShortRead has the edge of further bytes come at the worst moment: while the read is under way.
func TestEdgeDuringAShortRead(t *testing.T) {
	r := newRig(t)
	d, far := r.desc(true)
	send(t, far, "a")
	r.say(d, poller.Readable)
	var once sync.Once
	restore := sync.OnceFunc(sys.Inject(func(op sys.Op, fd int) sys.Fault {
		if op != sys.OpRecv || fd != d.Fd() {
			return sys.Fault{}
		}
		return sys.Fault{Before: func() { once.Do(func() { r.say(d, poller.Readable|poller.PeerClosed) }) }}
	}))
	defer restore()
	if n, err := d.Read(make([]byte, 8)); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	restore()
	r.backend.Hold()
	send(t, far, "b") // What the edge had told of; there is no other.
	if n, err := r.end(r.begin(d, poller.ModeRead, func() (int, error) { return d.Read(make([]byte, 8)) })); n != 1 || err != nil {
		t.Fatal(n, err)
	}
}

// TestOthersTakeTheEdge lists what may take the edge that a drained descriptor waits for: the next read must look.
func TestOthersTakeTheEdge(t *testing.T) {
	for name, take := range map[string]func(*poller.Desc) error{
		"WaitRead": (*poller.Desc).WaitRead,
		"Reset":    func(d *poller.Desc) error { return d.Reset(poller.ModeRead) },
		"Use":      func(d *poller.Desc) error { return d.Use(poller.ModeRead, func(int) bool { return true }) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			d, far := r.desc(true)
			send(t, far, "a")
			if n, err := d.Read(make([]byte, 8)); n != 1 || err != nil {
				t.Fatal(n, err)
			}
			send(t, far, "b")
			r.backend.Kick(d.Fd())
			r.backend.Settle()
			if err := take(d); err != nil {
				t.Fatal(err)
			}
			done := r.begin(d, poller.ModeRead, func() (int, error) { return d.Read(make([]byte, 8)) })
			if d.WaiterParked(poller.ModeRead) {
				t.Error("a read waits for an edge that was taken")
				d.Close()
			}
			r.end(done)
		})
	}
}

// TestTimeoutKeepsTheEdge has bytes arrive around a read deadline on a drained stream.
func TestTimeoutKeepsTheEdge(t *testing.T) {
	r := newRig(t)
	d, far := r.desc(true)
	for range 20 {
		d.SetReadDeadline(r.clock.Time().Add(time.Second))
		done := r.begin(d, poller.ModeRead, func() (int, error) { return d.Read(make([]byte, 8)) })
		r.clock.Advance(time.Second)
		if n, err := r.end(done); n != 0 || !errors.Is(err, poller.ErrTimeout) {
			t.Fatal(n, err)
		}
		send(t, far, "a")
		r.backend.Kick(d.Fd())
		r.backend.Settle()
		if n, err := d.Read(make([]byte, 8)); n != 0 || !errors.Is(err, poller.ErrTimeout) {
			t.Fatal(n, err)
		}
		d.SetReadDeadline(time.Time{})
		if n, err := r.end(r.begin(d, poller.ModeRead, func() (int, error) { return d.Read(make([]byte, 8)) })); n != 1 || err != nil {
			t.Fatal(n, err)
		}
	}
}

// TestWritersLeaveTheReaderAlone runs every operation of the writing side beside reads; the race detector watches what
// the read lock protects.
func TestWritersLeaveTheReaderAlone(t *testing.T) {
	r := newRig(t)
	d, far := r.desc(true)
	const rounds = 500
	var all sync.WaitGroup
	all.Go(func() {
		for range rounds {
			if err := d.Use(poller.ModeWrite, func(int) bool { return true }); err != nil {
				t.Error(err)
			}
			if err := d.Reset(poller.ModeWrite); err != nil {
				t.Error(err)
			}
			if _, err := d.Write(nil); err != nil {
				t.Error(err)
			}
		}
	})
	for range rounds {
		send(t, far, "a")
		r.backend.Kick(d.Fd())
		if n, err := d.Read(make([]byte, 8)); n != 1 || err != nil {
			t.Fatal(n, err)
		}
	}
	all.Wait()
}

func pipe(t *testing.T) (r, w int) {
	t.Helper()
	rf, wf, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer rf.Close()
	defer wf.Close()
	copies := [2]int{}
	for i, f := range []*os.File{rf, wf} {
		raw, err := f.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		raw.Control(func(fd uintptr) {
			var errno sys.Errno
			if copies[i], errno = sys.Dup(int(fd)); errno != 0 {
				t.Fatal(errno)
			}
		})
	}
	return copies[0], copies[1]
}

// TestPipe does on a pipe what it can do: it is no socket.
func TestPipe(t *testing.T) {
	r := newRig(t)
	rfd, wfd := pipe(t)
	rd, err := r.poller.Open(rfd)
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	wd, err := r.poller.Open(wfd)
	if err != nil {
		t.Fatal(err)
	}
	if rd.IsSocket() || wd.IsSocket() {
		t.Error("a pipe passes for a socket")
	}
	if n, err := wd.Write([]byte("ab")); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	if n, err := wd.Writev([][]byte{nil, []byte("cd"), nil, []byte("e")}); n != 3 || err != nil {
		t.Fatal(n, err)
	}
	p := make([]byte, 8)
	if n, err := rd.Read(p); string(p[:n]) != "abcde" || err != nil {
		t.Fatalf("%q, %v", p[:n], err)
	}
	if _, err := wd.Read(p); !errors.Is(err, sys.EBADF) {
		t.Errorf("a read of the end that writes: %v", err)
	}
	var call *os.SyscallError
	if _, err := rd.Write(p); !errors.As(err, &call) || call.Syscall != "write" {
		t.Errorf("a write to the end that reads: %v", err)
	}
	if err := wd.Close(); err != nil {
		t.Fatal(err)
	}
	if n, err := rd.Read(p); n != 0 || err != io.EOF {
		t.Fatal(n, err)
	}
}

// TestWritevPieces has the kernel take a few bytes at a time, of many slices.
func TestWritevPieces(t *testing.T) {
	r := newRig(t)
	d, far := r.desc(false)
	var bufs [][]byte
	want := ""
	for i := range 3 * sys.IovecsMax {
		s := "0123456789"[:i%10]
		bufs = append(bufs, []byte(s))
		want += s
	}
	testutil.InjectFaults(t, func(op sys.Op, fd int) sys.Fault {
		if op == sys.OpSend && fd == d.Fd() {
			return sys.Fault{Short: 7}
		}
		return sys.Fault{}
	})
	if n, err := d.Writev(bufs); int(n) != len(want) || err != nil {
		t.Fatal(n, err)
	}
	got := make([]byte, 2*len(want))
	n, errno := sys.Recv(far, got)
	if errno != 0 || string(got[:n]) != want {
		t.Fatalf("%q, %v", got[:n], errno)
	}
	for i := range bufs {
		if len(bufs[i]) != i%10 {
			t.Fatal("the caller's slices were changed")
		}
	}
}

// TestErrorsOfCalls injects errors and looks at what the caller sees.
func TestErrorsOfCalls(t *testing.T) {
	r := newRig(t)
	d, _ := r.desc(false)
	for op, c := range map[sys.Op]struct {
		name string // as package net has it
		f    func() (int, error)
	}{
		sys.OpRecv: {"read", func() (int, error) { return d.Read(make([]byte, 1)) }},
		sys.OpSend: {"write", func() (int, error) { return d.Write(make([]byte, 1)) }},
	} {
		restore := sys.Inject(func(o sys.Op, _ int) sys.Fault {
			if o == op {
				return sys.Fault{Errno: sys.ECONNRESET}
			}
			return sys.Fault{}
		})
		_, err := c.f()
		restore()
		var call *os.SyscallError
		if !errors.As(err, &call) || call.Syscall != c.name || !errors.Is(err, sys.ECONNRESET) {
			t.Errorf("%v: %v", op, err)
		}
	}
}

func TestRelease(t *testing.T) {
	r := newRig(t)
	d, far := r.desc(true)
	reader := r.begin(d, poller.ModeRead, func() (int, error) { return d.Read(make([]byte, 1)) })
	fd, err := d.Release()
	if err != nil {
		t.Fatal(err)
	}
	defer sys.Close(fd)
	if _, err := r.end(reader); !errors.Is(err, poller.ErrClosed) {
		t.Fatal(err)
	}
	if r.poller.Len() != 0 {
		t.Error("it is in the poller still")
	}
	send(t, far, "a")
	p := make([]byte, 8)
	if n, errno := sys.Recv(fd, p); n != 1 || errno != 0 {
		t.Fatal(n, errno)
	}
	if _, err := d.Release(); !errors.Is(err, poller.ErrClosed) {
		t.Fatal(err)
	}
}

// TestAcceptPassesOver has accept fail as it does for connections that went while they waited.
func TestAcceptPassesOver(t *testing.T) {
	r := newRig(t)
	d, _ := r.desc(false)
	var mu sync.Mutex
	answers := []sys.Errno{sys.ECONNABORTED, sys.EPROTO, sys.EAGAIN, sys.ECONNABORTED, sys.EAGAIN, sys.EMFILE}
	testutil.InjectFaults(t, func(op sys.Op, fd int) sys.Fault {
		if op != sys.OpAccept {
			return sys.Fault{}
		}
		mu.Lock()
		defer mu.Unlock()
		a := answers[0]
		answers = answers[1:]
		return sys.Fault{Errno: a}
	})
	done := r.begin(d, poller.ModeRead, func() (int, error) { n, _, err := d.Accept(); return n, err })
	r.say(d, poller.Readable)
	r.stillWaits(d, poller.ModeRead, done)
	r.say(d, poller.Readable)
	if _, err := r.end(done); !errors.Is(err, sys.EMFILE) {
		t.Fatal(err)
	}
}

func BenchmarkDeliver(b *testing.B) {
	// A batch of edges that find nobody, and are latched or meet a latch.
	backend := fake.New()
	defer backend.Close()
	p := poller.NewWithoutLoop(backend, poller.SystemClock)
	var events [64]poller.Event
	for i := range events {
		near, _ := backend.Pair(1)
		d, err := p.OpenStream(near.Fd(), true)
		if err != nil {
			b.Fatal(err)
		}
		events[i] = poller.Event{Token: d.RegisteredAs(), Ready: poller.Readable | poller.Writable}
	}
	b.ReportAllocs()
	for b.Loop() {
		p.Dispatch(events[:])
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(events)), "ns/event")
}

// BenchmarkWait is a goroutine that waits and one that delivers, back and forth: latch, park, wake.
func BenchmarkWait(b *testing.B) {
	backend := fake.New()
	defer backend.Close()
	p := poller.NewWithoutLoop(backend, poller.SystemClock)
	near, _ := backend.Pair(1)
	d, err := p.OpenStream(near.Fd(), true)
	if err != nil {
		b.Fatal(err)
	}
	events := []poller.Event{{Token: d.RegisteredAs(), Ready: poller.Readable}}
	b.Run("edge=latched", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			p.Dispatch(events)
			if err := d.WaitRead(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("edge=later", func(b *testing.B) {
		b.ReportAllocs()
		rounds := make(chan struct{})
		go func() {
			defer close(rounds)
			for d.WaitRead() == nil {
				rounds <- struct{}{}
			}
		}()
		for b.Loop() {
			p.Dispatch(events)
			<-rounds
		}
		d.Unblock()
		for range rounds {
		}
	})
}

func BenchmarkSetReadDeadline(b *testing.B) {
	backend := fake.New()
	defer backend.Close()
	p := poller.NewWithoutLoop(backend, poller.SystemClock)
	near, _ := backend.Pair(1)
	d, err := p.OpenStream(near.Fd(), true)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("pattern=set-each-request", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			d.SetReadDeadline(time.Now().Add(time.Minute))
		}
	})
	b.Run("pattern=set-and-clear", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			d.SetReadDeadline(time.Now().Add(time.Minute))
			d.SetReadDeadline(time.Time{})
		}
	})
	b.Run("pattern=sooner-each-time", func(b *testing.B) {
		b.ReportAllocs()
		at := time.Now().Add(1000 * time.Hour)
		for b.Loop() {
			at = at.Add(-1)
			d.SetReadDeadline(at)
		}
	})
	d.Unblock()
}
