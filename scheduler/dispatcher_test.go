package scheduler

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/internal/testutil"
)

// start returns a dispatcher that the test's end closes.
func start(t testing.TB, c Config) *Dispatcher { return startOn(t, c, noFutexes) }

func startOn(t testing.TB, c Config, channels bool) *Dispatcher {
	t.Helper()
	if c.Capacity == 0 {
		c.Capacity = 256
	}
	if c.Injector == 0 {
		c.Injector = 1024
	}
	d, err := open(c, channels)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end(t, d) })
	return d
}

// end closes d and returns what was not run.
func end(t testing.TB, d *Dispatcher) []Item {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testutil.Patience)
	defer cancel()
	left, err := d.Close(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return left
}

// eventually waits until f is true.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(testutil.Patience); !f(); {
		if time.Now().After(deadline) {
			t.Fatalf("it never happens that %s", what)
		}
		time.Sleep(50 * time.Microsecond)
	}
}

// hangs fails the test, with what d has counted, if it does not end in time.
func hangs(t *testing.T, d *Dispatcher) (stop func()) {
	timer := time.AfterFunc(2*testutil.Patience, func() {
		panic(fmt.Sprintf("%s hangs: %+v, work waits: %v, searching: %v", t.Name(), d.Stats(), d.waiting(), d.idle.searching()))
	})
	return func() { timer.Stop() }
}

// onBells runs f on both kinds of bells: other systems have channels only.
func onBells(t *testing.T, f func(t *testing.T, channels bool)) {
	for _, channels := range []bool{noFutexes, true} {
		t.Run(fmt.Sprintf("channels=%v", channels), func(t *testing.T) { f(t, channels) })
	}
}

func TestConfig(t *testing.T) {
	good := Config{Run: func(int, Item) {}, Sources: 1, Capacity: 4, Workers: 2}
	for want, spoil := range map[string]func(c *Config){
		"Config.Run is nil":       func(c *Config) { c.Run = nil },
		"Config.Sources is -1":    func(c *Config) { c.Sources = -1 },
		"Config.Capacity is 3: ":  func(c *Config) { c.Capacity = 3 },
		"Config.Capacity is 0: ":  func(c *Config) { c.Capacity = 0 },
		"Config.Injector is 1: ":  func(c *Config) { c.Injector = 1 },
		"Config.Workers is 0: ":   func(c *Config) { c.Workers = 0 },
		"Config.Parallel is 3: ":  func(c *Config) { c.Parallel = 3 },
		"Config.Parallel is -1: ": func(c *Config) { c.Parallel = -1 },
		"Config.Retire is -1s: ":  func(c *Config) { c.Retire = -time.Second },
		"Config.Slack is -1ns: ":  func(c *Config) { c.Slack = -1 },
		"Config.Slack is 2s: ":    func(c *Config) { c.Slack = 2 * time.Second },
	} {
		c := good
		spoil(&c)
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "must be") {
			t.Errorf("%q was expected, not: %v", want, err)
		}
	}
	for _, spoil := range []func(c *Config){func(*Config) {}, func(c *Config) { c.Sources, c.Capacity = 0, 0 }, func(c *Config) { c.Workers = workersMost }} {
		c := good
		spoil(&c)
		d, err := New(c)
		if err != nil {
			t.Errorf("%+v: %v", c, err)
			continue
		}
		end(t, d)
	}
}

func TestSmoke(t *testing.T) {
	onBells(t, func(t *testing.T, channels bool) {
		testutil.CheckLeaks(t)
		ran := make(chan Item, 10)
		d := startOn(t, Config{Run: func(_ int, item Item) { ran <- item }, Sources: 1, Workers: 2}, channels)
		s := d.Source(0)
		d.Wake() // Nobody, and nothing to do: it may start the first worker.
		for round := range 3 {
			if !s.Push(7) || !d.Submit(8) {
				t.Fatal("refused")
			}
			d.Wake()
			got := []Item{<-ran, <-ran}
			if slices.Sort(got); !slices.Equal(got, []Item{7, 8}) {
				t.Fatalf("round %d: %v ran", round, got)
			}
		}
		if got := d.Stats(); got.Run < 5 || got.Workers == 0 { // The last may not have returned.
			t.Errorf("%+v", got)
		}
	})
}

// TestNoWorkerBeforeWork checks that a dispatcher nobody wakes has no goroutine, and that its sources serve their loops.
func TestNoWorkerBeforeWork(t *testing.T) {
	d := start(t, Config{Run: func(int, Item) { t.Error("an item was run") }, Sources: 1, Capacity: 2, Injector: 2, Workers: 2})
	s := d.Source(0)
	for i := range 4 {
		if !s.Push(Item(i + 1)) {
			t.Fatalf("item %d is refused", i)
		}
	}
	if s.Push(5) || d.Submit(5) {
		t.Error("a full dispatcher takes an item")
	}
	if s.Len() != 2 {
		t.Errorf("2 items are %d", s.Len())
	}
	for want := Item(1); want <= 2; want++ {
		if item, ok := s.Pop(); !ok || item != want {
			t.Errorf("%d, %v came, %d was due", item, ok, want)
		}
	}
	if item, ok := s.Pop(); ok {
		t.Errorf("an empty source has %d", item)
	}
	if got := d.Stats(); got != (Stats{Overflow: 3, Waiting: 2}) {
		t.Errorf("%+v", got)
	}
	if left := end(t, d); !slices.Equal(left, []Item{3, 4}) {
		t.Errorf("%v are left", left)
	}
}

// TestExactlyOnce has everything at once: loops that push and take back, others that submit, items that block now and
// then, workers that come and retire.
func TestExactlyOnce(t *testing.T) {
	onBells(t, func(t *testing.T, channels bool) {
		for _, c := range []struct{ sources, submitters, capacity, workers, parallel, part int }{
			{1, 0, 2, 1, 1, 50}, {2, 2, 4, 8, 2, 50}, {2, 1, 256, 4, 1, 2},
		} {
			t.Run(fmt.Sprintf("sources=%d/capacity=%d/workers=%d", c.sources, c.capacity, c.workers), func(t *testing.T) {
				testutil.CheckLeaks(t)
				each := many() / c.part / (c.sources + c.submitters)
				n := each * (c.sources + c.submitters)
				y := newTally(t, n)
				d := startOn(t, Config{
					Run: func(_ int, item Item) {
						if item%8192 == 0 {
							time.Sleep(time.Millisecond)
						}
						y.add(item)
					},
					Sources: c.sources, Capacity: c.capacity, Injector: c.capacity, Workers: c.workers, Parallel: c.parallel,
					Retire: 300 * time.Microsecond,
				}, channels)
				defer hangs(t, d)()
				var all sync.WaitGroup
				for p := range c.sources + c.submitters {
					all.Go(func() {
						push := d.Submit
						var s *Source
						if p < c.sources {
							s = d.Source(p)
							push = s.Push
						}
						for i, refused := 1, 0; i <= each; {
							if push(Item(p*each + i)) {
								i++
							} else {
								d.Wake()
								if refused++; refused%1024 == 0 {
									time.Sleep(time.Microsecond) // Who spins for ever keeps the CPU that a worker needs.
								}
								runtime.Gosched()
							}
							if s != nil && i%7 == 0 {
								if item, ok := s.Pop(); ok {
									y.add(item)
								}
							}
							if i%3 == 0 {
								d.Wake()
							}
							if i%10_000 == 0 {
								time.Sleep(500 * time.Microsecond) // Let workers fall asleep, and retire.
							}
						}
						d.Wake()
					})
				}
				all.Wait()
				eventually(t, "all items have come", func() bool { return y.count.Load() >= int64(n) })
				y.check()
				t.Logf("%+v", d.Stats())
			})
		}
	})
}

// TestNoLostWakeUp gives the workers one item at a time and lets them fall asleep in between. A lost wake-up hangs it.
func TestNoLostWakeUp(t *testing.T) {
	onBells(t, func(t *testing.T, channels bool) {
		for _, workers := range []int{1, 3} {
			t.Run(fmt.Sprintf("workers=%d", workers), func(t *testing.T) {
				const loops = 2
				rounds := many() / 60
				var ran [loops]atomic.Int64
				d := startOn(t, Config{
					Run:     func(_ int, item Item) { ran[item%loops].Add(1) },
					Sources: loops, Workers: workers, Parallel: workers,
				}, channels)
				defer hangs(t, d)()
				var all sync.WaitGroup
				for l := range loops {
					all.Go(func() {
						s := d.Source(l)
						for r := range rounds {
							item := Item(2*r + l + loops)
							if r%5 == 0 {
								d.Submit(item)
							} else {
								s.Push(item)
							}
							d.Wake()
							for spins := 0; ran[l].Load() == int64(r); spins++ {
								if spins > r%64 {
									runtime.Gosched()
								}
							}
						}
					})
				}
				all.Wait()
				t.Logf("%+v", d.Stats())
			})
		}
	})
}

// TestParkSeesWhatWasPushed walks through the park step by step: what was pushed before a worker is in the idle set, and
// whose waker saw nobody there, is found by the worker itself. Whether work waits is asked after P1.
func TestParkSeesWhatWasPushed(t *testing.T) {
	d := start(t, Config{Run: func(int, Item) {}, Sources: 1, Workers: 1})
	w := newWorker(d, 0)
	d.workers[0].Store(w)
	d.live.Store(1)
	defer func() { d.Source(0).Pop(); d.live.Store(0); d.workers[0].Store(nil) }()
	d.idle.begin()
	d.Source(0).Push(1)
	d.Wake() // It relies on the worker, which has the search, and has looked already.
	if got := d.Stats(); got.Elided != 1 || got.Wakes != 0 {
		t.Fatalf("%+v", got)
	}
	slept := make(chan bool, 1)
	go func() {
		claimed, ok := w.park(true)
		slept <- claimed || !ok
	}()
	select {
	case s := <-slept:
		if s {
			t.Error("the worker was claimed by nobody")
		}
	case <-time.After(testutil.Patience):
		w.bell.ring()
		t.Fatal("the worker sleeps on work")
	}
	if d.idle.searching() || !d.idle.empty() {
		t.Error("the worker is awake, and has the search or is in the idle set")
	}
}

// TestWakeWakesOne checks that a sleeper is woken once, with the search, and that nobody else is woken meanwhile.
func TestWakeWakesOne(t *testing.T) {
	d := start(t, Config{Run: func(int, Item) {}, Workers: 2})
	workers := []*worker{newWorker(d, 0), newWorker(d, 1)}
	for i, w := range workers {
		d.workers[i].Store(w)
		d.idle.add(i)
	}
	d.live.Store(2)
	defer func() { d.live.Store(0); d.idle.remove(1) }()
	for range 3 {
		d.Wake()
	}
	if got := d.Stats(); got.Wakes != 1 || got.Elided != 2 {
		t.Errorf("%+v", got)
	}
	if workers[0].bell.rung != 1 || workers[1].bell.rung != 0 || !d.idle.searching() {
		t.Error("not exactly the first worker was woken, with the search")
	}
}

// TestSearcherWakesNext has four items behind one wake, which block until all run: who finds the first must
// wake another.
func TestSearcherWakesNext(t *testing.T) {
	const rounds = 2000
	var met [rounds]sync.WaitGroup
	d := start(t, Config{Run: func(_ int, item Item) { met[item/4-1].Done(); met[item/4-1].Wait() }, Sources: 1, Workers: 4, Parallel: 4})
	defer hangs(t, d)()
	s := d.Source(0)
	for r := range rounds {
		met[r].Add(4)
		for i := range 3 {
			s.Push(Item(4*r + 4 + i))
		}
		d.Submit(Item(4*r + 7))
		d.Wake()
		met[r].Wait()
	}
	if got := d.Stats(); got.Started > 4 {
		t.Errorf("%+v", got)
	}
}

// TestGrows blocks all workers: more are started while work waits, up to the most, and end when they are idle.
func TestGrows(t *testing.T) {
	testutil.CheckLeaks(t)
	const most = 6
	var running, peak atomic.Int64
	release := make(chan struct{})
	d := start(t, Config{
		Run: func(int, Item) {
			n := running.Add(1)
			for p := peak.Load(); n > p && !peak.CompareAndSwap(p, n); p = peak.Load() {
			}
			<-release
			running.Add(-1)
		},
		Sources: 2, Workers: most, Retire: 2 * time.Millisecond,
	})
	for round := range uint64(3) {
		for i := range most + 3 {
			d.Source(i % 2).Push(Item(i + 1))
		}
		d.Wake()
		eventually(t, "all workers are blocked", func() bool { return running.Load() == most })
		if got := d.Stats(); got.Workers != most {
			t.Errorf("%+v", got)
		}
		for range most + 3 {
			release <- struct{}{}
		}
		eventually(t, "all items to end, and one worker to be left", func() bool {
			got := d.Stats()
			return got.Workers == 1 && got.Run == (round+1)*(most+3)
		})
		if got := d.Stats(); got.Retired != (round+1)*(most-1) || got.Started != got.Retired+1 {
			t.Errorf("%+v", got)
		}
	}
	time.Sleep(10 * time.Millisecond)
	if got := d.Stats(); got.Workers != 1 {
		t.Errorf("the last worker has ended: %+v", got)
	}
	if peak.Load() != most {
		t.Errorf("%d items ran at once", peak.Load())
	}
	eventually(t, "nobody watches any more", func() bool { return !d.watching.Load() })
}

// TestDoesNotGrowWhileItMoves has more work than one worker does, in items that are short: no other is started.
func TestDoesNotGrowWhileItMoves(t *testing.T) {
	n := many() / 20
	var ran atomic.Int64
	d := start(t, Config{Run: func(int, Item) { ran.Add(1) }, Sources: 1, Capacity: 2, Injector: 2, Workers: 2})
	s := d.Source(0)
	for i := 1; i <= n; {
		if s.Push(Item(i)) {
			i++
		} else {
			runtime.Gosched()
		}
		d.Wake()
	}
	eventually(t, "all have run", func() bool { return ran.Load() == int64(n) })
	// A worker that the kernel keeps from running for so long, in an item, is blocked as far as anyone can see.
	if got := d.Stats(); got.Started > 2 {
		t.Errorf("%+v", got)
	}
}

// TestStealsFromWorker has a worker that has taken several items and blocks in the first: the others are not its
// prisoners.
func TestStealsFromWorker(t *testing.T) {
	release := make(chan struct{})
	var ran atomic.Int64
	d := start(t, Config{Run: func(_ int, item Item) {
		if item == 1 {
			<-release
		}
		ran.Add(1)
	}, Sources: 1, Workers: 2})
	for i := range 40 {
		d.Source(0).Push(Item(i + 1))
	}
	d.Wake()
	eventually(t, "all but the first have run", func() bool { return ran.Load() == 39 })
	close(release)
}

// TestNoStarvation has a source, the nearest, that never gets empty, and one worker, which must get to the others all the
// same.
func TestNoStarvation(t *testing.T) {
	const each = 3
	d := start(t, Config{
		Run:     func(int, Item) {},
		Near:    func() []int { return []int{0} },
		Sources: 3, Capacity: 4, Workers: 1,
	})
	w := newWorker(d, 0)
	w.settle()
	for i := range each {
		d.Source(1).Push(Item(10 + i))
		d.Source(2).Push(Item(20 + i))
		d.Submit(Item(30 + i))
	}
	for taken, others := 0, 0; others < 3*each; taken++ {
		for s := d.Source(0); s.Len() < 4; {
			s.Push(1)
		}
		if item, _, _ := w.take(); item > 1 {
			others++
		}
		if most := fairEvery * 4 * each; taken > most {
			t.Fatalf("%d items were taken, of the others %d of %d", taken, others, 3*each)
		}
	}
}

// TestNear has a worker look for work in one place, then in another one: it steals from what is near first, and from all others
// after that.
func TestNear(t *testing.T) {
	var near []int
	d := start(t, Config{
		Run:     func(int, Item) {},
		Near:    func() []int { return near },
		Sources: 4, Capacity: 4, Workers: 4,
	})
	w := newWorker(d, 1)
	for _, tc := range []struct{ near, want []int }{
		{nil, []int{1, 2, 3, 0}},
		{[]int{0, 2}, []int{0, 2, 1, 3}},
		{[]int{3}, []int{3, 1, 2, 0}},
	} {
		near = tc.near
		w.settle()
		for i := range 4 {
			d.Source(i).Push(Item(i + 1))
		}
		var got []int
		for range 4 {
			item, _, _ := w.take()
			got = append(got, int(item)-1)
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("where %v are near, it steals in the order %v, not %v", tc.near, got, tc.want)
		}
	}
}

// TestNearWhenItWakes counts how often a worker asks what is near: when it is started, and whenever it has slept.
func TestNearWhenItWakes(t *testing.T) {
	testutil.CheckLeaks(t)
	var asked, ran atomic.Int64
	d := start(t, Config{
		Run:     func(int, Item) { ran.Add(1) },
		Near:    func() []int { asked.Add(1); return nil },
		Sources: 1, Capacity: 4, Workers: 1,
	})
	for i := range int64(20) {
		d.Source(0).Push(1)
		d.Wake()
		eventually(t, "it has run", func() bool { return ran.Load() == i+1 })
		eventually(t, "it sleeps", func() bool { return d.Stats().Parks == uint64(i+1) })
	}
	if n := asked.Load(); n != 20 {
		t.Errorf("it has asked %d times while it was woken 20 times", n)
	}
}

// TestCloseAccounts closes while everybody pushes and runs: each item was run before Close has returned, or is in what it
// returns, or was refused.
func TestCloseAccounts(t *testing.T) {
	testutil.CheckLeaks(t)
	for round := range 200 {
		const pushers = 4
		var closed atomic.Bool
		y := newTally(t, pushers*1_000_000)
		d, err := New(Config{
			Run: func(_ int, item Item) {
				if closed.Load() {
					t.Errorf("item %d was run after the close", item)
				}
				y.add(item)
			},
			Sources: 2, Capacity: 2 << (round % 4), Injector: 2 << (round % 3), Workers: 3, Parallel: 2, Retire: 50 * time.Microsecond,
		})
		if err != nil {
			t.Fatal(err)
		}
		var accepted [pushers]int
		var stop atomic.Bool
		var all sync.WaitGroup
		for p := range pushers {
			all.Go(func() {
				push := d.Submit
				if p < 2 {
					push = d.Source(p).Push
				}
				for i := 1; !stop.Load() && i < 1_000_000; {
					item := Item(p*1_000_000 + i)
					ok := push(item)
					if ok {
						accepted[p]++
						i++
					} else if closed.Load() {
						return
					} else {
						runtime.Gosched()
					}
					d.Wake()
					if p < 2 && i%5 == 0 {
						if item, ok := d.Source(p).Pop(); ok {
							y.add(item)
						}
					}
				}
			})
		}
		for range round % 50 {
			runtime.Gosched()
		}
		left := end(t, d)
		closed.Store(true)
		for _, item := range left {
			y.add(item)
		}
		stop.Store(true)
		all.Wait()
		want := 0
		for p, n := range accepted {
			want += n
			for i := 1; i <= n; i++ {
				if item := p*1_000_000 + i; y.words[item/64].Load()&(1<<(item%64)) == 0 {
					t.Fatalf("round %d: item %d of %d was accepted and is lost", round, i, n)
				}
			}
		}
		if got := y.count.Load(); got != int64(want) {
			t.Fatalf("round %d: %d items were accepted, %d were run or returned", round, want, got)
		}
	}
}

// TestCloseDuringPush stops a pusher in each place that matters.
func TestCloseDuringPush(t *testing.T) {
	d := start(t, Config{Run: func(int, Item) {}, Sources: 1, Capacity: 2, Injector: 2, Workers: 1})
	s := d.Source(0)
	s.Push(1)
	d.Submit(2)
	if left := end(t, d); !slices.Equal(left, []Item{2, 1}) {
		t.Errorf("%v are left", left)
	}
	// These were pushed before the drain, and asked after it.
	if !d.drains(func() bool { return true }) {
		t.Error("what the drain has taken is refused")
	}
	d.closed.Store(false) // As they saw it before they pushed.
	refused := make(chan bool)
	go func() {
		index, _ := s.queue.push(3)
		position, _ := d.injector.push(4)
		d.closed.Store(true)
		refused <- !d.drains(func() bool { return int32(index-s.queue.head.Load()) < 0 }) &&
			!d.drains(func() bool { return int64(position-d.injector.head.Load()) < 0 })
	}()
	if !<-refused {
		t.Error("what came after the drain is accepted")
	}
	if s.Push(5) || d.Submit(6) {
		t.Error("a closed dispatcher takes items")
	}
	if item, ok := s.Pop(); ok {
		t.Errorf("a closed dispatcher gives back %d", item)
	}
	d.Wake()
	if got := d.Stats(); got.Started != 0 {
		t.Errorf("%+v", got)
	}
}

// TestClosePushRace has nothing but pushes while the dispatcher is closed, many times: a push that has seen it open and
// comes after the drain must be refused.
func TestClosePushRace(t *testing.T) {
	for round := range many() / 200 {
		d, err := New(Config{Run: func(int, Item) {}, Sources: 1, Capacity: 256, Injector: 256, Workers: 1})
		if err != nil {
			t.Fatal(err)
		}
		var accepted atomic.Int64
		var all sync.WaitGroup
		var going atomic.Int32
		for i, push := range []func(Item) bool{d.Source(0).Push, d.Submit} {
			all.Go(func() {
				for going.Add(1); i < 255 && push(1); i++ {
					accepted.Add(1)
				}
			})
		}
		for going.Load() < int32(1+round%2) {
			runtime.Gosched()
		}
		left := end(t, d)
		all.Wait()
		if int64(len(left)) != accepted.Load() {
			t.Fatalf("round %d: %d items were accepted, %d are left", round, accepted.Load(), len(left))
		}
	}
}

// TestNoStartAfterClose has a worker with an item in its hand when the dispatcher is closed: the item goes to Close.
func TestNoStartAfterClose(t *testing.T) {
	d := start(t, Config{Run: func(int, Item) { t.Error("an item was started") }, Workers: 1})
	w := newWorker(d, 0)
	d.workers[0].Store(w)
	w.alive.Store(true)
	d.goroutines = 1
	closed := make(chan []Item)
	go func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // Even so it waits for a worker that is between two items.
		left, err := d.Close(ctx)
		if err != nil {
			t.Error(err)
		}
		closed <- left
	}()
	eventually(t, "the worker is told", func() bool { return w.state.Load()&workerShut != 0 })
	select {
	case <-closed:
		t.Fatal("Close has returned without the item that a worker has")
	case <-time.After(5 * time.Millisecond):
	}
	if w.runItem(1) {
		t.Error("the worker goes on")
	}
	d.mu.Lock()
	d.bury(w)
	d.leave()
	d.mu.Unlock()
	if left := <-closed; !slices.Equal(left, []Item{1}) {
		t.Errorf("%v are left", left)
	}
	d.live.Store(0)
}

// TestStartsOne has wakers that have seen fewer workers than there are by now: they start none.
func TestStartsOne(t *testing.T) {
	d := start(t, Config{Run: func(int, Item) {}, Workers: 2})
	if !d.startSearching(0) || d.startSearching(0) {
		t.Error("not exactly one worker was started in place of none")
	}
	if !d.startSearching(1) || d.startSearching(1) || d.startSearching(0) {
		t.Error("not exactly one worker was started beside one")
	}
	if got := d.Stats(); got.Started != 2 || got.Workers != 2 {
		t.Errorf("%+v", got)
	}
}

func TestCloseWaits(t *testing.T) {
	testutil.CheckLeaks(t)
	release := make(chan struct{})
	var running, ran atomic.Int64
	d := start(t, Config{Run: func(int, Item) { running.Add(1); <-release; ran.Add(1) }, Sources: 1, Workers: 2})
	for i := range 9 {
		d.Source(0).Push(Item(i + 1))
	}
	d.Wake()
	eventually(t, "two items block", func() bool { return running.Load() == 2 })
	reason := errors.New("no time")
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(reason)
	left, err := d.Close(ctx)
	if !errors.Is(err, reason) || !strings.Contains(err.Error(), "2 items still run") {
		t.Errorf("two items run, and Close says %v", err)
	}
	if len(left) != 7 {
		t.Errorf("%v are left", left)
	}
	if again, err := d.Close(ctx); err == nil || len(again) > 0 {
		t.Errorf("a second Close says %v, %v", again, err)
	}
	close(release)
	if again := end(t, d); len(again) > 0 || ran.Load() != 2 || running.Load() != 2 {
		t.Errorf("%v more are left, %d have run", again, ran.Load())
	}
}

// TestCloseTwice closes from several goroutines: one gets the items, none returns before the end.
func TestCloseTwice(t *testing.T) {
	testutil.CheckLeaks(t)
	for range 200 {
		var inside atomic.Int64
		d, err := New(Config{Run: func(int, Item) { inside.Add(1); runtime.Gosched(); inside.Add(-1) }, Sources: 1, Capacity: 64, Workers: 2, Parallel: 2})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 50 {
			d.Source(0).Push(Item(i + 1))
			d.Wake()
		}
		var left atomic.Int64
		var all sync.WaitGroup
		for range 3 {
			all.Go(func() {
				items := end(t, d)
				left.Add(int64(len(items)))
				if inside.Load() != 0 {
					t.Error("an item runs after Close")
				}
			})
		}
		all.Wait()
		if got := d.Stats(); got.Run+uint64(left.Load()) != 50 {
			t.Fatalf("%d were left: %+v", left.Load(), got)
		}
	}
}

// TestFutexFails has the kernel interrupt and refuse waits and wakes.
func TestFutexFails(t *testing.T) {
	if noFutexes {
		t.Skip("no futexes here")
	}
	testutil.CheckLeaks(t)
	var calls atomic.Int64
	errnos := []sys.Errno{0, sys.EINTR, sys.EAGAIN, 0, sys.ENOMEM}
	testutil.InjectFaults(t, func(op sys.Op, _ int) (f sys.Fault) {
		if op == sys.OpFutex {
			f.Errno = errnos[calls.Add(1)%int64(len(errnos))]
			f.Before = runtime.Gosched // Open the window between the decision to sleep and the sleep.
		}
		return f
	})
	var ran atomic.Int64
	d := start(t, Config{Run: func(int, Item) { ran.Add(1) }, Sources: 1, Workers: 2})
	defer hangs(t, d)()
	for i := range int64(500) {
		d.Source(0).Push(Item(i + 1))
		d.Wake()
		for ran.Load() == i {
			runtime.Gosched()
		}
	}
	if calls.Load() == 0 {
		t.Error("no futex was asked for")
	}
}

func TestBell(t *testing.T) {
	onBells(t, func(t *testing.T, channels bool) {
		b := newBell(channels)
		b.mute()
		if b.wait(0) || b.wait(time.Millisecond) {
			t.Error("a bell that nobody rings has been rung")
		}
		b.ring()
		b.ring()
		if !b.wait(forever) || !b.wait(0) {
			t.Error("rings before the wait are lost")
		}
		b.mute()
		if b.wait(time.Millisecond) {
			t.Error("a ring before the last mute counts")
		}
		for range 1000 {
			b.mute()
			go b.ring()
			if !b.wait(testutil.Patience) {
				t.Fatal("a ring is lost")
			}
		}
	})
}

// TestGoexit has items end their goroutines: the worker goes on with others, and runs the rest.
func TestGoexit(t *testing.T) {
	testutil.CheckLeaks(t)
	const items = 200
	var ran, began atomic.Int64
	d := start(t, Config{
		Run: func(_ int, item Item) {
			ran.Add(1)
			if item%3 == 0 {
				runtime.Goexit()
			}
		},
		Begin:   func(int) { began.Add(1) },
		Workers: 2,
	})
	for i := range items {
		if !d.Submit(Item(i + 1)) {
			t.Fatal("an item was refused")
		}
		d.Wake()
	}
	eventually(t, "all items have run", func() bool { return ran.Load() == items && d.Stats().Run == items })
	if n := began.Load(); n < items/3 {
		t.Errorf("a worker has begun %d times for %d ends", n, items/3)
	}
	if s := d.Stats(); s.Workers < 1 || s.Workers > 2 {
		t.Errorf("there are %d workers", s.Workers)
	}
}
