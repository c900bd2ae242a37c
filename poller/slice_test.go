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

// runLocked runs a loop on a thread of its own until it ends.
func runLocked(t *testing.T, b *turns, s poller.Sink) {
	b.loop = poller.NewLoop(b, s)
	ended := make(chan error)
	go func() {
		runtime.LockOSThread()
		ended <- b.loop.Run()
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

// TestBreaksBecomeRare has long turns that make nobody ready, and a loop that nobody tells: it rarely gives its P away
// between their events.
func TestBreaksBecomeRare(t *testing.T) {
	defer poller.SetAlone()()
	testutil.CheckLeaks(t)
	const many, rounds = poller.BatchMost, 20
	b := &turns{left: rounds, many: many, asked: func() {}}
	s, callbacks := &sink{}, 0
	s.onReady = func(poller.Event) { callbacks = b.loop.Between(callbacks + 1) }
	runLocked(t, b, s)
	// Some for what the kernel does meanwhile, which looks like somebody, and for what the loop does every 6 ms.
	if n := b.loop.GivenAway(); n > 4*rounds {
		t.Errorf("it gave its P away %d times in %d turns of %d events that nobody needed it after", n, rounds, many)
	}
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
	ended := make(chan error)
	go func() {
		runtime.LockOSThread()
		ended <- b.loop.Run()
	}()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if hot := b.loop.Counters().HotWaits; most != 1 || hot < rounds {
		t.Errorf("it gave its P away %d times in a turn at most, in %d hot waits; want once", most, hot)
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
