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

	CPU float64 `json:"cpu_us,omitempty"` // of the server, for each answer; 0: others in its process compute

	// What the client waits for: from when a request was due to its answer.
	Answer50 float64 `json:"answer_p50_us"`
	Answer99 float64 `json:"answer_p99_us"`
	LagP99   float64 `json:"lag_p99_us"` // How late the generator sent; see [EchoSample].
}

// HandoverTable sums up samples by server. Ratios are taken within a round, as in [EchoRow]; the floor is a second server to
// compare with.
func HandoverTable(samples []HandoverSample, base, floor string) Table {
	t := Table{Header: []string{"server", "handed over", "p50 µs", "p99 µs", "p99.9 µs", "max µs", "p99 ×" + base,
		"p50 ×" + floor, "p99 ×" + floor, "answer p50 µs", "answer p99 µs", "CPU µs/answer"}}
	type key struct {
		server string
		round  int
	}
	of := map[key]HandoverSample{}
	var servers []string
	for _, s := range samples {
		of[key{s.Server, s.Round}] = s
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
		ratio := func(other string, f func(HandoverSample) float64) string {
			return stat(func(s HandoverSample) float64 {
				o, ok := of[key{other, s.Round}]
				if !ok {
					return math.NaN()
				}
				return f(s) / f(o)
			}).Format(Ratio)
		}
		cpu := func(s HandoverSample) float64 {
			if s.CPU == 0 {
				return math.NaN()
			}
			return s.CPU
		}
		p50 := func(s HandoverSample) float64 { return s.P50 }
		p99 := func(s HandoverSample) float64 { return s.P99 }
		t.Rows = append(t.Rows, []string{
			server,
			stat(func(s HandoverSample) float64 { return float64(s.Count) }).Middle(Count),
			stat(p50).Format(Micros),
			stat(p99).Format(Micros),
			stat(func(s HandoverSample) float64 { return s.P999 }).Format(Micros),
			stat(func(s HandoverSample) float64 { return s.Max }).Middle(Micros),
			ratio(base, p99),
			ratio(floor, p50),
			ratio(floor, p99),
			stat(func(s HandoverSample) float64 { return s.Answer50 }).Format(Micros),
			stat(func(s HandoverSample) float64 { return s.Answer99 }).Format(Micros),
			stat(cpu).Format(Micros),
		})
	}
	return t
}
