// Package cgo holds what stands below an event loop: its thread, the wait that spins without holding a P, and the attendant of
// a realtime thread.
//
// A [Thread] is pinned, named and given its scheduling by system calls of the thread itself. The goroutine must be locked
// to it first: the runtime makes new threads from one that it keeps unlocked for that (startTemplateThread in
// runtime/proc.go), so that none inherits the pin.
package cgo
