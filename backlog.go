package pollux

import (
	"sync/atomic"
	"time"
)

// A turn has a backlog when its callbacks will take longer than backlogWorth together, at what one has taken lately: longer
// than it takes to wake a worker and have it begin. Then workers may have a share of them, if one takes longer than
// backlogLeast: it costs about a microsecond to give one away.
var ( // Tests change them.
	backlogWorth = int64(slowCall)
	backlogLeast = int64(20 * time.Microsecond)
	backlogCPUs  = func(cpus, procs int) int { return min(cpus, procs) }
)

// backlogWeight is how many turns the moving average goes back.
const backlogWeight = 8

// backlog is what a loop shares with idle workers: callbacks for bytes that have come, from a turn with many of them that take
// long, although none of them is slow.
//
// The first ones of the turn are put into a source of the loop, where workers steal them, half of what is there at a time; the
// loop runs the others meanwhile, and takes back what is left then. So nothing waits for a worker that does not come. It is the
// run queue of Go's scheduler, with the loop as the P (runqsteal in runtime/proc.go).
type backlog struct {
	mean   int64 // what a callback took in the last turns that had some, with what goes with it, in nanoseconds
	ran    int   // callbacks that the loop has run in this turn
	give   int   // how many more of this turn are for workers
	given  int   // callbacks of this turn that went into the source
	shared atomic.Uint64
	taken  atomic.Uint64 // of these, taken back
}

// turn notes a turn that has ended. One slow callback does not make a backlog.
func (b *backlog) turn(took int64) {
	if b.ran > 0 {
		b.mean += (min(took/int64(b.ran), int64(slowCall)) - b.mean) / backlogWeight
	}
	b.ran = 0
}

// share returns how many of so many callbacks are for workers, where so many CPUs are idle.
func (b *backlog) share(callbacks, spare int) int {
	if spare <= 0 {
		return 0
	}
	return callbacks - (callbacks+spare)/(spare+1)
}

// worth tells whether so many callbacks are a backlog.
func (b *backlog) worth(callbacks int) bool {
	return callbacks > 1 && b.mean >= backlogLeast && int64(callbacks)*b.mean >= backlogWorth
}

// spareCPUs returns how many CPUs have nothing to do for the loops. Isolated ones are for nobody else.
func (l *loop) spareCPUs() int {
	spare := int(l.engine.cpus.Load())
	for _, o := range l.engine.loops {
		if o == l || l.engine.config.Isolate || !o.inner.Sleeps() {
			spare--
		}
	}
	return spare
}

// beginBacklog decides, for a turn that begins with so many events, how many callbacks are for workers.
func (l *loop) beginBacklog(events int) {
	if b := &l.backlog; b.worth(events) && !l.ending {
		b.give = b.share(events, l.spareCPUs())
	}
}

// shares tells whether the next callback for bytes that have come is for a worker, though it is not slow.
func (l *loop) shares() bool {
	if l.backlog.give <= 0 || l.ending {
		return false
	}
	l.backlog.give--
	return true
}

// endBacklog takes back what no worker has stolen, and runs it.
func (l *loop) endBacklog() {
	b := &l.backlog
	b.give = 0
	if b.given == 0 {
		return
	}
	for source := l.source(true); ; {
		item, ok := source.Pop()
		if !ok {
			break
		}
		b.taken.Add(1)
		l.takeBack(l.errands.get(uint32(item))) // If it ends the goroutine, or is relieved, the turn is ended once more.
	}
	b.given = 0
}

// takeBack runs a callback on the loop that was meant for a worker, and does what was kept for its connection.
func (l *loop) takeBack(r *errand) {
	c, k := r.conn, *r
	if c.in.memory == 0 && len(c.in.view) > 0 { // It lies in the errand's.
		if n := copy(l.buffer, c.in.view); n == len(c.in.view) {
			c.in.view = l.buffer[:n]
		} else {
			c.in.keep()
		}
	}
	l.errands.give(r)
	l.away.Add(-1)
	c.mu.Lock()
	c.asked &^= withWorker
	c.mu.Unlock()
	c.duty.Store(0)
	switch {
	case c.fd < 0:
		l.closed(c, ErrDetached)
		return
	case k.kept&keptClose != 0:
		l.destroy(c, k.toReason)
		return
	}
	if k.kept&keptAgain != 0 {
		c.flags &^= flagAgain
		l.later(c)
	}
	l.catching = k // Here, for one who takes over from the callback.
	l.silent = false
	l.guard(func() {
		l.enter(c)
		l.finish(c, c.handle(k.what))
	})
	if l.silent && c.flags&flagArmed != 0 && !c.isClosed() && !l.alive(c) { // As in back.
		l.catching = errand{}
		return
	}
	l.guard(l.catchUp)
}
