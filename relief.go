package pollux

import (
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/poller"
)

// reliefs takes event loops over from threads that are stuck in a handler, so that the other connections need not wait for it.
//
// A thread that looks every 200 us, as long as a loop has lately been busy for longer than a slow call, finds a loop in the callback
// that it was in before. Then it becomes the loop, and the callback an errand: what runs it is no loop any more, and its thread ends
// with it. So a handler that is fast, but for one call in a hundred, costs the others a moment and no hand-over.
//
// Ownership. A loop's state belongs to the goroutine that has put a connection into loop.current, or took it out. While a handler
// runs, whoever holds that connection's mutex and finds it there may take it out and is the loop from then on: the loop's own way
// out of a callback is the same compare-and-swap, under the same mutex (leave). Who finds that it came second touches nothing of the
// loop, ends the errand, and then its goroutine (lost). Functions that end in between, by a panic or by Goexit, compare
// loop.tenure, which each relief counts up, with what it was when they began.
//
// A ring belongs to its thread: on io_uring, handlers that are slow go to workers.
type reliefs struct {
	running atomic.Bool    // somebody looks
	stop    atomic.Bool    // the engine has ended
	lookers sync.WaitGroup // who looks, and who is about to
	word    uint32         // to sleep on; nobody wakes
	count   atomic.Uint64

	mu    sync.Mutex      // protects stuck
	stuck map[int]*errand // what threads run that were loops', by their ids
}

const (
	// reliefTick is how often it is looked: a callback is relieved after one tick to two.
	reliefTick = slowCall

	// reliefQuiet is after how many ticks without need nobody looks any more.
	reliefQuiet = 500
)

// relievable tells whether another thread can become the loop.
func (l *loop) relievable() bool {
	return l.errands != nil && l.completer == nil && l.engine.config.Dispatch == DispatchSteal
}

// begin has somebody look.
func (s *reliefs) begin(e *Engine) {
	if !s.running.Load() && s.running.CompareAndSwap(false, true) {
		s.lookers.Add(1)
		go e.relieve()
	}
}

// end waits until nobody looks any more. The loops have ended.
func (s *reliefs) end() {
	s.stop.Store(true)
	s.lookers.Wait()
}

// relieve looks after the loops. It is counted in lookers.
func (e *Engine) relieve() {
	runtime.LockOSThread()
	if sys.IsFirstThread() {
		// Not this one, as in loop.run.
		begun := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(begun)
			e.look()
		}()
		<-begun
		runtime.UnlockOSThread()
		return
	}
	e.look()
}

func (e *Engine) look() {
	s := &e.reliefs
	_ = sys.SetTimerSlack(1)
	seen := make([]uint64, len(e.loops))
	for quiet := 0; !s.stop.Load(); {
		sys.FutexWait(&s.word, 0, reliefTick)
		need := false
		for i, l := range e.loops {
			if !l.suspect.Load() {
				continue
			}
			need = true
			calls, c := l.calls.Load(), l.current.Load()
			if c != nil && calls == seen[i] && l.take(c, calls) {
				s.count.Add(1)
				s.lookers.Add(1)
				go e.relieve()
				s.lookers.Done()
				l.goOn()
				return
			}
			seen[i] = calls
		}
		if need {
			quiet = 0
			continue
		}
		if quiet++; quiet < reliefQuiet {
			continue
		}
		// A loop that stores suspect after this finds nobody running; one that has stored it before is seen below.
		s.running.Store(false)
		for _, l := range e.loops {
			need = need || l.suspect.Load()
		}
		if !need || !s.running.CompareAndSwap(false, true) {
			break
		}
		quiet = 0
	}
	s.lookers.Done()
}

// take makes the calling thread the loop, whose callback of c, the one with that number, goes on elsewhere. It is false if that
// callback has ended meanwhile, or cannot be left alone.
func (l *loop) take(c *Conn, calls uint64) bool {
	usual, _ := sys.AffinityOf(0) // What a thread is allowed that is no loop's.
	c.mu.Lock()
	defer c.mu.Unlock()
	if l.current.Load() != c || l.calls.Load() != calls || c.isClosed() || l.ending {
		return false
	}
	// From here on the loop's goroutine is in the handler, or waits for the mutex in leave.
	r := l.errands.take(l)
	if r == nil {
		return false
	}
	r.conn, r.what, r.began = c, onAsync, poller.Nanotime()-int64(reliefTick)
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
	l.callAt = 0
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
