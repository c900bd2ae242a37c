package pollux

import (
	"runtime"
	"sync"
)

// A loop that comes back from its wait needs a P to run Go. Where all are taken by goroutines that compute, it waits for the
// time slice of one of them, 10 ms and more. So GOMAXPROCS is raised by one for each loop, and set back when it ends; see
// ARCHITECTURE.md.

// sharesCollector tells whether the collector of a process with so many Ps has each of them work for it for a part of the time, the
// event loops' too: where a quarter of them is not near a whole number (startCycle in runtime/mgcpacer.go). Else whole Ps
// work for it, and a loop that keeps its own is left alone.
func sharesCollector(procs int) bool { return procs <= 3 || procs == 6 }

// loopProcs returns by how many GOMAXPROCS is to be above procs for so many loops, which are always hot or not.
func loopProcs(procs, loops int, hot bool) int {
	n := loops
	if hot {
		n++ // Who takes a loop's P for a moment, to hand it back, must not wait for one.
		for sharesCollector(procs + n) {
			n++
		}
	}
	return n
}

// procs is what the engines of the process have made of GOMAXPROCS.
var procs struct {
	mu    sync.Mutex // protects the fields below
	added int        // for the loops that run
	set   int        // what it was set to last
	seen  int        // what somebody else has set it to, and was told of
}

// procsOfOthers returns GOMAXPROCS without the loops' share.
func procsOfOthers() int {
	procs.mu.Lock()
	defer procs.mu.Unlock()
	n := runtime.GOMAXPROCS(0)
	if n == procs.set {
		n -= procs.added
	}
	return max(1, n)
}

// takeProcs adds n to GOMAXPROCS.
func takeProcs(n int) {
	procs.mu.Lock()
	defer procs.mu.Unlock()
	procs.added += n
	procs.set = runtime.GOMAXPROCS(0) + n
	runtime.GOMAXPROCS(procs.set)
}

// giveProcs takes n away again, unless somebody else has set it to something of their own meanwhile.
func giveProcs(n int) {
	procs.mu.Lock()
	defer procs.mu.Unlock()
	procs.added -= n
	if runtime.GOMAXPROCS(0) != procs.set {
		return
	}
	procs.set -= n
	runtime.GOMAXPROCS(procs.set)
}

// procsChanged tells whether somebody else has set GOMAXPROCS since the loops began, once for each value. It is left so: who
// sets it back to what it was, which has the loops' share in it, would otherwise raise it each time.
func procsChanged() (now int, changed bool) {
	procs.mu.Lock()
	defer procs.mu.Unlock()
	now = runtime.GOMAXPROCS(0)
	if now == procs.set || procs.added == 0 {
		procs.seen = 0
		return now, false
	}
	changed = now != procs.seen
	procs.seen = now
	return now, changed
}
