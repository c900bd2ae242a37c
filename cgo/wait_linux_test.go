package cgo

import (
	"testing"
	"time"

	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/internal/testutil"
)

// waits are the ways to wait for an epoll set's events.
var waits = map[string]func(epfd int, events []sys.EpollEvent, spin, timeout time.Duration) (int, sys.Errno){
	"wait": EpollWait,
	"polls": func(epfd int, events []sys.EpollEvent, spin, timeout time.Duration) (int, sys.Errno) {
		return EpollPolls(epfd, events, spin)
	},
}

// pipe returns a socket pair whose near end an epoll set watches.
func pipe(t *testing.T) (epfd, near, far int) {
	t.Helper()
	epfd, errno := sys.EpollCreate()
	if errno != 0 {
		t.Fatal(errno)
	}
	pair, errno := sys.Socketpair()
	if errno != 0 {
		t.Fatal(errno)
	}
	t.Cleanup(func() { sys.Close(epfd); sys.Close(pair[0]); sys.Close(pair[1]) })
	if errno := sys.EpollCtl(epfd, sys.EpollAdd, pair[0], sys.EPOLLIN, 42); errno != 0 {
		t.Fatal(errno)
	}
	return epfd, pair[0], pair[1]
}

func TestEpollWait(t *testing.T) {
	for name, wait := range waits {
		t.Run(name, func(t *testing.T) {
			testutil.CheckLeaks(t)
			epfd, near, far := pipe(t)
			events := make([]sys.EpollEvent, 4)
			for _, spin := range []time.Duration{0, time.Microsecond, time.Millisecond} {
				// A signal of Go's runtime may end a wait early; hardly one after the other.
				for try := 1; ; try++ {
					begin := time.Now()
					if n, errno := wait(epfd, events, spin, 5*time.Millisecond); n != 0 || errno != 0 {
						t.Fatalf("spin %v, nothing there: %d, %v", spin, n, errno)
					}
					passed := time.Since(begin)
					if name != "wait" || passed >= 5*time.Millisecond {
						break
					}
					if try == 5 {
						t.Fatalf("spin %v: it has waited %v instead of 5ms, and less than that four times before", spin, passed)
					}
				}
				if n, errno := wait(epfd, events, spin, 0); n != 0 || errno != 0 {
					t.Errorf("spin %v, no time: %d, %v", spin, n, errno)
				}
				// During the spin, during the sleep after it, and before.
				for _, delay := range []time.Duration{0, spin / 2, spin + 2*time.Millisecond} {
					go func() {
						time.Sleep(delay)
						sys.Write(far, []byte{1})
					}()
					limit := time.Duration(-1)
					if name != "wait" {
						spin = testutil.Patience
					}
					n, errno := wait(epfd, events, spin, limit)
					for try := 1; n == 0 && errno == 0 && try < 5; try++ {
						n, errno = wait(epfd, events, spin, limit)
					}
					if n != 1 || errno != 0 || sys.EpollData(&events[0]) != 42 || events[0].Events != sys.EPOLLIN {
						t.Fatalf("spin %v, delay %v: %d, %v, %+v", spin, delay, n, errno, events[0])
					}
					sys.Read(near, make([]byte, 1))
				}
			}
		})
	}
}

// TestEpollWaitFaults has the calls fail, as the kernel's own may.
func TestEpollWaitFaults(t *testing.T) {
	epfd, _, _ := pipe(t)
	events := make([]sys.EpollEvent, 4)
	for _, errno := range []sys.Errno{sys.EBADF, sys.ENOSYS} {
		restore := sys.Inject(func(op sys.Op, _ int) sys.Fault { return sys.Fault{Errno: errno} })
		n, got := EpollWait(epfd, events, time.Microsecond, 0)
		restore()
		if n != 0 || got != errno {
			t.Errorf("injected %v: %d, %v", errno, n, got)
		}
	}
	if n, errno := EpollWait(-1, events, time.Microsecond, time.Millisecond); n != 0 || errno != sys.EBADF {
		t.Errorf("no descriptor: %d, %v", n, errno)
	}
}
