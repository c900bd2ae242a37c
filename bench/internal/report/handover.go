package report

import (
	"math"
	"slices"
)

// HandoverSample is one server in one round of the handover scenario. Latencies in microseconds.
type HandoverSample struct {
	Server string  `json:"server"`
	Round  int     `json:"round"`
	Count  uint64  `json:"count"`
	P50    float64 `json:"p50_us"`
	P99    float64 `json:"p99_us"`
	P999   float64 `json:"p999_us"`
	Max    float64 `json:"max_us"`
}

// HandoverTable sums up samples by server. Ratios are taken within a round, as in [EchoRow].
func HandoverTable(samples []HandoverSample, base string) Table {
	t := Table{Header: []string{"server", "handed over", "p50 µs", "p99 µs", "p99.9 µs", "max µs", "p99 ×" + base}}
	baseOf := map[int]HandoverSample{}
	var servers []string
	for _, s := range samples {
		if s.Server == base {
			baseOf[s.Round] = s
		}
		if !slices.Contains(servers, s.Server) {
			servers = append(servers, s.Server)
		}
	}
	for _, server := range servers {
		stat := func(f func(HandoverSample) float64) Stat {
			var v []float64
			for _, s := range samples {
				if s.Server == server {
					v = append(v, f(s))
				}
			}
			return NewStat(v)
		}
		t.Rows = append(t.Rows, []string{
			server,
			stat(func(s HandoverSample) float64 { return float64(s.Count) }).Middle(Count),
			stat(func(s HandoverSample) float64 { return s.P50 }).Format(Micros),
			stat(func(s HandoverSample) float64 { return s.P99 }).Format(Micros),
			stat(func(s HandoverSample) float64 { return s.P999 }).Format(Micros),
			stat(func(s HandoverSample) float64 { return s.Max }).Middle(Micros),
			stat(func(s HandoverSample) float64 {
				b, ok := baseOf[s.Round]
				if !ok {
					return math.NaN()
				}
				return s.P99 / b.P99
			}).Format(Ratio),
		})
	}
	return t
}
