package scheduler

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"
)

const (
	workersMost = 1 << 12
	sourcesMost = 1 << 12

	// injectorDefault is the capacity of the injector if the Config does not say.
	injectorDefault = 1 << 16
)

// Config says what a [Dispatcher] runs, and with how much.
type Config struct {
	// Run runs one item, on the goroutine of a worker, whose number it is given. It may block. Its panic is not
	// recovered. If it ends its goroutine (runtime.Goexit), the worker goes on with another one.
	Run func(worker int, item Item)
	// Begin, if set, is called on a worker's goroutine before it runs items.
	Begin func(worker int)
	// Sources is how many loops there are. Each has a source of its own.
	Sources int
	// Capacity is how many items a source holds: a power of two from 2 to 2^20.
	Capacity int
	// Injector is how many items the injector holds: a power of two from 2 to 2^20. 0 is 65536.
	Injector int
	// Workers is the most workers there may be.
	Workers int
	// Parallel is how many of them are started as soon as work finds nobody idle. More are started only when all
	// are blocked. 0 is 1.
	Parallel int
	// Retire is how long a worker is idle before it ends; the last one stays. 0 is for ever.
	Retire time.Duration
	// Held says that who pushes to the sources keeps its P in system calls. Idle workers sleep in a system call each then, instead
	// of in Go's scheduler, which would ready them at that P. It costs twice as much, and is ignored where there are no futexes.
	Held bool
	// Near, if set, is called on a worker's goroutine that begins to look for work, having slept or been started: it returns the
	// numbers of the sources that are near to where it runs now. The worker steals from these first. Near must not block, and what
	// it has returned must not change.
	Near func() []int
	// Slack, if set, becomes the timer slack of the threads on which workers begin to look for work: see timerslack_ns in proc(5).
	// A thread of Go's scheduler that is to take a worker from the P that has readied it sleeps for 3 us first (runtime, runqgrab),
	// to which the kernel adds the slack, usually 50 us; most of those threads have run workers. Nothing gives it back.
	Slack time.Duration
}

func (c *Config) check() error {
	say := func(name string, value any, allowed string) error {
		return fmt.Errorf("scheduler: Config.%s is %v: it must be %s", name, value, allowed)
	}
	power := fmt.Sprintf("a power of two from %d to %d", capacityLeast, capacityMost)
	switch {
	case c.Run == nil:
		return errors.New("scheduler: Config.Run is nil: it must be a function that runs an item")
	case c.Sources < 0 || c.Sources > sourcesMost:
		return say("Sources", c.Sources, fmt.Sprintf("from 0 to %d", sourcesMost))
	case c.Sources > 0 && !capacityValid(c.Capacity):
		return say("Capacity", c.Capacity, power)
	case c.Injector != 0 && !capacityValid(c.Injector):
		return say("Injector", c.Injector, power+", or 0")
	case c.Workers < 1 || c.Workers > workersMost:
		return say("Workers", c.Workers, fmt.Sprintf("from 1 to %d", workersMost))
	case c.Parallel < 0 || c.Parallel > c.Workers:
		return say("Parallel", c.Parallel, fmt.Sprintf("from 0 to Workers, which is %d", c.Workers))
	case c.Retire < 0:
		return say("Retire", c.Retire, "0 or longer")
	case c.Slack < 0 || c.Slack > time.Second:
		return say("Slack", c.Slack, "from 0 to 1s")
	}
	return nil
}

// A Dispatcher runs items on workers. All methods are safe for concurrent use; a [Source] is not.
//
// A worker is a goroutine. None runs until [Dispatcher.Wake] first finds work for it. Idle ones sleep and cost nothing.
//
// How a worker parks, and why no wake-up is lost. A waker pushes, then calls Wake, which
//
//	W1  returns if somebody has the search;
//	W2  returns if nobody sleeps (below);
//	W3  takes the search, claims a sleeper, and rings its bell: the sleeper now has the search.
//
// A worker that has found nothing in any queue
//
//	P1  adds itself to the idle set;
//	P2  gives up the search, if it was woken with it;
//	P3  looks at all queues once more; if anything waits, it removes itself from the set and goes on;
//	P4  else waits for its bell, which comes with the search.
//
// Go's atomics are sequentially consistent, so of a push before W1 and W2, and a P1 before P3, one sees the other: either
// the waker finds the sleeper or the sleeper finds the item. The waker that returns at W1 relies on a duty: who gives up
// the search looks at all queues after that, and if anything waits, does as a waker does. A worker that has found an item
// does so before it runs it; one that has not, at P3, where it wakes another once it has an item again; a waker that
// found nobody to claim, at once. That look comes after the push, which came before the search was seen taken. A search
// always ends: it is one walk through the queues.
//
// A thief that has moved items to its own queue does as a waker does, too: for a moment the items were in no queue, and
// another may have looked then.
//
// W2: when nobody sleeps and there is work, all workers run items, or are on their way to look at the queues. Below
// Parallel, Wake starts a worker. Below Workers, it starts the watch, unless there is one: a goroutine that looks every
// 200 us whether work waits, nobody is idle, and each worker is in the item it was in before; then it starts one worker.
// It ends when there is nothing of that to see for a few looks: it says so first and looks once more after, as at P1
// and P3. So nothing watches a dispatcher that keeps up, and items that block need no clock.
type Dispatcher struct {
	run      func(worker int, item Item)
	begin    func(worker int)
	near     func() []int
	retire   time.Duration
	slack    time.Duration
	parallel int32
	most     int32
	channels bool // bells are channels

	sources  []*Source
	injector *Injector
	workers  []atomic.Pointer[worker] // by number; set when first started, then kept and used again
	idle     idleSet

	live     atomic.Int32 // workers; changed under mu
	watching atomic.Bool  // there is a watch, or somebody is about to start it
	closed   atomic.Bool  // set under mu
	watch    bell         // rung by Close
	seen     []uint64     // the watch's: the state of each worker at its last look
	_        [padding]byte

	wakes    atomic.Uint64
	elided   atomic.Uint64
	overflow atomic.Uint64
	_        [padding]byte

	// mu protects the fields below. Nothing is locked while it is held.
	mu         sync.Mutex
	free       []uint64      // a bit for each number that no worker has
	goroutines int           // workers and the watch
	ended      chan struct{} // closed when the dispatcher is closed and they have ended
	started    uint64
	retired    uint64
	left       []Item // taken and not run, for Close
	drained    bool   // Close has taken what there was
}

// New returns a dispatcher that has no workers yet.
func New(c Config) (*Dispatcher, error) { return open(c, noFutexes || !c.Held) }

func open(c Config, channels bool) (*Dispatcher, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	if c.Injector == 0 {
		c.Injector = injectorDefault
	}
	d := &Dispatcher{
		run: c.Run, begin: c.Begin, near: c.Near, retire: c.Retire, slack: c.Slack, parallel: int32(max(c.Parallel, 1)), most: int32(c.Workers), channels: channels,
		injector: NewInjector(c.Injector),
		workers:  make([]atomic.Pointer[worker], c.Workers),
		idle:     newIdleSet(c.Workers),
		watch:    newBell(channels),
		seen:     make([]uint64, c.Workers),
		free:     make([]uint64, (c.Workers+63)/64),
		ended:    make(chan struct{}),
	}
	for i := range c.Workers {
		d.free[i/64] |= 1 << (i % 64)
	}
	for range c.Sources {
		d.sources = append(d.sources, &Source{d: d, queue: NewQueue(c.Capacity)})
	}
	return d, nil
}

// Source returns the queue of one loop. Its methods, but for Len, are for one goroutine only.
func (d *Dispatcher) Source(i int) *Source { return d.sources[i] }

// A Source is the queue of a loop. The loop alone may call Push and Pop.
type Source struct {
	d     *Dispatcher
	queue *Queue
}

// Push adds item behind all others of the source, or, when these are as many as it holds, to the injector. It is false
// when that is full too, or the dispatcher is closed: the item is the caller's still. It wakes nobody: see
// [Dispatcher.Wake].
func (s *Source) Push(item Item) bool {
	if s.d.closed.Load() {
		return false
	}
	index, ok := s.queue.push(item)
	if !ok {
		s.d.overflow.Add(1)
		return s.d.Submit(item)
	}
	// Pairs with the store of closed in Close: if it is not seen here, the drain sees the item.
	return !s.d.closed.Load() || s.d.drains(func() bool { return int32(index-s.queue.head.Load()) < 0 })
}

// Pop takes the oldest item back. It is false when there is none, or the dispatcher is closed.
func (s *Source) Pop() (Item, bool) {
	if s.d.closed.Load() {
		return 0, false
	}
	return s.queue.Pop()
}

// Len is how many items wait in the source.
func (s *Source) Len() int { return s.queue.Len() }

// Submit adds item to the injector. It is false when that is full or the dispatcher is closed: the item is the caller's
// still. It wakes nobody: see [Dispatcher.Wake].
func (d *Dispatcher) Submit(item Item) bool {
	if d.closed.Load() {
		return false
	}
	position, ok := d.injector.push(item)
	// As in Source.Push.
	return ok && (!d.closed.Load() || d.drains(func() bool { return int64(position-d.injector.head.Load()) < 0 }))
}

// drains tells whether Close returns an item that was pushed while the dispatcher was being closed: it does if the drain
// is still to come, or has passed the item. A queue stays as the drain has left it.
func (d *Dispatcher) drains(passed func() bool) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return !d.drained || passed()
}

// Wake says that work was pushed. It wakes at most one sleeper, and none if another worker is out to look for work
// already: that one will find it, and wake the next if it has left something. When there is nobody to wake, it costs two
// loads. It may be called on the thread of a loop: it never waits for long. The goroutine that it starts now and then,
// when there are too few workers, is one that Go's scheduler takes some ten microseconds to get from there.
func (d *Dispatcher) Wake() {
	for {
		if d.idle.searching() {
			d.elided.Add(1)
			return
		}
		if d.idle.empty() {
			if live := d.live.Load(); live < d.most {
				d.grow(live)
			}
			return
		}
		if !d.idle.begin() {
			d.elided.Add(1)
			return
		}
		if i, ok := d.idle.claim(); ok {
			d.wakes.Add(1)
			d.workers[i].Load().bell.ring()
			return
		}
		// The sleeper has just retired.
		d.idle.end()
		if !d.waiting() {
			return
		}
	}
}

// waiting tells whether there is an item in any queue.
func (d *Dispatcher) waiting() bool {
	if d.injector.Len() > 0 {
		return true
	}
	for _, s := range d.sources {
		if s.queue.Len() > 0 {
			return true
		}
	}
	for i := range d.workers {
		w := d.workers[i].Load()
		if w == nil {
			return false // Numbers are given from 0 on.
		}
		if w.queue.Len() > 0 {
			return true
		}
	}
	return false
}

// grow is called when work waits, nobody sleeps, and there were live workers, below the most.
func (d *Dispatcher) grow(live int32) {
	if d.closed.Load() {
		return
	}
	if live < d.parallel {
		d.start(live)
		return
	}
	if !d.watching.Load() && d.watching.CompareAndSwap(false, true) {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.closed.Load() {
			return
		}
		d.goroutines++
		go d.look()
	}
}

// start starts one worker, which begins with the search, unless there are not live ones any more.
func (d *Dispatcher) start(live int32) {
	if !d.idle.begin() {
		d.elided.Add(1)
		return
	}
	if d.startSearching(live) {
		return
	}
	d.idle.end()
	if d.waiting() && !d.closed.Load() {
		d.Wake()
	}
}

func (d *Dispatcher) startSearching(live int32) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed.Load() || d.live.Load() != live {
		return false
	}
	number := 0
	for i, bit := range d.free {
		if bit != 0 {
			number = i*64 + bits.TrailingZeros64(bit)
			d.free[i] &^= bit & -bit
			break
		}
	}
	w := d.workers[number].Load()
	if w == nil {
		w = newWorker(d, number)
		d.workers[number].Store(w)
	}
	w.alive.Store(true)
	d.live.Add(1)
	d.goroutines++
	d.started++
	go w.work()
	return true
}

// leave is the last thing that a goroutine of the dispatcher does. d.mu is locked.
func (d *Dispatcher) leave() {
	d.goroutines--
	if d.goroutines == 0 && d.closed.Load() {
		close(d.ended)
	}
}

const (
	// blockedAfter is how long a worker is in one item, at least, before it counts as blocked.
	blockedAfter = 200 * time.Microsecond

	// watchQuiet is how many looks find nothing wrong before the watch ends.
	watchQuiet = 10
)

// look is the watch: see [Dispatcher].
func (d *Dispatcher) look() {
	seen := d.seen
	quiet := 0
	for !d.watch.wait(blockedAfter) {
		all := d.allBlocked(seen)
		if d.short() {
			quiet = 0
			if all {
				d.start(d.live.Load())
			}
			continue
		}
		if quiet++; quiet < watchQuiet {
			continue
		}
		// Nobody watches from here on; pairs with the load in grow, which comes after a push: either that sees it, or the
		// look below sees the push.
		d.watching.Store(false)
		if !d.short() || !d.watching.CompareAndSwap(false, true) {
			break
		}
		quiet = 0
	}
	d.mu.Lock()
	d.leave()
	d.mu.Unlock()
}

// short tells whether another worker could help.
func (d *Dispatcher) short() bool {
	return d.idle.empty() && !d.idle.searching() && d.live.Load() < d.most && d.waiting()
}

// allBlocked tells whether every worker is in the item that it was in at the last call, of which it keeps account in
// seen.
func (d *Dispatcher) allBlocked(seen []uint64) bool {
	all := true
	for i := range d.workers {
		w := d.workers[i].Load()
		if w == nil {
			break
		}
		state := w.state.Load()
		if w.alive.Load() && (state&workerRunning == 0 || state != seen[i]) {
			all = false
		}
		seen[i] = state
	}
	return all
}

// Close ends the dispatcher: once it has been called no item is started any more, and once it has returned nil none runs.
// It waits for those that run until ctx is done; the error then says how many still do, and wraps the cause. It returns
// the items that will not be run; they are the caller's again. What is offered from now on is refused. Further calls wait
// as the first, and return no items. An item must not call Close with a ctx that does not end: it would wait for itself.
//
// An item and Close agree on whether it runs by one word, the worker's: the worker sets a bit in it to start the item,
// Close sets another one that forbids that; whoever comes first is seen by the other.
func (d *Dispatcher) Close(ctx context.Context) (notRun []Item, err error) {
	d.mu.Lock()
	if !d.closed.Swap(true) && d.goroutines == 0 {
		close(d.ended)
	}
	d.mu.Unlock()
	// No worker is started any more.
	for i := range d.workers {
		if w := d.workers[i].Load(); w != nil {
			// From here on it starts no item; pairs with the compare-and-swap in runItem.
			w.state.Or(workerShut)
		}
	}
	// A worker that parks after this has seen closed, which it loads after it has added itself.
	for i, ok := d.idle.claim(); ok; i, ok = d.idle.claim() {
		d.workers[i].Load().bell.ring()
	}
	d.watch.ring()
	select {
	case <-d.ended:
	case <-ctx.Done():
		if n := d.settle(); n > 0 {
			err = fmt.Errorf("close dispatcher: %d items still run: %w", n, context.Cause(ctx))
		}
	}
	return d.drain(), err
}

// settle waits for workers that are not in an item, which takes them no time, and returns how many are.
func (d *Dispatcher) settle() int {
	for {
		running, other := 0, 0
		d.mu.Lock()
		for i := range d.workers {
			if w := d.workers[i].Load(); w != nil && w.alive.Load() {
				if w.state.Load()&workerRunning != 0 {
					running++
				} else {
					other++
				}
			}
		}
		d.mu.Unlock()
		if other == 0 {
			return running
		}
		time.Sleep(50 * time.Microsecond)
	}
}

// drain takes what is left. No worker touches a queue any more.
func (d *Dispatcher) drain() []Item {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.drained {
		return nil
	}
	all := d.left
	d.left = nil
	for item, ok := d.injector.Pop(); ok; item, ok = d.injector.Pop() {
		all = append(all, item)
	}
	empty := func(q *Queue) {
		var some [64]Item
		for n := q.StealTo(some[:]); n > 0; n = q.StealTo(some[:]) {
			all = append(all, some[:n]...)
		}
	}
	for _, s := range d.sources {
		empty(s.queue)
	}
	for i := range d.workers {
		if w := d.workers[i].Load(); w != nil {
			empty(w.queue)
		}
	}
	d.drained = true
	return all
}

// Stats counts what has happened since New.
type Stats struct {
	Run      uint64 // items that workers have run to their end
	Stolen   uint64 // items that workers took from sources and from each other
	Wakes    uint64 // sleepers woken
	Elided   uint64 // wakes that were not needed: a worker was looking for work already
	Parks    uint64 // times that a worker went to sleep
	Overflow uint64 // items that found their source full
	Started  uint64 // workers started
	Retired  uint64 // workers ended because they were idle
	Workers  int    // workers now
	Waiting  int    // items that wait in the injector now
}

// WorkerStats is the part of one worker.
type WorkerStats struct {
	Run    uint64
	Stolen uint64
	Parks  uint64
}

// Stats returns the counters. They are not of one moment.
func (d *Dispatcher) Stats() Stats {
	d.mu.Lock()
	s := Stats{Started: d.started, Retired: d.retired, Workers: int(d.live.Load()), Waiting: d.injector.Len()}
	d.mu.Unlock()
	s.Wakes, s.Elided, s.Overflow = d.wakes.Load(), d.elided.Load(), d.overflow.Load()
	for i := range d.workers {
		w := d.workers[i].Load()
		if w == nil {
			break // Numbers are given from 0 on.
		}
		one := w.stats()
		s.Run += one.Run
		s.Stolen += one.Stolen
		s.Parks += one.Parks
	}
	return s
}

// EachWorker returns the counters of each number that a worker has had, in their order.
func (d *Dispatcher) EachWorker() []WorkerStats {
	var all []WorkerStats
	for i := range d.workers {
		w := d.workers[i].Load()
		if w == nil {
			break
		}
		all = append(all, w.stats())
	}
	return all
}

func (w *worker) stats() WorkerStats {
	return WorkerStats{Run: w.state.Load() / workerRan, Stolen: w.stolen.Load(), Parks: w.parks.Load()}
}
