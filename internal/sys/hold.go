package sys

// A Hold is how a wait keeps its P. Go's scheduler is not told of it: nothing stands between the event and the caller, and nobody
// else can use the P. Stopping the world interrupts the wait by a signal, but not under GODEBUG=asyncpreemptoff=1, so that its
// timeout must be some milliseconds at most.
type Hold struct {
	// Asked, if there is one, is counted up when a signal ends a wait, and who sleeps on it as a futex is woken. Mostly the signal
	// is the runtime's, which wants the P: it gets it as soon as the goroutine calls a function that can be preempted, which this
	// is before.
	Asked *uint32
}
