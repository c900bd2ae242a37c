package pollux

import (
	"math/rand/v2"
	"testing"
	"time"
)

// Callbacks are measured for a time after a long turn. Where long turns have no slow callback, the pauses between two such times
// double up to a limit; one slow callback ends that.
func TestTimingPauses(t *testing.T) {
	const turn = int64(300 * time.Microsecond)
	var tm timing
	now, calls := int64(0), uint64(0)
	step := func(long bool) {
		now += turn
		calls++
		tm.turn(now, calls, long)
	}
	for range 10 {
		if step(false); tm.turns != 0 {
			t.Fatal("callbacks are measured after turns that were short")
		}
	}
	// next returns how long it takes until callbacks are measured, and through.
	next := func(found bool) (pause time.Duration) {
		for tm.turns == 0 {
			step(true)
			pause += time.Duration(turn)
		}
		tm.found = found
		for n := 0; tm.turns > 0; n++ {
			if step(true); n > timingTurns {
				t.Fatal("it never ends")
			}
		}
		return pause
	}
	if pause := next(false); pause > 2*time.Duration(turn) {
		t.Errorf("the first long turn is followed after %v", pause)
	}
	for want := timingPauseLeast; want < 4*timingPauseMost; want *= 2 {
		least := time.Duration(min(want, timingPauseMost))
		if pause := next(false); pause < least || pause > least+2*time.Duration(turn) {
			t.Errorf("a pause of %v, want %v", pause, least)
		}
	}
	next(true)
	if pause := next(true); pause > 2*time.Duration(turn) {
		t.Errorf("after a slow callback there is a pause of %v", pause)
	}
	next(false)
	if pause, most := next(false), time.Duration(timingPauseLeast)+2*time.Duration(turn); pause > most {
		t.Errorf("after a slow callback the pauses begin with %v, want %v at most", pause, most)
	}
	// Turns with many callbacks end it sooner.
	for tm.turns == 0 {
		step(true)
	}
	calls += timingCalls
	if step(true); tm.turns != 0 {
		t.Errorf("after %d callbacks %d turns are left", timingCalls, tm.turns)
	}
}

// A handler of which one call in a hundred is slow stays slow, though of its calls on workers one in measureEach is measured.
func TestPaceStays(t *testing.T) {
	l := &loop{engine: &Engine{config: Config{Dispatch: DispatchSteal}}}
	c := &Conn{service: new(Service)}
	pace := &c.service.pace
	random := rand.New(rand.NewPCG(1, 2))
	left := 0
	for calls := range uint64(1_000_000) {
		l.calls.Store(calls)
		slow := random.IntN(100) == 0
		was := pace.slow()
		if l.looksInto(c, onData) {
			pace.note(slow, slowWeight)
		}
		if was && !pace.slow() {
			left++
		}
	}
	if left > 50 { // Some five times it is, as where all are measured: 1,024 in a row are fast then.
		t.Errorf("it was taken for fast %d times in a million calls", left)
	}
	for calls := uint64(0); pace.slow(); calls++ {
		l.calls.Store(calls)
		if l.looksInto(c, onData) {
			pace.note(false, slowWeight)
		}
		if calls > 2*slowMost*measureEach {
			t.Fatal("it never is fast again")
		}
	}
}

// Of the callbacks of a handler that is slow one in measureEach is measured, whatever their order; of one that is not, all are.
func TestLooksInto(t *testing.T) {
	l := &loop{engine: &Engine{config: Config{Dispatch: DispatchSteal}}}
	c := &Conn{service: new(Service)}
	if !l.looksInto(c, onData) {
		t.Error("one of a fast handler is not measured")
	}
	c.service.pace.isSlow.Store(true)
	if !l.looksInto(c, onClose) {
		t.Error("an OnClose is not measured")
	}
	for period := uint64(1); period <= 64; period++ {
		for first := range period {
			const calls = 1000
			measured := 0
			for i := range uint64(calls) {
				l.calls.Store(first + i*period)
				if l.looksInto(c, onData) {
					measured++
				}
			}
			if measured < calls/measureEach/2 || measured > calls/measureEach*2 {
				t.Errorf("of each %d. callback from the %d. on, %d of %d are measured", period, first, measured, calls)
			}
		}
	}
	l.engine.config.Dispatch = DispatchWorkers
	if l.looksInto(c, onData) {
		t.Error("where it makes no difference, one is measured")
	}
}

// A loop is looked after when three of its calls in a few hundred were slow, and not again for a while where that was of no use.
func TestLookoutNote(t *testing.T) {
	var w lookout
	slow := func(gap int, now int64) (watch bool) {
		for range gap {
			if w.note(now, false) {
				t.Fatal("a fast call has the loop looked after")
			}
		}
		return w.note(now, true)
	}
	for i := range 100 {
		if slow(watchWeight, 0) {
			t.Fatalf("looked after at the %d. slow call, one in %d", i+1, watchWeight+1)
		}
	}
	w.bucket = 0
	if slow(0, 0) || slow(50, 0) || !slow(50, 0) {
		t.Error("three slow calls in a hundred do not suffice, or two do")
	}
	w.after = 1000
	if slow(0, 999) || !slow(0, 1000) {
		t.Error("the pause is not kept, or never ends")
	}
}

// TestSpentSlow tells slow calls from those that others have taken the CPU from.
func TestSpentSlow(t *testing.T) {
	const us = int64(time.Microsecond)
	before := spent{at: 1000 * us, tid: 7, cpu: 5000 * us, waits: 3}
	for name, test := range map[string]struct {
		earlier, took, cpu, waits int64 // since before: until the call has begun; the call; both
		tid                       int
		want                      bool
	}{
		"fast, and has slept":                {0, 200, 10, 1, 7, false},
		"sleeps":                             {0, 201, 10, 1, 7, true},
		"waits for a CPU":                    {0, 9000, 100, 0, 7, false},
		"computes":                           {0, 600, 501, 0, 7, true},
		"computes for a moment":              {0, 600, 500, 0, 7, false},
		"computes and waits for a CPU":       {0, 9000, 501, 0, 7, true},
		"others have computed in that turn":  {5000, 9000, 5500, 0, 7, false},
		"others have, and it computes":       {5000, 9000, 5501, 0, 7, true},
		"others have waited for a CPU":       {5000, 9000, 100, 0, 7, false},
		"its goroutine goes on elsewhere":    {0, 201, 10, 0, 8, true},
		"fast, and on another thread by now": {0, 200, 10, 0, 8, false},
	} {
		began := before.at + test.earlier*us
		now := spent{at: began + test.took*us, tid: test.tid, cpu: before.cpu + test.cpu*us, waits: before.waits + test.waits}
		if got := before.slow(began, test.took*us, now); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
		for _, unknown := range []spent{before, now} {
			if got, want := (spent{}).slow(began, test.took*us, unknown), test.took > 200; got != want {
				t.Errorf("%s, and it is not known what it spent before: %v", name, got)
			}
			if got, want := unknown.slow(began, test.took*us, spent{}), test.took > 200; got != want {
				t.Errorf("%s, and it is not known what it has spent: %v", name, got)
			}
		}
	}
}

// BenchmarkSpent is what a turn costs more in which callbacks are measured, and a callback on a worker.
func BenchmarkSpent(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		spentNow()
	}
}
