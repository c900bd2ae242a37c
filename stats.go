package pollux

import (
	"github.com/pollux-go/pollux/poller"
	"github.com/pollux-go/pollux/scheduler"
)

// Stats is what an engine has counted since it began. Each number is of one moment, but not all are of the same.
type Stats struct {
	Backend string
	Conns   int // with handlers, open now
	Loops   []LoopStats

	// Workers is what the workers have done; nothing with Dispatch "inline".
	Workers scheduler.Stats

	Stuck   uint64 // callbacks that ran for longer than 25 ms, seen by the watchdog
	Reliefs uint64 // callbacks that did not return, so that another thread became their loop
	Rescues uint64 // loops that slept while work waited for them, which must not happen
}

// LoopStats is the part of one event loop.
type LoopStats struct {
	poller.Counters
	CPU       int    // it is pinned to; -1: none
	Conns     int    // open now
	Callbacks uint64 // of handlers
	Shared    uint64 // of these, offered to idle workers because the loop had too many
	TakenBack uint64 // of these, run by the loop after all, because nobody had come for them
	Stale     uint64 // events of connections that had left
	Demotions uint64 // times that it lost SCHED_FIFO for a turn that computed for more than 5 ms
	Uring     *UringStats
}

// UringStats is what a loop's io_uring has counted. It is nil on epoll.
type UringStats struct {
	Enters    uint64 // system calls
	Overflows uint64 // times that completions did not fit into their queue
	Resizes   uint64 // times that the queue was made larger
	Starved   uint64 // receives that found no buffer
	Rearms    uint64 // multishot requests that ended and were armed again
	Stale     uint64 // completions whose owner had left
}

// Stats returns a snapshot. It costs some hundred loads for each loop, and disturbs none.
func (e *Engine) Stats() Stats {
	s := Stats{Backend: e.Backend(), Conns: e.Conns(), Stuck: e.stuck.Load(), Reliefs: e.reliefs.count.Load()}
	e.mu.Lock()
	loops, d := e.loops, e.dispatcher
	e.mu.Unlock()
	if d != nil {
		s.Workers = d.Stats()
	}
	for _, l := range loops {
		ls := LoopStats{
			Counters:  l.inner.Counters(),
			CPU:       int(l.cpu.Load()),
			Conns:     int(l.count.Load()),
			Callbacks: l.calls.Load() - l.backlog.taken.Load(),
			Shared:    l.backlog.shared.Load(),
			TakenBack: l.backlog.taken.Load(),
			Stale:     l.stale.Load(),
			Demotions: l.attendance.count(),
		}
		if u, ok := l.backend.(interface{ uringStats() *UringStats }); ok {
			ls.Uring = u.uringStats()
		}
		s.Rescues += ls.Rescues
		s.Loops = append(s.Loops, ls)
	}
	return s
}
