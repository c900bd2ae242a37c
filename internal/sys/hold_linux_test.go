package sys

import (
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestHoldTells interrupts waits that keep their P by a signal, as the runtime does: the word has counted it, and who sleeps on it
// has been woken. A wait that ends otherwise leaves it alone, and so does one that does not keep its P.
func TestHoldTells(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	epfd, errno := EpollCreate()
	check(t, "create", errno)
	defer Close(epfd)
	events := make([]EpollEvent, 1)
	const long = 200 * time.Millisecond // Of which there are enough to be interrupted once.
	waits := map[string]func(d time.Duration, h *Hold){
		"pwait2": func(d time.Duration, h *Hold) { EpollWait(epfd, events, d, h) },
		"millis": func(d time.Duration, h *Hold) { EpollWaitMillis(epfd, events, d, h) },
	}
	thread := Gettid()
	for name, wait := range waits {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Uint32
			h := &Hold{Asked: (*uint32)(unsafe.Pointer(&asked))}
			wait(time.Millisecond, h)
			if asked.Load() != 0 {
				t.Error("it was told of a timeout")
			}
			woken := make(chan struct{})
			go func() {
				for asked.Load() == 0 {
					FutexWait(h.Asked, 0, -1)
				}
				close(woken)
			}()
			stop, stopped := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(stopped)
				for {
					select {
					case <-stop:
						return
					case <-time.After(time.Millisecond):
						_ = unix.Tgkill(os.Getpid(), thread, unix.SIGURG)
					}
				}
			}()
			for end := time.Now().Add(20 * time.Second); asked.Load() == 0 && time.Now().Before(end); {
				wait(long, nil)
				wait(long, new(Hold))
				if asked.Load() != 0 {
					t.Error("it was told of another wait")
				}
				wait(long, h)
			}
			if asked.Load() == 0 {
				t.Error("it was not told of a signal")
				asked.Store(1)
				FutexWake(h.Asked, 1)
			}
			<-woken
			close(stop)
			<-stopped
		})
	}
}
