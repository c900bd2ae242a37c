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
	acceptLimit = 20 * time.Second       // For a server to accept all connections.
	idleRound   = 45 * time.Second       // Bound on one server in one round.
	settle      = 300 * time.Millisecond // For what a server does after the last accept.
	quiet       = 2 * time.Second        // For what it does after the last answer, before it is watched.
)

const idleNotShown = "the kernel's memory for the sockets, which is the same for all; connections in use; " +
	"what is left after many have come and gone."

// idle runs the idle scenario.
func (b *bench) idle(ctx context.Context) error {
	o := b.o
	limit := (idleRound + o.watch) * time.Duration(len(b.servers)*o.rounds)
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not done after %v", limit))
	defer cancel()

	conns := o.conns[0]
	var samples []report.IdleSample
	out := map[string]bool{}
rounds:
	for round := 1; round <= o.rounds; round++ {
		for _, c := range b.servers {
			if out[c.label] {
				continue
			}
			s, err := b.measureIdle(ctx, c, conns)
			if ctx.Err() != nil {
				break rounds
			}
			if err != nil {
				out[c.label] = true
				samples = slices.DeleteFunc(samples, func(s report.IdleSample) bool { return s.Server == c.label })
				b.fail(c.label, fmt.Sprintf("round %d", round), err)
				continue
			}
			s.Round = round
			samples = append(samples, s)
			fmt.Fprintf(b.progress, "round %d/%d: %-12s %s MB, then %s MB\n", round, o.rounds, c.label,
				report.Mega(float64(s.Before)), report.Mega(float64(s.After)))
		}
	}
	rows := report.SumIdle(samples, o.base)

	b.printMachine(fmt.Sprintf("%d %s, servers in turn; median (min–max); ratios are taken within each round",
		o.rounds, plural(o.rounds, "round", "rounds")))
	b.heading(fmt.Sprintf("%d idle connections", conns))
	if err := b.table(report.IdleTable(rows, o.base, o.watch)); err != nil {
		return err
	}
	b.items(report.IdleSentences(rows, o.base))
	return b.finish(ctx, idleNotShown, struct {
		Conns   int                 `json:"conns"`
		Rounds  int                 `json:"rounds"`
		Rows    []report.IdleRow    `json:"rows"`
		Samples []report.IdleSample `json:"samples"`
	}{conns, o.rounds, rows, samples})
}

// measureIdle starts the server, reads its memory without and with connections, and
// stops it.
func (b *bench) measureIdle(ctx context.Context, c contender, conns int) (report.IdleSample, error) {
	sample := report.IdleSample{Server: c.label, Conns: conns}
	limit := idleRound + b.o.watch
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not done after %v", limit))
	defer cancel()
	s, err := c.start(ctx, b.launcher, b.o)
	if err != nil {
		return sample, startError{err}
	}
	defer s.stop()

	// The first request makes what a server makes on first use.
	first, err := load.OpenIdle(ctx, s.addr, 1, b.o.size)
	if err != nil {
		return sample, err
	}
	defer first.Close()
	if err := first.Ping(); err != nil {
		return sample, err
	}
	time.Sleep(settle)
	if sample.Before, err = proc.RSS(s.pid()); err != nil {
		return sample, startError{err}
	}
	descriptors, err := proc.Descriptors(s.pid())
	if err != nil {
		return sample, startError{err}
	}

	idle, err := load.OpenIdle(ctx, s.addr, conns, b.o.size)
	if err != nil {
		return sample, err
	}
	defer idle.Close()
	for limit := time.Now().Add(acceptLimit); ; time.Sleep(20 * time.Millisecond) {
		n, err := proc.Descriptors(s.pid())
		if err != nil {
			return sample, startError{err}
		}
		if n >= descriptors+conns {
			break
		}
		if time.Now().After(limit) {
			return sample, fmt.Errorf("after %v the server has accepted %d of %d connections", acceptLimit, n-descriptors, conns)
		}
		if ctx.Err() != nil {
			return sample, context.Cause(ctx)
		}
	}
	time.Sleep(settle)
	if sample.Idle, err = proc.RSS(s.pid()); err != nil {
		return sample, startError{err}
	}
	if err := idle.Ping(); err != nil {
		return sample, err
	}
	time.Sleep(settle)
	if sample.After, err = proc.RSS(s.pid()); err != nil {
		return sample, startError{err}
	}
	if b.o.watch == 0 {
		return sample, nil
	}
	if sample.Wakeups, sample.CPU, err = watchIdle(ctx, s.pid(), b.o.watch); err != nil {
		return sample, startError{err}
	}
	return sample, idle.Ping() // None was lost.
}

// watchIdle watches a server whose connections do nothing: how often a second a thread of it wakes up, and the part of a CPU that it
// uses.
func watchIdle(ctx context.Context, pid int, d time.Duration) (wakeups, cpu float64, err error) {
	if err := pause(ctx, quiet); err != nil {
		return 0, 0, err
	}
	began := time.Now()
	used, err := proc.ReadUsage(pid)
	if err != nil {
		return 0, 0, err
	}
	slept, err := proc.ReadSwitches(pid)
	if err != nil {
		return 0, 0, err
	}
	if err := pause(ctx, d); err != nil {
		return 0, 0, err
	}
	sleptNow, err := proc.ReadSwitches(pid)
	if err != nil {
		return 0, 0, err
	}
	usedNow, err := proc.ReadUsage(pid)
	if err != nil {
		return 0, 0, err
	}
	seconds := time.Since(began).Seconds()
	return float64(sleptNow.Since(slept)) / seconds, usedNow.Sub(used).Total.Seconds() / seconds, nil
}

// pause waits for so long, or until ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
