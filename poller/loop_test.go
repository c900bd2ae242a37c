package poller_test

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pollux-go/pollux/internal/testutil"
	"github.com/pollux-go/pollux/internal/testutil/fake"
	"github.com/pollux-go/pollux/poller"
)

// sink writes down what the loop does. Its functions run on the loop.
type sink struct {
	trace   []string
	onReady func(poller.Event)
	onDue   func(poller.Token)
	more    func() bool
	lent    bool
}

func (s *sink) Ready(events []poller.Event) {
	for _, ev := range events {
		s.trace = append(s.trace, "event "+ev.Token.String())
		if s.onReady != nil {
			s.onReady(ev)
		}
	}
}

func (s *sink) Due(token poller.Token) {
	s.trace = append(s.trace, "timer "+token.String())
	if s.onDue != nil {
		s.onDue(token)
	}
}

func (s *sink) EndTurn() (more, lent bool) {
	if len(s.trace) > 0 && s.trace[len(s.trace)-1] != "end" {
		s.trace = append(s.trace, "end")
	}
	return s.more != nil && s.more(), s.lent
}

// stage is a loop that runs beside the test.
type stage struct {
	t       *testing.T
	backend *fake.Backend
	sink    *sink
	loop    *poller.Loop
	ended   chan error
}

func newStage(t *testing.T, s *sink) *stage {
	t.Helper()
	testutil.CheckLeaks(t)
	g := &stage{t: t, backend: fake.New(), sink: s, ended: make(chan error, 1)}
	g.loop = poller.NewLoop(g.backend, s)
	if g.loop.Backend() != g.backend {
		t.Fatal("the loop waits on something else")
	}
	return g
}

func (g *stage) run() { go func() { g.ended <- g.loop.Run() }() }

func (g *stage) stop() {
	g.t.Helper()
	g.loop.Stop()
	g.wait()
}

func (g *stage) wait() {
	g.t.Helper()
	select {
	case err := <-g.ended:
		if err != nil {
			g.t.Fatal(err)
		}
	case <-time.After(10 * time.Second):
		g.t.Fatal("the loop does not stop")
	}
	g.backend.Close()
}

func tok(n int) poller.Token { return poller.Token(1<<24 | n) }

// TestSpuriousWakes are those for which there is neither an event nor a post, nor a time that is over.
func TestSpuriousWakes(t *testing.T) {
	s := &sink{}
	g := newStage(t, s)
	due := make(chan struct{})
	s.onDue = func(poller.Token) { close(due) }
	g.run()
	g.backend.Settle()
	post := func(f func()) {
		done := make(chan struct{})
		g.loop.Post(func() { f(); close(done) })
		<-done
		g.backend.Settle()
	}
	post(func() { g.loop.Schedule(poller.Nanotime()+int64(time.Millisecond), tok(1)) })
	<-due
	g.backend.Settle()
	g.backend.Inject(poller.Event{Token: tok(1)})
	g.backend.Settle()
	if c := g.loop.Counters(); c.SpuriousWakes != 0 || c.Timeouts < 2 || c.MailboxDepth != 0 {
		t.Errorf("%+v", c)
	}
	g.backend.Break()
	g.backend.Settle()
	if c := g.loop.Counters(); c.SpuriousWakes != 1 {
		t.Errorf("%+v", c)
	}
	post(func() {
		g.loop.Post(func() {})
		if c := g.loop.Counters(); c.MailboxDepth != 1 {
			t.Errorf("%+v", c)
		}
	})
	g.stop()
	if c := g.loop.Counters(); c.SpuriousWakes != 1 || c.MailboxDepth != 0 {
		t.Errorf("%+v", c)
	}
}

// TestTurnOrder has everything happen at once: events come first, then posts, then timers, then the end.
func TestTurnOrder(t *testing.T) {
	s := &sink{}
	g := newStage(t, s)
	now := poller.Nanotime()
	s.onReady = func(ev poller.Event) {
		if ev.Token == tok(1) {
			g.loop.Schedule(now-1, tok(12))
			g.loop.Schedule(now-3, tok(10))
			g.loop.Schedule(now-2, tok(11))
			for i := range 3 {
				g.loop.Post(func() { s.trace = append(s.trace, fmt.Sprint("post ", i)) })
			}
		}
		if ev.Token == tok(3) {
			g.loop.Stop()
		}
	}
	g.backend.Inject(poller.Event{Token: tok(1)}, poller.Event{Token: tok(2)}, poller.Event{Token: tok(3)})
	g.run()
	g.wait()
	const want = "event 1/1 event 2/1 event 3/1 post 0 post 1 post 2 timer 10/1 timer 11/1 timer 12/1 end"
	if got := strings.Join(s.trace, " "); got != want {
		t.Errorf("the turn was\n%s, not\n%s", got, want)
	}
}

// TestPostsDuringPosts are run in the next turn, after its events.
func TestPostsDuringPosts(t *testing.T) {
	s := &sink{}
	g := newStage(t, s)
	g.loop.Post(func() {
		s.trace = append(s.trace, "first")
		g.backend.Inject(poller.Event{Token: tok(1)})
		g.loop.Post(func() {
			s.trace = append(s.trace, "second")
			g.loop.Stop()
		})
	})
	g.run()
	g.wait()
	if got, want := strings.Join(s.trace, " "), "first end event 1/1 second end"; got != want {
		t.Errorf("%s, not %s", got, want)
	}
}

// TestMoreMeansNoWait has the sink say that there is work: the loop looks for events and does not wait for them.
func TestMoreMeansNoWait(t *testing.T) {
	turns := 0
	s := &sink{}
	g := newStage(t, s)
	s.more = func() bool {
		if _, timeout := g.backend.LastWait(); turns > 0 && timeout != 0 {
			t.Errorf("turn %d waited for %v", turns, timeout)
		}
		if turns++; turns == 10 {
			g.loop.Stop()
		}
		return true
	}
	g.backend.Inject(poller.Event{Token: tok(1)})
	g.run()
	g.wait()
	if turns != 10 {
		t.Errorf("%d turns", turns)
	}
}

// TestTimeoutOfTheWait is what the loop asks the backend for.
func TestTimeoutOfTheWait(t *testing.T) {
	s := &sink{}
	g := newStage(t, s)
	g.run()
	g.backend.Settle()
	if _, timeout := g.backend.LastWait(); timeout >= 0 {
		t.Errorf("with nothing scheduled the wait is for %v", timeout)
	}
	// Two timers; the earlier one counts.
	before := poller.Nanotime()
	g.loop.Post(func() {
		g.loop.Schedule(before+int64(time.Hour), tok(1))
		g.loop.Schedule(before+int64(time.Minute), tok(2))
	})
	g.backend.Settle()
	if _, timeout := g.backend.LastWait(); timeout <= 0 || timeout > time.Minute {
		t.Errorf("with a timer in a minute the wait is for %v", timeout)
	}
	g.stop()
}

func TestTimersFire(t *testing.T) {
	s := &sink{}
	g := newStage(t, s)
	const many = 50
	var due []int64
	s.onDue = func(token poller.Token) {
		if now := poller.Nanotime(); now < int64(token.Slot())*int64(time.Millisecond) {
			t.Errorf("timer %d came at %d", token.Slot(), now)
		}
		if due = append(due, int64(token.Slot())); len(due) == many {
			g.loop.Stop()
		}
	}
	base := poller.Nanotime()/int64(time.Millisecond) + 1
	for i := range many {
		at := base + int64(i*7%many)
		g.loop.Schedule(at*int64(time.Millisecond), tok(int(at)))
	}
	g.run()
	g.wait()
	if !slices.IsSorted(due) {
		t.Errorf("the timers came as %v", due)
	}
}

// TestTurnIsBounded has more timers due than one turn hands over: events get their turn in between.
func TestTurnIsBounded(t *testing.T) {
	s := &sink{}
	g := newStage(t, s)
	const many = 2*poller.TimersMost + 10
	for i := range many {
		g.loop.Schedule(1, tok(i))
	}
	fired := 0
	s.onDue = func(poller.Token) {
		if fired == 0 {
			g.backend.Inject(poller.Event{Token: tok(1 << 20)})
		}
		if fired++; fired == many {
			g.loop.Stop()
		}
	}
	g.run()
	g.wait()
	at := slices.IndexFunc(s.trace, func(what string) bool { return strings.HasPrefix(what, "event") })
	if at != poller.TimersMost+1 { // the first turn's timers, and its end
		t.Errorf("the event came after %d steps of %d", at, len(s.trace))
	}
}

// TestBatchIsBounded has more events than one Wait returns.
func TestBatchIsBounded(t *testing.T) {
	s := &sink{}
	g := newStage(t, s)
	for i := range 3 * poller.BatchMost {
		g.backend.Inject(poller.Event{Token: tok(i)})
	}
	g.run()
	g.backend.Settle()
	g.stop()
	first := slices.Index(s.trace, "end")
	if first != poller.BatchMost || len(s.trace) != 3*poller.BatchMost+3 {
		t.Errorf("the first turn had %d events, all had %d steps", first, len(s.trace))
	}
}

// TestPostWakesASleeper posts to a loop that sleeps, from many goroutines; each post runs once, in its poster's order.
func TestPostWakesASleeper(t *testing.T) {
	s := &sink{}
	g := newStage(t, s)
	g.run()
	const posters, each = 4, 2000
	var next [posters]int
	var done atomic.Int64
	var all sync.WaitGroup
	for p := range posters {
		all.Go(func() {
			for i := range each {
				err := g.loop.Post(func() {
					if next[p] != i {
						t.Errorf("poster %d: %d came, not %d", p, i, next[p])
					}
					next[p]++
					done.Add(1)
				})
				if err != nil {
					t.Error(err)
				}
				if i%100 == 0 {
					g.backend.Settle() // It sleeps, or is about to: the next post is the one to wake it.
				}
			}
		})
	}
	all.Wait()
	for end := time.Now().Add(10 * time.Second); done.Load() < posters*each; {
		if time.Now().After(end) {
			t.Fatalf("%d posts have run", done.Load())
		}
		g.backend.Settle()
	}
	g.stop()
}

func TestPostIsBounded(t *testing.T) {
	g := newStage(t, &sink{})
	g.loop.FillMailbox(poller.MailboxMost)
	if err := g.loop.Post(func() {}); !errors.Is(err, poller.ErrMailboxFull) {
		t.Errorf("a full mailbox says %v", err)
	}
	if err := g.loop.PostAlways(func() {}); err != nil {
		t.Errorf("PostAlways on a full mailbox says %v", err)
	}
	g.loop.FillMailbox(-poller.MailboxMost)
	if err := g.loop.Post(func() { g.loop.Stop() }); err != nil {
		t.Error(err)
	}
	g.run()
	g.wait()
}

// TestDrainRunsWhatWasAccepted posts while the loop stops: what was accepted runs, by the loop or by Drain, and what was
// not says so.
func TestDrainRunsWhatWasAccepted(t *testing.T) {
	for range 50 {
		g := newStage(t, &sink{})
		g.run()
		var accepted, ran atomic.Int64
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				for range 200 {
					switch err := g.loop.PostAlways(func() { ran.Add(1) }); {
					case err == nil:
						accepted.Add(1)
					case !errors.Is(err, poller.ErrClosed):
						t.Error(err)
					default:
						return
					}
				}
			})
		}
		g.loop.Stop()
		if err := <-g.ended; err != nil {
			t.Fatal(err)
		}
		if err := g.loop.Post(func() { t.Error("a refused post has run") }); !errors.Is(err, poller.ErrClosed) {
			t.Errorf("Post on a stopped loop: %v", err)
		}
		g.loop.Drain()
		all.Wait()
		if accepted.Load() != ran.Load() {
			t.Fatalf("%d posts were accepted, %d have run", accepted.Load(), ran.Load())
		}
		if err := g.loop.PostAlways(func() {}); !errors.Is(err, poller.ErrClosed) {
			t.Errorf("PostAlways after Drain: %v", err)
		}
		g.backend.Close()
	}
}

// TestDrainGoesOn has posts end the goroutine that drains: another one goes on with the others.
func TestDrainGoesOn(t *testing.T) {
	g := newStage(t, &sink{})
	g.run()
	g.loop.Stop()
	if err := <-g.ended; err != nil {
		t.Fatal(err)
	}
	const posts = 10
	ran := 0
	for i := range posts {
		err := g.loop.PostAlways(func() {
			if ran++; i%3 == 0 {
				runtime.Goexit()
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for through := false; !through; {
		var one sync.WaitGroup
		one.Go(func() {
			g.loop.Drain()
			through = true
		})
		one.Wait()
	}
	if ran != posts {
		t.Errorf("%d of %d posts have run", ran, posts)
	}
	if err := g.loop.PostAlways(func() {}); !errors.Is(err, poller.ErrClosed) {
		t.Errorf("PostAlways after Drain: %v", err)
	}
	g.backend.Close()
}

func TestStopFromAnywhere(t *testing.T) {
	// Before Run.
	g := newStage(t, &sink{})
	g.loop.Stop()
	g.run()
	g.wait()
	// While it sleeps.
	g = newStage(t, &sink{})
	g.run()
	g.backend.Settle()
	g.stop()
	// Twice, while it works.
	s := &sink{more: func() bool { return true }}
	g = newStage(t, s)
	g.run()
	g.loop.Stop()
	g.stop()
}

func TestBackendFailureEndsRun(t *testing.T) {
	testutil.CheckLeaks(t)
	b := &failing{Backend: fake.New()}
	defer b.Close()
	failure := errors.New("out of order")
	b.failure.Store(&failure)
	l := poller.NewLoop(b, &sink{})
	b.Inject(poller.Event{Token: tok(1)})
	if err := l.Run(); !errors.Is(err, failure) {
		t.Errorf("Run says %v", err)
	}
	if err := l.Post(func() {}); !errors.Is(err, poller.ErrClosed) {
		t.Errorf("Post says %v", err)
	}
}

// TestNowIsReadOnceATurn compares the instants that one turn and the next one are given.
func TestNowIsReadOnceATurn(t *testing.T) {
	s := &sink{}
	g := newStage(t, s)
	var instants []int64
	s.onReady = func(poller.Event) { instants = append(instants, g.loop.Now(), g.loop.Now()) }
	s.more = func() bool {
		if len(instants) == 2 {
			g.backend.Inject(poller.Event{Token: tok(2)})
		} else {
			g.loop.Stop()
		}
		return true
	}
	g.backend.Inject(poller.Event{Token: tok(1)})
	g.run()
	g.wait()
	if len(instants) != 4 || instants[0] != instants[1] || instants[2] != instants[3] || instants[2] <= instants[0] {
		t.Errorf("the instants are %v", instants)
	}
}

func BenchmarkPost(b *testing.B) {
	backend := fake.New()
	l := poller.NewLoop(backend, &sink{})
	ended := make(chan error)
	go func() { ended <- l.Run() }()
	b.ReportAllocs()
	ran := make(chan struct{})
	run := func() { ran <- struct{}{} }
	b.Run("owner=asleep", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := l.Post(run); err != nil {
				b.Fatal(err)
			}
			<-ran
		}
	})
	b.Run("owner=busy", func(b *testing.B) {
		b.ReportAllocs()
		entered, leave := make(chan struct{}), make(chan struct{})
		l.Post(func() { close(entered); <-leave })
		<-entered
		nothing := func() {}
		for b.Loop() {
			l.PostAlways(nothing)
		}
		close(leave)
	})
	l.Stop()
	<-ended
	backend.Close()
}
