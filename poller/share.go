package poller

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/pollux-go/pollux/internal/sys"
)

// ErrElsewhere is what Run and Follow return when other threads run the loop, and this one is not needed, or cannot.
var ErrElsewhere = errors.New("poller: the loop runs on another thread")

// A Sharer is a backend that several threads can wait on at a time.
type Sharer interface {
	Backend

	// WaitShared is Wait for one of several threads, each of which has a slice of its own. woken says that a Break has ended it.
	WaitShared(events []Event, timeout time.Duration) (n int, woken bool, err error)

	// Answer says that such a Break was answered: from here on another one wakes again. It is for who runs the loop, and so is
	// AnswerLate, which does it for a Break that a Wait has met which was not to block, if there was one.
	Answer()
	AnswerLate()

	// Rouse ends a WaitShared, or the next one, however many Breaks there were.
	Rouse()
}

// A SharedSink is the sink of a loop that is shared.
type SharedSink interface {
	Sink

	// Relieve is called by a thread that has events for a loop that another thread runs. It is true if the calling thread
	// runs the loop from here on. Else it says for how long to leave it to the other one. It is called for the first time with 0,
	// then with 1, and so on.
	Relieve(looks int) (took bool, again time.Duration)

	// Relieved follows on the Relieve that was true, with the events of the calling thread. It ends the turn of the thread before.
	Relieved(events []Event)

	// Stray is called by a thread that has events for a loop that is not shared any more: it must pass them on.
	Stray(events []Event)
}

// share is how threads run a loop by turns, as leader and follower.
//
// Roles: the owner runs the loop, for one turn at a time; it gives the loop up while it waits for events. Who has events owns
// the loop next, or waits for the one that does. The kernel wakes who has begun to wait last (ep_poll in fs/eventpoll.c adds
// itself at the head of the queue), so that one thread has all turns, and the others sleep, until an event comes while it is
// busy. Ownership: all of the Loop that is not atomic is the owner's. Progress: by the owner's; who waits for it asks the sink
// whether to take the loop from it. Breaks: none is left unanswered that a Wait has met while the loop is shared, or others
// would coalesce with it that are to wake the next one who waits. What comes before an answer is seen to by the turn that goes
// on after it. Source: the leader/followers pattern (Schmidt and others, 2000), with the futex of "Futexes Are Tricky"
// (Drepper), mutex 2.
type share struct {
	on    atomic.Bool
	owner uint32 // an atomic and a futex: free, owned or awaited
}

const (
	free    = 0
	owned   = 1
	awaited = 2 // and somebody sleeps until it is free
)

// sharedMost is how many events a thread takes before it owns the loop. If there are more, it looks for them then.
const sharedMost = 8

// Share has other threads run the loop too, which call Follow, or ends that. It is for the thread that runs it. The backend
// must be a [Sharer] and the sink a [SharedSink].
func (l *Loop) Share(on bool) {
	if on {
		l.backend.(Sharer).AnswerLate()
	}
	// Publishes to who posts that a Break is needed; pairs with the load in PostLetter.
	l.share.on.Store(on)
	if !on && atomic.LoadUint32(&l.share.owner) == awaited {
		_, _ = sys.FutexWake(&l.share.owner, 1<<30)
	}
}

// Shared tells whether other threads may run the loop.
func (l *Loop) Shared() bool { return l.share.on.Load() }

// Follow is Run for another thread: it begins by waiting.
func (l *Loop) Follow() error { return l.run(true) }

// waitShared gives the loop up, waits for events, and owns the loop again when it returns without an error.
func (l *Loop) waitShared(buffer []Event, timeout time.Duration, follow bool) (int, error) {
	backend, sink := l.backend.(Sharer), l.sink.(SharedSink)
	if !follow {
		// Publishes the turn to who owns the loop next; pairs with the swaps in own.
		if atomic.SwapUint32(&l.share.owner, free) == awaited {
			_, _ = sys.FutexWake(&l.share.owner, 1)
		}
	}
	n, woken, err := backend.WaitShared(buffer, timeout)
	if err != nil && follow {
		return 0, fmt.Errorf("%w: %w", ErrElsewhere, err)
	}
	took, ok := l.own(sink)
	switch {
	case !ok:
		if n > 0 {
			sink.Stray(buffer[:n])
		}
		if woken {
			backend.Rouse()
		}
		return 0, ErrElsewhere
	case woken:
		backend.Answer()
	}
	if took {
		sink.Relieved(buffer[:n])
		return 0, err
	}
	copy(l.events, buffer[:n])
	if n == len(buffer) && err == nil {
		more := 0
		more, err = backend.Wait(l.events[n:], 0)
		backend.AnswerLate()
		n += more
	}
	return n, err
}

// own waits until the loop is free. took says that it was taken from a thread that was busy, and ok is false if it is not
// shared any more.
func (l *Loop) own(sink SharedSink) (took, ok bool) {
	word, mine := &l.share.owner, uint32(owned)
	for looks := 0; ; looks++ {
		if atomic.CompareAndSwapUint32(word, free, mine) {
			return false, true
		}
		if !l.share.on.Load() {
			return false, false
		}
		took, again := sink.Relieve(looks)
		if took {
			return true, true
		}
		mine = awaited // There may be others that sleep.
		if atomic.CompareAndSwapUint32(word, owned, awaited) || atomic.LoadUint32(word) == awaited {
			sys.FutexWait(word, awaited, again)
		}
	}
}
