package poller_test

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pollux-go/pollux/internal/testutil"
	"github.com/pollux-go/pollux/poller"
)

// turns is a backend that has one event each time, or so many, and lets look at what has happened before it is asked for the
// next one.
type turns struct {
	left  int
	many  int
	asked func()
	loop  *poller.Loop
}

func (b *turns) Wait(events []poller.Event, _ time.Duration) (int, error) {
	b.asked()
	if b.left--; b.left < 0 {
		b.loop.Stop()
		return 0, nil
	}
	n := max(b.many, 1)
	for i := range n {
		events[i] = poller.Event{Token: poller.Token(i + 1)}
	}
	return n, nil
}

func (*turns) Add(int, poller.Token) error { return nil }
func (*turns) Remove(int) error            { return nil }
func (*turns) Break() error                { return nil }
func (*turns) Close() error                { return nil }
func (*turns) Name() string                { return "turns" }

// TestHandOver has each turn make a goroutine ready while others keep every other P busy. It runs before the loop waits
// again, on the loop's own P: nobody else has time for it but by chance.
func TestHandOver(t *testing.T) { handsOver(t, handOver) }

// handsOver tries it with each way to know who waits. The kernel may take its CPU from the thread of any P for as long as many
// turns take, and with it the goroutine that it runs; so of some tries, one has to be good, as none is without hand-overs.
func handsOver(t *testing.T, try func(t *testing.T, procs int) error) {
	const tries = 10
	good := func(t *testing.T, procs int) {
		var err error
		for range tries {
			if err = try(t, procs); err == nil || raceEnabled {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Errorf("the last of %d tries: %v", tries, err)
	}
	t.Run("told", func(t *testing.T) {
		if runtime.NumCPU() == 1 {
			t.Skip("on one CPU the runtime does not tell whether a goroutine waits")
		}
		good(t, 3)
	})
	t.Run("one P", func(t *testing.T) { good(t, 1) })
	t.Run("blind", func(t *testing.T) {
		defer poller.SetAlone()()
		good(t, 3)
	})
}

func handOver(t *testing.T, procs int) error {
	woken, late := int64(1), 0
	b := &turns{left: handOverRounds}
	wake, ran, end := receiver(t, procs)
	defer end()
	b.asked = func() {
		// A P that was idle may be about to run it, which takes a moment.
		for end := time.Now().Add(500 * time.Microsecond); ran.Load() < woken && time.Now().Before(end); {
		}
		if ran.Load() < woken {
			late++
		}
	}
	runLocked(t, b, &sink{onReady: func(poller.Event) {
		select {
		case wake <- struct{}{}:
			woken++
		default: // It runs still, on another P.
		}
	}})
	// Now and then one of the others is between two goroutines when the loop looks, and has time.
	if late > handOverRounds/4 || woken < handOverRounds/2 {
		return fmt.Errorf("of %d goroutines that were made ready, %d had not run when the loop waited again", woken, late)
	}
	return nil
}

const handOverRounds = 200

// receiver starts goroutines that keep all Ps busy but one, and one that counts what it receives, until their end.
func receiver(t *testing.T, procs int) (wake chan<- struct{}, ran *atomic.Int64, end func()) {
	testutil.CheckLeaks(t)
	before := runtime.GOMAXPROCS(procs)
	var stop atomic.Bool
	c := make(chan struct{})
	ran = new(atomic.Int64)
	go func() {
		for range c {
			ran.Add(1)
			for end := time.Now().Add(5 * time.Microsecond); time.Now().Before(end); { // It would go unnoticed.
			}
		}
	}()
	c <- struct{}{} // It runs, and will wait.
	var computing sync.WaitGroup
	for range procs - 1 {
		computing.Add(1)
		go func() {
			computing.Done()
			for !stop.Load() {
			}
		}()
	}
	computing.Wait()
	return c, ran, func() {
		stop.Store(true)
		close(c)
		runtime.GOMAXPROCS(before)
	}
}

// runLocked makes a loop of a backend and runs it.
func runLocked(t *testing.T, b *turns, s poller.Sink) {
	b.loop = poller.NewLoop(b, s)
	run(t, b.loop)
}

// run runs a loop on a thread of its own until it ends.
func run(t *testing.T, l *poller.Loop) {
	ended := make(chan error)
	go func() {
		runtime.LockOSThread()
		ended <- l.Run()
	}()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestHandOverBetween has the events of a long turn make a goroutine ready while others keep every other P busy. It runs before the
// last one does.
func TestHandOverBetween(t *testing.T) { handsOver(t, handOverBetween) }

func handOverBetween(t *testing.T, procs int) error {
	const many = 16
	woken, before, late := 0, int64(0), 0
	b := &turns{left: handOverRounds, many: many, asked: func() {}}
	wake, ran, end := receiver(t, procs)
	defer end()
	s, callbacks := &sink{}, 0
	s.onReady = func(e poller.Event) {
		switch e.Token {
		case 1:
			before = ran.Load()
		case many:
			if ran.Load() == before {
				late++
			}
		}
		select {
		case wake <- struct{}{}:
			woken++
		default: // It has not run since, or runs still on another P.
		}
		callbacks = b.loop.Between(callbacks + 1)
	}
	runLocked(t, b, s)
	if late > handOverRounds/4 || woken < handOverRounds/2 {
		return fmt.Errorf("%d goroutines were made ready; in %d of %d turns none had run before the last of %d events", woken, late,
			handOverRounds, many)
	}
	return nil
}

// TestHandOverBesideTimer has a timer make somebody ready in each turn, while the P looks for whom to run, besides the one that a
// callback has made ready: it runs before the loop waits again all the same.
func TestHandOverBesideTimer(t *testing.T) { handsOver(t, handOverBesideTimer) }

func handOverBesideTimer(t *testing.T, procs int) error {
	woken, late := int64(1), 0
	b := &turns{left: handOverRounds}
	wake, ran, end := receiver(t, procs)
	defer end()
	b.asked = func() {
		if ran.Load() < woken {
			late++
		}
	}
	var fired atomic.Int64
	runLocked(t, b, &sink{onReady: func(poller.Event) {
		select {
		case wake <- struct{}{}:
			woken++
		default: // It has not run since, or runs still on another P.
		}
		time.AfterFunc(0, func() { fired.Add(1) })
	}})
	if late > handOverRounds/4 || woken < handOverRounds/2 || fired.Load() == 0 {
		return fmt.Errorf("of %d goroutines that were made ready, %d had not run when the loop waited again; %d timers fired", woken, late,
			fired.Load())
	}
	return nil
}

// TestHandOverPreferred has goroutines compute on all Ps, and one more of them, so that the queue that all Ps share is not empty.
// When a P looks there first, as it does at each 61st time, the loop waits for 10 ms. Those that it has made ready rarely do: without
// care it is one time in four, and one in twenty with it, as the kernel's own ways confuse the count.
func TestHandOverPreferred(t *testing.T) {
	if raceEnabled {
		t.Skip("what a goroutine does takes too long to tell how often a P has scheduled")
	}
	defer poller.SetAlone()()
	var err error
	for range 5 {
		if err = handOverPreferred(t); err == nil {
			return
		}
	}
	t.Error(err)
}

func handOverPreferred(t *testing.T) error {
	const waits, away = 64, 5 * time.Millisecond
	testutil.CheckLeaks(t)
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	var stop atomic.Bool
	defer stop.Store(true)
	for range 2 {
		go func() {
			for !stop.Load() {
			}
		}()
	}
	var late atomic.Int64
	wake := make(chan time.Time)
	defer close(wake)
	go func() {
		for sent := range wake {
			if time.Since(sent) > away {
				late.Add(1)
			}
			for end := time.Now().Add(5 * time.Microsecond); time.Now().Before(end); { // It would go unnoticed.
			}
		}
	}()
	waited, turn, last, begun := 0, 0, time.Now(), time.Now()
	b := &turns{left: 1 << 30}
	b.asked = func() {
		now := time.Now()
		if now.Sub(last) > away {
			waited++
		}
		if last = now; waited == waits || now.Sub(begun) > 10*time.Second {
			b.left = 0
		}
	}
	runLocked(t, b, &sink{onReady: func(poller.Event) {
		if turn++; turn*turn%7 == 2 { // Now and then there is nobody, so that the count is never in step with the turns.
			return
		}
		select {
		case wake <- time.Now():
		default: // It has not run since, or runs still on another P.
		}
	}})
	if n := late.Load(); waited < waits || n > waits/8 {
		return fmt.Errorf("the loop had to wait %d times, %d times together with the goroutine that it had made ready", waited, n)
	}
	return nil
}

// TestBreaksBecomeRare has long turns that make nobody ready, and a loop that nobody tells: it rarely gives its P away
// between their events.
func TestBreaksBecomeRare(t *testing.T) {
	defer poller.SetAlone()()
	testutil.CheckLeaks(t)
	const many, rounds = poller.BatchMost, 20
	n := uint64(0)
	tries := 3 // What the kernel does meanwhile looks like somebody, in one run of a hundred for half of the events.
	if raceEnabled {
		tries = 40 // On a slow machine, in four of ten.
	}
	for range tries {
		b := &turns{left: rounds, many: many, asked: func() {}}
		s, callbacks := &sink{}, 0
		s.onReady = func(poller.Event) { callbacks = b.loop.Between(callbacks + 1) }
		runLocked(t, b, s)
		// Some for what the kernel does, and for what the loop does every 6 ms.
		if n = b.loop.GivenAway(); n <= 4*rounds {
			return
		}
	}
	t.Errorf("it gave its P away %d times in %d turns of %d events that nobody needed it after", n, rounds, many)
}

// hotTurns are turns of a backend that can hold the P.
type hotTurns struct{ turns }

func (*hotTurns) Hold(*poller.Hold)  {}
func (*hotTurns) Spin(time.Duration) {}

// TestHotLoopGivesWayOnce has a hot loop that nobody tells who waits give its P away at most once a turn.
func TestHotLoopGivesWayOnce(t *testing.T) {
	defer poller.SetAlone()()
	testutil.CheckLeaks(t)
	const rounds = 200
	b := &hotTurns{turns{left: rounds}}
	most, before := uint64(0), uint64(0)
	b.asked = func() {
		now := b.loop.GivenAway()
		if before != 0 {
			most = max(most, now-before)
		}
		before = now
	}
	b.loop = poller.NewLoop(b, &sink{})
	b.loop.Heat(time.Hour)
	run(t, b.loop)
	if hot := b.loop.Counters().HotWaits; most != 1 || hot < rounds {
		t.Errorf("it gave its P away %d times in a turn at most, in %d hot waits; want once", most, hot)
	}
}

// TestTriesAreAnnounced has a hot loop that somebody looks after find out whether somebody waits for its P: it tells of that.
func TestTriesAreAnnounced(t *testing.T) {
	defer poller.SetAlone()()
	testutil.CheckLeaks(t)
	var asked uint32
	b := &hotTurns{turns{left: 1 << 30}}
	end := time.Now().Add(10 * time.Second)
	b.asked = func() {
		// The first times are after each turn, and not announced; and so it is again where it has seen somebody.
		if time.Sleep(7 * time.Millisecond); asked >= 2 || time.Now().After(end) {
			b.left = 0
		}
	}
	b.loop = poller.NewLoop(b, &sink{})
	b.loop.Heat(time.Hour)
	b.loop.Attend(new(atomic.Uint64), &asked)
	run(t, b.loop)
	if given := b.loop.GivenAway(); asked < 2 || given < uint64(asked) {
		t.Errorf("it has told %d times, and given its P away %d times", asked, given)
	}
}

// heldTurns are turns of a backend whose waits the runtime ends.
type heldTurns struct {
	hotTurns
	hold *poller.Hold
}

func (b *heldTurns) Hold(h *poller.Hold) { b.hold = h }

// TestSliceBegan has the runtime ask for the P of a hot loop now and then: the loop knows that its slice has begun since, at the end of
// that wait and not of another one; and so it does where it is told.
func TestSliceBegan(t *testing.T) {
	testutil.CheckLeaks(t)
	const rounds = 30
	b := &heldTurns{hotTurns: hotTurns{turns{left: rounds}}}
	before, at, asks := int64(0), int64(0), 0
	b.asked = func() {
		before = b.loop.SliceBegan()
		if at = poller.Nanotime(); b.left%3 == 0 && b.hold != nil {
			b.hold.Asks++ // As the end of a wait does.
			asks++
			before = 0
		}
	}
	b.loop = poller.NewLoop(b, &sink{onReady: func(poller.Event) {
		began := b.loop.SliceBegan()
		if before == 0 && began < at || before != 0 && began != before {
			t.Errorf("the slice began at %d, in a wait that began at %d; before at %d", began, at, before)
		}
		if b.left == rounds/2 {
			b.loop.BeginSlice(at - 1)
			if b.loop.SliceBegan() != began && began >= at {
				t.Error("a slice has begun before the last one")
			}
			now := poller.Nanotime()
			if b.loop.BeginSlice(now); b.loop.SliceBegan() != now {
				t.Error("it was told that its slice has begun, and has not heard")
			}
		}
	}})
	b.loop.Heat(time.Hour)
	run(t, b.loop)
	if asks < rounds/3-2 {
		t.Errorf("it was asked %d times in %d waits", asks, rounds)
	}
}

// TestTicks has a P count as the runtime does, in the worst case: there is always somebody in the queue that all Ps share. The loop
// knows when it is their turn after it has been so once, and nobody else but the loop waits for them.
func TestTicks(t *testing.T) {
	const p = 3
	away := 10 * time.Millisecond
	for start := range uint32(poller.TicksFair) {
		var ticks poller.Ticks
		count, prefers := start, 0
		// schedule looks for somebody, who counts or not, and tells how long somebody was preferred before.
		schedule := func(n uint32) (d time.Duration) {
			if count%poller.TicksFair == 0 {
				prefers++
				count++
				d = away
			}
			count += n
			return d
		}
		renew := func() { ticks.Renewed(p, schedule(0)+schedule(1)) }
		yield := func(others bool) (behind bool) {
			second := schedule(0)
			if others {
				second += schedule(1)
			}
			first := 1 + schedule(1)
			ticks.Yielded(p, second, first, schedule(1), others)
			return others && second > 0
		}
		// Somebody else is next instead of the second one, which is behind the first one then.
		yieldLate := func() {
			second := schedule(0) + schedule(1) + schedule(1) + schedule(1)
			ticks.Yielded(p, second, poller.BetweenLate, schedule(0)+schedule(1), false)
		}
		behind, unknown := 0, 0
		for i := range 5000 {
			switch before := prefers; {
			case i%7 == 0:
				renew()
			case i%11 == 0:
				if yieldLate(); prefers > before {
					unknown++
				}
			case yield(i%5 != 0):
				behind++
			}
			if ticks.Due() {
				renew()
			}
		}
		if behind > 1+unknown || prefers < 5000*2/poller.TicksFair {
			t.Errorf("begun at %d: %d of %d times, others waited behind somebody from the shared queue; want it once at most, and once after each of the %d times of which it is not known when they were",
				start, behind, prefers, unknown)
		}
	}
}

// TestTicksForget has the loop know nothing that it cannot know.
func TestTicksForget(t *testing.T) {
	const p = 3
	due := func(ticks *poller.Ticks) bool {
		for range 2 * poller.TicksFair {
			if ticks.Renewed(p, 0); ticks.Due() {
				return true
			}
		}
		return false
	}
	seen := func() *poller.Ticks {
		var ticks poller.Ticks
		ticks.Yielded(p, 10*time.Millisecond, 1, 1, true)
		return &ticks
	}
	if !due(seen()) {
		t.Error("somebody was preferred, and it does not know when that will be again")
	}
	var none poller.Ticks
	if none.Yielded(p, 1, 1, 1, true); due(&none) {
		t.Error("nobody was preferred, and it knows when")
	}
	elsewhere := seen()
	if elsewhere.Yielded(p+1, 1, 1, 1, true); due(elsewhere) {
		t.Error("it counts for another P")
	}
	parted := seen()
	if parted.Yielded(p, 1, 0, 1, false); due(parted) {
		t.Error("it counts where two Ps had part in it")
	}
	old := seen()
	for range poller.TicksAge {
		old.Renewed(p, 0)
	}
	if due(old) {
		t.Error("it believes what is too long ago")
	}
}

// TestScout has a loop that nobody tells who waits give its P away eagerly for as long as somebody uses it, then less and less
// often.
func TestScout(t *testing.T) {
	var s poller.Scout
	for range 3 {
		for range poller.ScoutMisses {
			if !s.Eager() || s.Pause() != 0 {
				t.Fatalf("%+v: want it to look after each turn", s)
			}
			s.Note(false)
		}
		last := time.Duration(0)
		for range 30 {
			if s.Eager() || s.Pause() < last || s.Pause() > 10*time.Second {
				t.Fatalf("%+v: want longer and longer pauses, of 10 s at most", s)
			}
			last = s.Pause()
			s.Note(false)
		}
		if last != 10*time.Second {
			t.Errorf("the longest pause is %v", last)
		}
		s.Note(true)
	}
}

// TestScoutIdleP has somebody use the P each time, while another one is idle: that is as good as nobody. Where none was, it is
// taken to be so for a while.
func TestScoutIdleP(t *testing.T) {
	var s poller.Scout
	s.Ask()
	for range 3 {
		for range poller.ScoutMisses {
			if s.Note(true); !s.Pending() || !s.Eager() {
				t.Fatalf("%+v: want it to ask, and to look after each turn until then", s)
			}
			s.Resolve(true)
		}
		if s.Eager() {
			t.Fatalf("%+v: want it to know that nobody needs the P", s)
		}
		if s.Note(true); s.Eager() {
			t.Fatalf("%+v: want it to ask first", s)
		}
		s.Resolve(false)
		for range poller.ScoutTrusted {
			if s.Note(true); s.Pending() || !s.Eager() {
				t.Fatalf("%+v: want it not to ask again so soon", s)
			}
		}
	}
}

// TestLent has a loop lend some of its work, and get it back: its scout asks for an idle P in between.
func TestLent(t *testing.T) {
	testutil.CheckLeaks(t)
	s := &sink{}
	b := &turns{left: 10}
	b.asked = func() {
		if b.loop.Asks() != s.lent {
			t.Errorf("work is lent: %v; its scout asks for an idle P: %v", s.lent, b.loop.Asks())
		}
		s.lent = b.left%4 < 2
	}
	b.loop = poller.NewLoop(b, s)
	if err := b.loop.Run(); err != nil {
		t.Error(err)
	}
}

// TestIdleP computes on all Ps but one, and then on that one too.
func TestIdleP(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	idle := poller.IdleP()
	eventually := func(want bool, what string) {
		for end := time.Now().Add(10 * time.Second); idle() != want; {
			if time.Now().After(end) {
				t.Fatalf("%s: a P is idle: %v", what, !want)
			}
		}
	}
	eventually(true, "nobody computes but the test")
	var stop atomic.Bool
	ended := make(chan struct{})
	go func() {
		for !stop.Load() {
		}
		close(ended)
	}()
	eventually(false, "another goroutine computes")
	stop.Store(true)
	<-ended
	eventually(true, "it has ended")
	if n := testing.AllocsPerRun(100, func() { idle() }); n != 0 {
		t.Errorf("it allocates %v times", n)
	}
}

// BenchmarkIdleP is what a scout pays to ask.
func BenchmarkIdleP(b *testing.B) {
	idle := poller.IdleP()
	b.ReportAllocs()
	for b.Loop() {
		idle()
	}
}
