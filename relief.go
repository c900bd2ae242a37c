package pollux

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/poller"
)

// Relief: an event loop is taken over from a thread that is stuck in a handler, so that the other connections need not wait for it.
//
// A loop of which a callback was slow lately arms a timer at the beginning of each turn, and disarms it at the end. Where it expires,
// a thread of its own, the looker, looks for how long the callback has been running. If that is long it becomes the loop, and the
// callback an errand: what runs it is no loop any more, and its thread ends with it. So a handler that is fast, but for one call in
// a hundred, costs the others a moment and no hand-over.
//
// Ownership. A loop's state belongs to the goroutine that has put a connection into loop.current, or took it out. While a handler
// runs, whoever holds that connection's mutex and finds it there may take it out and is the loop from then on: the loop's own way
// out of a callback is the same compare-and-swap, under the same mutex (leave). Who finds that it came second touches nothing of the
// loop, ends the errand, and then its goroutine (lost). Functions that end in between, by a panic or by Goexit, compare
// loop.tenure, which each relief counts up, with what it was when they began.
//
// A ring belongs to its thread: on io_uring, handlers that are slow go to workers.

// reliefs is what an engine knows of those.
type reliefs struct {
	lookers sync.WaitGroup // who looks, and who is about to
	count   atomic.Uint64
	word    uint32 // to sleep on; nobody wakes

	mu    sync.Mutex      // protects stuck
	stuck map[int]*errand // what threads run that were loops', by their ids
}

// lookout is how a loop has itself looked after. It is the loop's, but for what the looker reads.
type lookout struct {
	timer   int          // its descriptor; 0: not needed yet
	turns   int          // that are still to be looked after; 0: none
	bucket  int          // of slow calls: see measured
	futile  atomic.Int32 // looks in a row that have found nothing stuck
	armed   atomic.Bool
	stopped atomic.Bool
}

const (
	// reliefAfter is for how long a callback has run, at least, that is relieved.
	reliefAfter = slowCall / 2

	// watchWeight is among how many calls a second slow one has the loop looked after.
	watchWeight = 1 << 8

	// futileMost is after how many looks in vain a loop is not looked after any more: its turns are long for another reason.
	futileMost = 64

	// lookPause is the longest pause between two looks at one turn, while its callbacks return.
	lookPause = time.Millisecond

	// watchTurns is for how many turns it is looked after then.
	watchTurns = 1 << 12
)

// relievable tells whether another thread can become the loop.
func (l *loop) relievable() bool { return l.movable }

// beWatched has the loop looked after from the next turn on.
func (l *loop) beWatched() {
	if !l.relievable() || l.lookout.timer < 0 {
		return
	}
	l.lookout.turns = watchTurns
	if l.lookout.timer != 0 {
		return
	}
	fd, errno := sys.Timer()
	if l.lookout.timer = fd; errno != 0 {
		l.engine.refused(explain("relieve a loop that is stuck: make a timer", errno))
		return
	}
	l.engine.reliefs.lookers.Add(1)
	go l.look()
}

// arm begins a turn.
func (w *lookout) arm() {
	if w.turns--; w.futile.Load() >= futileMost {
		w.turns, w.bucket = 0, 0
		w.futile.Store(0)
		return
	}
	w.armed.Store(true) // Publishes that there is a turn; pairs with the load in find.
	_ = sys.SetTimer(w.timer, reliefAfter)
}

// disarm ends it.
func (w *lookout) disarm() {
	w.armed.Store(false)
	_ = sys.SetTimer(w.timer, 0)
}

// end lets the looker go, which is no loop any more or was none.
func (w *lookout) end() {
	if w.timer > 0 {
		w.stopped.Store(true)
		_ = sys.SetTimer(w.timer, 1)
	}
}

// look is the looker. It is counted in lookers.
func (l *loop) look() {
	runtime.LockOSThread()
	if sys.IsFirstThread() {
		// Not this one, as in run.
		begun := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(begun)
			l.lookOn()
		}()
		<-begun
		runtime.UnlockOSThread()
		return
	}
	l.lookOn()
}

func (l *loop) lookOn() {
	s := &l.engine.reliefs
	_ = sys.SetTimerSlack(1)
	for sys.WaitTimer(l.lookout.timer) == 0 && !l.lookout.stopped.Load() {
		if l.find() {
			s.count.Add(1)
			go l.look() // The next one, which is counted in this one's place.
			l.goOn()
			return
		}
	}
	sys.Close(l.lookout.timer)
	s.lookers.Done()
}

// find looks after one turn. It is true if the calling thread is the loop now.
func (l *loop) find() bool {
	w := &l.lookout
	w.futile.Add(1)
	pause, last := reliefAfter, uint64(0)
	for w.armed.Load() && !w.stopped.Load() {
		calls, began, c := l.calls.Load(), l.callAt.Load(), l.current.Load()
		wait := pause
		if c != nil && began != 0 {
			age := time.Duration(poller.Nanotime() - began)
			if age >= reliefAfter && l.take(c, calls, began) {
				w.futile.Store(0)
				return true
			}
			wait = max(pause-age, reliefAfter/8)
		}
		if calls != last { // They do return: less often, then.
			last, pause = calls, min(2*pause, lookPause)
		}
		sys.FutexWait(&l.engine.reliefs.word, 0, wait)
	}
	return false
}

// take makes the calling thread the loop, whose callback of c, the one with that number, goes on elsewhere. It is false if that
// callback has ended meanwhile, or cannot be left alone.
func (l *loop) take(c *Conn, calls uint64, began int64) bool {
	usual, _ := sys.AffinityOf(0) // What a thread is allowed that is no loop's.
	c.mu.Lock()
	defer c.mu.Unlock()
	if l.current.Load() != c || l.calls.Load() != calls || l.callAt.Load() != began || c.isClosed() || l.ending {
		return false
	}
	// From here on the loop's goroutine is in the handler, or waits for the mutex in leave.
	r := l.errands.take(l)
	if r == nil {
		return false
	}
	r.conn, r.what, r.began = c, onAsync, began
	old := int(l.thread.Load())
	s := &l.engine.reliefs
	s.mu.Lock()
	if s.stuck == nil {
		s.stuck = map[int]*errand{}
	}
	s.stuck[old] = r
	s.mu.Unlock()

	l.buffer = make([]byte, len(l.buffer)) // The handler may look at what lies in the old one.
	if c.out == &l.cork {
		c.out = &outbound{buf: append([]byte(nil), l.cork.buf[l.cork.head:]...)}
	}
	l.cork.buf, l.cork.head = l.cork.buf[:0], 0
	l.callAt.Store(0)
	l.timing = timingTurns
	if n := l.next; n > 0 && n <= len(l.batch) && l.batch[n-1].Token == c.token && c.token != 0 {
		// Perhaps not all of this event was seen to. Twice does no harm.
		r.kept |= keptEvents
		r.ready = l.batch[n-1].Ready
	}
	if l.opening == c {
		r.kept |= keptOpening
	}
	c.asked |= withWorker
	l.away.Add(1)
	duty := r.number << 1
	if r.kept != 0 {
		duty |= dutyAwaited
	}
	c.duty.Store(duty)
	l.beWatched()
	l.current.Store(nil) // Publishes all this to the old thread, which comes second in leave.
	l.tenure.Add(1)
	if c.out != nil {
		if err := c.flush(); err != nil {
			r.kept |= keptClose
			r.toReason = err
			c.duty.Store(duty | dutyAwaited)
		}
	}
	if l.pin.CPU >= 0 {
		_ = sys.SetAffinity(old, usual)
	}
	if l.pin.Sched.Set {
		_ = sys.SetSched(old, sys.Sched{})
	}
	return true
}

// goOn is the loop from where its last thread has left off.
func (l *loop) goOn() {
	l.lookout.disarm()
	l.comeTo()
	l.settle()
	if c := l.opening; c != nil {
		l.opening = nil
		if err := l.arm(c); err != nil {
			l.destroy(c, err) // Which is kept.
		}
	}
	if l.catching.conn != nil {
		l.guard(l.catchUp)
	}
	if n := l.next; n > 0 && n <= len(l.batch) {
		if s, ok := l.sources.Get(l.batch[n-1].Token); ok && s.acceptor != nil {
			l.next-- // It may have more to accept.
		}
	}
	for l.next < len(l.batch) {
		l.dispatch()
	}
	l.serve()
}

// comeTo moves the calling thread to the loop's CPU, from where others may be kept off.
func (l *loop) comeTo() {
	if l.pin.CPU >= 0 {
		_ = sys.SetAffinity(0, []int{l.pin.CPU}) // settle says what is wrong.
	}
}

// stuckHere returns the errand of the calling thread, which was a loop's, or nil.
func (s *reliefs) stuckHere(remove bool) *errand {
	id := sys.Gettid()
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.stuck[id]
	if remove {
		delete(s.stuck, id)
	}
	return r
}

// lost ends a callback whose loop goes on elsewhere, and the goroutine.
func (l *loop) lost(err error) {
	if r := l.engine.reliefs.stuckHere(true); r != nil {
		r.conn.service.pace.note(poller.Nanotime()-r.began, reliefWeight)
		r.err = err
		r.end()
	}
	runtime.Goexit()
}
