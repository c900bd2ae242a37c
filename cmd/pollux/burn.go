package main

import (
	"sync"
	"sync/atomic"
)

// burnSteps is how much a burning goroutine computes between two looks at whether it should stop: well under a
// millisecond.
const burnSteps = 1 << 16

// burn keeps n goroutines busy without a system call or an allocation until stop is called; stop waits for them.
func burn(n int) (stop func()) {
	var (
		done atomic.Bool
		sum  atomic.Uint64 // Where the results go, so that the compiler cannot drop the work.
		wg   sync.WaitGroup
	)
	for i := range n {
		wg.Go(func() {
			x := uint64(i)*2 + 1
			for !done.Load() {
				for range burnSteps {
					x ^= x << 13
					x ^= x >> 7
					x ^= x << 17
				}
			}
			sum.Add(x)
		})
	}
	return func() {
		done.Store(true)
		wg.Wait()
	}
}
