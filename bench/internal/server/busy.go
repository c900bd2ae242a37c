package server

import (
	"sync/atomic"

	"github.com/pollux-go/pollux/bench/internal/progress"
)

// done counts what burn and churn do.
var done = new(progress.Counts)

// burned is where the results go, so that the compiler cannot drop the work.
var burned atomic.Uint64

// burn computes for ever, without a system call or an allocation.
func burn(x uint64) {
	for {
		for range 1 << 10 {
			x = scramble(x, 1<<10)
		}
		burned.Add(x)
		done.Computed.Add(1)
	}
}

// scramble computes for some two nanoseconds each time.
func scramble(x uint64, times int) uint64 {
	for range times {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
	}
	return x
}

// churnObjects is the size of the map that [churn] works on.
const churnObjects = 1_000_000

// churn replaces one object after the other of a map that holds a million, for ever: the collector has all of them to mark,
// and is never done for long.
func churn() {
	objects := make(map[int]*[8]uint64, churnObjects)
	for i := 0; ; i++ {
		objects[i%churnObjects] = &[8]uint64{uint64(i)}
		done.Allocated.Add(1)
	}
}
