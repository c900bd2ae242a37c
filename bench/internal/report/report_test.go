package report

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestNewStat(t *testing.T) {
	for _, test := range []struct {
		values []float64
		want   Stat
	}{
		{nil, Stat{}},
		{[]float64{math.NaN(), math.Inf(1)}, Stat{}},
		{[]float64{3}, Stat{3, 3, 3, 1}},
		{[]float64{3, 1, 2}, Stat{2, 1, 3, 3}},
		{[]float64{4, 1, 2, 3}, Stat{2.5, 1, 4, 4}},
		{[]float64{4, math.NaN(), 2}, Stat{3, 2, 4, 2}},
	} {
		values := slices.Clone(test.values)
		if got := NewStat(test.values); got != test.want {
			t.Errorf("NewStat(%v) = %v, want %v", test.values, got, test.want)
		}
		same := func(a, b float64) bool { return a == b || math.IsNaN(a) && math.IsNaN(b) }
		if !slices.EqualFunc(values, test.values, same) {
			t.Errorf("NewStat made %v of its argument %v", test.values, values)
		}
	}
}

func TestFormat(t *testing.T) {
	for _, test := range []struct{ got, want string }{
		{Count(0), "0"},
		{Count(999.6), "1,000"},
		{Count(1234567), "1,234,567"},
		{Count(-1234), "-1,234"},
		{Micros(3.456), "3.46"},
		{Micros(34.56), "34.6"},
		{Micros(3456), "3,456"},
		{Ratio(0.756), "0.76"},
		{Mega(12_340_000), "12.3"},
		{Stat{}.Format(Ratio), "-"},
		{Stat{}.Middle(Ratio), "-"},
		{Stat{1, 1, 1, 1}.Format(Ratio), "1.00"},
		{Stat{1, 0.5, 2, 3}.Format(Ratio), "1.00 (0.50–2.00)"},
		{Stat{1, 0.5, 2, 3}.Middle(Ratio), "1.00"},
	} {
		if test.got != test.want {
			t.Errorf("got %q, want %q", test.got, test.want)
		}
	}
}

func TestSide(t *testing.T) {
	for _, test := range []struct {
		s    Stat
		want int
	}{
		{Stat{0.8, 0.7, 0.9, 3}, -1},
		{Stat{1.2, 1.1, 1.3, 3}, +1},
		{Stat{0.9, 0.7, 1.1, 3}, 0},
		{Stat{0.9, 0.9, 0.9, 1}, 0}, // One round proves nothing.
		{Stat{}, 0},
	} {
		if got := test.s.Side(); got != test.want {
			t.Errorf("%v.Side() = %d, want %d", test.s, got, test.want)
		}
	}
}

// samples has two servers over three rounds, of which the second was twice as slow
// for both. "lean" takes half of std's CPU in each; "wild" goes both ways.
func samples() []EchoSample {
	var s []EchoSample
	for round, slow := range []float64{1, 2, 1} {
		std := EchoSample{Server: "std", Conns: 64, Round: round + 1, Requests: uint64(200_000 / slow), Seconds: 1, P50: 10 * slow, P99: 20 * slow, P999: 40, CPU: 4 * slow, RSS: 5e6}
		lean := std
		lean.Server, lean.CPU, lean.Requests = "lean", std.CPU/2, std.Requests*3/2
		wild := std
		wild.Server, wild.CPU, wild.P99 = "wild", std.CPU*[]float64{0.5, 1.5, 1}[round], std.P99*2
		s = append(s, std, lean, wild)
	}
	return s
}

func TestRatiosArePairedByRound(t *testing.T) {
	groups := GroupEcho(samples(), "std")
	if len(groups) != 1 || len(groups[0].Rows) != 3 {
		t.Fatalf("got %+v, want one group of three rows", groups)
	}
	std, lean := groups[0].Rows[0], groups[0].Rows[1]
	if want := (Stat{1, 1, 1, 3}); std.CPURatio != want {
		t.Errorf("std's CPU ratio to itself is %v, want %v", std.CPURatio, want)
	}
	// Unpaired, the slow round would spread it from 0.25 to 1.
	if want := (Stat{0.5, 0.5, 0.5, 3}); lean.CPURatio != want {
		t.Errorf("CPU ratio is %v, want %v", lean.CPURatio, want)
	}
	if want := (Stat{1.5, 1.5, 1.5, 3}); lean.PerSecondRatio != want {
		t.Errorf("ratio of requests/s is %v, want %v", lean.PerSecondRatio, want)
	}
	if want := (Stat{2, 2, 4, 3}); lean.CPU != (Stat{2, 2, 4, 3}) {
		t.Errorf("CPU is %v, want %v", lean.CPU, want)
	}
}

func TestGroupsKeepTheirOrder(t *testing.T) {
	all := append(samples(), samples()...)
	for i := range samples() {
		all[i].Conns = 1000
	}
	groups := GroupEcho(all, "std")
	if len(groups) != 2 || groups[0].Conns != 1000 || groups[1].Conns != 64 {
		t.Errorf("groups are %+v, want 1000 connections and then 64", groups)
	}
}

func TestSentencesFollowTheFigures(t *testing.T) {
	for _, test := range []struct {
		name string
		edit func(*EchoSample)
		base string
		want []string
	}{
		{"closed loop", func(*EchoSample) {}, "std", []string{
			"lean: 0.50 × std's CPU per request (less in each of 3 rounds); 1.50 × its requests/s (more in each of 3 rounds).",
			"wild: 1.00 × std's CPU per request (no clear difference from std: 0.50–1.50 over 3 rounds); 1.00 × its requests/s (no clear difference from std: 1.00–1.00 over 3 rounds).",
		}},
		{"open loop", func(s *EchoSample) { s.Rate = 1000 }, "std", []string{
			"lean: 0.50 × std's CPU per request (less in each of 3 rounds); 1.00 × its p99 (no clear difference from std: 1.00–1.00 over 3 rounds).",
			"wild: 1.00 × std's CPU per request (no clear difference from std: 0.50–1.50 over 3 rounds); 2.00 × its p99 (slower in each of 3 rounds).",
		}},
		{"a server that loses", func(s *EchoSample) {
			if s.Server == "lean" {
				s.CPU *= 4
			}
		}, "std", []string{
			"lean: 2.00 × std's CPU per request (more in each of 3 rounds); 1.50 × its requests/s (more in each of 3 rounds).",
		}},
		{"no base", func(*EchoSample) {}, "gone", []string{"std: nothing to compare with, gone did not run."}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := samples()
			for i := range s {
				test.edit(&s[i])
			}
			got := GroupEcho(s, test.base)[0].Sentences()
			for i, want := range test.want {
				if i >= len(got) || got[i] != want {
					t.Fatalf("sentences are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(test.want, "\n"))
				}
			}
		})
	}
}

func TestOneRoundProvesNothing(t *testing.T) {
	got := GroupEcho(samples()[:2], "std")[0].Sentences()
	if len(got) != 1 || !strings.Contains(got[0], "one round: no spread to judge it by") {
		t.Errorf("sentences are %q", got)
	}
}

func TestNotesNameBadConditions(t *testing.T) {
	s := samples()
	if got := GroupEcho(s, "std")[0].Notes(); len(got) != 0 {
		// Three samples of the slow round have 100,000 requests and more.
		t.Errorf("notes without a reason: %q", got)
	}
	s[7].CPU, s[7].CPUs = 0.1, 1
	s[0].OtherCPU, s[1].Steal, s[2].Requests, s[3].Unfinished = 0.2, 0.1, 10, 1
	s[4].LagP99, s[4].P99 = 100, 120
	if got := GroupEcho(s, "std")[0].Notes(); len(got) != 6 || !strings.HasPrefix(got[0], "1 of 9 samples: ") {
		t.Errorf("notes are %q, want six, each of 1 of 9 samples", got)
	}
}

func TestTableText(t *testing.T) {
	table := Table{Header: []string{"server", "p50 µs"}, Rows: [][]string{{"std", "1 (0–2)"}, {"pollux-net", "2"}}}
	var text, markdown strings.Builder
	if err := table.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	if want := "server       p50 µs\nstd          1 (0–2)\npollux-net   2\n"; text.String() != want {
		t.Errorf("text is\n%s\nwant\n%s", text.String(), want)
	}
	if err := table.WriteMarkdown(&markdown); err != nil {
		t.Fatal(err)
	}
	if want := "| server | p50 µs |\n| --- | ---: |\n| std | 1 (0–2) |\n| pollux-net | 2 |\n"; markdown.String() != want {
		t.Errorf("Markdown is\n%s\nwant\n%s", markdown.String(), want)
	}
}

func TestRowsAreAsWideAsTheHeader(t *testing.T) {
	for _, rate := range []float64{0, 1000} {
		s := samples()
		for i := range s {
			s[i].Rate = rate
		}
		table := GroupEcho(s, "std")[0].Table()
		for _, row := range table.Rows {
			if len(row) != len(table.Header) {
				t.Errorf("row %q has %d cells, the header %d", row, len(row), len(table.Header))
			}
		}
	}
}

func TestIdle(t *testing.T) {
	samples := []IdleSample{
		{Server: "std", Round: 1, Conns: 1000, Before: 5e6, Idle: 9e6, After: 15e6},
		{Server: "lean", Round: 1, Conns: 1000, Before: 5e6, Idle: 5.2e6, After: 5.5e6},
		{Server: "std", Round: 2, Conns: 1000, Before: 5e6, Idle: 9e6, After: 13e6},
		{Server: "lean", Round: 2, Conns: 1000, Before: 5e6, Idle: 5.2e6, After: 5.4e6, Wakeups: 0.5, CPU: 0.00002},
	}
	rows := SumIdle(samples, "std")
	if len(rows) != 2 || rows[1].PerPinged.Median != 450 || rows[1].PerIdle.Median != 200 {
		t.Fatalf("rows are %+v, want 200 and 450 bytes for lean", rows)
	}
	if got := IdleTable(rows, "std", 0); len(got.Rows) != 2 || len(got.Rows[0]) != len(got.Header) {
		t.Errorf("table is %+v", got)
	}
	watched := IdleTable(rows, "std", time.Minute)
	if last := len(watched.Header) - 2; watched.Header[last] != "wake-ups/s in 1m0s" || watched.Rows[1][last] != "0.25 (0.00–0.50)" ||
		watched.Rows[1][last+1] != "0.0010 (0.0000–0.0020)" {
		t.Errorf("table of servers that were watched is %+v", watched)
	}
	want := "lean: 450 bytes per connection that was used once, 0.05 × std's (less in each of 2 rounds)."
	if got := IdleSentences(rows, "std"); len(got) != 1 || got[0] != want {
		t.Errorf("sentences are %q, want %q", got, want)
	}
	if got := IdleSentences(SumIdle(samples, "gone"), "gone"); len(got) != 2 || !strings.Contains(got[0], "gone did not run") {
		t.Errorf("sentences are %q", got)
	}
}

func TestHandoverTable(t *testing.T) {
	table := HandoverTable([]HandoverSample{
		{Server: "std", Round: 1, Count: 10, P99: 50, CPU: 20},
		{Server: "pollux", Round: 1, Count: 10, P99: 100, CPU: 30},
		{Server: "std", Round: 2, Count: 10, P99: 10, CPU: 20},
		{Server: "pollux", Round: 2, Count: 10, P99: 40},
	}, "std", "c")
	want := map[string]string{"p99 ×std": "3.00 (2.00–4.00)", "p99 ×c": "-", "CPU µs/answer": "30.0"}
	for name, is := range want {
		if at := slices.Index(table.Header, name); at < 0 || table.Rows[1][at] != is {
			t.Errorf("%s of %v: %v, not %q", name, table.Header, table.Rows[1], is)
		}
	}
}
