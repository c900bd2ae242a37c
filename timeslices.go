package pollux

import (
	"sync"
	"time"

	"github.com/pollux-go/pollux/internal/host"
	"github.com/pollux-go/pollux/internal/sys"
)

// timeslices keeps the slices short that the kernel gives to the threads of the process, but for those with a realtime priority. A loop that has
// to give up its P has it back from several of them, one after the other, and the kernel lets a thread that has the CPU finish its slice first, of
// 3 ms or so: see [cgo.Attendant], which has it look. What each thread gets of the CPU is the same.
type timeslices struct {
	sweeps
	usual  time.Duration // what a thread gets that nothing was said about
	before map[int]time.Duration
}

// shortSlice is the shortest that the kernel knows (since 6.12).
const shortSlice = 100 * time.Microsecond

// shortened is what the engines of the process have asked for.
var shortened struct {
	mu      sync.Mutex // protects the fields below
	engines int
	slices  *timeslices // nil: the kernel has none
}

// shortenSlices keeps them short until endShortSlices.
func shortenSlices() {
	shortened.mu.Lock()
	defer shortened.mu.Unlock()
	if shortened.engines++; shortened.engines > 1 {
		return
	}
	usual, errno := sys.SliceOf(0)
	if errno != 0 || usual <= shortSlice {
		return
	}
	t := &timeslices{usual: usual, before: map[int]time.Duration{}}
	for _, tid := range host.Threads() {
		if slice, errno := sys.SliceOf(tid); errno == 0 && slice <= shortSlice {
			t.before[tid] = slice
		}
	}
	t.begin(t.shorten)
	shortened.slices = t
}

// endShortSlices gives the threads back what they had, when no other engine wants them short.
func endShortSlices() {
	shortened.mu.Lock()
	defer shortened.mu.Unlock()
	if shortened.engines--; shortened.engines == 0 && shortened.slices != nil {
		shortened.slices.finish(shortened.slices.restore)
		shortened.slices = nil
	}
}

func (t *timeslices) shorten() (changed bool) {
	for _, tid := range host.Threads() {
		slice, errno := sys.SliceOf(tid)
		if errno != 0 || slice <= shortSlice {
			continue // It has ended, has none, or a short one already.
		}
		if _, known := t.before[tid]; !known {
			t.before[tid] = slice
		}
		changed = sys.SetSlice(tid, shortSlice) == 0 || changed
	}
	return changed
}

func (t *timeslices) restore() (changed bool) {
	for _, tid := range host.Threads() {
		slice, errno := sys.SliceOf(tid)
		if errno != 0 || slice != shortSlice {
			continue // It has ended, or was never shortened, or somebody has set it since.
		}
		// One that was born meanwhile has it from another one.
		to := time.Duration(0)
		if before, known := t.before[tid]; known && before != t.usual {
			if to = before; to <= shortSlice {
				continue
			}
		}
		changed = sys.SetSlice(tid, to) == 0 || changed
	}
	return changed
}
