// Package prometheus offers what an engine counts to Prometheus.
//
//	engine, err := pollux.New(pollux.Default())
//	...
//	prometheus.MustRegister(polluxprom.New(engine, "echo"))
//
// It is a module of its own, so that pollux does not depend on the client library.
package prometheus

import (
	"math"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/pollux-go/pollux"
	"github.com/pollux-go/pollux/poller"
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
	loop    []metric
	uring   []uringMetric
}

type metric struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*pollux.LoopStats) float64
}

type uringMetric struct {
	desc  *prometheus.Desc
	value func(*pollux.UringStats) uint64
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
		worked:  desc("worker_events_total", "What the workers have done: callbacks run, some of them stolen; wakes sent and not needed; parks.", "event"),
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

	uring := func(name, help string, value func(*pollux.UringStats) uint64) {
		c.uring = append(c.uring, uringMetric{desc("uring_"+name+"_total", help, "loop"), value})
	}
	uring("enters", "System calls of a loop's io_uring.", func(s *pollux.UringStats) uint64 { return s.Enters })
	uring("overflows", "Times that completions did not fit into their queue.", func(s *pollux.UringStats) uint64 { return s.Overflows })
	uring("resizes", "Times that the queue of completions was made larger.", func(s *pollux.UringStats) uint64 { return s.Resizes })
	uring("starved_receives", "Receives that found no buffer.", func(s *pollux.UringStats) uint64 { return s.Starved })
	uring("rearms", "Multishot requests that ended and were armed again.", func(s *pollux.UringStats) uint64 { return s.Rearms })
	uring("stale_completions", "Completions whose owner had left.", func(s *pollux.UringStats) uint64 { return s.Stale })
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
		"wake_elided": s.Workers.Elided, "parked": s.Workers.Parks, "overflow": s.Workers.Overflow} {
		to <- prometheus.MustNewConstMetric(c.worked, prometheus.CounterValue, float64(n), event)
	}
	to <- prometheus.MustNewConstMetric(c.stuck, prometheus.CounterValue, float64(s.Stuck))
	to <- prometheus.MustNewConstMetric(c.rescue, prometheus.CounterValue, float64(s.Rescues))
	for i := range s.Loops {
		l, name := &s.Loops[i], strconv.Itoa(i)
		for _, m := range c.loop {
			to <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(l), name)
		}
		to <- turnTimes(c.turns, l, name)
		if l.Uring != nil {
			for _, m := range c.uring {
				to <- prometheus.MustNewConstMetric(m.desc, prometheus.CounterValue, float64(m.value(l.Uring)), name)
			}
		}
	}
}

// turnTimes makes a histogram of the classes of turns: class i is below 1 us << i, the last one has no bound.
func turnTimes(desc *prometheus.Desc, l *pollux.LoopStats, name string) prometheus.Metric {
	buckets := map[float64]uint64{}
	sum := uint64(0)
	for i, n := range l.TurnTimes {
		sum += n
		if i < poller.TurnTimesLen-1 {
			buckets[(time.Microsecond << i).Seconds()] = sum
		} else {
			buckets[math.Inf(1)] = sum
		}
	}
	return prometheus.MustNewConstHistogram(desc, sum, l.Busy.Seconds(), buckets, name)
}
