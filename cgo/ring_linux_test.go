package cgo_test // internal/uring, whose entries these tests submit, imports cgo.

import (
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/pollux-go/pollux/cgo"
	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/internal/testutil"
	"github.com/pollux-go/pollux/internal/uring"
)

// ring is an io_uring of the calling thread, with the least that a wait needs, and a socket pair.
type ring struct {
	fd        int
	near, far int
	sqTail    *uint32
	sqFlags   *uint32
	cqTail    *uint32
	cqHead    *uint32
	sqes      []uring.SQE
	cqes      []uring.CQE
	head      uint32
	calls     uint32 // of the last wait
	arg       *ringArg
	ts        *cgo.Timespec
}

// ringArg is the kernel's struct io_uring_getevents_arg.
type ringArg struct {
	_  [2]uint64
	ts uint64
}

// Bits of a set-up and of an enter, from linux/io_uring.h.
const (
	coopTaskrun  = 1 << 8
	taskrunFlag  = 1 << 9
	singleIssuer = 1 << 12
	deferTaskrun = 1 << 13

	getEvents = 1 << 0
	extArg    = 1 << 3
)

// ringSetups are the ways in which the kernel posts a completion: from an interrupt of the thread, or when it enters next, of which
// a flag tells.
var ringSetups = map[string]uint32{
	"plain": 0,
	"coop":  coopTaskrun | taskrunFlag,
	"defer": singleIssuer | deferTaskrun | taskrunFlag,
}

// ringWaits are the ways to wait for completions. Without cgo, cold and twin are the same.
var ringWaits = map[string]func(r *ring, n, enter uint32, arg unsafe.Pointer, size uintptr, ts *cgo.Timespec, spin time.Duration) (uint32, sys.Errno){
	"cold": func(r *ring, n, enter uint32, arg unsafe.Pointer, size uintptr, ts *cgo.Timespec, spin time.Duration) (uint32, sys.Errno) {
		return cgo.RingWait(r.fd, n, enter, arg, size, ts, r.cqTail, r.head, r.sqFlags, spin)
	},
	"twin": func(r *ring, n, enter uint32, arg unsafe.Pointer, size uintptr, ts *cgo.Timespec, spin time.Duration) (uint32, sys.Errno) {
		return cgo.RingPolls(r.fd, n, enter, arg, size, ts, r.cqTail, r.head, r.sqFlags, spin, nil)
	},
	"hot": func(r *ring, n, enter uint32, arg unsafe.Pointer, size uintptr, ts *cgo.Timespec, spin time.Duration) (uint32, sys.Errno) {
		return cgo.RingPolls(r.fd, n, enter, arg, size, ts, r.cqTail, r.head, r.sqFlags, spin, new(sys.Hold))
	},
}

// eachRingWait runs f with every set-up and every wait, on a thread that it is locked to.
func eachRingWait(t *testing.T, f func(t *testing.T, r *ring, wait func(n uint32, timeout, spin time.Duration) sys.Errno)) {
	for setup, flags := range ringSetups {
		for name, wait := range ringWaits {
			t.Run(setup+"/"+name, func(t *testing.T) {
				testutil.CheckLeaks(t)
				runtime.LockOSThread()
				defer runtime.UnlockOSThread()
				r := newRing(t, flags)
				f(t, r, func(n uint32, timeout, spin time.Duration) (errno sys.Errno) {
					if timeout < 0 {
						r.calls, errno = wait(r, n, getEvents, nil, 0, nil, spin)
						return errno
					}
					r.ts.Set(timeout)
					r.arg.ts = uint64(uintptr(unsafe.Pointer(r.ts)))
					r.calls, errno = wait(r, n, getEvents|extArg, unsafe.Pointer(r.arg), unsafe.Sizeof(*r.arg), r.ts, spin)
					return errno
				})
			})
		}
	}
}

func newRing(t *testing.T, flags uint32) *ring {
	t.Helper()
	p := sys.UringParams{Flags: flags}
	fd, errno := sys.UringSetup(4, &p)
	if errno != 0 {
		t.Skip("no such io_uring: ", errno)
	}
	t.Cleanup(func() { sys.Close(fd) })
	if p.Features&(1<<8) == 0 {
		t.Skip("it has no timeouts")
	}
	pair, errno := sys.Socketpair()
	if errno != 0 {
		t.Fatal(errno)
	}
	t.Cleanup(func() { sys.Close(pair[0]); sys.Close(pair[1]) })
	mapped := func(offset int64, length uint32) []byte {
		b, errno := sys.MapRing(fd, offset, int(length))
		if errno != 0 {
			t.Fatal(errno)
		}
		t.Cleanup(func() { sys.Unmap(b) })
		return b
	}
	queues := mapped(0, max(p.SQOffset.Array+p.SQEntries*4, p.CQOffset.Cqes+p.CQEntries*16))
	entries := mapped(0x10000000, p.SQEntries*64)
	// SAFETY: the kernel has told these offsets into mappings that live as long as the test.
	at := func(offset uint32) *uint32 { return (*uint32)(unsafe.Pointer(&queues[offset])) }
	r := &ring{
		fd: fd, near: pair[0], far: pair[1],
		sqTail: at(p.SQOffset.Tail), sqFlags: at(p.SQOffset.Flags), cqTail: at(p.CQOffset.Tail), cqHead: at(p.CQOffset.Head),
		sqes: unsafe.Slice((*uring.SQE)(unsafe.Pointer(&entries[0])), p.SQEntries),
		cqes: unsafe.Slice((*uring.CQE)(unsafe.Pointer(at(p.CQOffset.Cqes))), p.CQEntries),
		arg:  new(ringArg), ts: new(cgo.Timespec),
	}
	for i, array := uint32(0), unsafe.Slice(at(p.SQOffset.Array), p.SQEntries); i < p.SQEntries; i++ {
		array[i] = i
	}
	return r
}

// nop has the next wait submit one entry more, which completes at once.
func (r *ring) nop() { r.push(uring.SQE{Opcode: uring.OpNop}) }

// poll has the next wait, which is to be told of one entry, ask for the near end to become readable.
func (r *ring) poll(data uint64) {
	r.push(uring.SQE{Opcode: uring.OpPollAdd, FD: int32(r.near), OpFlags: unix.POLLIN, UserData: data})
}

func (r *ring) push(sqe uring.SQE) {
	tail := atomic.LoadUint32(r.sqTail)
	r.sqes[tail%uint32(len(r.sqes))] = sqe
	atomic.StoreUint32(r.sqTail, tail+1)
}

// take returns a completion, if there is one.
func (r *ring) take() (uring.CQE, bool) {
	if atomic.LoadUint32(r.cqTail) == r.head {
		return uring.CQE{}, false
	}
	cqe := r.cqes[r.head%uint32(len(r.cqes))]
	r.head++
	atomic.StoreUint32(r.cqHead, r.head)
	return cqe, true
}

// TestRingWaitTimeout has nothing happen: the spin and the sleep together take the timeout, and not each of them.
func TestRingWaitTimeout(t *testing.T) {
	const timeout, tries = 5 * time.Millisecond, 100
	eachRingWait(t, func(t *testing.T, r *ring, wait func(n uint32, timeout, spin time.Duration) sys.Errno) {
		for _, spin := range []time.Duration{0, time.Microsecond, timeout / 2, timeout, time.Minute} {
			// Whatever else runs on the machine makes it longer, and a signal of Go's runtime ends it early; hardly each time.
			most := timeout + max(min(spin, timeout)/2, timeout/4)
			for try := 1; ; try++ {
				runtime.Gosched() // Who keeps a P is interrupted after 10 ms.
				begin := time.Now()
				errno := wait(0, timeout, spin)
				passed := time.Since(begin)
				if errno == sys.ETIME && passed < timeout || errno != sys.ETIME && errno != sys.EINTR {
					t.Fatalf("spin %v: %v after %v, and the timeout is %v", spin, errno, passed, timeout)
				}
				if errno == sys.ETIME && passed <= most {
					break
				}
				if try == tries {
					t.Fatalf("spin %v: %v after %v, and not in time before; the timeout is %v", spin, errno, passed, timeout)
				}
			}
			if errno := wait(0, 0, spin); errno != sys.ETIME && errno != sys.EINTR {
				t.Errorf("spin %v, no time: %v", spin, errno)
			}
		}
		if cqe, ok := r.take(); ok {
			t.Errorf("a completion from nowhere: %+v", cqe)
		}
	})
}

// TestRingWaitEvent has an event come before the wait, during its spin, and during the sleep after it, and the wait submit what
// asks for it.
func TestRingWaitEvent(t *testing.T) {
	eachRingWait(t, func(t *testing.T, r *ring, wait func(n uint32, timeout, spin time.Duration) sys.Errno) {
		data := uint64(0)
		for _, timeout := range []time.Duration{-1, testutil.Patience} {
			for _, c := range []struct{ spin, delay time.Duration }{
				{0, 0}, {0, 2 * time.Millisecond}, {time.Microsecond, 2 * time.Millisecond}, {2 * time.Millisecond, time.Millisecond},
				{time.Millisecond, 3 * time.Millisecond}, {time.Minute, 0}, {time.Minute, 2 * time.Millisecond},
			} {
				data++
				r.poll(data)
				written := make(chan struct{})
				go func() {
					defer close(written)
					time.Sleep(c.delay)
					sys.Write(r.far, []byte{1})
				}()
				begin := time.Now()
				errno := wait(1, timeout, c.spin)
				for errno == sys.EINTR && time.Since(begin) < testutil.Patience {
					errno = wait(0, timeout, c.spin)
				}
				cqe, ok := r.take()
				if errno != 0 || !ok || cqe.UserData != data || cqe.Res&unix.POLLIN == 0 {
					t.Fatalf("spin %v, delay %v, timeout %v: %v after %v, %v %+v", c.spin, c.delay, timeout, errno, time.Since(begin), ok, cqe)
				}
				<-written
				sys.Read(r.near, make([]byte, 1))
			}
		}
	})
}

// TestRingWaitSignals has a storm of signals, as the runtime sends them, hit the thread while it waits: each event is there once,
// and a timeout that is asked for anew is over when it should be.
func TestRingWaitSignals(t *testing.T) {
	eachRingWait(t, func(t *testing.T, r *ring, wait func(n uint32, timeout, spin time.Duration) sys.Errno) {
		stop, stopped, thread := make(chan struct{}), make(chan struct{}), sys.Gettid()
		defer func() { close(stop); <-stopped }()
		go func() {
			defer close(stopped)
			for {
				select {
				case <-stop:
					return
				case <-time.After(100 * time.Microsecond):
					_ = unix.Tgkill(os.Getpid(), thread, unix.SIGURG)
				}
			}
		}()
		interrupts := 0
		// until waits for an event or until the time is over, as a loop does, which asks anew after a signal.
		until := func(n uint32, timeout, spin time.Duration) sys.Errno {
			end := time.Now().Add(timeout)
			for {
				errno := wait(n, max(0, time.Until(end)), spin)
				if errno != sys.EINTR {
					return errno
				}
				interrupts++
				n = 0
			}
		}
		const events = 30
		for i := range uint64(events) {
			r.poll(i)
			written := make(chan struct{})
			go func() {
				defer close(written)
				time.Sleep(time.Duration(i) * 50 * time.Microsecond)
				sys.Write(r.far, []byte{1})
			}()
			errno := until(1, testutil.Patience, time.Duration(i%3)*500*time.Microsecond)
			cqe, ok := r.take()
			if errno != 0 || !ok || cqe.UserData != i || cqe.Res&unix.POLLIN == 0 {
				t.Fatalf("event %d: %v, %v %+v", i, errno, ok, cqe)
			}
			<-written
			sys.Read(r.near, make([]byte, 1))
		}
		const timeout, tries = 20 * time.Millisecond, 50
		for _, spin := range []time.Duration{0, 200 * time.Microsecond, time.Minute} {
			for try := 1; ; try++ {
				begin := time.Now()
				errno := until(0, timeout, spin)
				passed := time.Since(begin)
				if errno != sys.ETIME || passed < timeout {
					t.Fatalf("spin %v: %v after %v, and the timeout is %v", spin, errno, passed, timeout)
				}
				if passed <= timeout*3/2 {
					break
				}
				if try == tries {
					t.Fatalf("spin %v: %d times not in time, at last %v, and the timeout is %v", spin, try, passed, timeout)
				}
			}
		}
		if cqe, ok := r.take(); ok {
			t.Errorf("a completion from nowhere: %+v", cqe)
		}
		if interrupts == 0 {
			t.Error("no signal has interrupted a wait")
		}
	})
}

// TestRingWaitCalls counts how often a wait enters the kernel: to submit, for completions that are deferred, and to sleep.
func TestRingWaitCalls(t *testing.T) {
	eachRingWait(t, func(t *testing.T, r *ring, wait func(n uint32, timeout, spin time.Duration) sys.Errno) {
		seen := uint32(0)
		testutil.InjectFaults(t, func(op sys.Op, _ int) sys.Fault {
			if op == sys.OpUringEnter {
				seen++
			}
			return sys.Fault{}
		})
		inGo := !cgo.Spins || !strings.HasSuffix(t.Name(), "/cold")
		check := func(what string, least, most uint32, f func()) {
			t.Helper()
			seen = 0
			f()
			if r.calls < least || r.calls > most || inGo && r.calls != seen {
				t.Errorf("%s: %d calls, %d of them seen, and it must be %d to %d", what, r.calls, seen, least, most)
			}
		}
		check("nothing there", 1, 1, func() { wait(0, time.Millisecond, time.Microsecond) })
		check("submits what completes", 1, 2, func() { // The second one for a completion that is deferred.
			r.nop()
			wait(1, testutil.Patience, time.Minute)
		})
		check("something there", 0, 0, func() { wait(0, testutil.Patience, time.Minute) })
		if _, ok := r.take(); !ok {
			t.Error("no completion")
		}
		check("submits and sleeps", 2, 2, func() {
			r.poll(1)
			wait(1, time.Millisecond, time.Microsecond)
		})
		sys.Write(r.far, []byte{1})
		check("finds what has come since", 0, 1, func() { wait(0, testutil.Patience, time.Minute) })
		if _, ok := r.take(); !ok {
			t.Error("no completion")
		}
	})
}

// TestRingWaitFaults has the calls fail, as the kernel's own may.
func TestRingWaitFaults(t *testing.T) {
	eachRingWait(t, func(t *testing.T, r *ring, wait func(n uint32, timeout, spin time.Duration) sys.Errno) {
		for _, errno := range []sys.Errno{sys.EBADF, sys.EINTR, sys.EAGAIN} {
			restore := sys.Inject(func(sys.Op, int) sys.Fault { return sys.Fault{Errno: errno} })
			got := wait(0, time.Millisecond, time.Microsecond)
			restore()
			if got != errno || r.calls != 1 {
				t.Errorf("injected %v: %v, %d calls", errno, got, r.calls)
			}
		}
		r.fd = -1
		for _, n := range []uint32{0, 1} {
			if errno := wait(n, time.Millisecond, time.Microsecond); errno != sys.EBADF {
				t.Errorf("no descriptor, %d entries: %v", n, errno)
			}
		}
	})
}
