package scheduler

import (
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
)

// many is how many items the tests of exactly-once use: POLLUX_TEST_LONG=1 takes minutes.
func many() int {
	switch {
	case os.Getenv("POLLUX_TEST_LONG") == "1":
		return 1e8
	case testing.Short():
		return 1e5
	}
	return 1e6
}

// A tally sees that each of the items 1 to n comes once.
type tally struct {
	t     *testing.T
	words []atomic.Uint64
	n     int
	count atomic.Int64
}

func newTally(t *testing.T, n int) *tally {
	return &tally{t: t, words: make([]atomic.Uint64, n/64+1), n: n}
}

func (y *tally) add(item Item) {
	if item == 0 || int(item) > y.n {
		y.t.Errorf("item %d was never made", item)
		return
	}
	bit := uint64(1) << (item % 64)
	if y.words[item/64].Or(bit)&bit != 0 {
		y.t.Errorf("item %d has come twice", item)
	}
	y.count.Add(1)
}

func (y *tally) check() {
	y.t.Helper()
	missing := 0
	for item := 1; item <= y.n; item++ {
		if y.words[item/64].Load()&(1<<(item%64)) == 0 {
			if missing++; missing <= 5 {
				y.t.Errorf("item %d is lost", item)
			}
		}
	}
	if missing > 5 {
		y.t.Errorf("%d items are lost", missing)
	}
}

// queueStarts are indexes to start from: at 0, and such that they wrap around during the test.
var queueStarts = []uint32{0, math.MaxUint32, math.MaxUint32 - 3, math.MaxInt32 - 1}

func forQueues(t *testing.T, f func(t *testing.T, capacity int, start uint32)) {
	for _, capacity := range []int{2, 4, 256} {
		for _, start := range queueStarts {
			t.Run(fmt.Sprintf("capacity=%d/start=%#x", capacity, start), func(t *testing.T) { f(t, capacity, start) })
		}
	}
}

func TestQueueEmptyAndFull(t *testing.T) {
	forQueues(t, func(t *testing.T, capacity int, start uint32) {
		q := newQueueAt(capacity, start)
		next, want := Item(1), Item(1)
		for round := range 5 {
			if item, ok := q.Pop(); ok {
				t.Fatalf("an empty queue gives %d", item)
			}
			if item, n := q.Steal(NewQueue(2)); n != 0 {
				t.Fatalf("an empty queue lets %d be stolen, with %d", n, item)
			}
			if n := q.StealTo(make([]Item, 8)); n != 0 {
				t.Fatalf("an empty queue lets %d be stolen", n)
			}
			for i := range capacity {
				if q.Len() != i {
					t.Fatalf("of %d items Len is %d", i, q.Len())
				}
				if !q.Push(next) {
					t.Fatalf("a queue of %d is full at %d", capacity, i)
				}
				next++
			}
			if q.Push(next) {
				t.Fatalf("a queue of %d takes one more", capacity)
			}
			if round%2 == 1 { // Go on in the middle.
				item, ok := q.Pop()
				if !ok || item != want || !q.Push(next) {
					t.Fatal(item, ok)
				}
				want++
				next++
			}
			for ; want < next; want++ {
				if item, ok := q.Pop(); !ok || item != want {
					t.Fatalf("%d, %v came, %d was due", item, ok, want)
				}
			}
		}
	})
}

func TestQueueStealsHalf(t *testing.T) {
	forQueues(t, func(t *testing.T, capacity int, start uint32) {
		for n := 1; n <= min(capacity, 9); n++ {
			for _, room := range []int{0, 1, 2, 8} {
				q, into := newQueueAt(capacity, start), newQueueAt(8, start)
				for i := range n {
					q.Push(Item(i + 1))
				}
				for i := range 8 - room {
					into.Push(Item(100 + i))
				}
				half := min(n-n/2, room+1)
				first, got := q.Steal(into)
				if first != 1 || got != half || q.Len() != n-half || into.Len() != 8-room+half-1 {
					t.Fatalf("of %d, with room for %d: %d, the first is %d; %d and %d are left", n, room, got, first, q.Len(), into.Len())
				}
				for range 8 - room {
					into.Pop()
				}
				for want := Item(2); want <= Item(half); want++ {
					if item, _ := into.Pop(); item != want {
						t.Fatalf("%d is in the thief's queue, not %d", item, want)
					}
				}
				dst := make([]Item, room)
				rest := n - half
				want := min(rest-rest/2, room)
				if got := q.StealTo(dst); got != want || q.Len() != rest-want {
					t.Fatalf("of %d into %d: %d", rest, room, got)
				}
				for i := range want {
					if dst[i] != Item(half+i+1) {
						t.Fatalf("%v was stolen after %d", dst, half)
					}
				}
			}
		}
	})
}

func TestQueueRefusesNonsense(t *testing.T) {
	for _, c := range []int{-1, 0, 1, 3, 6, capacityMost * 2} {
		for name, f := range map[string]func(){"queue": func() { NewQueue(c) }, "injector": func() { NewInjector(c) }} {
			if !panics(f) {
				t.Errorf("a capacity of %d makes a %s", c, name)
			}
		}
	}
	if !panics(func() { NewQueue(2).Push(0) }) || !panics(func() { NewInjector(2).Push(0) }) {
		t.Error("item 0 can be pushed")
	}
}

func panics(f func()) (yes bool) {
	defer func() { yes = recover() != nil }()
	f()
	return false
}

// TestQueueExactlyOnce has one owner that pushes and pops, and thieves of both kinds. Each item comes once; each taker
// gets what it gets in order, for the head moves one way only.
func TestQueueExactlyOnce(t *testing.T) {
	for _, c := range []struct{ capacity, thieves, pop int }{{2, 3, 3}, {4, 2, 2}, {256, 1, 0}, {256, 4, 5}} {
		t.Run(fmt.Sprintf("capacity=%d/thieves=%d", c.capacity, c.thieves), func(t *testing.T) {
			n := many() / 4
			q := newQueueAt(c.capacity, math.MaxUint32-uint32(n/2))
			y := newTally(t, n)
			var done atomic.Bool
			var all sync.WaitGroup
			for i := range c.thieves {
				all.Go(func() {
					last := Item(0)
					take := func(item Item) {
						if item <= last {
							t.Errorf("a thief got %d after %d", item, last)
						}
						last = item
						y.add(item)
					}
					own, dst := newQueueAt(4, math.MaxUint32), make([]Item, 3)
					for {
						ended := done.Load()
						got := 0
						if i%2 == 0 {
							var first Item
							if first, got = q.Steal(own); got > 0 {
								take(first)
							}
							for item, ok := own.Pop(); ok; item, ok = own.Pop() {
								take(item)
							}
						} else {
							got = q.StealTo(dst)
							for _, item := range dst[:got] {
								take(item)
							}
						}
						if got == 0 {
							if ended {
								return
							}
							runtime.Gosched()
						}
					}
				})
			}
			last := Item(0)
			pop := func() {
				if item, ok := q.Pop(); ok {
					if item <= last {
						t.Errorf("the owner got %d after %d", item, last)
					}
					last = item
					y.add(item)
				}
			}
			for i := 1; i <= n; {
				if q.Push(Item(i)) {
					i++
				} else {
					runtime.Gosched() // The thieves may have no other P.
				}
				if c.pop > 0 && i%c.pop == 0 {
					pop()
				}
			}
			done.Store(true)
			all.Wait()
			y.check()
		})
	}
}

// TestQueueStampede lets many thieves and the owner go for one item at a time.
func TestQueueStampede(t *testing.T) {
	const thieves, rounds = 6, 3000
	q := newQueueAt(2, math.MaxUint32-rounds/2)
	var round atomic.Int64
	var taken [rounds + 1]atomic.Int32
	var all sync.WaitGroup
	for range thieves {
		all.Go(func() {
			own := NewQueue(2)
			for r := int64(1); r <= rounds; r++ {
				for round.Load() < r {
					runtime.Gosched()
				}
				if item, n := q.Steal(own); n > 0 {
					taken[item].Add(1)
				}
			}
		})
	}
	for r := 1; r <= rounds; r++ {
		if !q.Push(Item(r)) {
			t.Fatal("full")
		}
		round.Store(int64(r))
		if r%2 == 0 {
			if item, ok := q.Pop(); ok {
				taken[item].Add(1)
			}
		}
		for q.Len() > 0 {
			runtime.Gosched()
		}
	}
	all.Wait()
	for r := 1; r <= rounds; r++ {
		if n := taken[r].Load(); n != 1 {
			t.Fatalf("item %d was taken %d times", r, n)
		}
	}
}

func TestInjectorEmptyAndFull(t *testing.T) {
	for _, capacity := range []int{2, 4, 64} {
		for _, start := range []uint64{0, math.MaxUint64, math.MaxUint64 - 3, math.MaxInt64 - 1} {
			j := newInjectorAt(capacity, start)
			next, want := Item(1), Item(1)
			for range 5 {
				if item, ok := j.Pop(); ok || j.Len() != 0 {
					t.Fatalf("an empty injector gives %d", item)
				}
				for i := range capacity {
					if !j.Push(next) || j.Len() != i+1 {
						t.Fatalf("an injector of %d is full at %d", capacity, i)
					}
					next++
				}
				if j.Push(next) {
					t.Fatalf("an injector of %d takes one more", capacity)
				}
				for ; want < next-1; want++ { // Go on in the middle.
					if item, ok := j.Pop(); !ok || item != want {
						t.Fatalf("%d, %v came, %d was due", item, ok, want)
					}
				}
				if !j.Push(next) {
					t.Fatal("full")
				}
				next++
				for ; want < next; want++ {
					if item, ok := j.Pop(); !ok || item != want {
						t.Fatalf("%d, %v came, %d was due", item, ok, want)
					}
				}
			}
		}
	}
}

// TestInjectorExactlyOnce has many on both sides. A consumer sees the items of one producer in order.
func TestInjectorExactlyOnce(t *testing.T) {
	for _, c := range []struct{ capacity, producers, consumers int }{{2, 3, 3}, {4, 1, 3}, {4, 3, 1}, {64, 4, 4}} {
		t.Run(fmt.Sprintf("capacity=%d/producers=%d/consumers=%d", c.capacity, c.producers, c.consumers), func(t *testing.T) {
			each := many() / 4 / c.producers
			n := each * c.producers
			j := newInjectorAt(c.capacity, math.MaxUint64-uint64(n/2))
			y := newTally(t, n)
			var all sync.WaitGroup
			for p := range c.producers {
				all.Go(func() {
					for i := 1; i <= each; {
						if j.Push(Item(p*each + i)) {
							i++
						} else {
							runtime.Gosched()
						}
					}
				})
			}
			for range c.consumers {
				all.Go(func() {
					last := make([]Item, c.producers)
					for y.count.Load() < int64(n) && !t.Failed() {
						item, ok := j.Pop()
						if !ok {
							runtime.Gosched()
							continue
						}
						y.add(item)
						p := int(item-1) / each
						if item <= last[p] {
							t.Errorf("%d came after %d", item, last[p])
						}
						last[p] = item
					}
				})
			}
			all.Wait()
			y.check()
		})
	}
}

// TestInjectorIsExact has each goroutine push one item and pop one, again and again: there is always one to pop, and
// always room. An injector that takes somebody's being in the middle of something for full or empty is found out.
func TestInjectorIsExact(t *testing.T) {
	const goroutines = 4
	j := newInjectorAt(goroutines, math.MaxUint64-1000)
	var all sync.WaitGroup
	for range goroutines {
		all.Go(func() {
			for i := range many() / 4 {
				if !j.Push(1) {
					t.Errorf("round %d: the injector is full with less than %d items in it", i, goroutines)
					return
				}
				if _, ok := j.Pop(); !ok {
					t.Errorf("round %d: the injector is empty, and what was pushed was not popped", i)
					return
				}
			}
		})
	}
	all.Wait()
}

// TestInjectorWaitsForProducer stops a producer between its claim and its stores: another's item behind it was pushed, so
// Pop must not say that there is none, and must not take it first.
func TestInjectorWaitsForProducer(t *testing.T) {
	j := NewInjector(4)
	if !j.tail.CompareAndSwap(0, 1) {
		t.Fatal("the injector is not new")
	}
	if !j.Push(2) {
		t.Fatal("full")
	}
	var got []Item
	var all sync.WaitGroup
	started := make(chan struct{})
	all.Go(func() {
		close(started)
		for range 2 {
			item, _ := j.Pop()
			got = append(got, item)
		}
	})
	<-started
	for range 1000 {
		runtime.Gosched()
	}
	j.slot(0).item.Store(1)
	j.slot(0).sequence.Store(1)
	all.Wait()
	if !slices.Equal(got, []Item{1, 2}) {
		t.Errorf("%v were popped", got)
	}
}

func TestIdleSet(t *testing.T) {
	const workers = 130
	s := newIdleSet(workers)
	if _, ok := s.claim(); ok || !s.empty() {
		t.Fatal("somebody sleeps in a new set")
	}
	for _, w := range []int{129, 64, 63, 0, 65} {
		s.add(w)
	}
	if s.empty() || !s.remove(63) || s.remove(63) || s.remove(1) {
		t.Error("not exactly those that were added can be removed")
	}
	for _, want := range []int{0, 64, 65, 129} {
		if w, ok := s.claim(); !ok || w != want {
			t.Errorf("%d, %v was claimed, not %d", w, ok, want)
		}
	}
	if _, ok := s.claim(); ok || !s.empty() {
		t.Error("claimed workers sleep")
	}
	if !s.begin() || s.begin() || !s.searching() {
		t.Error("not exactly one has the search")
	}
	s.end()
	if s.searching() || !s.begin() {
		t.Error("the search was not given up")
	}
}

// TestIdleSetClaims has workers that add and remove themselves, and claimers: each sleep ends once.
func TestIdleSetClaims(t *testing.T) {
	const workers, rounds = 70, 300
	s := newIdleSet(workers)
	var asleep [workers]atomic.Int32
	var left atomic.Int64
	left.Store(workers)
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			for left.Load() > 0 {
				if w, ok := s.claim(); ok {
					asleep[w].Add(-1)
				} else {
					runtime.Gosched()
				}
			}
		})
	}
	for w := range workers {
		all.Go(func() {
			defer left.Add(-1)
			for r := range rounds {
				asleep[w].Add(1)
				s.add(w)
				if r%3 == 0 && s.remove(w) {
					asleep[w].Add(-1)
				}
				for asleep[w].Load() > 0 {
					runtime.Gosched()
				}
				if n := asleep[w].Load(); n < 0 {
					t.Errorf("worker %d was claimed %d times too often", w, -n)
					return
				}
			}
		})
	}
	all.Wait()
}

func BenchmarkQueue(b *testing.B) {
	b.Run("op=push-pop", func(b *testing.B) {
		q := NewQueue(256)
		for b.Loop() {
			q.Push(1)
			q.Pop()
		}
	})
	b.Run("op=push-steal-half-of-64", func(b *testing.B) {
		q, into := NewQueue(256), NewQueue(64)
		for b.Loop() {
			for q.Len() < 64 {
				q.Push(1)
			}
			q.Steal(into)
			for _, ok := into.Pop(); ok; _, ok = into.Pop() {
			}
		}
	})
}

func BenchmarkInjector(b *testing.B) {
	j := NewInjector(1024)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			j.Push(1)
			j.Pop()
		}
	})
}
