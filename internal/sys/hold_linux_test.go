package sys

import (
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
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
			stop := meanwhile(func() {
				time.Sleep(time.Millisecond)
				_ = unix.Tgkill(os.Getpid(), thread, unix.SIGURG)
			})
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
			stop()
		})
	}
}

// TestHoldTellsOfRequests has the runtime ask for the P while nobody waits, by stopping the world: the end of a wait tells of it, whatever
// has ended it, and one that nobody has asked for does not.
func TestHoldTellsOfRequests(t *testing.T) {
	if runtime.GOARCH != "amd64" && runtime.GOARCH != "arm64" {
		t.Skip("it is not known here what the runtime asks for")
	}
	var asked uint32
	h := &Hold{Asked: &asked}
	stop := meanwhile(runtime.GC)
	seen := false
	for end := time.Now().Add(20 * time.Second); !seen && time.Now().Before(end); {
		seen = untilAsked(h, 1<<16)
	}
	stop()
	if !seen {
		t.Fatal("the world was stopped, and nobody was asked for the P")
	}
	if asked != 1 {
		t.Errorf("it has told %d times, want once", asked)
	}
	for range 1000 {
		h.tell(0)
	}
	if asked > 50 { // The monitor may have asked now and then.
		t.Errorf("it has told %d times of 1000, and hardly anybody has asked", asked)
	}
	before := asked
	if h.Ask(); asked != before+1 {
		t.Error("it was to tell, and has not")
	}
	if h.Asks != uint64(before) {
		t.Errorf("%d requests are counted, and %d were told of", h.Asks, before)
	}
	none := new(Hold)
	none.tell(EINTR)
	none.Ask()
	if none.Asks != 1 {
		t.Errorf("%d requests are counted where nobody is told, want 1", none.Asks)
	}
}

// meanwhile has another goroutine do something again and again, until stop, which waits for it.
func meanwhile(f func()) (stop func()) {
	var over atomic.Bool
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for !over.Load() {
			f()
		}
	}()
	return func() { over.Store(true); <-stopped }
}

// untilAsked ends a wait as soon as the runtime asks for the P, or returns false after so many looks. Nothing that it calls can be
// preempted, and most of the time it is in a system call, where a signal does not preempt it either.
//
//go:nosplit
func untilAsked(h *Hold, looks int) bool {
	for range looks {
		_, _, _ = syscall.RawSyscall(unix.SYS_GETPPID, 0, 0, 0)
		if preemptAsked() {
			h.tell(0)
			return true
		}
	}
	return false
}
