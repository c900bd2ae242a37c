//go:build linux

package pollux

import (
	"encoding/binary"
	"errors"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/internal/testutil"
	"github.com/pollux-go/pollux/internal/testutil/conformance"
	"github.com/pollux-go/pollux/internal/uring"
	"github.com/pollux-go/pollux/poller"
)

func TestConformance(t *testing.T) {
	targets := []conformance.Target{
		{Name: "epoll", Open: newEpoll, Networks: []string{"tcp", "unix"}},
		{Name: "epoll-millis", Open: newEpollMillis, Networks: []string{"unix"}},
	}
	for _, v := range uringVariants(t) {
		networks := []string{"tcp", "unix"}
		if v.mask != "" {
			networks = networks[1:]
		}
		targets = append(targets, conformance.Target{Name: v.name, Open: v.open, Networks: networks})
	}
	conformance.Run(t, targets)
}

// uringVariant is io_uring with features masked off.
type uringVariant struct{ name, mask string }

// uringVariants are the kinds of io_uring that this kernel can be made to look like. Readiness depends on three features
// alone. With POLLUX_TEST_MATRIX=all they are those of every kernel, and each feature is missing once.
func uringVariants(t testing.TB) []uringVariant {
	c := Default()
	if err := checkUring(c, false); err != nil {
		t.Logf("io_uring is not tested: %v", err)
		return nil
	}
	variants := []uringVariant{{"io_uring", ""}, {"io_uring-6.6", without66}, {"io_uring-5.19", without519}}
	if os.Getenv("POLLUX_TEST_MATRIX") == "all" {
		variants = append(variants, uringVariant{"io_uring-6.1", without61}, uringVariant{"io_uring-5.11", without511})
		for _, a := range uring.Answers() {
			if a.Feature != uring.ExtArg {
				variants = append(variants, uringVariant{"io_uring-without-" + a.Name, "-" + a.Name})
			}
		}
	}
	return variants
}

// What kernels lack.
const (
	without66  = "-no_iowait,-epoll_wait"
	without61  = without66 + ",-no_sqarray"
	without519 = without61 + ",-defer_taskrun,-multishot_recv"
	without511 = without519 + ",-multishot_accept,-buffer_ring,-coop_taskrun,-registered_ring,-skip_cqe,-multishot_poll"
)

func (v uringVariant) open() (poller.Backend, error) {
	c, err := Config{Backend: KindUring, UringFeatures: v.mask, RingEntries: 8, RingBuffers: 4, RingBufferSize: 256}.withDefaults()
	if err != nil {
		return nil, err
	}
	b, err := newUring(c)
	if err != nil {
		return nil, err
	}
	o := &onThread{Backend: b, calls: make(chan func()), ended: make(chan struct{})}
	go o.run()
	return o, nil
}

// onThread has one thread make all calls of Wait, as a ring wants it, whoever asks for them.
type onThread struct {
	poller.Backend
	calls chan func()
	ended chan struct{}
	once  sync.Once

	closed bool // the thread's
}

func (o *onThread) run() {
	runtime.LockOSThread() // The thread ends with the goroutine.
	defer close(o.ended)
	for !o.closed {
		(<-o.calls)()
	}
}

func (o *onThread) Wait(events []poller.Event, timeout time.Duration) (n int, err error) {
	done := make(chan struct{})
	select {
	case o.calls <- func() { n, err = o.Backend.Wait(events, timeout); close(done) }:
		<-done
		return n, err
	case <-o.ended:
		return o.Backend.Wait(events, timeout) // Closed.
	}
}

func (o *onThread) Close() error {
	err := error(poller.ErrClosed)
	o.once.Do(func() {
		o.calls <- func() { err, o.closed = o.Backend.Close(), true }
		<-o.ended
	})
	return err
}

// newEpollMillis is the backend as it is on kernels before 5.11, which do not have epoll_pwait2.
func newEpollMillis() (poller.Backend, error) {
	b, err := newEpoll()
	if err == nil {
		b.(*epoll).old = true
	}
	return b, err
}

// TestEpollFallsBackToMillis has the kernel not know the call.
func TestEpollFallsBackToMillis(t *testing.T) {
	testutil.CheckLeaks(t)
	b, err := newEpoll()
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	fault := testutil.Nth{Op: sys.OpEpollWait, Fault: sys.Fault{Errno: sys.ENOSYS}}
	testutil.InjectFaults(t, fault.Hook)
	if err := b.Break(); err != nil {
		t.Fatal(err)
	}
	if n, err := b.Wait(make([]poller.Event, 1), -1); n != 0 || err != nil {
		t.Fatal(n, err)
	}
	if !fault.Hit() {
		t.Error("the call was not made")
	}
}

// TestOpeningFailsClean lets the n-th system call of opening a backend, a poller and a descriptor fail, for every n and
// every kind: nothing may be left behind.
func TestOpeningFailsClean(t *testing.T) {
	for op := range sys.Op(sys.Ops) {
		if op == sys.OpClose {
			continue // It is how everything is cleaned up.
		}
		for n := int64(0); ; n++ {
			if !openWithFault(t, op, n) {
				break
			}
		}
	}
}

func openWithFault(t *testing.T, op sys.Op, n int64) (hit bool) {
	before := testutil.Files()
	fds, errno := sys.Socketpair()
	if errno != 0 {
		t.Fatal(errno)
	}
	fault := testutil.Nth{Op: op, N: n, Fault: sys.Fault{Errno: sys.ENOMEM}}
	restore := sys.Inject(fault.Hook)
	closeFD := true
	err := func() error {
		b, err := newEpoll()
		if err != nil {
			return err
		}
		p, err := poller.New(b)
		if err != nil {
			return err
		}
		defer p.Close()
		d, err := p.Open(fds[0])
		if err != nil {
			if d != nil {
				t.Errorf("%v, call %d: a descriptor with an error", op, n)
			}
			return err
		}
		closeFD = false
		if err := d.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Error(err)
		}
		return d.Close()
	}()
	restore()
	hit = fault.Hit()
	// A wait that fails ends the poller; what is opened after that may or may not have come first. An option that
	// cannot be read only says that the descriptor is no socket, and one that cannot be removed is closed anyway.
	if hit && op != sys.OpEpollWait && op != sys.OpGetsockopt && !(op == sys.OpEpollCtl && n == 2) && !errors.Is(err, sys.ENOMEM) {
		t.Errorf("%v, call %d has failed: %v", op, n, err)
	}
	if closeFD {
		sys.Close(fds[0])
	}
	sys.Close(fds[1])
	for fd, what := range testutil.Files() {
		if before[fd] != what {
			t.Errorf("%v, call %d: fd %s is left, %s", op, n, fd, what)
		}
	}
	return hit
}

// TestBreakWithAFullCounter has the eventfd counted up to its limit, where it takes no more.
func TestBreakWithAFullCounter(t *testing.T) {
	testutil.CheckLeaks(t)
	b, err := newEpoll()
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	full := binary.NativeEndian.AppendUint64(nil, 1<<64-2)
	if _, errno := sys.Write(b.(*epoll).wakefd, full); errno != 0 {
		t.Fatal(errno)
	}
	events := make([]poller.Event, 1)
	if _, err := b.Wait(events, -1); err != nil { // The edge of that.
		t.Fatal(err)
	}
	for range 3 {
		if err := b.Break(); err != nil {
			t.Fatal(err)
		}
		if n, err := b.Wait(events, -1); n != 0 || err != nil {
			t.Fatal(n, err)
		}
	}
}

func TestEpollWaitDoesNotAllocate(t *testing.T) {
	b, wake, events := oneReady(t)
	if n := testing.AllocsPerRun(100, func() {
		wake()
		if n, err := b.Wait(events, -1); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		b.Break()
		if n, err := b.Wait(events, time.Second); n != 0 || err != nil {
			t.Fatal(n, err)
		}
	}); n != 0 {
		t.Errorf("a wait costs %v allocations", n)
	}
}

// oneReady returns a backend with one descriptor that wake makes ready.
func oneReady(t testing.TB) (b poller.Backend, wake func(), events []poller.Event) {
	b, err := newEpoll()
	if err != nil {
		t.Fatal(err)
	}
	fd, errno := sys.Eventfd()
	if errno != 0 {
		t.Fatal(errno)
	}
	t.Cleanup(func() { b.Close(); sys.Close(fd) })
	if err := b.Add(fd, poller.Token(1<<24)); err != nil {
		t.Fatal(err)
	}
	events = make([]poller.Event, 256)
	if _, err := b.Wait(events, 0); err != nil { // The edge of the registration.
		t.Fatal(err)
	}
	count := [8]byte{1}
	return b, func() { sys.Write(fd, count[:]) }, events
}

func BenchmarkEpollWait(b *testing.B) {
	backend, wake, events := oneReady(b)
	b.Run("ready=0", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			backend.Wait(events, 0)
		}
	})
	b.Run("ready=1", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			wake()
			if n, err := backend.Wait(events, -1); n != 1 || err != nil {
				b.Fatal(n, err)
			}
		}
	})
	b.Run("break", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			backend.Break()
			backend.Wait(events, -1)
		}
	})
}
