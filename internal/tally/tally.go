// Package tally counts what loops do, at a load and a store each, for whoever wants to see it.
package tally

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// A Counter is written by one goroutine at a time, and read by anybody.
type Counter struct{ n atomic.Uint64 }

// Add counts n more.
func (c *Counter) Add(n uint64) {
	if n != 0 {
		c.n.Store(c.n.Load() + n) // There is one writer.
	}
}

// Load returns the count.
func (c *Counter) Load() uint64 { return c.n.Load() }

// TimesLen is the number of classes of [Times]: the last but one is below 131 ms.
const TimesLen = 19

// Times is a histogram of durations. Class i is those of less than 1 us << i and not less than half of that; the last one has all
// that are longer. Note is for one goroutine at a time, NoteShared for any number of them: of one Times, only one of the two is
// called.
type Times struct {
	classes [TimesLen]Counter
	sum     Counter // nanoseconds
}

func class(nanos uint64) int {
	return min(bits.Len64(nanos/uint64(time.Microsecond)), TimesLen-1)
}

// Note counts one of so many nanoseconds.
func (t *Times) Note(nanos int64) {
	n := uint64(max(nanos, 0))
	t.sum.Add(n)
	t.classes[class(n)].Add(1)
}

// NoteShared is Note for many.
func (t *Times) NoteShared(nanos int64) {
	n := uint64(max(nanos, 0))
	t.sum.n.Add(n)
	t.classes[class(n)].n.Add(1)
}

// Sum returns how long all were together.
func (t *Times) Sum() time.Duration { return time.Duration(t.sum.Load()) }

// AddTo adds the classes to those of to.
func (t *Times) AddTo(to *[TimesLen]uint64) {
	for i := range t.classes {
		to[i] += t.classes[i].Load()
	}
}

// SizesLen is the number of classes of [Sizes]: the last but one is up to 512.
const SizesLen = 11

// Sizes is a histogram of sizes from 1 on. Class i is those of at most 1 << i and more than half of that; the last one has all that
// are larger. It is written by one goroutine at a time.
type Sizes struct {
	classes [SizesLen]Counter
	sum     Counter
}

// Note counts one of size n.
func (s *Sizes) Note(n int) {
	s.sum.Add(uint64(n))
	s.classes[min(bits.Len(uint(n-1)), SizesLen-1)].Add(1)
}

// Sum returns what all were together.
func (s *Sizes) Sum() uint64 { return s.sum.Load() }

// Classes returns how many were in each.
func (s *Sizes) Classes() (all [SizesLen]uint64) {
	for i := range s.classes {
		all[i] = s.classes[i].Load()
	}
	return all
}
