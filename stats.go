package pollux

import (
	"time"

	"github.com/pollux-go/pollux/internal/tally"
	"github.com/pollux-go/pollux/poller"
	"github.com/pollux-go/pollux/scheduler"
)

// Stats is what an engine has counted since it began. Each number is of one moment, but not all are of the same.
type Stats struct {
	Backend string
	Conns   int // with handlers, open now
	Loops   []LoopStats

	// Workers is what the workers have done; nothing with Dispatch "inline". EachWorker is the part of each, by its number. A
	// number is given again, and its counts go on.
	Workers    scheduler.Stats
	EachWorker []scheduler.WorkerStats

	Stuck   uint64 // callbacks that ran for longer than 25 ms, seen by the watchdog
	Reliefs uint64 // callbacks that did not return, so that another thread became their loop
	Rescues uint64 // loops that slept while work waited for them, which must not happen
}

// LoopStats is the part of one event loop.
type LoopStats struct {
	poller.Counters
	CPU        int    // it is pinned to; -1: none
	Conns      int    // open now
	Callbacks  uint64 // of handlers
	Shared     uint64 // of these, offered to idle workers because the loop had too many
	TakenBack  uint64 // of these, run by the loop after all, because nobody had come for them
	Offloaded  uint64 // of Callbacks, given to workers because the handler is slow, or Dispatch is "workers"
	QueueDepth int    // callbacks that wait for workers now, but for those that are in the queue for all
	Stale      uint64 // events of connections that had left
	Accepts    uint64 // connections, which are given to the loop that has the fewest

	// Sends is how often bytes were sent by a system call, and SendEAGAINs how often the socket had no room for any. ShortSends took
	// some only; they may have been the ring's: see Sends of UringStats. Of connections with handlers.
	Sends, SendEAGAINs, ShortSends uint64

	// CallbackTimes is how long single callbacks have taken, in classes as TurnTimes has them, and CallbackTime the sum of these. It is
	// a sample, and no fair one: with Dispatch "steal", the callbacks on a loop are measured for a while after a turn that took long,
	// and some or all of those on workers. With the other ways there is none.
	CallbackTimes [poller.TurnTimesLen]uint64
	CallbackTime  time.Duration

	Demotions uint64 // times that it lost SCHED_FIFO for a turn that computed for more than 5 ms
	Uring     *UringStats
}

// UringStats is what a loop's io_uring has counted. It is nil on epoll.
//
// What others count and pollux cannot: it sends nothing by zero copy, so nothing of that is in flight or was copied. No request of
// its needs a kernel worker (io-wq), and a ring may have one at most; those that there are, are threads called iou-wrk in
// /proc/self/task, which take a walk through a directory to count. How many buffers the kernel itself has left is told by a system
// call that the ring's thread alone may make, IORING_REGISTER_PBUF_STATUS; BuffersFree is what the loop knows without it.
type UringStats struct {
	Enters           uint64 // system calls that submit and wait
	EntersWithSubmit uint64 // of these, those that have submitted something
	SQEs             uint64 // submitted
	CQEs             uint64 // taken from the queue

	// CQEBatches[i] is how often at most 1 << i completions were taken in one go, and more than half of that; the last one has all
	// that were more.
	CQEBatches [CQEBatchesLen]uint64

	Interrupts  uint64 // enters that a signal has ended (EINTR)
	TaskrunHits uint64 // enters that were made for nothing but the flag that says that deferred work waits (IORING_SQ_TASKRUN)
	EpollEvents uint64 // taken from the epoll set that the ring waits on, wakes included
	Overflows   uint64 // times that completions did not fit into their queue
	Resizes     uint64 // times that the queue was made larger
	Dropped     uint64 // enters that have told of completions that are lost, because there was no memory for them (EBADR)
	Stale       uint64 // completions whose owner had left

	MultishotArmed uint64        // accepts and receives; those that have not ended are under way
	MultishotEnded MultishotEnds // by their reasons
	Rearms         uint64        // accepts and receives that ended while there was more to come, and were armed again
	AcceptRearms   uint64        // of these, accepts

	Buffers        int    // that receives take from
	BuffersFree    int    // of these, not in use when the loop last began to wait
	BuffersFreeMin int    // the fewest that a batch of completions has left
	BuffersLow     uint64 // batches that have left less than a quarter
	Starved        uint64 // receives that found no buffer

	Sends uint64 // by a request of the ring; those by a system call are in LoopStats

	// Cancels is how many requests were asked to be canceled. Those that have failed had ended already (ENOENT), or could not be
	// stopped (EALREADY); the others were.
	Cancels, CancelsENOENT, CancelsEALREADY uint64
	Closing                                 int // connections and listeners that have left and that the kernel still uses

	MemlockFailures uint64 // times that there was no memory to make it (ENOMEM; see RLIMIT_MEMLOCK), so that it has waited or is smaller
	EnterENOMEM     uint64 // enters that the kernel had no memory for (ENOMEM)

	SetupFlags  uint32 // IORING_SETUP_*, as the ring was made
	Features    uint32 // IORING_FEAT_*, as the kernel has answered
	Uses, Lacks string // names as in Config.UringFeatures: of what was set up with the ring, and of what it goes without
}

// CQEBatchesLen is the number of classes of batches: the last but one is up to 512.
const CQEBatchesLen = tally.SizesLen

// MultishotEnds is why multishot requests have ended.
type MultishotEnds struct {
	EOF       uint64 // the end of the stream
	NoBuffers uint64 // ENOBUFS: see Starved
	Reset     uint64 // ECONNRESET
	Canceled  uint64 // ECANCELED
	Overflow  uint64 // the queue of completions was full
	Other     uint64
}

// Stats returns a snapshot. It costs some hundred loads for each loop, and disturbs none.
func (e *Engine) Stats() Stats {
	s := Stats{Backend: e.Backend(), Conns: e.Conns(), Stuck: e.stuck.Load(), Reliefs: e.reliefs.count.Load()}
	e.mu.Lock()
	loops, d := e.loops, e.dispatcher
	e.mu.Unlock()
	if d != nil {
		s.Workers, s.EachWorker = d.Stats(), d.EachWorker()
	}
	for _, l := range loops {
		ls := LoopStats{
			Counters:     l.inner.Counters(),
			CPU:          int(l.cpu.Load()),
			Conns:        int(l.count.Load()),
			Callbacks:    l.calls.Load() - l.backlog.taken.Load(),
			Shared:       l.backlog.shared.Load(),
			TakenBack:    l.backlog.taken.Load(),
			Stale:        l.stale.Load(),
			Offloaded:    l.offloaded.Load(),
			Accepts:      l.accepts.Load(),
			Sends:        l.sends.load(sendMade),
			SendEAGAINs:  l.sends.load(sendEAGAIN),
			ShortSends:   l.sends.load(sendShort),
			CallbackTime: l.times.Sum() + l.timesAway.Sum(),
			Demotions:    l.attendance.count(),
		}
		if u, ok := l.backend.(interface{ uringStats() *UringStats }); ok {
			ls.Uring = u.uringStats()
		}
		l.times.AddTo(&ls.CallbackTimes)
		l.timesAway.AddTo(&ls.CallbackTimes)
		if d != nil {
			for i := range sourcesOf {
				ls.QueueDepth += d.Source(l.index + i*len(loops)).Len()
			}
		}
		s.Rescues += ls.Rescues
		s.Loops = append(s.Loops, ls)
	}
	return s
}
