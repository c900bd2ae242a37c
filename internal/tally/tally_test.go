package tally

import (
	"sync"
	"testing"
	"time"
)

// Both ends of each class are in it.
func TestClasses(t *testing.T) {
	us := int64(time.Microsecond)
	var times, shared Times
	for nanos, want := range map[int64]int{
		-1: 0, 0: 0, us - 1: 0, us: 1, 2*us - 1: 1, 2 * us: 2, 131072*us - 1: 17, 131072 * us: 18, int64(time.Hour): 18,
	} {
		before, after := [TimesLen]uint64{}, [TimesLen]uint64{}
		times.AddTo(&before)
		sum := times.Sum()
		times.Note(nanos)
		shared.NoteShared(nanos)
		times.AddTo(&after)
		if before[want]++; before != after {
			t.Errorf("%d ns: %v, want class %d", nanos, after, want)
		}
		if got := times.Sum() - sum; got != time.Duration(max(nanos, 0)) {
			t.Errorf("%d ns are counted as %v", nanos, got)
		}
	}
	var a, b [TimesLen]uint64
	times.AddTo(&a)
	shared.AddTo(&b)
	if a != b || times.Sum() != shared.Sum() {
		t.Errorf("%v and %v, %v and %v", a, b, times.Sum(), shared.Sum())
	}
	var sizes Sizes
	sum := uint64(0)
	for n, want := range map[int]int{1: 0, 2: 1, 3: 2, 4: 2, 5: 3, 256: 8, 257: 9, 512: 9, 513: 10, 1 << 20: 10} {
		before := sizes.Classes()
		sizes.Note(n)
		if before[want]++; sizes.Classes() != before {
			t.Errorf("%d: %v, want class %d", n, sizes.Classes(), want)
		}
		if sum += uint64(n); sizes.Sum() != sum {
			t.Errorf("the sum is %d, not %d", sizes.Sum(), sum)
		}
	}
}

// What many note at a time is all there.
func TestNoteShared(t *testing.T) {
	const writers, each = 4, 1000
	var times Times
	var all sync.WaitGroup
	for range writers {
		all.Go(func() {
			for range each {
				times.NoteShared(1)
			}
		})
	}
	all.Wait()
	var classes [TimesLen]uint64
	times.AddTo(&classes)
	if times.Sum() != writers*each || classes[0] != writers*each {
		t.Errorf("%v, %v", times.Sum(), classes)
	}
}

// A counter that anybody reads while it is written.
func TestCounter(t *testing.T) {
	var c Counter
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 1000 {
			c.Add(1)
		}
		c.Add(0)
	}()
	for last := uint64(0); last < 1000; {
		n := c.Load()
		if n < last {
			t.Fatalf("%d comes after %d", n, last)
		}
		last = n
	}
	<-done
	if c.Load() != 1000 {
		t.Errorf("%d", c.Load())
	}
}
