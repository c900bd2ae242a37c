package pollux

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/poller"
)

// Relief: an event loop is taken over from a thread that is stuck in a handler, so that the other connections need not wait for it.
//
// While a loop is looked after, because callbacks of it were slow lately, it is shared by two threads: see poller.Loop.Share.
// One of them has the turns, and the other one sleeps in the same epoll set, until an event comes while the first one is busy.
// Then it looks for how long the callback has been running that the first one is in. If that is long it becomes the loop, and
// the callback an errand: what runs it is no loop any more. So a handler that is fast, but for one call in a hundred, costs no
// hand-over where it is fast, and costs the others a moment where it is not; and where there are no others, nothing. In
// particular no timer is set, turn by turn: on a virtual machine that may take five microseconds, each time.
//
// A loop that is not looked after is relieved, too, if the watchdog finds it stuck, 25 to 50 ms later: see relieveLate. So is one
// whose thread has SCHED_FIFO, which never is looked after. Who was relieved is an ordinary thread from then on.
//
// Ownership. A loop's state belongs to the goroutine that has put a connection into loop.current, or took it out. While a
// handler runs, whoever holds that connection's mutex and finds it there may take it out and is the loop from then on: the
// loop's own way out of a callback is the same compare-and-swap, under the same mutex (leave). Who finds that it came second
// touches nothing of the loop, ends the errand, and unwinds to serve (lost). Functions that end in between, by a panic or by
// Goexit, compare loop.tenure, which each relief counts up, with what it was when they began.
//
// Threads. The one that was relieved is not ended, but waits as a spare one until the next follower is needed: a service that is
// relieved fifty times a second makes no threads, but for callbacks that are stuck at the same time.
//
// OnClose is called from anywhere in the loop, which could not be gone on with there by another thread. So while a loop is
// looked after, each OnClose goes to a worker.
//
// A ring belongs to its thread: on io_uring, handlers that are slow go to workers.

// reliefs is what an engine knows of those.
type reliefs struct {
	crew  sync.WaitGroup // the threads of loops but one each: followers, spare ones, and those that are stuck
	count atomic.Uint64

	mu    sync.Mutex      // protects stuck
	stuck map[int]*errand // what threads run that were loops', by their ids
}

// lookout is how a loop has itself looked after. It is the loop's, but for what is atomic.
type lookout struct {
	turns   int          // that are still to be looked after
	bucket  int          // of slow calls: see note
	useful  bool         // since the loop is looked after, a slow callback has ended that was relieved, or an OnClose that would have needed it
	slowEnd atomic.Bool  // such a one has just ended
	pause   int64        // for how long it was not, after the last time that was of no use
	after   int64        // the instant until which it is not
	futile  atomic.Int32 // long turns in a row in which nothing was stuck
	threads atomic.Int32 // that run the loop, or wait to
	failed  atomic.Bool  // there can be one only
	usual   []int        // the CPUs of threads that are no loop's
	spares  spares

	// The follower's.
	seenCalls uint64 // which callback it has seen
	seenCPU   int64  // the CPU time of the loop's thread then
	seenUsed  int64  // how much of it was the callback's, at most
}

const (
	// reliefAfter is how long ago a callback has begun, at least, that is relieved where it sleeps, and reliefCompute for how long
	// it has had the CPU where it computes.
	reliefAfter   = slowCall / 2
	reliefCompute = slowCompute / 2

	// watchWeight is among how many calls one is slow, at least, of a loop that is looked after; watchEnough of them fill the bucket.
	watchWeight = 1 << 8
	watchEnough = 2 * watchWeight

	// watchPauseLeast is for how long a loop is not looked after when there was no relief the last time. It doubles each time.
	watchPauseLeast = int64(50 * time.Millisecond)
	watchPauseMost  = 128 * watchPauseLeast

	// futileMost is after how many futile turns a loop is not looked after any more: they are long for another reason.
	futileMost = 64

	// looksMost is how often the pause between two looks at one turn doubles.
	looksMost = 3

	// endPause is how often who ends the loop sees whether the others have gone.
	endPause = time.Millisecond

	// watchTurns is for how many turns it is looked after then.
	watchTurns = 1 << 12
)

// relievable tells whether the loop can be looked after. Where it cannot, handlers that are slow go to workers. A thread with
// SCHED_FIFO would keep the follower off its CPU.
func (l *loop) relievable() bool { return l.movable && !l.lookout.failed.Load() && !l.pin.Sched.FIFO }

// note counts a call that has ended now. It is true when the loop is to be looked after, or longer: when so many calls were slow
// lately. A leaky bucket: a thread that the kernel, or a hypervisor, has stopped for a moment looks like a slow call, too; and in a
// loop that is looked after for nothing more of them do, as the threads that wait for it take its CPU.
func (w *lookout) note(now int64, slow bool) bool {
	if !slow {
		w.bucket = max(0, w.bucket-1)
		return false
	}
	w.bucket = min(w.bucket+watchWeight, watchEnough+watchWeight)
	return w.bucket > watchEnough && now >= w.after
}

// beWatched has the loop looked after from the next turn on.
func (l *loop) beWatched() {
	w := &l.lookout
	if !l.relievable() || l.ending {
		return
	}
	w.turns = watchTurns
	if !l.inner.Shared() {
		l.inner.Spin(0, false) // A loop that spins does not wait, and the others would have its events.
		l.inner.Share(true)
	}
	l.callFollower()
}

// notWatched ends that.
func (l *loop) notWatched() {
	w := &l.lookout
	if w.useful {
		w.pause = 0
	} else {
		w.pause = min(max(2*w.pause, watchPauseLeast), watchPauseMost)
		w.after = poller.Nanotime() + w.pause
	}
	w.turns, w.bucket, w.useful = 0, 0, false
	w.futile.Store(0)
	l.inner.Share(false)
	l.inner.Spin(l.spin())
}

// callFollower has a spare thread wait beside the loop, or a new one, if none does.
func (l *loop) callFollower() {
	if !l.lookout.threads.CompareAndSwap(1, 2) {
		return // One that is about to leave sees that the loop is shared, and stays.
	}
	if !l.lookout.spares.call() {
		l.engine.reliefs.crew.Add(1)
		go l.follow()
	}
}

// beginWatched begins a turn that is looked after.
func (l *loop) beginWatched() {
	w := &l.lookout
	l.thread.Store(int64(sys.Gettid()))
	if w.slowEnd.Load() {
		w.slowEnd.Store(false)
		w.useful, w.turns = true, watchTurns
		w.futile.Store(0)
	}
	if w.turns--; w.turns == 0 || w.futile.Load() >= futileMost || w.failed.Load() {
		l.notWatched()
	}
}

// endShare waits until nobody uses the backend any more but the calling thread, which ends the loop.
func (l *loop) endShare() {
	l.lookout.spares.end()
	if !l.movable {
		return
	}
	l.inner.Share(false)
	for l.lookout.threads.Load() > 1 {
		l.backend.(poller.Sharer).Rouse()
		time.Sleep(endPause)
	}
}

// follow is the life of a thread that begins as a follower.
func (l *loop) follow() {
	onOwnThread(func() {
		l.join()
		l.man(l.inner.Follow)
	})
}

// relieveLate has a thread see to a callback that the watchdog has found running, in a loop that is not looked after: the first
// slow one for long, say, which may never return. From then on the loop is looked after, if it can be. The loop's state says so only
// to those that own it, so the thread comes as a follower would, and is the owner before it has the loop shared.
//
// With SCHED_FIFO, too: a callback that sleeps leaves its CPU to others, and one that computes has lost its priority to the attendant
// by then, or has an isolated CPU, and those that relieve it have another one.
func (l *loop) relieveLate(c *Conn, calls uint64) {
	if !l.movable || !l.lookout.threads.CompareAndSwap(1, 2) {
		return // Nobody can, or one does. A follower that was not needed any more leaves when it has an event; the watchdog asks again.
	}
	l.engine.reliefs.crew.Add(1)
	go onOwnThread(func() {
		if !l.takeLate(c, calls) {
			l.lookout.threads.Add(-1)
			if !l.stays() { // The callback may have had the loop looked after as it ended: see callFollower.
				l.engine.reliefs.crew.Done()
				return
			}
			l.join()
			l.man(l.inner.Follow)
			return
		}
		l.thread.Store(int64(sys.Gettid()))
		l.join()
		l.man(func() error {
			l.beWatched()
			l.Relieved(nil)
			return l.inner.Run()
		})
	})
}

// takeLate waits until the callback is to be relieved, and does that. It is false if the callback ends before.
func (l *loop) takeLate(c *Conn, calls uint64) bool {
	for {
		began := l.callAt.Load()
		if l.calls.Load() != calls || l.current.Load() != c {
			return false
		}
		age := stuckAfter
		if began != 0 {
			age = time.Duration(poller.Nanotime() - began)
		}
		stuck, rest := l.isStuck(calls, age)
		if stuck {
			return l.take(c, calls, began)
		}
		time.Sleep(max(rest, reliefAfter/2))
	}
}

// man is the life of a thread that runs the loop, by itself or in turns with others.
func (l *loop) man(run func() error) {
	s := &l.lookout.spares
	defer s.setMember(sys.Gettid(), false)
	for l.serve(run) {
		if !l.stays() && !s.wait() {
			l.engine.reliefs.crew.Done()
			return
		}
		l.join() // Who was relieved has lost its CPU, and its priority.
		run = l.inner.Follow
	}
}

// stays has the calling thread, which is free, be the loop's follower if the loop is shared and has none.
func (l *loop) stays() bool {
	for l.inner.Shared() && l.lookout.threads.CompareAndSwap(1, 2) {
		// Once more: either this finds that the loop is not shared any more, or who ends it waits for this thread, in endShare.
		if l.inner.Shared() {
			return true
		}
		l.lookout.threads.Add(-1)
	}
	return false
}

// left ends a follower's time.
func (l *loop) left(err error) {
	if err != poller.ErrElsewhere { // But more than that.
		l.engine.refused(fmt.Errorf("relieve a loop that is stuck: %w", err))
		l.lookout.failed.Store(true)
	}
	l.lookout.threads.Add(-1)
}

// Relieve implements [poller.SharedSink].
func (l *loop) Relieve(looks int) (took bool, again time.Duration) {
	calls, began, c := l.calls.Load(), l.callAt.Load(), l.current.Load()
	again = reliefAfter << min(looks, looksMost)
	if c != nil && began != 0 {
		age := time.Duration(poller.Nanotime() - began)
		stuck, rest := l.isStuck(calls, age)
		if stuck && l.take(c, calls, began) {
			return true, 0
		}
		again = max(again-age, reliefAfter/8)
		if age >= reliefAfter && !stuck {
			again = max(rest, reliefAfter/2)
		}
	}
	if looks == 1 {
		l.lookout.futile.Add(1)
	}
	return false, again
}

// isStuck tells whether the callback with that number, which has begun so long ago, is to be relieved: it sleeps, or has
// computed for long. If not, it says for how long it would have to go on with that. Where its thread waits for a CPU, it is
// left alone. The follower calls it.
func (l *loop) isStuck(calls uint64, age time.Duration) (stuck bool, rest time.Duration) {
	w, tid := &l.lookout, int(l.thread.Load())
	cpu, errno := sys.CPUTime(tid)
	if errno != 0 {
		return age >= reliefAfter, 0
	}
	if w.seenCalls != calls {
		w.seenCalls, w.seenCPU, w.seenUsed = calls, cpu, int64(min(age, reliefAfter))
	}
	if age < reliefAfter {
		return false, 0
	}
	rest = reliefCompute - time.Duration(w.seenUsed+cpu-w.seenCPU)
	if rest <= 0 {
		return true, 0
	}
	runnable, errno := sys.IsRunnable(tid)
	return errno != 0 || !runnable, rest
}

// Stray implements [poller.SharedSink].
func (l *loop) Stray(events []poller.Event) {
	events = slices.Clone(events)
	// Where the loop has ended, so have the connections.
	_ = l.inner.PostAlways(func() {
		l.batch, l.next = events, 0
		for l.next < len(l.batch) {
			l.dispatch()
		}
	})
}

// take makes the calling thread the loop, whose callback of c, the one with that number, goes on elsewhere. It is false if that
// callback has ended meanwhile, or cannot be left alone.
func (l *loop) take(c *Conn, calls uint64, began int64) bool {
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
	r.conn, r.what, r.began, r.spent, r.weight = c, onAsync, began, l.spent, l.slowWeight()
	if began == 0 { // It was not clocked, and the watchdog has found it.
		r.began = poller.Nanotime() - int64(stuckAfter)
	}
	old := int(l.thread.Load())
	l.lookout.spares.setMember(old, false)
	s := &l.engine.reliefs
	s.mu.Lock()
	if s.stuck == nil {
		s.stuck = map[int]*errand{}
	}
	s.stuck[old] = r
	s.mu.Unlock()

	r.lent = l.buffer // The handler may look at what lies there.
	l.buffer = l.lookout.spares.buffer(len(l.buffer))
	if c.out == &l.cork {
		c.out = &outbound{buf: append([]byte(nil), l.cork.buf[l.cork.head:]...)}
	}
	l.cork.buf, l.cork.head = l.cork.buf[:0], 0
	l.callAt.Store(0)
	l.timing.begin(l.calls.Load())
	l.timing.found = true
	l.spent = spentNow()
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
	l.lookout.futile.Store(0)
	l.lookout.threads.Add(-1)
	l.engine.reliefs.count.Add(1)
	l.tenure.Add(1)
	l.current.Store(nil) // Publishes all this to the old thread, which comes second in leave.
	if c.out != nil {
		if err := c.flush(); err != nil {
			r.kept |= keptClose
			r.toReason = err
			c.duty.Store(duty | dutyAwaited)
		}
	}
	if l.pin.CPU >= 0 {
		_ = sys.SetAffinity(old, l.lookout.usual)
	}
	if l.pin.Sched.Set {
		l.dismiss() // First, or it might give the priority back. The next thread gets one of its own.
		_ = sys.SetSched(old, sys.Sched{})
	}
	return true
}

// Relieved implements [poller.SharedSink].
func (l *loop) Relieved(events []poller.Event) {
	l.thread.Store(int64(sys.Gettid()))
	n := min(l.next, len(l.batch))
	if n > 0 {
		if s, ok := l.sources.Get(l.batch[n-1].Token); ok && s.acceptor != nil {
			n-- // It may have more to accept.
		}
	}
	l.batch, l.next = append(slices.Clone(l.batch[n:]), events...), 0
	if l.relievable() && !l.ending {
		l.callFollower()
	}
	if c := l.opening; c != nil {
		l.opening = nil
		if err := l.arm(c); err != nil {
			l.destroy(c, err) // Which is kept.
		}
	}
	if l.catching.conn != nil {
		l.guard(l.catchUp)
	}
	l.resumeStarved()
	l.resumeLeaving()
	for l.next < len(l.batch) {
		l.dispatch()
	}
}

// usualCPUs returns what the calling thread may run on, which is not pinned yet, without the loops' CPUs where those are isolated. A
// sweep would take them from a thread that was relieved, but up to a second later.
func (l *loop) usualCPUs() []int {
	cpus, _ := sys.AffinityOf(0)
	if !l.engine.config.Isolate {
		return cpus
	}
	var loops []int
	for _, o := range l.engine.loops {
		loops = append(loops, o.pin.CPU)
	}
	if rest := without(cpus, loops); len(rest) > 0 {
		return rest
	}
	return cpus // It has nowhere else to go.
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

// runs tells whether that thread, which was a loop's, still runs a callback of c.
func (s *reliefs) runs(c *Conn, thread int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.stuck[thread]
	return r != nil && r.conn == c
}

// unwinding is the panic by which a callback returns to serve whose loop has gone on elsewhere.
type unwinding struct{}

// lost ends a callback whose loop goes on elsewhere, and returns to serve.
func (l *loop) lost(err error) {
	l.endStuck(err)
	panic(unwinding{})
}

// claim is for a thread whose callback ends by a panic or by Goexit: from here on it is not relieved any more. It returns the
// callback's connection, or says that the thread has been relieved before.
func (l *loop) claim() (c *Conn, relieved bool) {
	s := &l.engine.reliefs
	c = l.current.Load()
	if c == nil {
		return nil, s.stuckHere(false) != nil
	}
	// The connection is another thread's if this one was relieved. Which is known by then: see the order in take.
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.stuckHere(false) != nil {
		return nil, true
	}
	l.callAt.Store(0)
	return c, false
}

// endStuck ends the callback that the calling thread was relieved in. It is false if it was not.
func (l *loop) endStuck(err error) bool {
	r := l.engine.reliefs.stuckHere(true)
	if r == nil {
		return false
	}
	took, v := r.spent.judgeSince(r.began)
	l.timesAway.NoteShared(took)
	slow := v != quick
	if slow {
		r.loop.lookout.slowEnd.Store(true)
	}
	r.conn.service.pace.note(slow, r.weight)
	r.err = err
	lent := r.lent
	r.end()
	l.lookout.spares.keep(lent)
	return true
}
