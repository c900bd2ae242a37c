package pollux

import (
	"os"
	"runtime"
	"slices"
	"strconv"
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
//
// Setting it ends the runtime's own updates, when the CPUs or the quota change. So where it was the runtime's choice, it is given back
// to the runtime at the end, and followed in its place meanwhile.
var procs struct {
	mu     sync.Mutex    // protects the fields below
	shares []*procsShare // of the engines whose loops run, in the order in which they have begun
	added  int           // by all of them
	set    int           // what it was set to last
	seen   int           // what somebody else has set it to, and was told of
	own    bool          // it was the runtime's choice before
	base   int           // and is followed, from this one; 0: it is not
}

// procsShare is what an engine asks for.
type procsShare struct {
	loops int
	hot   bool // always
	fixed int  // above 0: GOMAXPROCS itself, as the user has said
	added int  // what came of it
}

func (s *procsShare) above(n int) int {
	if s.fixed > 0 {
		return s.fixed - n
	}
	return loopProcs(n, s.loops, s.hot)
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

// elsewhere runs f on a goroutine of its own, which is locked to no thread: the runtime goes by the mask of the calling one.
func elsewhere(f func()) {
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	<-done
}

// isOwnProcs tells whether GOMAXPROCS, which is n, is the runtime's choice. Where somebody has set it to just that, there is no telling.
func isOwnProcs(n int) bool {
	if set, err := strconv.Atoi(os.Getenv("GOMAXPROCS")); err == nil && set > 0 {
		return false
	}
	elsewhere(runtime.SetDefaultGOMAXPROCS)
	if runtime.GOMAXPROCS(0) == n {
		return true
	}
	runtime.GOMAXPROCS(n)
	return false
}

// takeProcs adds a share to GOMAXPROCS. here are the surroundings.
func takeProcs(s *procsShare, here surroundings) {
	procs.mu.Lock()
	defer procs.mu.Unlock()
	n := runtime.GOMAXPROCS(0)
	switch {
	case len(procs.shares) == 0:
		procs.own, procs.base = isOwnProcs(n), 0
		if procs.own && here.procs() == n { // Else the runtime sees them otherwise, and there is no following it.
			procs.base = n
		}
	case n != procs.set:
		procs.own, procs.base = false, 0 // Somebody has set it, to a number in which the others have no share.
		for _, o := range procs.shares {
			o.added = 0
		}
		procs.added = 0
	}
	s.added = s.above(n)
	procs.shares = append(procs.shares, s)
	procs.added += s.added
	procs.set = n + s.added
	if s.added != 0 || s.fixed > 0 { // What is fixed is not to be updated.
		runtime.GOMAXPROCS(procs.set)
	}
}

// giveProcs takes a share away again, unless somebody else has set GOMAXPROCS to something of their own meanwhile. After the last one,
// the runtime has it back.
func giveProcs(s *procsShare) {
	procs.mu.Lock()
	defer procs.mu.Unlock()
	procs.shares = slices.DeleteFunc(procs.shares, func(o *procsShare) bool { return o == s })
	procs.added -= s.added
	switch {
	case runtime.GOMAXPROCS(0) != procs.set:
	case len(procs.shares) == 0 && procs.own:
		elsewhere(runtime.SetDefaultGOMAXPROCS)
	case s.added != 0:
		procs.set -= s.added
		runtime.GOMAXPROCS(procs.set)
	}
}

// followProcs does what the runtime would: it has GOMAXPROCS follow the CPUs and the quota. What somebody has set is left alone.
func followProcs(here surroundings) {
	procs.mu.Lock()
	defer procs.mu.Unlock()
	base := here.procs()
	isFixed := func(s *procsShare) bool { return s.fixed > 0 }
	if procs.base == 0 || procs.base == base || len(procs.shares) == 0 || runtime.GOMAXPROCS(0) != procs.set || slices.ContainsFunc(procs.shares, isFixed) {
		return
	}
	procs.base, procs.set = base, base
	for _, s := range procs.shares {
		s.added = s.above(procs.set)
		procs.set += s.added
	}
	procs.added = procs.set - base
	runtime.GOMAXPROCS(procs.set)
}

// procsChanged tells whether somebody else has set GOMAXPROCS since the loops began, once for each value. It is left so: who
// sets it back to what it was, which has the loops' share in it, would otherwise raise it each time.
func procsChanged() (now int, changed bool) {
	procs.mu.Lock()
	defer procs.mu.Unlock()
	now = runtime.GOMAXPROCS(0)
	if now == procs.set || len(procs.shares) == 0 {
		procs.seen = 0
		return now, false
	}
	changed = now != procs.seen
	procs.seen = now
	return now, changed
}
