package poller_test

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/internal/testutil/fake"
	"github.com/pollux-go/pollux/poller"
)

// failing is a backend whose Wait fails from some time on.
type failing struct {
	*fake.Backend
	failure atomic.Pointer[error]
}

func (f *failing) Wait(events []poller.Event, timeout time.Duration) (int, error) {
	n, err := f.Backend.Wait(events, timeout)
	if p := f.failure.Load(); p != nil {
		return 0, *p
	}
	return n, err
}

// TestLoopFailureWakesEverybody has the backend fail under those who wait. Nobody would ever hear of an event again.
func TestLoopFailureWakesEverybody(t *testing.T) {
	r := newRig(t)
	r.poller.Close()
	b := &failing{Backend: fake.New()}
	r.backend = b.Backend
	var err error
	if r.poller, err = poller.NewWithClock(b, r.clock); err != nil {
		t.Fatal(err)
	}
	defer r.poller.Close()
	d, far := r.desc(false)
	reader := r.begin(d, poller.ModeRead, func() (int, error) { return d.Read(make([]byte, 1)) })
	failure := errors.New("out of order")
	b.failure.Store(&failure)
	send(t, far, "a")
	b.Kick(d.Fd())
	if _, err := r.end(reader); !errors.Is(err, poller.ErrClosed) {
		t.Fatal(err)
	}
	fds, errno := sys.Socketpair()
	if errno != 0 {
		t.Fatal(errno)
	}
	defer sys.Close(fds[0])
	defer sys.Close(fds[1])
	if d, err := r.poller.OpenStream(fds[0], false); d != nil || !errors.Is(err, failure) {
		t.Errorf("after the failure one can open: %v, %v", d, err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if err := r.poller.Close(); err != nil {
		t.Error(err)
	}
	if err := r.poller.Close(); !errors.Is(err, poller.ErrClosed) {
		t.Error(err)
	}
}

// TestOpenFails looks at what is left of an Open that fails: nothing.
func TestOpenFails(t *testing.T) {
	r := newRig(t)
	for _, op := range []sys.Op{sys.OpFcntl} {
		fds, errno := sys.Socketpair()
		if errno != 0 {
			t.Fatal(errno)
		}
		restore := sys.Inject(func(o sys.Op, _ int) sys.Fault {
			if o == op {
				return sys.Fault{Errno: sys.EBADF}
			}
			return sys.Fault{}
		})
		d, err := r.poller.Open(fds[0])
		restore()
		if d != nil || !errors.Is(err, sys.EBADF) {
			t.Errorf("%v fails: %v, %v", op, d, err)
		}
		sys.Close(fds[0])
		sys.Close(fds[1])
	}
	d, far := r.desc(false)
	if again, err := r.poller.Open(d.Fd()); again != nil || !errors.Is(err, sys.EEXIST) {
		t.Errorf("a descriptor can be opened twice: %v, %v", again, err)
	}
	if r.poller.Len() != 1 {
		t.Errorf("%d descriptors are in the poller, not 1", r.poller.Len())
	}
	// The first one has not suffered.
	reader := r.begin(d, poller.ModeRead, func() (int, error) { return d.Read(make([]byte, 1)) })
	send(t, far, "a")
	r.backend.Kick(d.Fd())
	if n, err := r.end(reader); n != 1 || err != nil {
		t.Fatal(n, err)
	}
}

func TestOwnDescriptors(t *testing.T) {
	r := newRig(t)
	fds, errno := sys.Socketpair()
	if errno != 0 {
		t.Fatal(errno)
	}
	defer sys.Close(fds[0])
	defer sys.Close(fds[1])
	poller.Own(fds[0])
	if !poller.IsPollDescriptor(fds[0]) || poller.IsPollDescriptor(fds[1]) {
		t.Error("not exactly what was declared is declared")
	}
	if _, err := r.poller.Open(fds[0]); !errors.Is(err, poller.ErrOwnDescriptor) {
		t.Error(err)
	}
	poller.Disown(fds[0])
	if poller.IsPollDescriptor(fds[0]) {
		t.Error("it is declared still")
	}
	if _, err := r.poller.Open(-1); err == nil || !strings.Contains(err.Error(), "fd -1") {
		t.Error(err)
	}
}

// TestUnblockLeavesOpen ends operations and not descriptors.
func TestUnblockLeavesOpen(t *testing.T) {
	r := newRig(t)
	d, far := r.desc(false)
	reader := r.begin(d, poller.ModeRead, func() (int, error) { return d.Read(make([]byte, 1)) })
	r.poller.Unblock()
	if _, err := r.end(reader); !errors.Is(err, poller.ErrClosed) {
		t.Fatal(err)
	}
	send(t, far, "a")
	if n, errno := sys.Recv(d.Fd(), make([]byte, 1)); n != 1 || errno != 0 {
		t.Fatal(n, errno)
	}
	if _, err := d.Read(make([]byte, 1)); !errors.Is(err, poller.ErrClosed) {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}
