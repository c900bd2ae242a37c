package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/pollux-go/pollux/bench/internal/load"
	"github.com/pollux-go/pollux/bench/internal/proc"
	"github.com/pollux-go/pollux/bench/internal/report"
)

const (
	// overhead is what one figure takes beside its warm-up and window: start, connect,
	// stop. It is meant for the bound on the total time, not for a forecast.
	overhead = 5 * time.Second

	// shareProbe is how long the base server is measured to find its peak.
	shareProbe = time.Second
)

const echoNotShown = "a network (all is loopback, where the kernel does the receiving side's work within the sender's call); " +
	"more than the given server CPUs; requests that take time to answer; servers among other load. " +
	"User and system time are divided up by the kernel's sampling, their sum is exact."

// echo runs the echo scenario or one that differs in what is asked of the servers only.
func (b *bench) echo(ctx context.Context, scenario string) error {
	o := b.o
	figures := len(b.servers) * len(o.conns) * o.rounds
	limit := 2*time.Duration(figures)*(o.warmup+o.duration) + time.Duration(figures+len(o.conns))*overhead
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not done after %v", limit))
	defer cancel()

	var samples []report.EchoSample
	for _, conns := range o.conns {
		rate, err := b.rateFor(ctx, conns)
		if err != nil {
			b.wrong(o.base, fmt.Sprintf("finding its peak at %d connections", conns), err)
			continue
		}
		samples = append(samples, b.echoRounds(ctx, conns, rate)...)
		if ctx.Err() != nil {
			break
		}
	}
	groups := report.GroupEcho(samples, o.base)

	deadline := ""
	if o.deadline > 0 {
		deadline = fmt.Sprintf("; a read deadline of %v is set before every read", o.deadline)
	}
	b.printMachine(fmt.Sprintf("%d %s of %v after %v of warm-up, servers in turn; median (min–max); ratios are taken within each round; the client %ss between answers%s",
		o.rounds, plural(o.rounds, "round", "rounds"), o.duration, o.warmup, b.machine.Client, deadline))
	for _, g := range groups {
		way := fmt.Sprintf("closed loop, %d under way on each", o.pipeline)
		if g.Rate > 0 {
			way = fmt.Sprintf("open loop at %s requests/s, latency from when a request was due", report.Count(g.Rate))
		}
		if scenario == "busy" {
			way += fmt.Sprintf("; beside the server %d goroutines compute and %d allocate", o.burn, o.churn)
		}
		if scenario == "skew" {
			way += fmt.Sprintf("; one request in a hundred, which is not counted, sleeps %v and computes %v", o.sleep, o.compute)
		}
		b.heading(fmt.Sprintf("%d %s, %d bytes, %s", g.Conns, plural(g.Conns, "connection", "connections"), o.size, way))
		table, sentences := g.Table(), g.Sentences()
		switch scenario {
		case "busy":
			table, sentences = g.LatencyTable(), nil
		case "pingpong":
			table, sentences = g.PingpongTable(spinning), nil
		}
		if err := b.table(table); err != nil {
			return err
		}
		b.items(sentences)
		b.items(g.Notes())
	}
	return b.finish(ctx, echoNotShown, struct {
		Size     int                 `json:"size"`
		Pipeline int                 `json:"pipeline"`
		Rounds   int                 `json:"rounds"`
		Duration string              `json:"duration"`
		Warmup   string              `json:"warmup"`
		Deadline string              `json:"deadline"`
		Groups   []report.EchoGroup  `json:"groups"`
		Samples  []report.EchoSample `json:"samples"`
	}{o.size, o.pipeline, o.rounds, o.duration.String(), o.warmup.String(), o.deadline.String(), groups, samples})
}

// rateFor is the rate of the open loop at so many connections, 0 for a closed loop.
func (b *bench) rateFor(ctx context.Context, conns int) (float64, error) {
	if b.o.share == 0 {
		return b.o.rate, nil
	}
	i := slices.IndexFunc(b.servers, func(c contender) bool { return c.label == b.o.base })
	if i < 0 {
		return 0, fmt.Errorf("-share needs the base server %s among -servers", b.o.base)
	}
	s, err := b.measure(ctx, b.servers[i], load.Config{Conns: conns, Duration: shareProbe})
	if err != nil {
		return 0, err
	}
	return float64(s.Requests) / s.Seconds * b.o.share, nil
}

// echoRounds measures all servers at so many connections. A server that fails is
// out for the rest, and what it did before does not count.
func (b *bench) echoRounds(ctx context.Context, conns int, rate float64) []report.EchoSample {
	var samples []report.EchoSample
	out := map[string]bool{}
	for round := 1; round <= b.o.rounds; round++ {
		for _, c := range b.servers {
			if out[c.label] {
				continue
			}
			s, err := b.measure(ctx, c, load.Config{Conns: conns, Rate: rate, Duration: b.o.duration})
			if ctx.Err() != nil {
				return samples // The rounds so far stand.
			}
			if err != nil {
				out[c.label] = true
				samples = slices.DeleteFunc(samples, func(s report.EchoSample) bool { return s.Server == c.label })
				b.fail(c.label, fmt.Sprintf("%d %s, round %d", conns, plural(conns, "connection", "connections"), round), err)
				continue
			}
			s.Round = round
			samples = append(samples, s)
			fmt.Fprintf(b.progress, "%d conns, round %d/%d: %-12s %s requests/s, %s µs CPU, p99 %s µs\n", conns, round, b.o.rounds,
				c.label, report.Count(float64(s.Requests)/s.Seconds), report.Micros(s.CPU), report.Micros(s.P99))
		}
	}
	return samples
}

// startError is a server that could not be run at all, which is no fault in its answers.
type startError struct{ error }

func (e startError) Unwrap() error { return e.error }

func (b *bench) fail(server, where string, err error) {
	if _, ok := err.(startError); ok {
		b.leaveOut(server, where, err)
		return
	}
	b.wrong(server, where, err)
}

// measure starts the server, drives it as cfg says, and stops it.
func (b *bench) measure(ctx context.Context, c contender, cfg load.Config) (report.EchoSample, error) {
	s, err := c.start(ctx, b.launcher, b.o)
	if err != nil {
		return report.EchoSample{}, startError{err}
	}
	defer s.stop()

	var edges [2]edge
	cfg.Addr, cfg.Size, cfg.Pipeline = s.addr, b.o.size, b.o.pipeline
	cfg.Warmup, cfg.Spin = b.o.warmup, b.spin
	cfg.Skew = b.o.sleep > 0 || b.o.compute > 0
	cfg.Start = func() { edges[0] = readEdge(s, b.o.serverCPUs) }
	cfg.End = func() { edges[1] = readEdge(s, b.o.serverCPUs) }
	r, err := load.Run(ctx, cfg)
	if err != nil {
		select {
		case <-s.ended:
			err = fmt.Errorf("%w; the server ended (%v): %s", err, s.err, s.said())
		default:
		}
		return report.EchoSample{}, err
	}
	for _, e := range edges {
		if e.err != nil {
			return report.EchoSample{}, startError{e.err}
		}
	}
	if r.Requests == 0 {
		return report.EchoSample{}, fmt.Errorf("no answer within %v", cfg.Duration)
	}
	rss, err := proc.RSS(s.pid())
	if err != nil {
		return report.EchoSample{}, startError{err}
	}
	used := edges[1].usage.Sub(edges[0].usage)
	perRequest := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 / float64(r.Requests) }
	micros := func(quantile float64) float64 { return float64(r.Latency.ValueAtQuantile(quantile)) / 1e3 }
	capacity := r.Elapsed * time.Duration(max(1, len(b.o.serverCPUs)))
	busy := edges[1].times.Busy - edges[0].times.Busy
	sample := report.EchoSample{
		Server: c.label, Conns: cfg.Conns, Rate: cfg.Rate,
		Requests: r.Requests, Seconds: r.Elapsed.Seconds(),
		P50: micros(50), P99: micros(99), P999: micros(99.9), Max: float64(r.Latency.Max()) / 1e3,
		CPU: perRequest(used.Total), User: perRequest(used.User), System: perRequest(used.System),
		RSS:        rss,
		Unfinished: r.Unfinished,
		Computed:   float64(edges[1].computed-edges[0].computed) / r.Elapsed.Seconds(),
		Allocated:  float64(edges[1].allocated-edges[0].allocated) / r.Elapsed.Seconds(),
	}
	if !b.shared {
		sample.CPUs = len(b.o.serverCPUs)
		sample.OtherCPU = max(0, float64(busy-used.Total)/float64(capacity))
		sample.Steal = float64(edges[1].times.Steal-edges[0].times.Steal) / float64(capacity)
	}
	if cfg.Rate > 0 {
		sample.LagP99 = float64(r.Lag.ValueAtQuantile(99)) / 1e3
	}
	return sample, nil
}

// edge is what the kernel had counted at an edge of the timed window.
type edge struct {
	usage proc.Usage
	times proc.Times
	err   error

	computed, allocated uint64 // beside the server, since it began
}

func readEdge(s *child, cpus []int) edge {
	var e edge
	if s.done != nil {
		e.computed, e.allocated = s.done.Computed.Load(), s.done.Allocated.Load()
	}
	if e.times, e.err = proc.ReadTimes(cpus); e.err != nil {
		return e
	}
	e.usage, e.err = proc.ReadUsage(s.pid())
	return e
}
