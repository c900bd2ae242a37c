//go:build cgo

package cgo

/*
#include <stdlib.h>
#include "attend.h"
*/
import "C"

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/pollux-go/pollux/internal/sys"
)

// Attends tells whether there are attendants: they are threads of C, which need no P.
const Attends = true

// An Attendant looks after a thread of Go's with SCHED_FIFO that shares its CPU with other threads of the process. It is a
// thread of C on that CPU, one priority above, which sleeps but for some microseconds every 4 ms. Two things go wrong without
// it.
//
// The runtime waits for what another thread does within a few instructions by looking at it again and again (casGToPreemptScan
// and casgstatus in runtime/proc.go, the bit Gscan). Where the other thread was interrupted within these instructions by the
// realtime one, on the same CPU, that never happens: until the kernel's fair server or throttling lets others on for 50 ms,
// after 950 ms. So a loop that uses the CPU for 5 ms without a new wait is made an ordinary thread until the next one.
//
// And a loop that has to give up its P, because the collector stops the world for instance, has it back from other threads,
// which have it after each other, and each of which waits for the CPU until the kernel's tick takes it from somebody: up to 4
// ms each time. So from when the loop was asked for its P until its next wait, the attendant wakes up every 100 us, which does
// nothing but have the kernel choose anew who is next.
//
// While the loop sleeps then, it calls the usher too, a goroutine. A worker of the collector that has scanned the loop's stack
// makes the loop ready to run next at its own P (resumeG in runtime/preempt.go), and goes on marking, with nothing in between;
// and a P that has nothing else to do marks, too. That one looks at the queue that all share and at the network poller
// meanwhile, but not at the queues of others (pollWork in runtime/proc.go), so that the loop would stay there for 10 ms and
// more. The usher waits in the network poller. The P that runs it has nothing to run after it, and looks everywhere.
type Attendant struct {
	thread int
	bell   *os.File      // an eventfd: calls the usher
	gone   chan struct{} // the usher has ended
	came   atomic.Uint64 // AttendantCounts.Ushered

	mu    sync.Mutex // protects the fields below
	c     *C.struct_pollux_attendant
	final AttendantCounts
}

// AttendantCounts is what an attendant has done.
type AttendantCounts struct {
	Ticks     uint64 // wake-ups that had the kernel choose anew
	Demotions uint64 // times that it took the priority from its thread
	Calls     uint64 // of the usher, see [Attendant]
	Ushered   uint64 // times that it came: once for calls that came together
}

// Attend starts an attendant of the thread tid, which is to be scheduled as s says, which is SCHED_FIFO, on a CPU that it is
// pinned to; -1: on any. The attendant gets that name, of at most 15 bytes.
func Attend(tid, cpu int, s Sched, name string) (*Attendant, error) {
	fail := func(errno sys.Errno) error {
		return fmt.Errorf("schedule the thread as %v: start its attendant, one priority above: %w%s", s, errno, remedy(s, errno))
	}
	if errno := sys.Injected(sys.OpSchedSetattr, 0); errno != 0 {
		return nil, fail(errno)
	}
	bell, errno := sys.Eventfd()
	if errno != 0 {
		return nil, fail(errno)
	}
	a := &Attendant{bell: os.NewFile(uintptr(bell), "usher"), gone: make(chan struct{})}
	go a.usher()
	// The thread keeps the pointer, so the memory is C's.
	c := (*C.struct_pollux_attendant)(C.calloc(1, C.sizeof_struct_pollux_attendant))
	c.loop, c.cpu, c.priority = C.int32_t(tid), C.int32_t(cpu), C.int32_t(s.Priority)
	c.usher = C.int32_t(bell)
	a.c = c
	for i := range min(len(name), len(c.name)-1) {
		c.name[i] = C.char(name[i])
	}
	if errno := C.pollux_attend(c); errno != 0 {
		a.dismissUsher()
		C.free(unsafe.Pointer(c))
		return nil, fail(sys.Errno(errno))
	}
	a.thread = int(c.thread)
	return a, nil
}

// dismissUsher ends the usher. Nobody calls it any more.
func (a *Attendant) dismissUsher() {
	_ = a.bell.Close()
	<-a.gone
}

// usher comes out of the network poller when it is called, and goes back.
func (a *Attendant) usher() {
	defer close(a.gone)
	for calls := make([]byte, 8); ; {
		if _, err := a.bell.Read(calls); err != nil {
			return
		}
		a.came.Add(1)
	}
}

// Thread returns the attendant's own thread id.
func (a *Attendant) Thread() int { return a.thread }

// Pulse returns what the thread that is looked after counts up when a wait begins and when it has ended, and what it counts up
// when it is asked for its P: see [sys.Hold]. They are valid until Close.
func (a *Attendant) Pulse() (pulse *atomic.Uint64, asked *uint32) {
	// SAFETY: C's memory, aligned as C aligns it, and used by both sides as atomics.
	return (*atomic.Uint64)(unsafe.Pointer(&a.c.pulse)), (*uint32)(unsafe.Pointer(&a.c.asked))
}

// Counts may be called at any time, from any goroutine.
func (a *Attendant) Counts() AttendantCounts {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.c == nil {
		return a.final
	}
	return a.counts()
}

// counts reads them. mu is held.
func (a *Attendant) counts() AttendantCounts {
	return AttendantCounts{
		Ticks:     atomic.LoadUint64((*uint64)(unsafe.Pointer(&a.c.ticks))),
		Demotions: atomic.LoadUint64((*uint64)(unsafe.Pointer(&a.c.demotions))),
		Calls:     atomic.LoadUint64((*uint64)(unsafe.Pointer(&a.c.calls))),
		Ushered:   a.came.Load(),
	}
}

// Close ends the attendant, after at most some milliseconds. Nobody may use what Pulse has returned any more. It is called once.
func (a *Attendant) Close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	C.pollux_attend_end(a.c)
	a.final = a.counts()
	a.dismissUsher() // After the thread, which called it.
	C.free(unsafe.Pointer(a.c))
	a.c = nil
}
