package pollux

import (
	"fmt"
	"sync"

	"github.com/pollux-go/pollux/cgo"
	"github.com/pollux-go/pollux/internal/sys"
)

// attendance is what looks after a loop whose thread has SCHED_FIFO, and shares its CPU with other threads of the process: see
// [cgo.Attendant].
type attendance struct {
	mu        sync.Mutex // protects the fields below
	attendant *cgo.Attendant
	demotions uint64 // of those before
}

// beAttended gets an attendant for the calling thread, which is the loop's, if it needs one. Where there is none, it stays an
// ordinary thread.
func (l *loop) beAttended() {
	l.dismiss() // The last thread's: it has ended.
	if !l.pin.Sched.FIFO {
		return // So it is where threads come by that wait beside the loop, and do not own it.
	}
	l.plain = false
	cpu, shared := l.pin.CPU, l.standing.Load() == standingShared
	if l.engine.config.Isolate && !shared {
		return // There are no other threads where it runs.
	}
	if shared {
		cpu = int(l.cpu.Load())
	}
	a, err := cgo.Attend(sys.Gettid(), cpu, l.pin.Sched, fmt.Sprintf("pollux-attend-%d", l.index))
	if err != nil {
		l.engine.refused(err)
		if shared {
			l.plain = true // Until it has its CPU for itself again.
		} else {
			l.pin.Sched = cgo.Sched{}
		}
		return
	}
	l.attendance.mu.Lock()
	l.attendance.attendant = a
	l.attendance.mu.Unlock()
	l.inner.Attend(a.Pulse())
}

// dismiss ends the attendant, if there is one. It is for the thread that runs the loop.
func (l *loop) dismiss() {
	w := &l.attendance
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.attendant != nil {
		l.inner.Attend(nil, nil)
		w.attendant.Close()
		w.demotions += w.attendant.Counts().Demotions
		w.attendant = nil
	}
}

// there tells whether there is an attendant.
func (w *attendance) there() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.attendant != nil
}

// pin has the attendant follow the loop to another CPU.
func (w *attendance) pin(cpu int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.attendant != nil {
		_ = cgo.PinTo(w.attendant.Thread(), cpu) // It is of less use elsewhere, and does no harm.
	}
}

// count returns how often the loop has lost its priority.
func (w *attendance) count() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.attendant == nil {
		return w.demotions
	}
	return w.demotions + w.attendant.Counts().Demotions
}

// isRealtime tells whether the calling thread has SCHED_FIFO.
func isRealtime() bool {
	s, errno := sys.GetSched(0)
	return errno == 0 && s.FIFO
}
