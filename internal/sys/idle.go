package sys

import _ "unsafe" // for go:linkname

// canSpin is what sync.Mutex asks before it spins; the runtime keeps it for the packages that have always used it
// (go.dev/issue/67401). It is true only if the queue of the caller's P is empty. It is false as well where that cannot be
// the reason for anything to wait: all other Ps are idle, and take what is queued.
//
//go:linkname canSpin sync.runtime_canSpin
//go:nosplit
func canSpin(i int) bool

// QueueEmpty tells whether no goroutine waits for the P that the caller runs on. It is false also when all other Ps are
// idle, and always on a machine, or in a process, with one CPU, or one P.
func QueueEmpty() bool { return canSpin(0) }

// procPin and procUnpin keep the goroutine on its P for a moment. The runtime keeps them, too, for the packages that have
// always used them.
//
//go:linkname procPin runtime.procPin
//go:nosplit
func procPin() int

//go:linkname procUnpin runtime.procUnpin
//go:nosplit
func procUnpin()

// P returns the number of the P that the caller runs on, which it may leave at any time.
func P() int {
	p := procPin()
	procUnpin()
	return p
}
