// Package scheduler runs work items on workers: goroutines that steal from the queues of event loops. It knows items,
// which are numbers, and nothing of events or sockets.
//
// A loop has a [Source], a queue of its own: it pushes what is ready, takes most of it back and runs it itself, on the
// thread that the kernel has woken. When it judges that what is left is worth a wake it calls [Dispatcher.Wake], and an
// idle worker steals half of it. Anybody else submits items to one queue for all, the [Injector], which also takes what a
// source has no room for.
//
// There is one rule of concurrency: a [Source] belongs to the one goroutine that pushes to it; everything else may be
// called from anywhere. An item is run once, or is in what [Dispatcher.Close] returns, or was refused by the call that
// offered it: never two of these, and never none. Items of one queue are taken in their order, and may then run side by
// side.
package scheduler
