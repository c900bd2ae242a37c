package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pollux-go/pollux/bench/internal/load"
	"github.com/pollux-go/pollux/bench/internal/report"
)

// handoverCase is a table of the handover scenario.
type handoverCase struct {
	conns int
	rate  float64
	burn  int
}

// handoverCases: the loop idle and busy, and goroutines that compute, or not.
var handoverCases = []handoverCase{{1, 1000, 0}, {16, 20_000, 0}, {1, 1000, 2}, {16, 20_000, 2}}

const handoverNotShown = "a service whose handlers answer by themselves: bench echo and busy show that."

// handover runs the handover scenario.
func (b *bench) handover(ctx context.Context) error {
	o := b.o
	figures := len(b.servers) * len(handoverCases) * o.rounds
	limit := lateTries*time.Duration(figures)*(o.warmup+o.duration) + time.Duration(figures)*overhead
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not done after %v", limit))
	defer cancel()

	var groups [][]report.HandoverSample
	for _, hc := range handoverCases {
		groups = append(groups, b.handoverRounds(ctx, hc))
		if ctx.Err() != nil {
			break
		}
	}
	b.printMachine(fmt.Sprintf("%d %s of %v after %v of warm-up, servers in turn; median (min–max)",
		o.rounds, plural(o.rounds, "round", "rounds"), o.duration, o.warmup))
	for i, samples := range groups {
		hc := handoverCases[i]
		b.heading(fmt.Sprintf("from a handler's send on a channel to the goroutine that waits: %d %s, open loop at %s requests/s, %d goroutines compute",
			hc.conns, plural(hc.conns, "connection", "connections"), report.Count(hc.rate), hc.burn))
		if err := b.table(report.HandoverTable(samples, o.base, handing)); err != nil {
			return err
		}
	}
	return b.finish(ctx, handoverNotShown, groups)
}

func (b *bench) handoverRounds(ctx context.Context, hc handoverCase) []report.HandoverSample {
	var samples []report.HandoverSample
	out := map[string]bool{}
	for round := 1; round <= b.o.rounds; round++ {
		for _, c := range b.servers {
			if out[c.label] {
				continue
			}
			var s report.HandoverSample
			var err error
			for range lateTries {
				s, err = b.measureHandover(ctx, c, hc)
				if err != nil || s.LagP99 < lateMost {
					break
				}
				fmt.Fprintf(b.progress, "%d conns, %d compute, round %d/%d: %s: the generator was %s µs late: once more\n", hc.conns, hc.burn, round, b.o.rounds,
					c.label, report.Micros(s.LagP99))
			}
			if ctx.Err() != nil {
				return samples
			}
			if err != nil {
				out[c.label] = true
				samples = slices.DeleteFunc(samples, func(s report.HandoverSample) bool { return s.Server == c.label })
				b.fail(c.label, fmt.Sprintf("round %d", round), err)
				continue
			}
			s.Round = round
			samples = append(samples, s)
			fmt.Fprintf(b.progress, "%d conns, %d compute, round %d/%d: %s p50 %s, p99 %s µs\n", hc.conns, hc.burn, round, b.o.rounds,
				c.label, report.Micros(s.P50), report.Micros(s.P99))
		}
	}
	return samples
}

// measureHandover drives one server and reads what it has measured itself.
func (b *bench) measureHandover(ctx context.Context, c contender, hc handoverCase) (report.HandoverSample, error) {
	o := *b.o
	o.burn = hc.burn
	sample := report.HandoverSample{Server: c.label}
	s, err := c.start(ctx, b.launcher, &o)
	if err != nil {
		return sample, startError{err}
	}
	var t tally
	cfg := load.Config{Conns: hc.conns, Rate: hc.rate, Warmup: o.warmup, Duration: o.duration}
	b.drives(&cfg, s, &t)
	cfg.Pipeline = 1
	r, err := load.Run(ctx, cfg)
	s.stop()
	if err != nil {
		return sample, fmt.Errorf("%w: %s", err, s.said())
	}
	for _, e := range []edge{t.begin, t.end} {
		if e.err != nil {
			return sample, startError{e.err}
		}
	}
	if r.Requests > 0 && hc.burn == 0 { // Those that compute are in the process, too.
		sample.CPU = float64(t.end.usage.Sub(t.begin.usage).Total.Nanoseconds()) / 1e3 / float64(r.Requests)
	}
	sample.LagP99 = float64(r.Lag.ValueAtQuantile(99)) / 1e3
	sample.Answer50, sample.Answer99 = float64(r.Latency.ValueAtQuantile(50))/1e3, float64(r.Latency.ValueAtQuantile(99))/1e3
	var nanos [4]float64
	for line := range strings.Lines(s.stdout.String()) {
		if _, err := fmt.Sscanf(line, "handover %d %g %g %g %g", &sample.Count, &nanos[0], &nanos[1], &nanos[2], &nanos[3]); err == nil {
			sample.P50, sample.P99, sample.P999, sample.Max = nanos[0]/1e3, nanos[1]/1e3, nanos[2]/1e3, nanos[3]/1e3
			return sample, nil
		}
	}
	return sample, fmt.Errorf("the server ended (%v) without its figures: %s", s.err, s.said())
}
