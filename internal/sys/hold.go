package sys

// A Hold is how a wait keeps its P. Go's scheduler is not told of it: nothing stands between the event and the caller, and nobody
// else can use the P. Stopping the world interrupts the wait by a signal, but not under GODEBUG=asyncpreemptoff=1, so that its
// timeout must be some milliseconds at most.
type Hold struct {
	// Asked, if there is one, is counted up when the runtime wants the P at the end of a wait, and who sleeps on it as a futex is
	// woken: see Ask. The runtime gets the P as soon as the goroutine calls a function that can be preempted, which this is before.
	// Its signal ends the wait, mostly, but not one that an event has ended already while the thread waited for its CPU.
	Asked *uint32

	// Asks counts how often that was so. It is for the goroutine that waits.
	Asks uint64
}
