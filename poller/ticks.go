package poller

import "time"

// ticks follows how often the loop's P has scheduled, to know when the runtime is about to prefer the queue that all Ps share: at
// each 61st time, for fairness, it looks there before it looks at the P's own queue (findRunnable in runtime/proc.go). Whoever
// computes and is queued there then has the P for 10 ms. If a slice is given away just then, those whom a handler has made ready
// wait behind it. If the loop begins a new slice on its own account one time earlier, nobody waits but the loop, which is to
// wait at some time anyway.
//
// The runtime counts when a goroutine begins a time slice of its own. One that was made ready last and inherits the slice of who
// has done so does not count, but a goroutine that is locked to its thread always does (execute, and schedule). So to yield counts
// for those who have waited, the first goroutine, and the loop; to renew, for the loop. Where the count stands is seen when
// somebody is preferred: a slice that is away for milliseconds, and between which two of its goroutines that was.
//
// It is a guess. Of several goroutines that wait only one is counted, others may have had the P meanwhile, and the kernel may
// take a CPU away for as long. A guess that is wrong costs one new slice in 61, and no guess is older than
// ticksAge. Until somebody is preferred there is none.
type ticks struct {
	at    uint32 // the count modulo ticksFair
	fresh int    // for how many slices it is still believed; 0: it is not known
	p     int64  // the P that is meant
}

const (
	ticksFair = 61
	ticksAge  = 512
	// preferred is from when on a slice that is away is taken for one behind somebody who was preferred, and has the P until the
	// monitor asks for it, after 10 ms or more.
	preferred = int64(5 * time.Millisecond)
)

// yielded notes that a slice of P p was away: for how long until the second goroutine ran, from there to the first one, or 0 if that
// was on another P, or betweenLate, and from there to the loop. others says that somebody ran between the first two.
func (t *ticks) yielded(p, second, first, loop int64, others bool) {
	n := uint32(2)
	if others {
		n = 3
	}
	switch {
	case first == 0, first == betweenLate && max(second, loop) > preferred:
		t.fresh = 0
	case first == betweenLate:
		t.count(p, 4) // The second one has not inherited its slice.
	case second > preferred:
		t.sync(p, 1+n)
	case first > preferred:
		t.sync(p, 3)
	case loop > preferred:
		t.sync(p, 2)
	default:
		t.count(p, n)
	}
}

// renewed notes that a new slice was begun on P p, which took so long.
func (t *ticks) renewed(p, took int64) {
	if took > preferred {
		t.sync(p, 2)
		return
	}
	t.count(p, 1)
}

// due tells whether the next slice that is given away is one at which the shared queue comes first.
func (t *ticks) due() bool { return t.fresh > 0 && t.at == 0 }

func (t *ticks) sync(p int64, at uint32) { t.p, t.at, t.fresh = p, at, ticksAge }

func (t *ticks) count(p int64, n uint32) {
	if t.fresh == 0 {
		return
	}
	if t.fresh--; t.p != p {
		t.fresh = 0
	}
	t.at = (t.at + n) % ticksFair
}
