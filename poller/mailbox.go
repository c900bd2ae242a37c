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
	head   atomic.Pointer[Letter]
	length atomic.Int64
	parked atomic.Uint32 // awake, asleep or rescued

	// posting is how many posters are between the beginning and the end of a post. A thread may be taken away from one that has
	// linked its letter in and not claimed the wake yet: then the owner sleeps while a letter is there, and rightly so.
	posting atomic.Int32
}

const (
	awake   = iota
	asleep  // or about to be
	rescued // the same, and rescue wakes it
)

// A Letter is a post that its sender owns, and so costs no memory: see [Loop.PostLetter].
type Letter struct {
	next *Letter
	Run  func()
}

// shut stands at the head of a box that has been closed.
var shut = new(Letter)

// post adds run. wake says that the owner sleeps and that it falls to this caller to wake it.
func (m *Mailbox) post(run func()) (wake bool, err error) {
	if m.length.Add(1) > mailboxMost {
		m.length.Add(-1)
		return false, ErrMailboxFull
	}
	return m.push(&Letter{Run: run})
}

// postAlways adds a letter however full the box is. It is for posts that are bounded by other means.
func (m *Mailbox) postAlways(l *Letter) (wake bool, err error) {
	m.length.Add(1)
	return m.push(l)
}

func (m *Mailbox) push(l *Letter) (wake bool, err error) {
	// Publishes that a wake may follow; pairs with the load in overlooked.
	m.posting.Add(1)
	defer m.posting.Add(-1)
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
	return m.parked.Load() == asleep && m.parked.CompareAndSwap(asleep, awake)
}

// park says that the owner is about to sleep. It is false, and the owner must not, when a letter is there.
func (m *Mailbox) park() bool {
	m.parked.Store(asleep)
	if m.head.Load() != nil {
		m.parked.Store(awake)
		return false
	}
	return true
}

// unpark says that the owner is awake. wasRescued says that it had slept though a letter was there. A poster that has claimed the
// wake already makes the next sleep short: harmless.
func (m *Mailbox) unpark() (wasRescued bool) {
	was := m.parked.Load()
	if was == awake {
		return false
	}
	m.parked.Store(awake)
	return was == rescued
}

// overlooked tells whether the owner sleeps, or is about to, though a letter is there whose poster has gone. One that is about to
// finds the letter itself.
func (m *Mailbox) overlooked() bool {
	// In this order: if nobody is posting any more once the letter is seen, its wake was claimed before parked is looked at.
	h := m.head.Load()
	return h != nil && h != shut && m.posting.Load() == 0 && m.parked.Load() == asleep
}

// rescue is claimWake for one who has seen that the owner was overlooked.
func (m *Mailbox) rescue() (wake bool) { return m.parked.CompareAndSwap(asleep, rescued) }

// isEmpty tells the owner whether no letter is there.
func (m *Mailbox) isEmpty() bool { return m.head.Load() == nil }

// depth returns how many letters wait, or are being posted. Anybody may ask.
func (m *Mailbox) depth() int { return int(max(0, m.length.Load())) }

// take returns all letters, oldest first. There are none after close.
func (m *Mailbox) take() *Letter {
	if h := m.head.Load(); h == nil || h == shut {
		return nil
	}
	return m.empty(nil)
}

// close refuses letters from now on and returns those that were accepted before: none is lost between the two.
func (m *Mailbox) close() *Letter { return m.empty(shut) }

func (m *Mailbox) empty(with *Letter) *Letter {
	// Take ownership of the whole chain.
	newest := m.head.Swap(with)
	var oldest *Letter
	n := int64(0)
	for newest != nil && newest != shut {
		l := newest
		newest, l.next, oldest = l.next, oldest, l
		n++
	}
	m.length.Add(-n)
	return oldest
}
