package main

import (
	"context"
	"fmt"
	"math/rand/v2"
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

	// lateMost is how late the generator may be, in microseconds, at the 99th percentile. If it was later, it was stopped, by a
	// hypervisor or as a realtime thread, and the figure says nothing of the server: it is measured again, lateTries times in all.
	lateMost  = 50_000
	lateTries = 3

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
	turns := "servers in turn"
	if o.turns > 1 {
		turns = fmt.Sprintf("all servers up, each driven in %d turns of %v, one after the other", o.turns, o.duration/time.Duration(o.turns))
	}
	b.printMachine(fmt.Sprintf("%d %s of %v after %v of warm-up, %s; median (min–max); ratios are taken within each round; the client %ss between answers%s",
		o.rounds, plural(o.rounds, "round", "rounds"), o.duration, o.warmup, turns, b.machine.Client, deadline))
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
		if o.cost > 0 {
			way += fmt.Sprintf("; each request computes %v", o.cost)
		}
		b.heading(fmt.Sprintf("%d %s, %d bytes, %s", g.Conns, plural(g.Conns, "connection", "connections"), o.size, way))
		table, sentences := g.Table(), g.Sentences()
		switch scenario {
		case "busy":
			table, sentences = g.LatencyTable(realtime), nil
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
		Turns    int                 `json:"turns"`
		Deadline string              `json:"deadline"`
		Groups   []report.EchoGroup  `json:"groups"`
		Samples  []report.EchoSample `json:"samples"`
	}{o.size, o.pipeline, o.rounds, o.duration.String(), o.warmup.String(), o.turns, o.deadline.String(), groups, samples})
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
	servers := slices.Clone(b.servers)
	for round := 1; round <= b.o.rounds; round++ {
		failed := func(c contender, err error) {
			if ctx.Err() != nil {
				return // The rounds so far stand.
			}
			servers = slices.DeleteFunc(servers, func(s contender) bool { return s.label == c.label })
			samples = slices.DeleteFunc(samples, func(s report.EchoSample) bool { return s.Server == c.label })
			b.fail(c.label, fmt.Sprintf("%d %s, round %d", conns, plural(conns, "connection", "connections"), round), err)
		}
		done := func(s report.EchoSample) {
			s.Round = round
			samples = append(samples, s)
			fmt.Fprintf(b.progress, "%d conns, round %d/%d: %-12s %s requests/s, %s µs CPU, p99 %s µs\n", conns, round, b.o.rounds,
				s.Server, report.Count(float64(s.Requests)/s.Seconds), report.Micros(s.CPU), report.Micros(s.P99))
		}
		if b.o.turns > 1 {
			for _, s := range b.turns(ctx, slices.Clone(servers), conns, failed) {
				done(s)
			}
		} else {
			for _, c := range slices.Clone(servers) {
				var s report.EchoSample
				var err error
				for range lateTries {
					s, err = b.measure(ctx, c, load.Config{Conns: conns, Rate: rate, Duration: b.o.duration})
					if err != nil || s.LagP99 < lateMost {
						break
					}
					fmt.Fprintf(b.progress, "%d conns, round %d/%d: %-12s the generator was %s µs late: once more\n", conns, round, b.o.rounds,
						c.label, report.Micros(s.LagP99))
				}
				if err != nil {
					failed(c, err)
				} else {
					done(s)
				}
				if ctx.Err() != nil {
					return samples
				}
			}
		}
		if ctx.Err() != nil {
			return samples
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
	var t tally
	cfg.Warmup = b.o.warmup
	cfg.Skew = b.o.sleep > 0 || b.o.compute > 0
	b.drives(&cfg, s, &t)
	r, err := load.Run(ctx, cfg)
	if err != nil {
		return report.EchoSample{}, s.blame(err)
	}
	return b.sample(c, s, cfg, r, t)
}

// drives completes cfg for a server that is up, and has t add up what it uses.
func (b *bench) drives(cfg *load.Config, s *child, t *tally) {
	cfg.Addr, cfg.Size, cfg.Pipeline, cfg.Spin = s.addr, b.o.size, b.o.pipeline, b.spin
	cfg.Start = func() { t.begin.add(readEdge(s, b.o.serverCPUs)) }
	cfg.End = func() { t.end.add(readEdge(s, b.o.serverCPUs)) }
}

// blame adds to an error of the load what the server has said, if it has ended.
func (s *child) blame(err error) error {
	select {
	case <-s.ended:
		return fmt.Errorf("%w; the server ended (%v): %s", err, s.err, s.said())
	default:
		return err
	}
}

const (
	// turnWarmup is the load before each turn but the first, for what has gone cold while others had theirs.
	turnWarmup = 10 * time.Millisecond

	// turnLeast is how short a turn may be: the kernel counts a part of what is reported in steps of 10 ms.
	turnLeast = 20 * time.Millisecond
	turnsMost = 1000
)

// turns has all servers of a round up together, and drives them one after the other for a short while each, again and again. Then
// what disturbs the machine for longer than a turn disturbs all alike, and the ratios are closer. failed is told of servers that
// fail.
func (b *bench) turns(ctx context.Context, servers []contender, conns int, failed func(contender, error)) (samples []report.EchoSample) {
	defer load.Reserve()()
	type entrant struct {
		contender
		server  *child
		session *load.Session
		cfg     load.Config
		tally   tally
	}
	var field []*entrant
	enter := func(c contender) (err error) {
		e := &entrant{contender: c, cfg: load.Config{Conns: conns, Duration: b.o.duration}}
		if e.server, err = c.start(ctx, b.launcher, b.o); err != nil {
			return startError{err}
		}
		b.drives(&e.cfg, e.server, &e.tally)
		if e.session, err = load.Open(ctx, e.cfg); err != nil {
			err = e.server.blame(err)
			e.server.stop()
			return err
		}
		field = append(field, e)
		return nil
	}
	leave := func(e *entrant) {
		e.session.Close()
		e.server.stop()
	}
	defer func() {
		for _, e := range field {
			leave(e)
		}
	}()
	for _, c := range servers {
		if err := enter(c); err != nil {
			failed(c, err)
		}
	}
	for turn := range b.o.turns {
		warmup := turnWarmup
		if turn == 0 {
			warmup = max(b.o.warmup, turnWarmup)
		}
		// In an order of its own each time, so that nobody always has its turn after the same one.
		rand.Shuffle(len(field), func(i, j int) { field[i], field[j] = field[j], field[i] })
		field = slices.DeleteFunc(field, func(e *entrant) bool {
			err := e.session.Turn(warmup, b.o.duration/time.Duration(b.o.turns))
			if err != nil {
				failed(e.contender, e.server.blame(err))
				leave(e)
			}
			return err != nil
		})
	}
	place := func(e *entrant) int {
		return slices.IndexFunc(servers, func(c contender) bool { return c.label == e.label })
	}
	slices.SortFunc(field, func(a, b *entrant) int { return place(a) - place(b) })
	for _, e := range field {
		s, err := b.sample(e.contender, e.server, e.cfg, e.session.Result(), e.tally)
		if err != nil {
			failed(e.contender, err)
			continue
		}
		samples = append(samples, s)
	}
	return samples
}

// sample is what was measured of a server, which is still up.
func (b *bench) sample(c contender, s *child, cfg load.Config, r load.Result, t tally) (report.EchoSample, error) {
	for _, e := range []edge{t.begin, t.end} {
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
	used := t.end.usage.Sub(t.begin.usage)
	perRequest := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 / float64(r.Requests) }
	micros := func(quantile float64) float64 { return float64(r.Latency.ValueAtQuantile(quantile)) / 1e3 }
	capacity := r.Elapsed * time.Duration(max(1, len(b.o.serverCPUs)))
	busy := t.end.times.Busy - t.begin.times.Busy
	sample := report.EchoSample{
		Server: c.label, Conns: cfg.Conns, Rate: cfg.Rate,
		Requests: r.Requests, Seconds: r.Elapsed.Seconds(),
		P50: micros(50), P99: micros(99), P999: micros(99.9), Max: float64(r.Latency.Max()) / 1e3,
		CPU: perRequest(used.Total), User: perRequest(used.User), System: perRequest(used.System),
		RSS:        rss,
		Unfinished: r.Unfinished,
		Computed:   float64(t.end.computed-t.begin.computed) / r.Elapsed.Seconds(),
		Allocated:  float64(t.end.allocated-t.begin.allocated) / r.Elapsed.Seconds(),
	}
	if !b.shared {
		sample.CPUs = len(b.o.serverCPUs)
		sample.OtherCPU = max(0, float64(busy-used.Total)/float64(capacity))
		sample.Steal = float64(t.end.times.Steal-t.begin.times.Steal) / float64(capacity)
	}
	if cfg.Rate > 0 {
		sample.LagP99 = float64(r.Lag.ValueAtQuantile(99)) / 1e3
	}
	return sample, nil
}

// tally adds up the readings at the beginnings and at the ends of timed windows.
type tally struct{ begin, end edge }

// edge is what the kernel had counted at an edge of the timed window.
type edge struct {
	usage proc.Usage
	times proc.Times
	err   error

	computed, allocated uint64 // beside the server, since it began
}

func (e *edge) add(o edge) {
	e.usage.Total += o.usage.Total
	e.usage.User += o.usage.User
	e.usage.System += o.usage.System
	e.times.Busy += o.times.Busy
	e.times.Steal += o.times.Steal
	e.computed += o.computed
	e.allocated += o.allocated
	if e.err == nil {
		e.err = o.err
	}
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
