package pollux

import (
	"bytes"
	"context"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pollux-go/pollux/cgo"
	"github.com/pollux-go/pollux/internal/sys"
)

// watchdog is the goroutine that looks after all loops of the process: it tells of callbacks that do not return, has them relieved
// where nobody else does, and wakes loops that sleep while work waits for them, which would be a bug of ours.
//
// It looks every 25 ms as long as a loop does something, and sleeps otherwise; a loop that begins to do something wakes it. It calls
// nobody's logger itself: see teller.
type watchdog struct {
	mu    sync.Mutex // protects loops, ended, pinned and each
	loops map[*loop]*watched
	ended chan struct{} // of the goroutine that runs; nil: none does

	asleep atomic.Bool
	wake   chan struct{}
	stop   chan struct{}

	pinned time.Time     // when it last looked where the loops run
	each   time.Duration // and how often it does
}

// watched is what the watchdog knows of a loop.
type watched struct {
	calls      uint64 // when it looked last
	running    *Conn
	looks      int       // that have found this callback running
	thread     int64     // on which it runs
	relieved   bool      // it still does, and another thread is the loop
	logged     time.Time // when a line was last written of it
	overlooked bool
	rescues    uint64 // that were logged
}

var dog = watchdog{loops: map[*loop]*watched{}, wake: make(chan struct{}, 1), each: time.Second}

// stuckAfter is how long a callback may run before the watchdog counts it, and how often it looks.
const stuckAfter = 25 * time.Millisecond

// tellLooks is how many looks must find a callback running before a line is logged: on a machine that has too much to do, a
// thread stands still for some tens of milliseconds now and then, through no fault of its handler.
const tellLooks = 10

// watchdogQuiet is how often it looks in vain before it sleeps, and watchdogPause the least time between two log lines of a loop.
const (
	watchdogQuiet = 4
	watchdogPause = time.Second
)

// repin follows a change of the CPUs that the process may use. With Isolate, isolation does that, as it has to follow.
func (l *loop) repin() {
	if !l.engine.config.Isolate {
		l.repinTo(nil)
	}
}

// repinTo does it, and avoids some CPUs where there are others. When its CPU is taken away, the kernel lets a pinned thread run on
// all that are left; it is pinned to one of those. When its own is there again, the kernel does not say so: since Linux 6.2 it
// gives the thread no more than it was pinned to, so that it has to be tried.
func (l *loop) repinTo(avoid []int) {
	tid, cpu, own := int(l.thread.Load()), int(l.cpu.Load()), l.pin.CPU
	if tid == 0 || cpu < 0 {
		return
	}
	if l.displaced && sys.SetAffinity(tid, []int{own}) == 0 {
		l.displaced = false
	}
	now, errno := sys.AffinityOf(tid)
	if errno != 0 || len(now) == 0 || len(now) == 1 && now[0] == cpu {
		return
	}
	to := own
	if !slices.Contains(now, own) {
		if errno := sys.SetAffinity(tid, []int{own}); errno == 0 {
			_ = sys.SetAffinity(tid, now) // Somebody has moved it: it stays there.
		} else {
			l.displaced = errno == sys.EINVAL
		}
		from := without(now, avoid)
		if len(from) == 0 {
			from = now
		}
		to = from[tid%len(from)]
	}
	if err := cgo.PinTo(tid, to); err != nil {
		l.engine.teller.tell(func() { l.engine.refused(err) })
		return
	}
	l.attendance.pin(to)
	l.cpu.Store(int32(to))
	l.engine.teller.tell(func() {
		l.engine.log.Warn("pollux: the CPUs that the process may use have changed", "loop", l.pin.Name, "was on", cpu, "is on", to)
	})
}

// add has a loop watched until remove. The goroutine runs while there is one.
func (w *watchdog) add(l *loop) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.loops[l] = &watched{}
	if len(w.loops) == 1 {
		w.stop, w.ended = make(chan struct{}), make(chan struct{})
		go w.run(w.stop, w.ended)
	}
}

func (w *watchdog) remove(l *loop) {
	w.mu.Lock()
	delete(w.loops, l)
	ended := w.ended
	if len(w.loops) > 0 {
		ended = nil
	} else if ended != nil {
		close(w.stop)
		w.ended = nil
	}
	w.mu.Unlock()
	if ended != nil {
		<-ended
	}
}

// rouse wakes it up. It costs a load where that is not necessary.
func (w *watchdog) rouse() {
	if w.asleep.Load() && w.asleep.CompareAndSwap(true, false) {
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

func (w *watchdog) run(stop, ended chan struct{}) {
	defer close(ended)
	tick := time.NewTicker(stuckAfter)
	defer tick.Stop()
	for quiet := 0; ; {
		select {
		case <-tick.C:
		case <-stop:
			return
		}
		if w.look() {
			quiet = 0
			continue
		}
		if quiet++; quiet < watchdogQuiet {
			continue
		}
		tick.Stop()
		// A loop that begins after this store rouses it; one that has begun before is seen by the look after it.
		w.asleep.Store(true)
		if !w.look() {
			select {
			case <-w.wake:
			case <-stop:
				return
			}
		}
		w.asleep.Store(false)
		quiet = 0
		tick.Reset(stuckAfter)
	}
}

// look looks at all loops. It is true if one of them does something.
func (w *watchdog) look() (active bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	repin := time.Since(w.pinned) >= w.each
	var around surroundings
	if repin {
		w.pinned, around = time.Now(), surroundingsNow()
		followProcs(around)
	}
	for l, seen := range w.loops {
		if repin {
			l.repin()
			l.engine.heed(around)
			if n, changed := procsChanged(); changed {
				l.engine.teller.tell(func() {
					l.engine.log.Warn("pollux: GOMAXPROCS was set while the event loops run: it is left so, and they may have to wait for a P (POLLUX_PROCS)",
						"GOMAXPROCS", n)
				})
			}
		}
		calls, running := l.calls.Load(), l.current.Load()
		seen.relieved = seen.looks > 0 && seen.looks < tellLooks && l.engine.reliefs.runs(seen.running, int(seen.thread))
		switch {
		case seen.relieved: // The loop is looked after now, and needs nobody else until this one was told of.
			active = true
			if seen.looks++; seen.looks == tellLooks {
				w.tell(l, seen)
			}
		case calls != seen.calls:
			active = true
			seen.calls, seen.running, seen.looks = calls, running, 0
		case running != nil:
			active = true
			if running == seen.running {
				switch seen.looks++; seen.looks {
				case 1:
					seen.thread = l.thread.Load()
					l.engine.stuck.Add(1)
				case tellLooks:
					w.tell(l, seen)
				}
				l.relieveLate(running, calls)
			}
			seen.running = running
		default:
			seen.running, seen.looks = nil, 0
		}
		if over := l.inner.Overlooked(); over {
			active = true
			if seen.overlooked {
				l.inner.Rescue()
			}
			seen.overlooked = true
		} else {
			seen.overlooked = false
		}
		if n := l.inner.Counters().Rescues; n != seen.rescues {
			seen.rescues = n
			l.engine.teller.tell(func() {
				l.engine.log.Error("pollux: an event loop slept while work waited for it, and was woken: please report this", "loop", l.pin.Name)
			})
		}
	}
	return active
}

// tell logs the stack of a callback that does not return.
func (w *watchdog) tell(l *loop, seen *watched) {
	if now := time.Now(); now.Sub(seen.logged) >= watchdogPause {
		seen.logged = now
		who := "every connection of its loop waits"
		if seen.relieved {
			who = "its connection waits; the others of its loop have another thread"
		}
		stack := l.stack(seen.thread) // Now: the callback may end.
		l.engine.teller.tell(func() {
			l.engine.log.Warn("pollux: a callback has been running for more than "+(tellLooks*stuckAfter).String()+", and "+who,
				"loop", l.pin.Name, "stack", stack)
		})
	}
}

// loopLabel is the key of the label that a loop's goroutine has in profiles.
const loopLabel = "pollux-loop"

// label marks the calling goroutine as the loop's, for profiles and for stack.
func (l *loop) label() {
	pprof.SetGoroutineLabels(pprof.WithLabels(context.Background(), pprof.Labels(loopLabel, l.id(int64(sys.Gettid())))))
}

func (l *loop) id(thread int64) string { return l.pin.Name + "/" + strconv.FormatInt(thread, 10) }

// stack returns the functions that the goroutine is in that runs the loop on that thread, or has run it, innermost first.
func (l *loop) stack(thread int64) string {
	var all bytes.Buffer
	if err := pprof.Lookup("goroutine").WriteTo(&all, 1); err != nil {
		return err.Error()
	}
	mark := strconv.Quote(loopLabel) + ":" + strconv.Quote(l.id(thread))
	for block := range strings.SplitSeq(all.String(), "\n\n") {
		// Goroutines that a handler has started have the label too.
		if !strings.Contains(block, mark) || !strings.Contains(block, ".(*loop).serve") {
			continue
		}
		var lines []string
		for line := range strings.Lines(block) {
			if f := strings.Fields(line); len(f) >= 4 && f[0] == "#" {
				lines = append(lines, f[2]+" "+f[3])
			}
		}
		return strings.Join(lines, "\n")
	}
	return "not found"
}
