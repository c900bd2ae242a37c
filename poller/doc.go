// Package poller is what runtime/netpoll is to package net, in user space and for any file descriptor: the contract of
// a backend, descriptors that goroutines wait on, and the loop that event handlers run on. It knows tokens and file
// descriptors; connections, handlers and addresses are above it, in package pollux.
//
// There is one rule of triggering: everything is edge-triggered. A descriptor is registered once, for both directions;
// an event says that something changed, not that anything is still there. Whoever is told must go on until the kernel
// says EAGAIN, or must remember that it did not. Events may be spurious, and one may carry the token of a descriptor
// that was removed after the kernel had queued it: compare generations ([Table.Get] does).
//
// There is one rule of concurrency: Wait is called by one goroutine at a time, and every other method of a [Backend]
// may be called while it runs.
//
// Two things are built on a backend. A [Poller] serves goroutines that block: [Poller.Open] returns a [Desc], which has
// deadlines, one waiter a direction and a Close that waits for its last user. A [Loop] serves callbacks: it hands each
// batch of events to a [Sink], together with what other goroutines posted and the timers that are due.
package poller
