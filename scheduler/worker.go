package scheduler

import (
	"runtime"
	"sync/atomic"

	"github.com/pollux-go/pollux/internal/sys"
)

const (
	// workerCapacity bounds what a worker has at hand when it steals, so that one does not take everything.
	workerCapacity = 64

	// fairEvery is after how many items a worker takes one from the next queue in turn, whatever it would take otherwise:
	// no queue waits for ever behind one that never gets empty.
	fairEvery = 61
)

// Bits of a worker's state; above them the items that it has run are counted.
const (
	workerRunning = 1 << iota // it is in an item
	workerShut                // it starts none any more
	workerRan                 // one item
)

// A worker is a goroutine that runs items, or the place of one: numbers are used again.
type worker struct {
	d       *Dispatcher
	number  int
	near    []int    // sources that come first; the worker only
	all     []*Queue // those of the sources
	queue   *Queue   // what it has stolen and not run; the worker is its owner
	turn    int      // items taken; the worker only
	settled int      // how often it was; the worker only
	_       [padding]byte

	state  atomic.Uint64 // written by the worker, and by Close
	stolen atomic.Uint64
	parks  atomic.Uint64
	alive  atomic.Bool // changed under Dispatcher.mu
	_      [padding]byte

	bell bell
	_    [padding]byte
}

func newWorker(d *Dispatcher, number int) *worker {
	w := &worker{d: d, number: number, queue: NewQueue(workerCapacity), bell: newBell(d.channels)}
	for i := range d.sources { // Each begins at another one.
		w.all = append(w.all, d.sources[(i+number)%len(d.sources)].queue)
	}
	return w
}

// slackFirst is how often a worker that begins to look for work sees to the timer slack of its thread, and slackEach which time it
// does so after that: the threads are few, and keep it.
const (
	slackFirst = 16
	slackEach  = 16
)

// settle finds out what is near to where the worker runs now, and makes the thread one that is not late with the next.
func (w *worker) settle() {
	if w.settled++; w.d.slack > 0 && (w.settled <= slackFirst || w.settled%slackEach == 0) {
		_ = sys.SetTimerSlack(int(w.d.slack)) // Where it is refused, workers wake later.
	}
	if w.d.near != nil {
		w.near = w.d.near()
	}
}

// work is the life of a worker, which starts with the search.
func (w *worker) work() { w.workOn(true) }

// workOn is work, with the search or without.
func (w *worker) workOn(search bool) {
	d := w.d
	duty := !search // What came while its last goroutine ended may have found nobody.
	if d.begin != nil {
		d.begin(w.number)
	}
	w.settle()
	for !d.closed.Load() {
		item, moved, ok := w.take()
		if !ok {
			if search, ok = w.park(search); !ok {
				endThread()
				return
			}
			duty = true
			w.settle()
			continue
		}
		if search {
			search, duty = false, true
			d.idle.end()
		}
		if moved || duty && d.waiting() {
			d.Wake()
		}
		duty = false
		if !w.runItem(item) {
			break
		}
	}
	d.mu.Lock()
	d.bury(w)
	d.leave()
	d.mu.Unlock()
	endThread()
}

// endThread makes the calling goroutine's thread end with it. It has slept in a system call, so that the runtime may have made
// another one in its place, and would keep both for ever.
func endThread() {
	if !sys.IsFirstThread() {
		runtime.LockOSThread()
	}
}

// runItem runs item, unless the dispatcher was closed: then it leaves it to Close.
func (w *worker) runItem(item Item) bool {
	// Claim the right to run; pairs with the Or in Close. Only Close changes the word besides this worker.
	state := w.state.Load()
	if state&workerShut != 0 || !w.state.CompareAndSwap(state, state|workerRunning) {
		w.d.mu.Lock()
		w.d.left = append(w.d.left, item)
		w.d.mu.Unlock()
		return false
	}
	ended := false
	defer func() {
		w.state.Add(workerRan - workerRunning)
		if !ended {
			go w.workOn(false) // Or this is a panic that ends the process.
		}
	}()
	w.d.run(w.number, item)
	ended = true
	return true
}

// take finds an item. moved says that others were put into the worker's own queue.
func (w *worker) take() (item Item, moved, ok bool) {
	w.turn++
	if w.turn%fairEvery == 0 {
		if item, ok = w.takeFair(w.turn / fairEvery); ok {
			return item, false, true
		}
	}
	if item, ok = w.queue.Pop(); ok {
		return item, false, true
	}
	// What is in the injector may be older than what is in the sources, or newer: it overflowed from them.
	injectorFirst := w.turn%2 == 0
	if injectorFirst {
		if item, ok = w.d.injector.Pop(); ok {
			return item, false, true
		}
	}
	for _, i := range w.near {
		if item, n := w.steal(w.d.sources[i].queue); n > 0 {
			return item, n > 1, true
		}
	}
	for _, q := range w.all {
		if item, n := w.steal(q); n > 0 {
			return item, n > 1, true
		}
	}
	if !injectorFirst {
		if item, ok = w.d.injector.Pop(); ok {
			return item, false, true
		}
	}
	// Others may be blocked in an item with more at hand. Begin behind this one, so that not all begin at the same.
	n := len(w.d.workers)
	for i := 1; i < n; i++ {
		if v := w.d.workers[(w.number+i)%n].Load(); v != nil {
			if item, n := w.steal(v.queue); n > 0 {
				return item, n > 1, true
			}
		}
	}
	return 0, false, false
}

func (w *worker) steal(from *Queue) (Item, int) {
	item, n := from.Steal(w.queue)
	if n > 0 {
		w.stolen.Add(uint64(n))
	}
	return item, n
}

// takeFair takes one item from the injector or a source, each in turn.
func (w *worker) takeFair(turn int) (Item, bool) {
	i := turn % (len(w.all) + 1)
	if i == len(w.all) {
		return w.d.injector.Pop()
	}
	var one [1]Item
	n := w.all[i].StealTo(one[:])
	w.stolen.Add(uint64(n))
	return one[0], n > 0
}

// park sleeps until the worker is claimed, and then has the search, or until it finds by itself that it must not sleep.
// ok is false when it has retired and is no more. See [Dispatcher] for P1 to P4.
func (w *worker) park(search bool) (claimed, ok bool) {
	d := w.d
	w.bell.mute()
	d.idle.add(w.number) // P1
	if search {
		d.idle.end() // P2
	}
	if d.waiting() || d.closed.Load() { // P3
		if d.idle.remove(w.number) {
			return false, true
		}
		// The bell is about to ring, and must not ring into the next sleep.
		w.bell.wait(forever)
		return true, true
	}
	w.parks.Add(1) // P4
	timeout := forever
	if d.retire > 0 {
		timeout = d.retire
	}
	for !w.bell.wait(timeout) {
		if d.dismiss(w) {
			return false, false
		}
		// It is the last one, or it has just been claimed and the bell is about to ring.
		timeout = forever
	}
	return true, true
}

// dismiss ends a worker that sleeps, unless it is the last one or was claimed.
func (d *Dispatcher) dismiss(w *worker) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.live.Load() == 1 || !d.idle.remove(w.number) {
		return false
	}
	d.bury(w)
	d.retired++
	// A waker may have seen the most workers, and nobody asleep, between the two steps above: it counted on a worker
	// that was still there. It pushed before, so this sees it.
	if d.waiting() {
		d.mu.Unlock()
		d.Wake()
		d.mu.Lock()
	}
	d.leave()
	return true
}

// bury gives back a worker's number. d.mu is locked.
func (d *Dispatcher) bury(w *worker) {
	w.alive.Store(false)
	d.live.Add(-1)
	d.free[w.number/64] |= 1 << (w.number % 64)
}
