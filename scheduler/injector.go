package scheduler

import (
	"fmt"
	"runtime"
	"sync/atomic"
)

// An Injector is a bounded queue, first in first out, that anybody may push to and pop from. All methods are safe for
// concurrent use.
//
// Roles: any goroutine, and the thread of a loop as well, pushes; ordinary goroutines pop.
// Ownership: the compare-and-swap of tail gives a slot to a producer, who fills it and says so by the slot's sequence.
// The compare-and-swap of head gives what is in it to a consumer, and in the same step the slot back: a consumer reads
// before it claims, and a producer can get the slot only after head has moved, which makes the claim fail.
// Progress: Push is lock-free and never waits; it is false only when capacity items wait. Pop finds nothing only
// when nothing waits; it waits for a producer that has a slot and has not filled it yet, which is two stores, and gives
// its processor away meanwhile. This is why a loop must not pop: it could keep that very producer from running.
// Source: Vyukov's bounded MPMC queue (1024cores.net), which has a consumer free its slot in a second step. There, one
// consumer that is preempted between the two makes Push say full, and one such producer makes Pop say empty, while
// others have come and gone: neither is linearizable, and the second would let a worker go to sleep on work.
type Injector struct {
	slots []injectorSlot
	_     [padding]byte
	head  atomic.Uint64 // the oldest item; moved by consumers
	_     [padding]byte
	tail  atomic.Uint64 // the next free slot; moved by producers
	_     [padding]byte
}

type injectorSlot struct {
	sequence atomic.Uint64 // the position of the item + 1, once it is there
	item     atomic.Uint64
}

// NewInjector returns an empty injector. capacity is a power of two from 2 to 2^20.
func NewInjector(capacity int) *Injector { return newInjectorAt(capacity, 0) }

func newInjectorAt(capacity int, start uint64) *Injector {
	if !capacityValid(capacity) {
		panic(fmt.Sprintf("scheduler: the capacity of an injector is %d, not a power of two from %d to %d", capacity, capacityLeast, capacityMost))
	}
	j := &Injector{slots: make([]injectorSlot, capacity)}
	j.head.Store(start)
	j.tail.Store(start)
	if start != 0 {
		// A sequence of 0 is right for positions from 0 on, and spares touching the memory.
		for i := range uint64(capacity) {
			j.slot(start + i).sequence.Store(start + i)
		}
	}
	return j
}

func (j *Injector) slot(position uint64) *injectorSlot {
	return &j.slots[position&uint64(len(j.slots)-1)]
}

// Push adds item behind all others. It is false, and nothing has changed, when the injector is full.
func (j *Injector) Push(item Item) bool {
	_, ok := j.push(item)
	return ok
}

// push is Push, and tells where the item is.
func (j *Injector) push(item Item) (position uint64, ok bool) {
	checkItem(item)
	for {
		tail := j.tail.Load()
		// Pairs with the claim in Pop. tail is loaded first and only grows, so the queue was full when head was loaded.
		// The difference is below 0 when others have pushed and popped since.
		if int64(tail-j.head.Load()) >= int64(len(j.slots)) {
			return 0, false
		}
		// Take ownership of the slot. tail is what it was and head can only have grown: the slot is still free.
		if j.tail.CompareAndSwap(tail, tail+1) {
			s := j.slot(tail)
			s.item.Store(uint64(item))
			// Publish the item; pairs with the load of sequence in Pop.
			s.sequence.Store(tail + 1)
			return tail, true
		}
	}
}

// Pop takes the oldest item. It is false when there is none. It must not be called on the thread of a loop.
func (j *Injector) Pop() (Item, bool) {
	for spins := 0; ; spins++ {
		head := j.head.Load()
		s := j.slot(head)
		// Pairs with the store of sequence in push: the item is there.
		if s.sequence.Load() == head+1 {
			item := s.item.Load()
			// Take ownership of the item and give back the slot; pairs with the load of head in push.
			if j.head.CompareAndSwap(head, head+1) {
				return Item(item), true
			}
			continue
		}
		// head never passes tail and never goes back: if tail is where head was, it is where head is.
		if j.tail.Load() == head {
			return 0, false
		}
		// The slot is being filled, or somebody else has popped.
		if spins > 16 {
			runtime.Gosched()
		}
	}
}

// Len is how many items wait or are being pushed, as of some moment of the call.
func (j *Injector) Len() int {
	head := j.head.Load()
	return int(min(int64(j.tail.Load()-head), int64(len(j.slots))))
}
