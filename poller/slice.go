package poller

import "time"

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
	first, second, back chan struct{}
}

// renewPeriod is how often a loop that waits cold begins a new slice: often enough for the monitor, which may look every
// 10 ms only. A hot one cannot have its P taken in a system call, and leaves it to the monitor.
const renewPeriod = int64(6 * time.Millisecond)

// open starts the goroutines, and sees to it that they wait.
func (s *slice) open() {
	// back has room: a goroutine that is not waiting yet when it is called must not stay one step behind for ever.
	s.first, s.second, s.back = make(chan struct{}), make(chan struct{}), make(chan struct{}, 1)
	go func(first, back chan struct{}) {
		for range first {
			back <- struct{}{}
		}
	}(s.first, s.back)
	go func(second chan struct{}) {
		for range second {
		}
	}(s.second)
	for range 3 {
		s.yield()
	}
}

// renew begins a new slice. It is for the goroutine that has called open, and so is yield.
func (s *slice) renew() {
	s.first <- struct{}{}
	<-s.back
}

// yield is renew after all that is queued at the P has run.
func (s *slice) yield() {
	s.first <- struct{}{}
	s.second <- struct{}{}
	<-s.back
}

// close ends the goroutines, if there are any.
func (s *slice) close() {
	if s.first != nil {
		close(s.first)
		close(s.second)
		s.first, s.second = nil, nil
	}
}
