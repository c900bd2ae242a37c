package pollux

import (
	"slices"
	"sync"

	"github.com/pollux-go/pollux/cgo"
	"github.com/pollux-go/pollux/internal/host"
	"github.com/pollux-go/pollux/internal/sys"
)

// isolation keeps the threads of the process that are no loops off the loops' CPUs.
//
// A new thread inherits the mask of the one that makes it, so that most are right from the start; but a C library may make
// some of a pinned one's, and somebody may have kept an older mask. So it looks again from time to time.
type isolation struct {
	loops []*loop
	cpus  []int // the loops'
	sweeps

	mu     sync.Mutex    // protects before
	before map[int][]int // what each thread that was moved was allowed
	usual  []int         // what the process was allowed
}

// isolate begins. The loops run already.
func isolate(loops []*loop, threads []cgo.Thread) *isolation {
	s := &isolation{loops: loops, before: map[int][]int{}}
	for _, t := range threads {
		s.cpus = append(s.cpus, t.CPU)
	}
	s.usual, _ = sys.Affinity()
	s.begin(s.move)
	return s
}

// move moves every thread away that is no loop's. It is true if it has moved one.
func (s *isolation) move() (moved bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, tid := range host.Threads() {
		if slices.ContainsFunc(s.loops, func(l *loop) bool { return l.lookout.spares.isMember(tid) }) {
			continue
		}
		now, errno := sys.AffinityOf(tid)
		rest := s.without(now)
		if errno != 0 || len(rest) == len(now) || len(rest) == 0 {
			continue // It has ended, stays away already, or has nowhere else to go: somebody has pinned it there.
		}
		if _, known := s.before[tid]; !known {
			s.before[tid] = now
		}
		moved = sys.SetAffinity(tid, rest) == 0 || moved
	}
	return moved
}

// end gives the threads back what they were allowed.
func (s *isolation) end() {
	s.finish(s.restore)
}

// restore is true if it has changed one.
func (s *isolation) restore() (changed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, tid := range host.Threads() {
		before, known := s.before[tid]
		if !known {
			before = s.usual // Born meanwhile.
		}
		now, errno := sys.AffinityOf(tid)
		if errno != 0 || !slices.Equal(now, s.without(before)) || slices.Equal(now, before) {
			continue // It has ended, or somebody has moved it since, or it was never moved.
		}
		changed = sys.SetAffinity(tid, before) == 0 || changed
	}
	return changed
}

// without returns those of the CPUs that are not the loops'.
func (s *isolation) without(cpus []int) []int {
	return slices.DeleteFunc(slices.Clone(cpus), func(cpu int) bool { return slices.Contains(s.cpus, cpu) })
}
