package poller

import "sync/atomic"

// mailboxMost is how many posts may wait in a [Mailbox]; what is posted beyond is refused.
const mailboxMost = 1 << 16

// A Mailbox takes work for one goroutine from many.
//
// Roles: any goroutine posts; the owner takes, parks and unparks.
// Ownership: a letter belongs to its poster until the swap that links it in, and to the owner from take on.
// Progress: post is lock-free; it is refused when mailboxMost letters wait, and after close. take empties the box in one
// step and returns the letters in the order of their arrival.
// Source: a Treiber stack that is only ever emptied whole, so that no letter can come back under a compare-and-swap
// (no ABA), turned round by its reader; the parked flag is the eventcount of 1024cores.net.
type Mailbox struct {
	head   atomic.Pointer[letter]
	length atomic.Int64
	parked atomic.Bool
}

type letter struct {
	next *letter
	run  func()
}

// shut stands at the head of a box that has been closed.
var shut = new(letter)

// post adds run. wake says that the owner sleeps and that it falls to this caller to wake it.
func (m *Mailbox) post(run func()) (wake bool, err error) {
	if m.length.Add(1) > mailboxMost {
		m.length.Add(-1)
		return false, ErrMailboxFull
	}
	return m.push(run)
}

// postAlways adds run however full the box is. It is for posts that are bounded by other means.
func (m *Mailbox) postAlways(run func()) (wake bool, err error) {
	m.length.Add(1)
	return m.push(run)
}

func (m *Mailbox) push(run func()) (wake bool, err error) {
	l := &letter{run: run}
	for {
		l.next = m.head.Load()
		if l.next == shut {
			m.length.Add(-1)
			return false, ErrClosed
		}
		// Publish the letter; pairs with the swap in take, and, being before the load of parked in claimWake, with the
		// store of parked before the load of head in park: one of the two sees the other.
		if m.head.CompareAndSwap(l.next, l) {
			return m.claimWake(), nil
		}
	}
}

// claimWake is true for one poster a sleep.
func (m *Mailbox) claimWake() bool {
	return m.parked.Load() && m.parked.CompareAndSwap(true, false)
}

// park says that the owner is about to sleep. It is false, and the owner must not, when a letter is there.
func (m *Mailbox) park() bool {
	m.parked.Store(true)
	if m.head.Load() != nil {
		m.parked.Store(false)
		return false
	}
	return true
}

// unpark says that the owner is awake. A poster that has claimed the wake already makes the next sleep short: harmless.
func (m *Mailbox) unpark() {
	if m.parked.Load() {
		m.parked.Store(false)
	}
}

// take returns all letters, oldest first.
func (m *Mailbox) take() *letter {
	if m.head.Load() == nil {
		return nil
	}
	return m.empty(nil)
}

// close refuses letters from now on and returns those that were accepted before: none is lost between the two.
func (m *Mailbox) close() *letter { return m.empty(shut) }

func (m *Mailbox) empty(with *letter) *letter {
	// Take ownership of the whole chain.
	newest := m.head.Swap(with)
	var oldest *letter
	n := int64(0)
	for newest != nil && newest != shut {
		l := newest
		newest, l.next, oldest = l.next, oldest, l
		n++
	}
	m.length.Add(-n)
	return oldest
}
