package sys

import (
	"sync/atomic"
	"testing"
	"time"
)

func TestFutex(t *testing.T) {
	word := new(uint32)
	if errno := FutexWait(word, 1, -1); errno != EAGAIN {
		t.Errorf("a wait for another value: %v", errno)
	}
	if errno := FutexWait(word, 0, 0); errno != ETIMEDOUT {
		t.Errorf("a wait of no time: %v", errno)
	}
	start := time.Now()
	for errno := Errno(0); errno != ETIMEDOUT; {
		if errno = FutexWait(word, 0, 2*time.Millisecond); errno != ETIMEDOUT && errno != 0 {
			t.Fatal(errno)
		}
	}
	if d := time.Since(start); d < 2*time.Millisecond {
		t.Errorf("a wait of 2 ms took %v", d)
	}
	if n, errno := FutexWake(word, 1); n != 0 || errno != 0 {
		t.Errorf("%d sleepers were woken where none is, %v", n, errno)
	}
	ended := make(chan Errno)
	go func() {
		for atomic.LoadUint32(word) == 0 {
			if errno := FutexWait(word, 0, -1); errno != 0 && errno != EAGAIN {
				ended <- errno
				return
			}
		}
		ended <- 0
	}()
	// The sleeper is there when a wake reaches somebody; the value has not changed, so it sleeps again.
	for n := 0; n == 0; {
		var errno Errno
		n, errno = FutexWake(word, 1)
		check(t, "wake", errno)
	}
	atomic.StoreUint32(word, 1)
	_, errno := FutexWake(word, 1)
	check(t, "wake", errno)
	check(t, "wait", <-ended)
}

func TestFutexFaults(t *testing.T) {
	word := new(uint32)
	var errnos []Errno
	restore := Inject(func(op Op, _ int) (f Fault) {
		if op == OpFutex && len(errnos) > 0 {
			f.Errno, errnos = errnos[0], errnos[1:]
		}
		return f
	})
	defer restore()
	errnos = []Errno{EINTR, ENOMEM}
	if errno := FutexWait(word, 0, -1); errno != 0 {
		t.Errorf("an interrupted wait: %v", errno)
	}
	if errno := FutexWait(word, 0, -1); errno != ENOMEM {
		t.Errorf("a wait that fails: %v", errno)
	}
	errnos = []Errno{EINTR, ENOMEM}
	if _, errno := FutexWake(word, 1); errno != ENOMEM {
		t.Errorf("a wake that is interrupted and fails: %v", errno)
	}
}
