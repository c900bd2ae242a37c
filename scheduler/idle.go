package scheduler

import (
	"math/bits"
	"sync/atomic"
)

// An idleSet knows which workers sleep, and whether one is out to look for work: the search, which at most one has at
// a time. All methods are safe for concurrent use.
//
// Roles: a worker adds itself; who has the search claims a sleeper; a worker that has slept for long enough, or that has
// taken the search itself, removes itself; Close claims all without the search, when nothing else counts any more.
// Ownership: who clears a bit has the worker: either the worker itself, which then goes on, or a claimer, who must ring
// its bell. The search goes to the claimed worker with the bell.
// Progress: no step waits. claim and begin say so when there is nobody, or somebody else.
// Source: the mask of idle Ps and nmspinning of Go's runtime/proc.go (findRunnable, wakep).
//
// The duty: who gives up the search, by end, must look at all queues afterwards and wake somebody if anything waits. All
// others count on it: a waker that sees the search taken wakes nobody.
type idleSet struct {
	words  []atomic.Uint64 // a bit for each worker that sleeps
	_      [padding]byte
	search atomic.Bool
	_      [padding]byte
}

func newIdleSet(workers int) idleSet { return idleSet{words: make([]atomic.Uint64, (workers+63)/64)} }

// add says that worker is about to sleep. Whoever pushes from here on can find it.
func (s *idleSet) add(worker int) { s.words[worker/64].Or(1 << (worker % 64)) }

// remove takes worker out. It is false when somebody else has claimed it.
func (s *idleSet) remove(worker int) bool {
	bit := uint64(1) << (worker % 64)
	return s.words[worker/64].And(^bit)&bit != 0
}

// claim takes out the sleeper with the lowest number: the first workers stay warm, the others get old enough to retire.
func (s *idleSet) claim() (worker int, ok bool) {
	for i := range s.words {
		for w := s.words[i].Load(); w != 0; w = s.words[i].Load() {
			if worker := i*64 + bits.TrailingZeros64(w); s.remove(worker) {
				return worker, true
			}
		}
	}
	return 0, false
}

// empty tells that nobody sleeps.
func (s *idleSet) empty() bool {
	for i := range s.words {
		if s.words[i].Load() != 0 {
			return false
		}
	}
	return true
}

// searching tells that somebody has the search.
func (s *idleSet) searching() bool { return s.search.Load() }

// begin takes the search. It is false when another has it.
func (s *idleSet) begin() bool { return !s.search.Load() && s.search.CompareAndSwap(false, true) }

// end gives up the search. The duty follows.
func (s *idleSet) end() { s.search.Store(false) }
