package pollux

import (
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/pollux-go/pollux/poller"
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

// TestJudge tells slow calls from those that others have taken the CPU from.
func TestJudge(t *testing.T) {
	const us = int64(time.Microsecond)
	before := spent{at: 1000 * us, tid: 7, cpu: 5000 * us, waits: 3}
	for name, test := range map[string]struct {
		earlier, took, cpu, waits int64 // since before: until the call has begun; the call; both
		tid                       int
		want                      verdict
	}{
		"fast, and has slept":                {0, 200, 10, 1, 7, quick},
		"sleeps":                             {0, 201, 10, 1, 7, asleep},
		"waits for a CPU":                    {0, 9000, 100, 0, 7, quick},
		"computes":                           {0, 600, 501, 0, 7, slow},
		"computes for a moment":              {0, 600, 500, 0, 7, quick},
		"computes and waits for a CPU":       {0, 9000, 501, 0, 7, slow},
		"computes and sleeps":                {0, 9000, 501, 1, 7, slow},
		"others have computed in that turn":  {5000, 9000, 5500, 0, 7, quick},
		"others have, and it computes":       {5000, 9000, 5501, 0, 7, slow},
		"others have waited for a CPU":       {5000, 9000, 100, 0, 7, quick},
		"its goroutine goes on elsewhere":    {0, 201, 10, 0, 8, asleep},
		"fast, and on another thread by now": {0, 200, 10, 0, 8, quick},
	} {
		began := before.at + test.earlier*us
		now := spent{at: began + test.took*us, tid: test.tid, cpu: before.cpu + test.cpu*us, waits: before.waits + test.waits}
		if got := before.judge(began, test.took*us, now); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
		want := quick
		if test.took > 200 {
			want = slow
		}
		for _, unknown := range []spent{before, now} {
			if got := (spent{}).judge(began, test.took*us, unknown); got != want {
				t.Errorf("%s, and it is not known what it spent before: %v", name, got)
			}
			if got := unknown.judge(began, test.took*us, spent{}); got != want {
				t.Errorf("%s, and it is not known what it has spent: %v", name, got)
			}
		}
	}
}

// A handler whose calls look as if they had slept, on workers that come late, is not slow for that; on workers that come at once, or if
// its calls compute, it is. Where it goes back and forth, it is believed for a while, and longer each time.
func TestPaceAway(t *testing.T) {
	const atOnce, late = lateCall, lateCall + 1
	calls := func(p *pace, n int, v verdict, waited int64) { // Of which one in fifty is so.
		for i := range n {
			if i%50 == 0 {
				p.noteAway(v, waited, slowWeight)
			} else {
				p.noteAway(quick, waited, slowWeight)
			}
		}
	}
	leaves := func(p *pace) {
		t.Helper()
		p.note(true, slowWeight)
		p.note(true, slowWeight)
		if !p.slow() {
			t.Error("after two slow calls on the loop it is not slow")
		}
	}
	for _, test := range []struct {
		v      verdict
		waited int64
		want   bool
	}{{asleep, atOnce, true}, {slow, atOnce, true}, {slow, late, true}, {asleep, late, false}} {
		p := new(pace)
		leaves(p)
		if calls(p, 20_000, test.v, test.waited); p.slow() != test.want {
			t.Errorf("with one call in fifty %v, each %d ns late, it is slow: %v", test.v, test.waited, p.slow())
		}
	}
	for _, slow := range []bool{false, true} { // It comes back sooner where it is doubted; one that has not gone is not less likely to go.
		p := new(pace)
		p.late.Store(lateMost)
		p.isSlow.Store(slow)
		p.bucket.Store(slowWeight)
		p.noteAway(quick, late, slowWeight)
		want := int32(slowWeight - 1)
		if slow {
			want = slowWeight - measureEach
		}
		if got := p.bucket.Load(); got != want {
			t.Errorf("a quick call of a handler that is slow, %v, leaves %d in the bucket, want %d", slow, got, want)
		}
	}
	p := new(pace)
	leaves(p)
	for pause := int64(0); pause < believeMost; {
		if p.believe.Store(0); p.slow() { // As if that time had passed.
			calls(p, 20_000, asleep, late)
		}
		if p.slow() {
			t.Fatal("it does not come back")
		}
		leaves(p)
		if got, want := p.pause.Load(), min(max(2*pause, believeLeast), believeMost); got != want {
			t.Fatalf("it is believed for %v, want %v", time.Duration(got), time.Duration(want))
		}
		pause = p.pause.Load()
		if calls(p, 20_000, asleep, late); !p.slow() {
			t.Error("it is not believed")
		}
	}
	p.believe.Store(0)
	calls(p, 20_000, asleep, late)
	p.back.Add(-soon - 1)
	if leaves(p); p.pause.Load() != 0 {
		t.Error("it was fast for a while, and is believed all the same")
	}
	p.believe.Store(0)
	calls(p, 2000, quick, atOnce)
	if leaves(p); p.pause.Load() != 0 {
		t.Error("no call of it was doubted, and it is believed more than others")
	}
}

// A call that its loop's thread has slept in is slow, but not where it may have slept for a P. Either way there is a new slice then.
func TestMeasuredAsleep(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for name, test := range map[string]struct {
		age  time.Duration // of the slice when the call begins
		want bool
	}{"a new slice": {time.Millisecond, true}, "an old one": {time.Duration(askedAfter), false}} {
		l := &loop{inner: poller.NewLoop(nil, nil)}
		c := &Conn{service: new(Service)}
		l.spent = spentNow()
		began := poller.Nanotime()
		l.inner.BeginSlice(began - int64(test.age))
		l.callAt.Store(began)
		time.Sleep(2 * time.Millisecond)
		l.measured(c)
		if got := c.service.pace.bucket.Load() > 0; got != test.want {
			t.Errorf("%s: it is slow: %v", name, got)
		}
		if l.inner.SliceBegan() < began {
			t.Errorf("%s: it has no new slice", name)
		}
	}
}

// What a call waits for that begins late in a time slice may be a P.
func TestInterrupted(t *testing.T) {
	const began = int64(time.Hour)
	for age, want := range map[time.Duration]bool{0: false, 8999 * time.Microsecond: false, 9 * time.Millisecond: true, time.Hour: true} {
		if got := interrupted(began-int64(age), began); got != want {
			t.Errorf("%v after the slice began: %v", age, got)
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
