package scheduler

import (
	"fmt"
	"sync/atomic"

	"github.com/pollux-go/pollux/internal/invariants"
)

// An Item is a piece of work: a number that means something to who made it. 0 is no item and cannot be queued.
type Item uint64

// Capacities are powers of two between these. The largest leaves room for 32-bit indexes to run freely.
const (
	capacityLeast = 2
	capacityMost  = 1 << 20
)

const _ uint = -(capacityMost & (capacityMost - 1)) // capacityMost is a power of two.

func capacityValid(n int) bool { return n >= capacityLeast && n <= capacityMost && n&(n-1) == 0 }

// padding keeps what different threads write on different cache lines: amd64 fetches lines of 64 bytes in pairs, and
// arm64 has lines of 128.
const padding = 128

// A Queue is a bounded queue of one owner, first in first out, that anybody may steal from. The owner alone may call
// Push and Pop; Steal, StealTo and Len are for everybody.
//
// Roles: the owner pushes at the tail and pops at the head; thieves take half of what there is from the head.
// Ownership: the slots from head to tail hold items and belong to nobody until one compare-and-swap of head gives a run
// of them to who made it. All other slots belong to the owner. A slot is read before it is claimed, and what was read
// counts only if the claim succeeds: the owner writes to a slot again only after it has seen head beyond it, and then the
// claim fails. Slots are atomic, so that a read that does not count is no data race, and -race checks this very code.
// Progress: lock-free. Push is false only when capacity items wait, Pop and Steal find nothing only when nothing
// waits. A claim that fails means that somebody else's has succeeded.
// Source: runqput, runqget and runqgrab of Go's runtime/proc.go, without its runnext, and with atomic slots.
//
// A known weakness, which the runtime shares: a thief that is stopped between its load of head and its claim while
// exactly 2^32 items (or a multiple) pass through would take what it has read before. That is half an hour at two million
// items a second, and to the item. Indexes of 64 bits would end it.
type Queue struct {
	slots []atomic.Uint64
	_     [padding]byte
	head  atomic.Uint32 // the oldest item; moved by compare-and-swap; runs freely
	_     [padding]byte
	tail  atomic.Uint32 // the next free slot; stored by the owner only; runs freely
	_     [padding]byte
}

// NewQueue returns an empty queue. capacity is a power of two from 2 to 2^20.
func NewQueue(capacity int) *Queue { return newQueueAt(capacity, 0) }

func newQueueAt(capacity int, start uint32) *Queue {
	if !capacityValid(capacity) {
		panic(fmt.Sprintf("scheduler: the capacity of a queue is %d, not a power of two from %d to %d", capacity, capacityLeast, capacityMost))
	}
	q := &Queue{slots: make([]atomic.Uint64, capacity)}
	q.head.Store(start)
	q.tail.Store(start)
	return q
}

func (q *Queue) capacity() uint32 { return uint32(len(q.slots)) }

func (q *Queue) slot(index uint32) *atomic.Uint64 { return &q.slots[index&uint32(len(q.slots)-1)] }

// Push adds item behind all others. It is false, and nothing has changed, when the queue is full. Owner only.
func (q *Queue) Push(item Item) bool {
	_, ok := q.push(item)
	return ok
}

// push is Push, and tells where the item is.
func (q *Queue) push(item Item) (index uint32, ok bool) {
	checkItem(item)
	tail := q.tail.Load()
	// Pairs with the claims in Pop and Steal: who has moved head has read the slots behind it. A head that is out of date
	// only makes the queue look fuller than it is, and it was as full as that when head was loaded.
	if tail-q.head.Load() >= q.capacity() {
		return 0, false
	}
	q.slot(tail).Store(uint64(item))
	// Publish the slot: it belongs to nobody from here on; pairs with the loads of tail in Pop and Steal.
	q.tail.Store(tail + 1)
	return tail, true
}

// Pop takes the oldest item. It is false when there is none. Owner only.
func (q *Queue) Pop() (Item, bool) {
	for {
		head := q.head.Load()
		if head == q.tail.Load() {
			return 0, false
		}
		item := q.slot(head).Load()
		// Take ownership of the slot, against thieves; pairs with the load of head in push, which may use it again.
		if q.head.CompareAndSwap(head, head+1) {
			q.check(head, 1)
			return Item(item), true
		}
	}
}

// Steal takes half of the items, rounded up, the oldest, in one step: it returns the very oldest and puts the others into
// a queue that the caller owns, as far as there is room. n is how many it has taken with the first; 0 when there is
// nothing.
func (q *Queue) Steal(into *Queue) (first Item, n int) {
	at := into.tail.Load()
	room := into.capacity() - (at - into.head.Load())
	for {
		head, half := q.half()
		half = min(half, room+1)
		if half == 0 {
			return 0, 0
		}
		item := q.slot(head).Load()
		for i := uint32(1); i < half; i++ {
			// The slots of into are the caller's until tail moves. They keep nothing of a claim that fails.
			into.slot(at + i - 1).Store(q.slot(head + i).Load())
		}
		// Take ownership of all of them at once, against the owner and other thieves; pairs with the load of head in
		// push.
		if q.head.CompareAndSwap(head, head+half) {
			q.check(head, half)
			// Publish them in the other queue; pairs with the loads of tail in its Pop and Steal.
			into.tail.Store(at + half - 1)
			return Item(item), int(half)
		}
	}
}

// StealTo is [Queue.Steal] into a slice: it takes half of the items, rounded up, but not more than dst holds, and returns
// how many these are.
func (q *Queue) StealTo(dst []Item) (n int) {
	for {
		head, half := q.half()
		half = min(half, uint32(min(len(dst), capacityMost)))
		if half == 0 {
			return 0
		}
		for i := range half {
			dst[i] = Item(q.slot(head + i).Load())
		}
		// As in Steal.
		if q.head.CompareAndSwap(head, head+half) {
			q.check(head, half)
			return int(half)
		}
	}
}

// half returns head and how much a thief takes from there.
func (q *Queue) half() (head, n uint32) {
	for {
		head = q.head.Load()
		// Pairs with the store of tail in push: the slots before it are filled.
		waiting := q.tail.Load() - head
		// Between the two loads others may have taken the items at head, and the owner pushed more than fit behind it. A
		// claim from there would fail.
		if waiting <= q.capacity() {
			return head, waiting - waiting/2
		}
	}
}

// Len is how many items wait, as of some moment of the call.
func (q *Queue) Len() int {
	for {
		head := q.head.Load()
		if n := q.tail.Load() - head; n <= q.capacity() {
			return int(n)
		}
	}
}

// check is called by who has just claimed n items from head on.
func (q *Queue) check(head, n uint32) {
	if invariants.Enabled && q.tail.Load()-head < n {
		invariants.Broken("queue: head has passed tail")
	}
}

func checkItem(item Item) {
	if item == 0 {
		panic("scheduler: item 0 is no item")
	}
}
