package poller

import (
	"runtime"
	"runtime/metrics"
	"sync/atomic"
	"time"

	"github.com/pollux-go/pollux/internal/sys"
)

// slice lets a goroutine that is locked to its thread and never parks give its P to others and have it back.
//
// What a handler makes ready, a goroutine that it sends to for instance, is queued at the P of the loop. There it waits: a
// loop that has a P does not look at its queue, and another P takes from it only when it has nothing else to do.
// runtime.Gosched is no way to let it run. It puts the loop at the end of the queue that all Ps share, behind every
// goroutine that computes, for tens of milliseconds; and so does the runtime's monitor, which asks every goroutine that
// has had its P for 10 ms to do the same (retake in runtime/proc.go), and takes the P from one in a system call then, after
// each 20 us again.
//
// So the loop gives its P to a goroutine of its own that makes it ready again, by the P's own queue, which comes before the
// shared one: who is made ready is the next to run, and who was next before goes to the end of the queue. The loop's thread
// begins a new time slice then, which is what the monitor looks for. To let the others in the queue run first, a second
// one is made ready after the first, which then waits behind them.
//
// It costs two switches of threads, about 10 us, because the loop's thread runs nothing but the loop.
type slice struct {
	first, second chan uint64
	back          chan int64    // how long it took from the second one's turn to the first one's, in nanoseconds; 0: not known
	turn          uint64        // how often the P was given away
	ticks         ticks         // when the shared queue comes first
	at            atomic.Int64  // the instant of the second one's turn,
	on            atomic.Int64  // the P that it had it on,
	of            atomic.Uint64 // and which time it was; publishes the other two to the first one
}

// renewPeriod is how often a loop that waits cold begins a new slice: often enough for the monitor, which may look every
// 10 ms only. A hot one cannot have its P taken in a system call, and leaves it to the monitor.
const renewPeriod = int64(6 * time.Millisecond)

// open starts the goroutines, and sees to it that they wait.
func (s *slice) open() {
	// back has room: a goroutine that is not waiting yet when it is called must not stay one step behind for ever. ran has, so that
	// the second one does not wait for the first one.
	s.first, s.second, s.back = make(chan uint64), make(chan uint64), make(chan int64, 1)
	ran := make(chan struct{}, 1)
	go func(first chan uint64, back chan int64) {
		for turn := range first {
			between := int64(0)
			if turn != 0 {
				now, on, late := Nanotime(), int64(sys.P()), s.of.Load() != turn
				<-ran
				switch {
				case s.of.Load() != turn || s.on.Load() != on:
				case late:
					between = betweenLate
				default:
					between = now - s.at.Load()
				}
			}
			back <- between
		}
	}(s.first, s.back)
	go func(second chan uint64) {
		for turn := range second {
			ran <- struct{}{}
			s.on.Store(int64(sys.P()))
			s.at.Store(Nanotime())
			s.of.Store(turn)
		}
	}(s.second)
	for range 3 {
		s.yield()
	}
}

// renew begins a new slice. It is for the goroutine that has called open, and so is yield. The first one is told not to wait for the
// second one, by a 0.
func (s *slice) renew() {
	s.turn++
	s.again()
}

func (s *slice) again() {
	before := Nanotime()
	s.first <- 0
	<-s.back
	s.ticks.renewed(int64(sys.P()), Nanotime()-before)
}

// A use is what is known of whether somebody has used the P that a loop has given away.
type use int8

const (
	unused use = iota
	used
	unknown
)

// yield is renew after all that is queued at the P has run. It tells whether somebody was, by the time that has passed; but not
// where other Ps are idle, and take from the queue. Where the next yield is likely to be one behind the shared queue, it renews, so
// that it is not.
func (s *slice) yield() use {
	before, p := Nanotime(), int64(sys.P())
	s.turn++
	s.first <- s.turn
	s.second <- s.turn
	between := <-s.back
	at := s.at.Load()
	s.ticks.yielded(int64(sys.P()), at-before, between, Nanotime()-at-between, between > betweenAlone)
	if s.ticks.due() {
		s.again()
	}
	switch {
	case between > betweenAlone:
		return used
	case between == betweenLate && s.on.Load() == p:
		return unknown
	default:
		return unused
	}
}

// betweenAlone is the longest time from the second goroutine to the first that is not taken for somebody who has run in
// between. It is 0.6 us when nobody has, and 1.4 in one of a hundred; with somebody who does nothing but receive, 0.9.
const betweenAlone = int64(1500 * time.Nanosecond)

// betweenLate stands for a first one that had its turn before the second one, on the same P: a timer, for instance, has made somebody
// ready when that P looked for whom to run, and who is made ready last is next; or the P is another one, that was idle and has taken both.
const betweenLate = int64(-1)

// close ends the goroutines, if there are any.
func (s *slice) close() {
	if s.first != nil {
		close(s.first)
		close(s.second)
		s.first, s.second = nil, nil
	}
}

// isBlind tells whether the runtime does not tell who waits for a P: in a process with one CPU, and where there is one P.
func isBlind() bool { return alone || runtime.GOMAXPROCS(0) == 1 }

var alone = runtime.NumCPU() == 1

// scout finds out, where the runtime does not tell, whether goroutines wait for the loop's P that its handlers have made ready:
// by giving it away. Once somebody has used it, it is given away after each turn, until nobody has several times in a row. Then
// it is as often as a loop that waits cold begins a new slice, which needs the same two switches of threads; a hot one, which may
// have to wait for its CPU then as long as it has no priority, has longer and longer pauses in between.
//
// Where another P is idle, its thread comes for who is ready, later, but without those switches. That is good enough for workers,
// so while callbacks are with them the scout asks whether one is, and a use does not count then. At once it might be told that none
// is, as that thread is awake already; so it asks when the next turn begins.
//
// Who does nothing but receive is too fast to be noticed, and waits for the next time.
type scout struct {
	asks    bool  // whether another P is idle; then it does not count who has used this one
	misses  int   // times in a row that nobody used it
	pause   int64 // from the last time to the next, of a loop that waits hot
	pending bool  // somebody has used it, and it is not known yet whether another P was idle
	trusted int   // how many more times that is not asked
}

const (
	scoutMisses     = 4
	scoutTrusted    = 64
	scoutPauseLeast = renewPeriod
	scoutPauseMost  = int64(10 * time.Second)
)

// eager tells whether the P is to be given away after this turn.
func (s *scout) eager() bool { return s.misses < scoutMisses }

// note notes whether somebody has used the P.
func (s *scout) note(used bool) {
	switch {
	case used && s.asks && s.trusted == 0:
		s.pending = true
	case used:
		s.trusted = max(s.trusted-1, 0)
		s.needed(true)
	default:
		s.needed(false)
	}
}

// resolve settles what note has left open, when a turn begins.
func (s *scout) resolve(idle bool) {
	s.pending = false
	if !idle {
		s.trusted = scoutTrusted
	}
	s.needed(!idle)
}

func (s *scout) needed(yes bool) {
	switch {
	case yes:
		s.misses, s.pause = 0, 0
	case s.misses < scoutMisses:
		s.misses++
	default:
		s.pause = min(max(2*s.pause, scoutPauseLeast), scoutPauseMost)
	}
}

// procs tells whether a P is idle. Its methods do not allocate, but for open.
type procs struct{ samples [2]metrics.Sample }

// open prepares it; the first look allocates what all of them share.
func (p *procs) open() {
	p.samples[0].Name, p.samples[1].Name = "/sched/gomaxprocs:threads", "/sched/goroutines/running:goroutines"
	p.idle()
}

// idle tells whether a P is idle, or in a system call, where the monitor takes it away soon.
func (p *procs) idle() bool {
	metrics.Read(p.samples[:])
	for i := range p.samples {
		if p.samples[i].Value.Kind() != metrics.KindUint64 {
			return false
		}
	}
	return p.samples[1].Value.Uint64() < p.samples[0].Value.Uint64()
}
