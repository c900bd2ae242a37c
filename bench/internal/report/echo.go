package report

import (
	"fmt"
	"math"
	"slices"
)

// EchoSample is one server in one round.
type EchoSample struct {
	Server string `json:"server"`
	Conns  int    `json:"conns"`
	Round  int    `json:"round"`

	Rate     float64 `json:"rate,omitempty"` // Rate asked for; 0 is a closed loop.
	Requests uint64  `json:"requests"`
	Seconds  float64 `json:"seconds"`

	// Latencies in microseconds.
	P50  float64 `json:"p50_us"`
	P99  float64 `json:"p99_us"`
	P999 float64 `json:"p999_us"`
	Max  float64 `json:"max_us"`

	// CPU time of the server in microseconds per request.
	CPU    float64 `json:"cpu_us"`
	User   float64 `json:"user_us"`
	System float64 `json:"system_us"`

	RSS int64 `json:"rss_bytes"`

	CPUs int `json:"cpus,omitempty"` // CPUs that the server had to itself; 0: it shared them.

	// OtherCPU is the share of the server's CPUs that went to somebody else while
	// it ran, Steal what the hypervisor took.
	OtherCPU float64 `json:"other_cpu"`
	Steal    float64 `json:"steal"`

	// What goroutines of the process got done beside the server: rounds of computing and objects allocated, a second.
	Computed  float64 `json:"computed_per_second,omitempty"`
	Allocated float64 `json:"allocated_per_second,omitempty"`

	LagP99     float64 `json:"lag_p99_us,omitempty"` // How late the generator sent; open loop.
	Unfinished uint64  `json:"unfinished,omitempty"` // Requests without an answer; open loop.
}

// beside is what measures the work beside the server: computing, or allocating if that is all there is.
func (s EchoSample) beside() float64 {
	if s.Computed > 0 {
		return s.Computed
	}
	return s.Allocated
}

func (s EchoSample) perSecond() float64 { return float64(s.Requests) / s.Seconds }

// EchoRow is one server's figures over the rounds.
type EchoRow struct {
	Server string `json:"server"`

	PerSecond Stat `json:"requests_per_second"`
	P50       Stat `json:"p50_us"`
	P99       Stat `json:"p99_us"`
	P999      Stat `json:"p999_us"`
	CPU       Stat `json:"cpu_us"`
	User      Stat `json:"user_us"`
	System    Stat `json:"system_us"`
	RSS       Stat `json:"rss_bytes"`

	// The same round's base server makes the ratio, and then the median is taken:
	// what slows down a whole round cancels out.
	CPURatio       Stat `json:"cpu_ratio"`
	PerSecondRatio Stat `json:"requests_per_second_ratio"`
	P50Ratio       Stat `json:"p50_ratio"`
	P99Ratio       Stat `json:"p99_ratio"`
	P999Ratio      Stat `json:"p999_ratio"`
	Max            Stat `json:"max_us"`
	BesideRatio    Stat `json:"beside_ratio"` // of what was done beside the server
}

// EchoGroup is a table: all servers at one number of connections.
type EchoGroup struct {
	Conns int       `json:"conns"`
	Rate  float64   `json:"rate,omitempty"`
	Base  string    `json:"base"`
	Rows  []EchoRow `json:"rows"`

	samples []EchoSample
}

// GroupEcho sums up samples by number of connections and server, both in the
// order of their first appearance.
func GroupEcho(samples []EchoSample, base string) []EchoGroup {
	var groups []EchoGroup
	for _, s := range samples {
		i := slices.IndexFunc(groups, func(g EchoGroup) bool { return g.Conns == s.Conns })
		if i < 0 {
			i = len(groups)
			groups = append(groups, EchoGroup{Conns: s.Conns, Rate: s.Rate, Base: base})
		}
		groups[i].samples = append(groups[i].samples, s)
	}
	for i := range groups {
		groups[i].sum()
	}
	return groups
}

func (g *EchoGroup) sum() {
	baseOf := map[int]EchoSample{}
	var servers []string
	for _, s := range g.samples {
		if s.Server == g.Base {
			baseOf[s.Round] = s
		}
		if !slices.Contains(servers, s.Server) {
			servers = append(servers, s.Server)
		}
	}
	for _, server := range servers {
		own := slices.DeleteFunc(slices.Clone(g.samples), func(s EchoSample) bool { return s.Server != server })
		stat := func(f func(EchoSample) float64) Stat {
			v := make([]float64, len(own))
			for i, s := range own {
				v[i] = f(s)
			}
			return NewStat(v)
		}
		ratio := func(f func(EchoSample) float64) Stat {
			return stat(func(s EchoSample) float64 {
				b, ok := baseOf[s.Round]
				if !ok {
					return math.NaN()
				}
				return f(s) / f(b)
			})
		}
		p50 := func(s EchoSample) float64 { return s.P50 }
		p99 := func(s EchoSample) float64 { return s.P99 }
		cpu := func(s EchoSample) float64 { return s.CPU }
		g.Rows = append(g.Rows, EchoRow{
			Server:         server,
			PerSecond:      stat(EchoSample.perSecond),
			P50:            stat(p50),
			P99:            stat(p99),
			P999:           stat(func(s EchoSample) float64 { return s.P999 }),
			CPU:            stat(cpu),
			User:           stat(func(s EchoSample) float64 { return s.User }),
			System:         stat(func(s EchoSample) float64 { return s.System }),
			RSS:            stat(func(s EchoSample) float64 { return float64(s.RSS) }),
			CPURatio:       ratio(cpu),
			PerSecondRatio: ratio(EchoSample.perSecond),
			P50Ratio:       ratio(p50),
			P99Ratio:       ratio(p99),
			P999Ratio:      ratio(func(s EchoSample) float64 { return s.P999 }),
			BesideRatio:    ratio(EchoSample.beside),
			Max:            stat(func(s EchoSample) float64 { return s.Max }),
		})
	}
}

// Table lays the group out. An open loop fixes the requests a second, so that
// latency takes their place among the ratios.
func (g EchoGroup) Table() Table {
	t := Table{Header: []string{"server", "req/s", "p50 µs", "p99 µs", "p99.9 µs", "CPU µs/req", "user", "system", "RSS MB",
		"CPU ×" + g.Base, "req/s ×" + g.Base}}
	if g.Rate > 0 {
		t.Header[len(t.Header)-1] = "p99 ×" + g.Base
	}
	for _, r := range g.Rows {
		last := r.PerSecondRatio
		if g.Rate > 0 {
			last = r.P99Ratio
		}
		t.Rows = append(t.Rows, []string{r.Server, r.PerSecond.Format(Count), r.P50.Format(Micros), r.P99.Format(Micros),
			r.P999.Format(Micros), r.CPU.Format(Micros), r.User.Middle(Micros), r.System.Middle(Micros), r.RSS.Middle(Mega),
			r.CPURatio.Format(Ratio), last.Format(Ratio)})
	}
	return t
}

// LatencyTable lays the group out for a process that uses all the CPU there is, so that CPU per request says nothing. The floor
// is a second server to compare with, which has the same privilege and no runtime.
func (g EchoGroup) LatencyTable(floor string) Table {
	other := g.against(floor)
	t := Table{Header: []string{"server", "req/s", "p50 µs", "p99 µs", "p99.9 µs", "max µs", "p99 ×" + g.Base,
		"p50 ×" + floor, "p99 ×" + floor, "p99.9 ×" + floor, "work beside ×" + g.Base}}
	small := func(x float64) string {
		if x < 0.1 {
			return fmt.Sprintf("%.4f", x)
		}
		return Ratio(x)
	}
	for i, r := range g.Rows {
		o := other.Rows[i]
		t.Rows = append(t.Rows, []string{r.Server, r.PerSecond.Middle(Count), r.P50.Format(Micros), r.P99.Format(Micros), r.P999.Format(Micros),
			r.Max.Middle(Micros), r.P99Ratio.Middle(small), o.P50Ratio.Middle(Ratio), o.P99Ratio.Format(Ratio), o.P999Ratio.Format(Ratio), r.BesideRatio.Format(Ratio)})
	}
	return t
}

// against is the same group with another base.
func (g EchoGroup) against(base string) EchoGroup {
	other := EchoGroup{Base: base, samples: g.samples}
	other.sum()
	return other
}

// PingpongTable lays the group out where latency is what counts, with a second server to compare it with.
func (g EchoGroup) PingpongTable(second string) Table {
	other := g.against(second)
	t := Table{Header: []string{"server", "p50 µs", "p99 µs", "p99.9 µs", "CPU µs/req", "p50 ×" + g.Base, "p50 ×" + second, "CPU ×" + g.Base}}
	for i, r := range g.Rows {
		t.Rows = append(t.Rows, []string{r.Server, r.P50.Format(Micros), r.P99.Format(Micros), r.P999.Format(Micros), r.CPU.Format(Micros),
			r.P50Ratio.Format(Ratio), other.Rows[i].P50Ratio.Format(Ratio), r.CPURatio.Format(Ratio)})
	}
	return t
}

// Sentences says what each row but the base's means, one sentence a row.
func (g EchoGroup) Sentences() []string {
	var out []string
	for _, r := range g.Rows {
		if r.Server == g.Base {
			continue
		}
		if r.CPURatio.N == 0 {
			out = append(out, fmt.Sprintf("%s: nothing to compare with, %s did not run.", r.Server, g.Base))
			continue
		}
		second := quantity(r.PerSecondRatio, g.Base, "its requests/s", "more", "fewer")
		if g.Rate > 0 {
			second = quantity(r.P99Ratio, g.Base, "its p99", "slower", "faster")
		}
		out = append(out, fmt.Sprintf("%s: %s; %s.", r.Server,
			quantity(r.CPURatio, g.Base, g.Base+"'s CPU per request", "more", "less"), second))
	}
	return out
}

// quantity words a ratio: how many times, and whether all rounds agree.
func quantity(s Stat, base, of, above, below string) string {
	text := fmt.Sprintf("%s × %s", Ratio(s.Median), of)
	switch {
	case s.N < 2:
		return text + " (one round: no spread to judge it by)"
	case s.Side() > 0:
		return fmt.Sprintf("%s (%s in each of %d rounds)", text, above, s.N)
	case s.Side() < 0:
		return fmt.Sprintf("%s (%s in each of %d rounds)", text, below, s.N)
	}
	return fmt.Sprintf("%s (no clear difference from %s: %s–%s over %d rounds)", text, base, Ratio(s.Min), Ratio(s.Max), s.N)
}

// Notes says what was wrong with the conditions, if anything was.
func (g EchoGroup) Notes() []string {
	var notes []string
	var other, steal, few, unfinished, lag, idle int
	for _, s := range g.samples {
		if s.OtherCPU > 0.05 {
			other++
		}
		if s.Steal > 0.01 {
			steal++
		}
		if s.Requests < 100_000 {
			few++
		}
		if s.Unfinished > 0 {
			unfinished++
		}
		if s.Rate == 0 && s.Conns >= 8 && s.CPUs > 0 && s.CPU*s.perSecond()/1e6/float64(s.CPUs)+s.OtherCPU < 0.93 {
			idle++
		}
		if s.LagP99 > 50 && s.LagP99 > s.P99/4 {
			lag++
		}
	}
	note := func(n int, text string) {
		if n > 0 {
			notes = append(notes, fmt.Sprintf("%d of %d samples: %s", n, len(g.samples), text))
		}
	}
	note(other, "other processes used more than 5 % of the server's CPU.")
	note(steal, "the hypervisor took more than 1 % of the server's CPU.")
	note(idle, "the server had CPU time to spare, so that the client set the pace: its requests/s are a lower bound.")
	note(few, "fewer than 100,000 requests, so that p99.9 rests on fewer than 100 of them.")
	note(unfinished, "the server did not keep up: requests were left without an answer and count with the time they had waited.")
	note(lag, "the generator itself was late for a good part of the p99: it, too, was measured.")
	return notes
}
