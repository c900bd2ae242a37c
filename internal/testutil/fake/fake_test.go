package fake_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/internal/testutil/fake"
	"github.com/pollux-go/pollux/poller"
)

const (
	in     = poller.Readable
	out    = poller.Writable
	rdhup  = poller.PeerClosed
	hup    = poller.HungUp
	failed = poller.Failed
)

// TestTraceInMemory does on a stream in memory what conformance's 39_SameTrace does on a socket.
func TestTraceInMemory(t *testing.T) {
	b := fake.New()
	defer b.Close()
	near, far := b.Pair(4)
	token := poller.Token(1<<24 | 7)
	p := make([]byte, 16)
	read := func(e *fake.End, want int, wantErrno sys.Errno) {
		t.Helper()
		if n, errno := e.Read(p); n != want || errno != wantErrno {
			t.Errorf("a read gives %d, %v, not %d, %v", n, errno, want, wantErrno)
		}
	}
	write := func(e *fake.End, s string, want int, wantErrno sys.Errno) {
		t.Helper()
		if n, errno := e.Write([]byte(s)); n != want || errno != wantErrno {
			t.Errorf("a write takes %d, %v, not %d, %v", n, errno, want, wantErrno)
		}
	}
	for _, step := range []struct {
		what string
		do   func()
		want poller.Ready
	}{
		{"add", func() { b.Add(near.Fd(), token) }, out},
		{"nothing", func() { read(near, 0, sys.EAGAIN) }, 0},
		{"the peer writes", func() { write(far, "a", 1, 0) }, in | out},
		{"the peer writes twice", func() { write(far, "b", 1, 0); write(far, "c", 1, 0) }, in | out},
		{"read", func() { read(near, 3, 0); read(near, 0, sys.EAGAIN) }, 0},
		{"fill", func() { write(near, "abcdef", 4, 0); write(near, "x", 0, sys.EAGAIN) }, 0},
		{"the peer writes to the full", func() { write(far, "c", 1, 0) }, in},
		{"the peer reads", func() { read(far, 4, 0) }, in | out},
		{"the peer reads again", func() { read(far, 0, sys.EAGAIN) }, 0},
		{"the peer ends its half", func() { far.CloseWrite(); far.CloseWrite() }, in | out | rdhup},
		{"read the end", func() { read(near, 1, 0); read(near, 0, 0); write(far, "x", 0, sys.EPIPE) }, 0},
		{"the other half is ended", near.CloseWrite, in | out | rdhup | hup},
		{"remove", func() { b.Remove(near.Fd()) }, 0},
		{"the peer goes", far.Close, 0},
		{"add again", func() { b.Add(near.Fd(), token) }, in | out | rdhup | hup},
	} {
		step.do()
		events := make([]poller.Event, 8)
		n, err := b.Wait(events, 0)
		var got poller.Ready
		for _, ev := range events[:n] {
			got |= ev.Ready
		}
		if err != nil || n > 1 || got != step.want {
			t.Errorf("%s: %d events, %06b, %v, not %06b", step.what, n, got, err, step.want)
		}
	}
	// The number comes back, as the kernel's do.
	near.Close()
	x, y := b.Pair(1)
	if min(x.Fd(), y.Fd()) != min(near.Fd(), far.Fd()) {
		t.Error("the numbers do not come back")
	}
	// A reset takes what was unread with it, and is told once.
	write(y, "a", 1, 0)
	b.Add(x.Fd(), token)
	y.Reset()
	events := make([]poller.Event, 8)
	if n, _ := b.Wait(events, 0); n != 1 || events[0].Ready != in|out|rdhup|hup|failed {
		t.Errorf("a reset is %d events, %06b", n, events[0].Ready)
	}
	read(x, 0, sys.ECONNRESET)
	read(x, 0, 0)
	write(x, "a", 0, sys.EPIPE)
	y.Close()
	x.Close()
	read(x, 0, sys.EBADF)
}

func TestErrors(t *testing.T) {
	b := fake.New()
	near, _ := b.Pair(1)
	if err := b.Add(near.Fd(), 1); err != nil {
		t.Error(err)
	}
	if err := b.Add(near.Fd(), 1); !errors.Is(err, sys.EEXIST) {
		t.Error(err)
	}
	if token, ok := b.Token(near.Fd()); token != 1 || !ok {
		t.Error(token, ok)
	}
	if err := b.Remove(near.Fd()); err != nil {
		t.Error(err)
	}
	if err := b.Remove(near.Fd()); !errors.Is(err, sys.ENOENT) {
		t.Error(err)
	}
	if err := b.Add(1<<30+99, 1); !errors.Is(err, sys.EBADF) {
		t.Error(err)
	}
	b.Close()
	for _, err := range []error{b.Add(near.Fd(), 1), b.Remove(near.Fd()), b.Break(), b.Close()} {
		if !errors.Is(err, poller.ErrClosed) {
			t.Error(err)
		}
	}
}

// TestScript holds events back and lets them pass one by one.
func TestScript(t *testing.T) {
	b := fake.New()
	heard := make(chan poller.Event, 16)
	ended := make(chan error, 1)
	go func() {
		events := make([]poller.Event, 8)
		for {
			n, err := b.Wait(events, -1)
			for _, ev := range events[:n] {
				heard <- ev
			}
			if n == 0 {
				ended <- err
				return
			}
		}
	}()
	near, far := b.Pair(8)
	b.Hold()
	b.Add(near.Fd(), 7)
	b.Inject(poller.Event{Token: 8, Ready: in}, poller.Event{Token: 8, Ready: in})
	far.Write([]byte("a")) // It meets the registration's edge.
	if n := b.Queued(); n != 3 {
		t.Errorf("%d are held back, not 3", n)
	}
	b.Settle()
	if len(heard) != 0 {
		t.Error("something has passed")
	}
	for i, want := range []poller.Event{{Token: 7, Ready: in | out}, {Token: 8, Ready: in}, {Token: 8, Ready: in}} {
		b.Step(1)
		if got := <-heard; got != want || len(heard) != 0 {
			t.Errorf("step %d: %v, not %v", i, got, want)
		}
	}
	// Who leaves takes its edges along; what was injected stays.
	far.Write([]byte("b"))
	b.Inject(poller.Event{Token: 9})
	b.Remove(near.Fd())
	b.Release()
	b.Settle()
	if got := <-heard; got.Token != 9 || len(heard) != 0 {
		t.Error(got)
	}
	b.Break()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	b.Close()
}

func TestClock(t *testing.T) {
	c := fake.NewClock()
	var order []string
	at := func(name string, after time.Duration) poller.ClockTimer {
		tm := c.AfterFunc(func() { order = append(order, name) })
		tm.Set(after)
		return tm
	}
	began := c.Now()
	at("c", 3)
	at("a", 1)
	at("b1", 2)
	at("b2", 2)
	at("later", 100)
	stopped := at("stopped", 1)
	stopped.Stop()
	moved := at("moved", 1)
	moved.Set(4)
	var again poller.ClockTimer
	fires := 0
	again = c.AfterFunc(func() {
		if fires++; fires < 3 {
			again.Set(2)
		}
	})
	again.Set(2)
	at("never", 1<<63-1)
	c.Advance(10)
	if want := []string{"a", "b1", "b2", "c", "moved"}; !slices.Equal(order, want) {
		t.Errorf("%v fired, not %v", order, want)
	}
	if fires != 3 {
		t.Errorf("a timer that sets itself fired %d times", fires)
	}
	if c.Now()-began != 10 || c.Instant(c.Time()) != c.Now() {
		t.Error("the clock is wrong")
	}
	if c.Armed() != 2 || c.Fired() != 8 || c.Sets() != 12 {
		t.Errorf("%d are set, %d have fired, %d times one was set", c.Armed(), c.Fired(), c.Sets())
	}
}
