package pollux

import (
	"fmt"
	"slices"
	"sync"

	"github.com/pollux-go/pollux/internal/host"
	"github.com/pollux-go/pollux/internal/sys"
)

// isolation keeps the threads of the process that are no loops off the CPUs of the loops that are to have theirs for themselves.
// There is one for all engines: each of several would take what another one has set for what was there before.
//
// It follows the loops where the CPUs change that the process may use, and keeps only CPUs without which some are left for the other
// threads. A realtime loop that shares its CPU with those must not spin any more, and needs an attendant: see restand.
//
// A new thread inherits the mask of the one that makes it, so that most are right from the start; but a C library may make
// some of a pinned one's, and somebody may have kept an older mask. So it looks again from time to time.
type isolation struct {
	threads func() []int // the ids of the process's
	get     func(tid int) ([]int, sys.Errno)
	set     func(tid int, cpus []int) sys.Errno
	stand   func(l *loop, sole bool) // tells a loop whether it has its CPU for itself

	life    sync.Mutex // protects the fields below; it is taken before mu
	engines int        // that ask for it
	sweeps

	mu    sync.Mutex // protects the fields below
	loops []*loop    // of those engines
	kept  []int      // the CPUs that are theirs
	prior []int      // what those were before they changed last
	usual []int      // what the process was allowed before the first one
	masks map[int]mask
}

// mask is what a thread is allowed.
type mask struct {
	before []int // what it would be without isolation
	set    []int // what it was set to
}

var isolated = isolation{threads: host.Threads, get: sys.AffinityOf, set: sys.SetAffinity, stand: (*loop).stand}

// begin keeps the CPUs of those loops, which run already, until they end.
func (s *isolation) begin(loops []*loop) {
	s.life.Lock()
	defer s.life.Unlock()
	s.mu.Lock()
	if s.engines++; s.engines == 1 {
		s.usual, _ = s.get(0)
		s.masks, s.kept, s.prior = map[int]mask{}, nil, nil
		now, _, _ := s.read()
		for tid, cpus := range now {
			s.masks[tid] = mask{before: cpus, set: cpus}
		}
	}
	s.loops = append(s.loops, loops...)
	s.mu.Unlock()
	if s.engines == 1 {
		s.sweeps.begin(s.sweep)
	} else {
		untilNone(s.sweep)
	}
}

// end gives the other threads the CPUs of those loops back, which have ended.
func (s *isolation) end(loops []*loop) {
	s.life.Lock()
	defer s.life.Unlock()
	s.mu.Lock()
	s.loops = slices.DeleteFunc(s.loops, func(l *loop) bool { return slices.Contains(loops, l) })
	s.mu.Unlock()
	if s.engines--; s.engines == 0 {
		s.finish(s.sweep)
	} else {
		untilNone(s.sweep)
	}
}

// sweep gives every thread that is no loop's what it may have: what it had, without the CPUs that are kept. It is true if it has
// changed one.
func (s *isolation) sweep() (changed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.loops {
		l.repinTo(s.kept)
	}
	now, all, refused := s.read()
	s.keep(all)
	for tid, cpus := range now {
		if s.isLoops(tid) {
			continue
		}
		m, known := s.masks[tid]
		switch {
		case known && isLeft(cpus, m.set, all):
		case !known && (isLeft(cpus, without(s.usual, s.kept), all) || isLeft(cpus, without(s.usual, s.prior), all)):
			m = mask{before: s.usual, set: cpus} // Born meanwhile.
		default:
			m = mask{before: cpus, set: cpus} // Somebody has set it.
		}
		want := without(m.before, s.kept)
		if len(want) == 0 || slices.Equal(want, m.set) {
			s.masks[tid] = m // It stays away already, or has nowhere else to go: somebody has pinned it there.
			continue
		}
		switch errno := s.set(tid, want); errno {
		case 0:
			m.set, changed = want, true
		case sys.EINVAL: // All of those were taken from the process.
		case sys.ESRCH:
			continue // It has ended.
		default:
			refused = true
			s.refused(errno)
		}
		s.masks[tid] = m
	}
	for tid := range s.masks {
		if _, there := now[tid]; !there {
			delete(s.masks, tid) // Another thread may get its id.
		}
	}
	for _, l := range s.loops {
		s.stand(l, !refused && s.isSole(l))
	}
	return changed
}

// read returns what each thread is allowed, and what all are together, which is what the process may use. refused says that the
// kernel does not tell.
func (s *isolation) read() (now map[int][]int, all []int, refused bool) {
	now = map[int][]int{}
	for _, tid := range s.threads() {
		cpus, errno := s.get(tid)
		switch {
		case errno == sys.ESRCH:
			continue
		case errno != 0:
			refused = true
			s.refused(errno)
			continue
		}
		now[tid] = cpus
		for _, cpu := range cpus {
			if !slices.Contains(all, cpu) {
				all = append(all, cpu)
			}
		}
	}
	slices.Sort(all)
	return now, all, refused
}

// keep chooses the CPUs that are kept, of all that the process may use: those of the loops, as long as others are left. Loops that
// had to leave their CPU come last.
func (s *isolation) keep(all []int) {
	var kept []int
	for _, displaced := range []bool{false, true} {
		for _, l := range s.loops {
			cpu := int(l.cpu.Load())
			if l.thread.Load() == 0 || slices.Contains(kept, cpu) || (cpu != l.pin.CPU) != displaced {
				continue
			}
			if more := append(slices.Clone(kept), cpu); len(without(all, more)) > 0 {
				kept = more
			}
		}
	}
	if !slices.Equal(kept, s.kept) {
		s.prior, s.kept = s.kept, kept
	}
}

// keptNow returns the CPUs that are kept.
func (s *isolation) keptNow() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.kept
}

// isSole tells whether a loop has its CPU for itself, or shares it with other loops as the configuration says, which does not have
// those spin that are realtime.
func (s *isolation) isSole(l *loop) bool {
	cpu := l.cpu.Load()
	return slices.Contains(s.kept, int(cpu)) && !slices.ContainsFunc(s.loops, func(o *loop) bool {
		return o != l && o.cpu.Load() == cpu && o.thread.Load() != 0 && (o.pin.CPU != int(cpu) || l.pin.CPU != int(cpu))
	})
}

// How a loop stands on its CPU, with Isolate.
const (
	standingNew    = iota // it is not known yet
	standingSole          // it has it for itself
	standingShared        // other threads of the process may run there
)

// stand has the loop know of a change.
func (l *loop) stand(sole bool) {
	standing := int32(standingShared)
	if sole {
		standing = standingSole
	}
	if l.standing.Swap(standing) != standing {
		_ = l.inner.PostAlways(l.restand) // Where the loop has ended, nothing is to be done.
	}
}

// restand has the loop's thread be what it may be on its CPU. One that is realtime and shares it with threads of the runtime does
// not spin and has an attendant, as without Isolate; or is an ordinary thread where it gets none. It is for the loop's thread.
func (l *loop) restand() {
	l.tune()
	shared := l.standing.Load() == standingShared
	if shared == l.sharing || l.ending {
		return
	}
	l.sharing = shared
	result := "it goes on as before"
	if l.pin.Sched.FIFO {
		l.beAttended()
		sched := l.pin.Sched.Sched
		if result = "it may spin, and needs no attendant"; l.plain {
			sched = sys.Sched{}
			result = "it does not spin, and is an ordinary thread"
		} else if shared {
			result = "it does not spin, and has an attendant"
		}
		if errno := sys.SetSched(0, sched); errno != 0 {
			l.engine.refused(fmt.Errorf("schedule a loop's thread anew: %w", errno))
		}
	}
	text := "pollux: an event loop has its CPU for itself again"
	if shared {
		text = "pollux: an event loop shares its CPU with other threads of the process, in spite of Isolate"
	}
	cpu := l.cpu.Load()
	l.engine.teller.tell(func() { l.engine.log.Warn(text, "loop", l.pin.Name, "CPU", cpu, "result", result) })
}

func (s *isolation) isLoops(tid int) bool {
	return slices.ContainsFunc(s.loops, func(l *loop) bool { return l.lookout.spares.isMember(tid) })
}

// refused has each engine log what the kernel, or a sandbox, does not allow. The mutex is held, which the watchdog takes, too: so no
// logger is waited for.
func (s *isolation) refused(errno sys.Errno) {
	err := fmt.Errorf("keep other threads off the CPUs of the loops (Isolate): %w: it needs a sandbox that allows sched_getaffinity and sched_setaffinity", errno)
	for _, l := range s.loops {
		l.engine.teller.tell(func() { l.engine.refused(err) })
	}
}

// isLeft tells whether a thread has the mask still that it was given, as far as the process may use those CPUs: the kernel takes
// away what is taken from the process, and where nothing is left of a mask, has it be all that there is.
func isLeft(cpus, given, all []int) bool {
	if slices.Equal(cpus, given) {
		return true
	}
	there := slices.DeleteFunc(slices.Clone(given), func(cpu int) bool { return !slices.Contains(all, cpu) })
	if len(there) == 0 {
		there = all
	}
	return slices.Equal(cpus, there)
}

// without returns those of the CPUs that are not taken.
func without(cpus, taken []int) []int {
	return slices.DeleteFunc(slices.Clone(cpus), func(cpu int) bool { return slices.Contains(taken, cpu) })
}
