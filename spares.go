package pollux

import (
	"sync"
	"time"

	"github.com/pollux-go/pollux/internal/invariants"
)

// spares are a loop's threads that are not needed at present: see relief.go. Each one waits for a turn, for ten seconds at most.
type spares struct {
	mu      sync.Mutex
	waiting int           // that no turn is on its way to
	turns   chan struct{} // closed when the loop ends
	ended   bool
	buffers [][]byte     // of loops that were relieved
	members map[int]bool // by their ids: who runs the loop, or waits to; spare ones too
}

// setMember says whether a thread is the loop's.
func (s *spares) setMember(tid int, is bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !is:
		delete(s.members, tid)
	case s.members == nil:
		s.members = map[int]bool{tid: true}
	default:
		s.members[tid] = true
	}
}

func (s *spares) isMember(tid int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.members[tid]
}

// sparesMost is how many spare threads, and buffers, a loop keeps.
const sparesMost = 4

// wait waits for a turn. It is false if there are enough others, or none is needed any more.
func (s *spares) wait() bool {
	s.mu.Lock()
	if s.ended || s.waiting == sparesMost {
		s.mu.Unlock()
		return false
	}
	s.waiting++
	s.mu.Unlock()
	timer := time.NewTimer(workerRetire)
	defer timer.Stop()
	select {
	case _, ok := <-s.turns:
		return ok
	case <-timer.C:
	}
	s.mu.Lock()
	if s.waiting > 0 {
		s.waiting--
		s.mu.Unlock()
		return false
	}
	s.mu.Unlock()
	_, ok := <-s.turns // There is one for each that is not counted as waiting.
	return ok
}

// call gives a turn to a spare thread. It is false if there is none.
func (s *spares) call() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waiting == 0 {
		return false
	}
	s.waiting--
	s.turns <- struct{}{} // There is room for sparesMost.
	return true
}

// end lets them go.
func (s *spares) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended, s.waiting = true, 0
	close(s.turns)
}

// buffer returns a buffer of that size.
func (s *spares) buffer(size int) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.buffers); n > 0 {
		b := s.buffers[n-1]
		s.buffers = s.buffers[:n-1]
		return b
	}
	return make([]byte, size)
}

// keep takes back a buffer that nobody looks at any more.
func (s *spares) keep(b []byte) {
	if invariants.Enabled {
		for i := range b {
			b[i] = poison
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.buffers) < sparesMost {
		s.buffers = append(s.buffers, b)
	}
}
