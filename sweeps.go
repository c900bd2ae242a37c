package pollux

import "time"

// sweeps goes through the threads of the process from time to time, and makes them like something.
type sweeps struct{ stop, ended chan struct{} }

// sweepPeriod is how often it looks for threads that it does not know.
var sweepPeriod = time.Second // Tests change it, before there is an engine.

// sweepsMost bounds how often it goes through them each time.
const sweepsMost = 10

// untilNone sweeps until it finds nothing more to do: a thread that was not changed yet may have made another one meanwhile,
// after the list was read, which is like it.
func untilNone(sweep func() (changed bool)) {
	for range sweepsMost {
		if !sweep() {
			return
		}
	}
}

// begin sweeps, and again every sweepPeriod.
func (s *sweeps) begin(sweep func() (changed bool)) {
	s.stop, s.ended = make(chan struct{}), make(chan struct{})
	untilNone(sweep)
	tick := time.NewTicker(sweepPeriod)
	go func() {
		defer close(s.ended)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				untilNone(sweep)
			case <-s.stop:
				return
			}
		}
	}()
}

// finish ends that, and sweeps back.
func (s *sweeps) finish(sweep func() (changed bool)) {
	close(s.stop)
	<-s.ended
	untilNone(sweep)
}
