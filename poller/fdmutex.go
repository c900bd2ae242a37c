package poller

import (
	"sync"
	"sync/atomic"
)

// fdMutex serialises the readers of a descriptor among themselves and its writers among themselves, counts everybody
// who uses it, and lets a close wait for the last of them.
//
// Roles: any goroutine may call any method.
// Ownership: who holds a lock bit may use that direction of the descriptor; whose reference is the last one after a
// close must destroy it.
// Progress: incref, decref and uncontended locks are one compare-and-swap; who finds a lock taken sleeps.
// Source: internal/poll/fd_mutex.go of Go, with the runtime's semaphores replaced by a condition variable that is made
// when somebody has to sleep for the first time.
//
// The state word:
//
//	bit  0      closed
//	bit  1      read lock
//	bit  2      write lock
//	bits 3-22   references
//	bits 23-42  goroutines that wait for the read lock
//	bits 43-62  goroutines that wait for the write lock
type fdMutex struct {
	state atomic.Uint64
	slow  atomic.Pointer[fdSemas]
}

const (
	mutexClosed  = 1 << 0
	mutexRLock   = 1 << 1
	mutexWLock   = 1 << 2
	mutexRef     = 1 << 3
	mutexRefMask = (1<<20 - 1) << 3
	mutexRWait   = 1 << 23
	mutexRMask   = (1<<20 - 1) << 23
	mutexWWait   = 1 << 43
	mutexWMask   = (1<<20 - 1) << 43
)

const overflowMessage = "poller: more than 1048575 goroutines use one descriptor"

// fdSemas are two counting semaphores.
type fdSemas struct {
	mu   sync.Mutex
	cond sync.Cond
	r, w int // permits
}

func (m *fdMutex) semas() *fdSemas {
	if s := m.slow.Load(); s != nil {
		return s
	}
	s := &fdSemas{}
	s.cond.L = &s.mu
	if m.slow.CompareAndSwap(nil, s) {
		return s
	}
	return m.slow.Load()
}

func (s *fdSemas) acquire(permits *int) {
	s.mu.Lock()
	for *permits == 0 {
		s.cond.Wait()
	}
	*permits--
	s.mu.Unlock()
}

func (s *fdSemas) release(permits *int, n int) {
	s.mu.Lock()
	*permits += n
	s.mu.Unlock()
	s.cond.Broadcast()
}

// incref takes a reference. It is false once the descriptor is closed.
func (m *fdMutex) incref() bool {
	for {
		old := m.state.Load()
		if old&mutexClosed != 0 {
			return false
		}
		if old&mutexRefMask == mutexRefMask {
			panic(overflowMessage)
		}
		if m.state.CompareAndSwap(old, old+mutexRef) {
			return true
		}
	}
}

// close takes a reference and marks the descriptor as closed, so that nobody gets one any more. Who waits for a lock is
// woken and finds it closed. It is false when the descriptor was closed before.
func (m *fdMutex) close() bool {
	for {
		old := m.state.Load()
		if old&mutexClosed != 0 {
			return false
		}
		if old&mutexRefMask == mutexRefMask {
			panic(overflowMessage)
		}
		// Publish the close and take the waiters over: they re-read the state after their semaphore.
		next := (old | mutexClosed) + mutexRef
		next &^= mutexRMask | mutexWMask
		if m.state.CompareAndSwap(old, next) {
			if r := int(old & mutexRMask / mutexRWait); r > 0 {
				s := m.semas()
				s.release(&s.r, r)
			}
			if w := int(old & mutexWMask / mutexWWait); w > 0 {
				s := m.semas()
				s.release(&s.w, w)
			}
			return true
		}
	}
}

// decref gives a reference back. It is true for the last one after a close.
func (m *fdMutex) decref() bool {
	for {
		old := m.state.Load()
		if old&mutexRefMask == 0 {
			panic("poller: a descriptor's reference count fell below 0")
		}
		next := old - mutexRef
		if m.state.CompareAndSwap(old, next) {
			return next&(mutexClosed|mutexRefMask) == mutexClosed
		}
	}
}

// lock takes a reference and the lock of one direction. It is false once the descriptor is closed.
func (m *fdMutex) lock(read bool) bool {
	lock, wait, mask := uint64(mutexWLock), uint64(mutexWWait), uint64(mutexWMask)
	if read {
		lock, wait, mask = mutexRLock, mutexRWait, mutexRMask
	}
	for {
		old := m.state.Load()
		if old&mutexClosed != 0 {
			return false
		}
		var next uint64
		if old&lock == 0 {
			if old&mutexRefMask == mutexRefMask {
				panic(overflowMessage)
			}
			next = (old | lock) + mutexRef
		} else {
			if old&mask == mask {
				panic(overflowMessage)
			}
			next = old + wait
		}
		if m.state.CompareAndSwap(old, next) {
			if old&lock == 0 {
				return true
			}
			// Whoever unlocks or closes took this waiter out of the state before it released the semaphore.
			s := m.semas()
			if read {
				s.acquire(&s.r)
			} else {
				s.acquire(&s.w)
			}
		}
	}
}

// tryLock is lock without the wait: held is true when somebody else has the lock.
func (m *fdMutex) tryLock(read bool) (ok, held bool) {
	lock := uint64(mutexWLock)
	if read {
		lock = mutexRLock
	}
	for {
		old := m.state.Load()
		switch {
		case old&mutexClosed != 0:
			return false, false
		case old&lock != 0:
			return false, true
		case old&mutexRefMask == mutexRefMask:
			panic(overflowMessage)
		}
		if m.state.CompareAndSwap(old, (old|lock)+mutexRef) {
			return true, false
		}
	}
}

// unlock gives back what lock took, and wakes one waiter. It is true for the last reference after a close.
func (m *fdMutex) unlock(read bool) bool {
	lock, wait, mask := uint64(mutexWLock), uint64(mutexWWait), uint64(mutexWMask)
	if read {
		lock, wait, mask = mutexRLock, mutexRWait, mutexRMask
	}
	for {
		old := m.state.Load()
		if old&lock == 0 || old&mutexRefMask == 0 {
			panic("poller: unlock of a descriptor that is not locked")
		}
		next := old&^lock - mutexRef
		if old&mask != 0 {
			next -= wait
		}
		if m.state.CompareAndSwap(old, next) {
			if old&mask != 0 {
				s := m.semas()
				if read {
					s.release(&s.r, 1)
				} else {
					s.release(&s.w, 1)
				}
			}
			return next&(mutexClosed|mutexRefMask) == mutexClosed
		}
	}
}
