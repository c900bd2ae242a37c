package poller

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/pollux-go/pollux/internal/sys"
)

// relay hands events to their descriptors one after the other: who is woken for one hands over the next.
//
// Who is made ready last is the next to run on its P, in the time slice of who has made it so; whom it takes the place of goes to the
// end of the P's queue (runqput in runtime/proc.go). So of many that a loop readies at a time, all but one wait behind whoever has
// been queued there before, and if that is somebody who computes, for 10 ms. Readied one by one, by each other, all of them run
// before it, in what is left of one slice. Where another P has nothing to do it is the wrong way: its thread could take half of them
// at once.
//
// Roles: the loop fills it and begins; who is woken passes on. Ownership: mu's, for what is pending. Progress: whoever has woken
// somebody may forget about the rest, as that one passes on before it does anything else; and what is left when the loop has the
// next events, it delivers itself.
type relay struct {
	left atomic.Int32 // how many are pending; changed under mu

	mu      sync.Mutex // protects what follows
	pending []relayed
	next    int // of pending
}

// relayed is an event on its way.
type relayed struct {
	desc  *Desc
	ready Ready
}

// begin has those handed over, and takes their descriptors out of descs.
func (r *relay) begin(events []Event, descs []*Desc) {
	r.mu.Lock()
	if r.next == len(r.pending) {
		r.pending, r.next = r.pending[:0], 0 // Else the new ones come behind what is left: nothing is lost.
	}
	for i, d := range descs[:len(events)] {
		if d != nil {
			r.pending = append(r.pending, relayed{d, events[i].Ready})
			descs[i] = nil
		}
	}
	// Before the first of them is woken: from then on others look.
	r.left.Store(int32(len(r.pending) - r.next))
	r.mu.Unlock()
	r.pass()
}

// pass delivers until somebody was woken, who is to pass on.
func (r *relay) pass() {
	for r.left.Load() > 0 {
		if e, ok := r.pop(); ok && e.desc.deliver(e.ready) {
			return
		}
	}
}

// finish delivers what is left.
func (r *relay) finish() {
	for r.left.Load() > 0 {
		if e, ok := r.pop(); ok {
			e.desc.deliver(e.ready)
		}
	}
}

func (r *relay) pop() (e relayed, ok bool) {
	r.mu.Lock()
	if ok = r.next < len(r.pending); ok {
		e, r.pending[r.next] = r.pending[r.next], relayed{}
		r.next++
		r.left.Store(int32(len(r.pending) - r.next))
	}
	r.mu.Unlock()
	return e, ok
}

// crowd tells whether goroutines may wait for the loop's P, and no other P has nothing to do.
type crowd struct {
	procs procs
	at    int64 // when that was last asked; 0: never
	idle  bool
}

// crowdPeriod is how long an answer is good for.
const crowdPeriod = int64(time.Millisecond)

func (c *crowd) is() bool {
	if sys.QueueEmpty() {
		return false
	}
	if now := Nanotime(); c.at == 0 || now-c.at >= crowdPeriod {
		if c.at == 0 {
			c.procs.open()
		}
		c.at, c.idle = now, c.procs.idle()
	}
	return !c.idle
}
