package report

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"
)

// IdleSample is one server in one round of the idle scenario. Sizes in bytes.
type IdleSample struct {
	Server string `json:"server"`
	Round  int    `json:"round"`
	Conns  int    `json:"conns"`
	Before int64  `json:"rss_before"` // After one request, before the connections.
	Idle   int64  `json:"rss_idle"`   // All connected, none used yet.
	After  int64  `json:"rss_pinged"` // After one request on each.

	// While nothing happens, if that was watched.
	Wakeups float64 `json:"wakeups_per_second"` // Of all threads.
	CPU     float64 `json:"cpu"`                // Part of one CPU.
}

func (s IdleSample) perIdle() float64   { return float64(s.Idle-s.Before) / float64(s.Conns) }
func (s IdleSample) perPinged() float64 { return float64(s.After-s.Before) / float64(s.Conns) }

// IdleRow is one server's figures over the rounds, in bytes.
type IdleRow struct {
	Server    string `json:"server"`
	Before    Stat   `json:"rss_before"`
	Idle      Stat   `json:"rss_idle"`
	PerIdle   Stat   `json:"per_idle_connection"`
	PerPinged Stat   `json:"per_used_connection"`
	Ratio     Stat   `json:"per_used_connection_ratio"`
	Wakeups   Stat   `json:"wakeups_per_second"`
	CPU       Stat   `json:"cpu"`
}

// SumIdle sums up samples by server. Ratios are taken within a round, as in
// [EchoRow].
func SumIdle(samples []IdleSample, base string) []IdleRow {
	baseOf := map[int]IdleSample{}
	var servers []string
	for _, s := range samples {
		if s.Server == base {
			baseOf[s.Round] = s
		}
		if !slices.Contains(servers, s.Server) {
			servers = append(servers, s.Server)
		}
	}
	var rows []IdleRow
	for _, server := range servers {
		stat := func(f func(IdleSample) float64) Stat {
			var v []float64
			for _, s := range samples {
				if s.Server == server {
					v = append(v, f(s))
				}
			}
			return NewStat(v)
		}
		rows = append(rows, IdleRow{
			Server:    server,
			Before:    stat(func(s IdleSample) float64 { return float64(s.Before) }),
			Idle:      stat(func(s IdleSample) float64 { return float64(s.Idle) }),
			PerIdle:   stat(IdleSample.perIdle),
			PerPinged: stat(IdleSample.perPinged),
			Wakeups:   stat(func(s IdleSample) float64 { return s.Wakeups }),
			CPU:       stat(func(s IdleSample) float64 { return s.CPU }),
			Ratio: stat(func(s IdleSample) float64 {
				b, ok := baseOf[s.Round]
				if !ok {
					return math.NaN()
				}
				return s.perPinged() / b.perPinged()
			}),
		})
	}
	return rows
}

// IdleTable lays the rows out. watched is for how long the servers were watched when nothing happened; 0: they were not.
func IdleTable(rows []IdleRow, base string, watched time.Duration) Table {
	t := Table{Header: []string{"server", "RSS before MB", "RSS connected MB", "bytes/conn, unused", "bytes/conn, used once", "used once ×" + base}}
	if watched > 0 {
		t.Header = append(t.Header, fmt.Sprintf("wake-ups/s in %v", watched), "CPU %")
	}
	for _, r := range rows {
		row := []string{r.Server, r.Before.Middle(Mega), r.Idle.Middle(Mega), r.PerIdle.Format(Count),
			r.PerPinged.Format(Count), r.Ratio.Format(Ratio)}
		if watched > 0 {
			row = append(row, r.Wakeups.Format(rate), r.CPU.Format(percent))
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}

func rate(v float64) string    { return strconv.FormatFloat(v, 'f', 2, 64) }
func percent(v float64) string { return strconv.FormatFloat(100*v, 'f', 4, 64) }

// IdleSentences says what each row but the base's means.
func IdleSentences(rows []IdleRow, base string) []string {
	var out []string
	for _, r := range rows {
		switch {
		case r.Server == base:
		case r.Ratio.N == 0:
			out = append(out, fmt.Sprintf("%s: %s bytes per connection; nothing to compare with, %s did not run.",
				r.Server, r.PerPinged.Middle(Count), base))
		default:
			out = append(out, fmt.Sprintf("%s: %s bytes per connection that was used once, %s.", r.Server, r.PerPinged.Middle(Count),
				quantity(r.Ratio, base, base+"'s", "more", "less")))
		}
	}
	return out
}
