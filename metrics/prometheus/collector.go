// Package prometheus offers what an engine counts to Prometheus.
//
//	engine, err := pollux.New(pollux.Default())
//	...
//	prometheus.MustRegister(polluxprom.New(engine, "echo"))
//
// It is a module of its own, so that pollux does not depend on the client library.
package prometheus

import (
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/pollux-go/pollux"
)

// Collector is a [prometheus.Collector] of one engine. It asks the engine when it is collected, and holds nothing itself.
type Collector struct {
	engine  *pollux.Engine
	conns   *prometheus.Desc
	stuck   *prometheus.Desc
	relief  *prometheus.Desc
	workers *prometheus.Desc
	worked  *prometheus.Desc
	rescue  *prometheus.Desc
	turns   *prometheus.Desc
	calls   *prometheus.Desc
	queue   *prometheus.Desc
	stolen  *prometheus.Desc
	loop    []metric
	uring   []uringMetric
	batches *prometheus.Desc
	ends    *prometheus.Desc
	cancels *prometheus.Desc
	info    *prometheus.Desc
}

type metric struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*pollux.LoopStats) float64
}

type uringMetric struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*pollux.UringStats) float64
}

// New returns a collector of the engine. name is the value of the label "engine", which tells several of them apart.
func New(e *pollux.Engine, name string) *Collector {
	labels := prometheus.Labels{"engine": name}
	desc := func(name, help string, variable ...string) *prometheus.Desc {
		return prometheus.NewDesc("pollux_"+name, help, variable, labels)
	}
	c := &Collector{
		engine:  e,
		conns:   desc("connections", "Open connections with handlers.", "backend"),
		relief:  desc("reliefs_total", "Callbacks that did not return, so that another thread became their loop."),
		workers: desc("workers", "Goroutines that run callbacks off the loops."),
		worked: desc("worker_events_total",
			"What the workers have done: callbacks run, some of them stolen; wakes sent and not needed; parks; workers started and retired.", "event"),
		queue:   desc("worker_queue_depth", "Callbacks that wait in the queue for all workers, as the loops' are full."),
		stolen:  desc("worker_steals_total", "Callbacks that a worker has taken from the loops' queues and from other workers.", "worker"),
		calls:   desc("loop_callback_seconds", "What single callbacks have taken: a sample, of those after a long turn and of those on workers.", "loop"),
		batches: desc("uring_cqe_batch_size", "Completions that a loop has taken from its queue in one go.", "loop"),
		ends:    desc("uring_multishot_ended_total", "Multishot requests that have ended, by the reason.", "loop", "reason"),
		cancels: desc("uring_cancel_failures_total", "Cancels of requests that had ended already, or could not be stopped.", "loop", "error"),
		info:    desc("uring_info", "What a ring was set up with, and what it goes without.", "loop", "setup_flags", "features", "uses", "lacks"),
		stuck:   desc("stuck_callbacks_total", "Callbacks that ran for more than 25 ms."),
		rescue:  desc("rescues_total", "Loops that slept while work waited for them: a bug of pollux if it is not 0."),
		turns:   desc("loop_turn_seconds", "What a loop's turns have taken outside of their waits.", "loop"),
	}
	loop := func(name, help string, kind prometheus.ValueType, value func(*pollux.LoopStats) float64) {
		c.loop = append(c.loop, metric{desc("loop_"+name, help, "loop"), kind, value})
	}
	counter := func(name, help string, value func(*pollux.LoopStats) uint64) {
		loop(name+"_total", help, prometheus.CounterValue, func(s *pollux.LoopStats) float64 { return float64(value(s)) })
	}
	loop("connections", "Open connections of a loop.", prometheus.GaugeValue, func(s *pollux.LoopStats) float64 { return float64(s.Conns) })
	loop("busy_seconds_total", "Time that a loop has spent outside of waits.", prometheus.CounterValue, func(s *pollux.LoopStats) float64 { return s.Busy.Seconds() })
	counter("turns", "Turns of a loop.", func(s *pollux.LoopStats) uint64 { return s.Turns })
	counter("events", "Events.", func(s *pollux.LoopStats) uint64 { return s.Events })
	counter("stale_events", "Events of connections that had left.", func(s *pollux.LoopStats) uint64 { return s.Stale })
	counter("callbacks", "Callbacks of handlers.", func(s *pollux.LoopStats) uint64 { return s.Callbacks })
	counter("callbacks_shared", "Callbacks that a loop has offered to idle workers, having many.", func(s *pollux.LoopStats) uint64 { return s.Shared })
	counter("callbacks_taken_back", "Of these, those that it has run itself.", func(s *pollux.LoopStats) uint64 { return s.TakenBack })
	counter("posts", "Work that other goroutines have given to a loop.", func(s *pollux.LoopStats) uint64 { return s.Posts })
	counter("timers", "Timers that were due.", func(s *pollux.LoopStats) uint64 { return s.Timers })
	counter("hot_waits", "Waits with the P kept.", func(s *pollux.LoopStats) uint64 { return s.HotWaits })
	counter("cold_waits", "Waits with the P given up.", func(s *pollux.LoopStats) uint64 { return s.ColdWaits })
	counter("wait_timeouts", "Waits that brought nothing.", func(s *pollux.LoopStats) uint64 { return s.Timeouts })
	counter("spins", "Waits that began with a spin.", func(s *pollux.LoopStats) uint64 { return s.Spins })
	counter("spin_hits", "Spins that found something.", func(s *pollux.LoopStats) uint64 { return s.SpinHits })
	counter("handovers", "Times that a loop gave its P to whom a handler had made ready.", func(s *pollux.LoopStats) uint64 { return s.HandOvers })
	counter("renewals", "Time slices that a loop began anew.", func(s *pollux.LoopStats) uint64 { return s.Renewals })
	counter("demotions", "Times that a loop lost its realtime priority for a turn that did not end.", func(s *pollux.LoopStats) uint64 { return s.Demotions })
	counter("wakes_sent", "Posts that had to wake a loop.", func(s *pollux.LoopStats) uint64 { return s.WakesSent })
	counter("wakes_elided", "Posts that had not.", func(s *pollux.LoopStats) uint64 { return s.WakesElided })

	counter("callbacks_offloaded", "Callbacks that a loop has given to workers, as they are slow or all are to be there.", func(s *pollux.LoopStats) uint64 { return s.Offloaded })
	counter("spurious_wakes", "Waits that ended before their time, with no event and no post.", func(s *pollux.LoopStats) uint64 { return s.SpuriousWakes })
	counter("accepts", "Connections that a loop has accepted.", func(s *pollux.LoopStats) uint64 { return s.Accepts })
	counter("sends", "Sends by a system call.", func(s *pollux.LoopStats) uint64 { return s.Sends })
	counter("send_eagains", "Of these, those that found a socket without room.", func(s *pollux.LoopStats) uint64 { return s.SendEAGAINs })
	counter("short_sends", "Sends that took some of the bytes only.", func(s *pollux.LoopStats) uint64 { return s.ShortSends })
	gauge := func(name, help string, value func(*pollux.LoopStats) int) {
		loop(name, help, prometheus.GaugeValue, func(s *pollux.LoopStats) float64 { return float64(value(s)) })
	}
	gauge("mailbox_depth", "Posts that wait for a loop.", func(s *pollux.LoopStats) int { return s.MailboxDepth })
	gauge("queue_depth", "Callbacks of a loop that wait for workers.", func(s *pollux.LoopStats) int { return s.QueueDepth })

	uring := func(name, help string, value func(*pollux.UringStats) uint64) {
		c.uring = append(c.uring, uringMetric{desc("uring_"+name+"_total", help, "loop"), prometheus.CounterValue,
			func(s *pollux.UringStats) float64 { return float64(value(s)) }})
	}
	level := func(name, help string, value func(*pollux.UringStats) int) {
		c.uring = append(c.uring, uringMetric{desc("uring_"+name, help, "loop"), prometheus.GaugeValue,
			func(s *pollux.UringStats) float64 { return float64(value(s)) }})
	}
	uring("enters", "System calls of a loop's io_uring.", func(s *pollux.UringStats) uint64 { return s.Enters })
	uring("overflows", "Times that completions did not fit into their queue.", func(s *pollux.UringStats) uint64 { return s.Overflows })
	uring("resizes", "Times that the queue of completions was made larger.", func(s *pollux.UringStats) uint64 { return s.Resizes })
	uring("starved_receives", "Receives that found no buffer.", func(s *pollux.UringStats) uint64 { return s.Starved })
	uring("rearms", "Multishot requests that ended and were armed again.", func(s *pollux.UringStats) uint64 { return s.Rearms })
	uring("stale_completions", "Completions whose owner had left.", func(s *pollux.UringStats) uint64 { return s.Stale })
	uring("enters_with_submit", "System calls that have submitted something.", func(s *pollux.UringStats) uint64 { return s.EntersWithSubmit })
	uring("sqes", "Requests submitted.", func(s *pollux.UringStats) uint64 { return s.SQEs })
	uring("cqes", "Completions taken from the queue.", func(s *pollux.UringStats) uint64 { return s.CQEs })
	uring("interrupts", "System calls that a signal has ended (EINTR).", func(s *pollux.UringStats) uint64 { return s.Interrupts })
	uring("taskrun_hits", "System calls made for nothing but the flag that says that deferred work waits.", func(s *pollux.UringStats) uint64 { return s.TaskrunHits })
	uring("epoll_events", "Events of the epoll set that the ring waits on.", func(s *pollux.UringStats) uint64 { return s.EpollEvents })
	uring("dropped", "Times that completions were lost, because there was no memory for them (EBADR).", func(s *pollux.UringStats) uint64 { return s.Dropped })
	uring("multishot_armed", "Multishot requests armed.", func(s *pollux.UringStats) uint64 { return s.MultishotArmed })
	uring("accept_rearms", "Of the requests that were armed again, accepts.", func(s *pollux.UringStats) uint64 { return s.AcceptRearms })
	level("buffers", "Provided buffers.", func(s *pollux.UringStats) int { return s.Buffers })
	level("buffers_free", "Provided buffers not in use when the loop last began to wait.", func(s *pollux.UringStats) int { return s.BuffersFree })
	level("buffers_free_min", "The fewest provided buffers that a batch of completions has left.", func(s *pollux.UringStats) int { return s.BuffersFreeMin })
	uring("buffers_low", "Batches of completions that have left less than a quarter of the buffers.", func(s *pollux.UringStats) uint64 { return s.BuffersLow })
	uring("sends", "Sends by a request of the ring.", func(s *pollux.UringStats) uint64 { return s.Sends })
	uring("cancels", "Requests asked to be canceled.", func(s *pollux.UringStats) uint64 { return s.Cancels })
	level("closing", "Connections and listeners that have left and that the kernel still uses.", func(s *pollux.UringStats) int { return s.Closing })
	uring("memlock_failures", "Times that there was no memory to make a ring (ENOMEM).", func(s *pollux.UringStats) uint64 { return s.MemlockFailures })
	uring("enter_enomem", "System calls that the kernel had no memory for.", func(s *pollux.UringStats) uint64 { return s.EnterENOMEM })
	return c
}

// Describe implements [prometheus.Collector].
func (c *Collector) Describe(to chan<- *prometheus.Desc) {
	to <- c.conns
	to <- c.stuck
	to <- c.relief
	to <- c.workers
	to <- c.worked
	to <- c.rescue
	to <- c.turns
	to <- c.calls
	to <- c.queue
	to <- c.stolen
	to <- c.batches
	to <- c.ends
	to <- c.cancels
	to <- c.info
	for _, m := range c.loop {
		to <- m.desc
	}
	for _, m := range c.uring {
		to <- m.desc
	}
}

// Collect implements [prometheus.Collector].
func (c *Collector) Collect(to chan<- prometheus.Metric) {
	s := c.engine.Stats()
	to <- prometheus.MustNewConstMetric(c.conns, prometheus.GaugeValue, float64(s.Conns), s.Backend)
	to <- prometheus.MustNewConstMetric(c.relief, prometheus.CounterValue, float64(s.Reliefs))
	to <- prometheus.MustNewConstMetric(c.workers, prometheus.GaugeValue, float64(s.Workers.Workers))
	for event, n := range map[string]uint64{"run": s.Workers.Run, "stolen": s.Workers.Stolen, "woken": s.Workers.Wakes,
		"wake_elided": s.Workers.Elided, "parked": s.Workers.Parks, "overflow": s.Workers.Overflow,
		"started": s.Workers.Started, "retired": s.Workers.Retired} {
		to <- prometheus.MustNewConstMetric(c.worked, prometheus.CounterValue, float64(n), event)
	}
	to <- prometheus.MustNewConstMetric(c.queue, prometheus.GaugeValue, float64(s.Workers.Waiting))
	for i, w := range s.EachWorker {
		to <- prometheus.MustNewConstMetric(c.stolen, prometheus.CounterValue, float64(w.Stolen), strconv.Itoa(i))
	}
	to <- prometheus.MustNewConstMetric(c.stuck, prometheus.CounterValue, float64(s.Stuck))
	to <- prometheus.MustNewConstMetric(c.rescue, prometheus.CounterValue, float64(s.Rescues))
	for i := range s.Loops {
		l, name := &s.Loops[i], strconv.Itoa(i)
		for _, m := range c.loop {
			to <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(l), name)
		}
		to <- times(c.turns, l.TurnTimes[:], l.Busy, name)
		to <- times(c.calls, l.CallbackTimes[:], l.CallbackTime, name)
		if l.Uring != nil {
			c.collectUring(to, l.Uring, name)
		}
	}
}

func (c *Collector) collectUring(to chan<- prometheus.Metric, s *pollux.UringStats, loop string) {
	for _, m := range c.uring {
		to <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(s), loop)
	}
	to <- histogram(c.batches, s.CQEBatches[:], func(i int) float64 { return float64(int(1) << i) }, float64(s.CQEs), loop)
	e := &s.MultishotEnded
	for reason, n := range map[string]uint64{"eof": e.EOF, "enobufs": e.NoBuffers, "reset": e.Reset, "canceled": e.Canceled, "overflow": e.Overflow, "other": e.Other} {
		to <- prometheus.MustNewConstMetric(c.ends, prometheus.CounterValue, float64(n), loop, reason)
	}
	for errno, n := range map[string]uint64{"ENOENT": s.CancelsENOENT, "EALREADY": s.CancelsEALREADY} {
		to <- prometheus.MustNewConstMetric(c.cancels, prometheus.CounterValue, float64(n), loop, errno)
	}
	to <- prometheus.MustNewConstMetric(c.info, prometheus.GaugeValue, 1, loop, fmt.Sprintf("%#x", s.SetupFlags), fmt.Sprintf("%#x", s.Features), s.Uses, s.Lacks)
}

// times makes a histogram of classes of durations: class i is below 1 us << i.
func times(desc *prometheus.Desc, classes []uint64, sum time.Duration, loop string) prometheus.Metric {
	return histogram(desc, classes, func(i int) float64 { return (time.Microsecond << i).Seconds() }, sum.Seconds(), loop)
}

// histogram makes one of classes with such bounds; the last one has none.
func histogram(desc *prometheus.Desc, classes []uint64, bound func(i int) float64, sum float64, loop string) prometheus.Metric {
	buckets := map[float64]uint64{}
	count := uint64(0)
	for i, n := range classes {
		count += n
		if i < len(classes)-1 {
			buckets[bound(i)] = count
		} else {
			buckets[math.Inf(1)] = count
		}
	}
	return prometheus.MustNewConstHistogram(desc, count, sum, buckets, loop)
}
