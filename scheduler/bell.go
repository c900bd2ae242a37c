package scheduler

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/pollux-go/pollux/internal/sys"
)

// forever is a timeout that never ends.
const forever = time.Duration(-1)

// A bell is what one goroutine sleeps on: a channel, or, outside of Go's run queues, a futex system call of its own.
//
// A channel costs half as much. It readies the sleeper at the ringer's P, from where another one takes it that is idle. A loop
// that is locked to its thread and keeps its P would strand it there. A goroutine in a system call is woken by the kernel and
// takes a spare P by itself on its way back; but while it sleeps, the runtime's monitor looks every 20 us for Ps in system
// calls, takes its P, and starts a thread to look for work (BenchmarkWake).
//
// Roles: the sleeper mutes and waits; anybody rings. A ring after mute is not lost, and one is enough however many come.
type bell struct {
	rung    uint32        // the futex: 1 from the ring to the next mute
	channel chan struct{} // not nil: sleep on it instead
	timer   *time.Timer   // the sleeper's, with a channel
}

func newBell(channel bool) (b bell) {
	if channel {
		b.channel = make(chan struct{}, 1)
	}
	return b
}

// mute forgets earlier rings. It comes before the sleeper can be found.
func (b *bell) mute() { atomic.StoreUint32(&b.rung, 0) }

// ring ends the wait of the sleeper, or its next one. It does not wait and does not go through Go's scheduler.
func (b *bell) ring() {
	// Publish what the ringer did; pairs with the loads in wait, and with the kernel's own before it lets anyone sleep.
	atomic.StoreUint32(&b.rung, 1)
	if b.channel != nil {
		select {
		case b.channel <- struct{}{}:
		default: // An earlier ring lies there. It ends the same sleep.
		}
		return
	}
	for try := 0; ; try++ {
		_, errno := sys.FutexWake(&b.rung, 1)
		if errno == 0 {
			return
		}
		// The kernel knows errors for bad addresses only.
		if try == 8 {
			panic(fmt.Sprintf("scheduler: a sleeper cannot be woken: %v", errno))
		}
	}
}

// wait sleeps until the bell has been rung since it was muted. It is false when the timeout was over first.
func (b *bell) wait(timeout time.Duration) bool {
	if b.channel != nil {
		return b.waitChannel(timeout)
	}
	for atomic.LoadUint32(&b.rung) == 0 {
		switch errno := sys.FutexWait(&b.rung, 0, timeout); errno {
		case 0, sys.EAGAIN:
		case sys.ETIMEDOUT:
			return atomic.LoadUint32(&b.rung) != 0
		default:
			// A sandbox that forbids it would have stopped Go's runtime before us. Look now and then.
			time.Sleep(time.Millisecond)
		}
	}
	return true
}

func (b *bell) waitChannel(timeout time.Duration) bool {
	var over <-chan time.Time
	if timeout >= 0 {
		if b.timer == nil {
			b.timer = time.NewTimer(timeout)
		} else {
			b.timer.Reset(timeout)
		}
		defer b.timer.Stop()
		over = b.timer.C
	}
	// An old ring may lie in the channel: it is the word that counts.
	for atomic.LoadUint32(&b.rung) == 0 {
		select {
		case <-b.channel:
		case <-over:
			return atomic.LoadUint32(&b.rung) != 0
		}
	}
	return true
}
