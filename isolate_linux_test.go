package pollux

import (
	"maps"
	"slices"
	"testing"

	"github.com/pollux-go/pollux/internal/sys"
)

// fakeThreads are threads of which the kernel knows nothing, on CPUs that are not there.
type fakeThreads struct {
	masks map[int][]int // what the kernel has them run on
	asked map[int][]int // what somebody has set last
	there []int         // the CPUs that the process may use
}

func newFakeThreads(there []int, tids ...int) *fakeThreads {
	f := &fakeThreads{map[int][]int{}, map[int][]int{}, there}
	for _, tid := range append(tids, 0) { // 0 is the calling one.
		f.masks[tid], f.asked[tid] = there, there
	}
	return f
}

func (f *fakeThreads) isolation() *isolation {
	return &isolation{
		threads: func() []int { return slices.Sorted(maps.Keys(f.masks))[1:] },
		get: func(tid int) ([]int, sys.Errno) {
			if cpus, there := f.masks[tid]; there {
				return cpus, 0
			}
			return nil, sys.ESRCH
		},
		set: f.set,
		stand: func(l *loop, sole bool) {
			l.standing.Store(map[bool]int32{true: standingSole, false: standingShared}[sole])
		},
	}
}

// set is sched_setaffinity.
func (f *fakeThreads) set(tid int, cpus []int) sys.Errno {
	left := slices.DeleteFunc(slices.Clone(cpus), func(cpu int) bool { return !slices.Contains(f.there, cpu) })
	if len(left) == 0 {
		return sys.EINVAL
	}
	f.masks[tid], f.asked[tid] = left, cpus
	return 0
}

// loop makes one that runs on such a thread.
func (f *fakeThreads) loop(tid, cpu int) *loop {
	l := &loop{}
	l.thread.Store(int64(tid))
	l.cpu.Store(int32(cpu))
	l.pin.CPU = cpu
	l.lookout.spares.setMember(tid, true)
	f.masks[tid], f.asked[tid] = []int{cpu}, []int{cpu}
	return l
}

func (f *fakeThreads) expect(t *testing.T, what string, want map[int][]int) {
	t.Helper()
	for tid, cpus := range want {
		if got := f.masks[tid]; !slices.Equal(got, cpus) {
			t.Errorf("%s: thread %d may run on %v, want %v", what, tid, got, cpus)
		}
	}
}

// The ids of the fake threads: they are no real ones.
const fakeThread = 1 << 23

// TestTwoIsolations has two engines isolate their loops, and close in the order in which they have begun, and in the other one. The
// other threads get back what they had, those too that were born meanwhile; what somebody has set is left.
func TestTwoIsolations(t *testing.T) {
	const old, own, born, later, moved, first, second = fakeThread + 1, fakeThread + 2, fakeThread + 3, fakeThread + 4, fakeThread + 5, fakeThread + 6, fakeThread + 7
	for _, order := range [][]int{{0, 1}, {1, 0}} {
		f := newFakeThreads([]int{0, 1, 2}, old, own, moved)
		f.set(own, []int{1, 2})
		s := f.isolation()
		a, b := f.loop(first, 0), f.loop(second, 1)
		s.begin([]*loop{a})
		f.expect(t, "one", map[int][]int{old: {1, 2}, own: {1, 2}, moved: {1, 2}, first: {0}})
		f.set(born, f.asked[old])
		s.begin([]*loop{b})
		f.set(later, f.asked[old])
		f.expect(t, "two", map[int][]int{old: {2}, own: {2}, born: {2}, first: {0}, second: {1}})
		s.sweep()
		ends := [][]*loop{{a}, {b}}
		left := [][]int{{0, 2}, {1, 2}}[order[0]]
		s.end(ends[order[0]])
		f.set(moved, left[:1])
		f.expect(t, "one has closed", map[int][]int{old: left, born: left, later: left})
		s.end(ends[order[1]])
		all := []int{0, 1, 2}
		f.expect(t, "both have closed", map[int][]int{old: all, own: {1, 2}, born: all, later: all, moved: left[:1]})
	}
}
