// Package report turns the samples of a benchmark into tables, and the tables into
// sentences. It decides nothing by name: what it says follows from the figures.
package report

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Stat is a figure over several rounds. The zero Stat is "not measured".
type Stat struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
	N      int     `json:"n"`
}

// NewStat summarises values; those that are NaN or infinite do not count.
func NewStat(values []float64) Stat {
	v := slices.DeleteFunc(slices.Clone(values), func(x float64) bool { return math.IsNaN(x) || math.IsInf(x, 0) })
	if len(v) == 0 {
		return Stat{}
	}
	slices.Sort(v)
	mid := len(v) / 2
	median := v[mid]
	if len(v)%2 == 0 {
		median = (v[mid-1] + v[mid]) / 2
	}
	return Stat{Median: median, Min: v[0], Max: v[len(v)-1], N: len(v)}
}

// Format writes the median and, of more than one round, the spread.
func (s Stat) Format(number func(float64) string) string {
	switch s.N {
	case 0:
		return "-"
	case 1:
		return number(s.Median)
	}
	return fmt.Sprintf("%s (%s–%s)", number(s.Median), number(s.Min), number(s.Max))
}

// Middle writes the median alone.
func (s Stat) Middle(number func(float64) string) string {
	if s.N == 0 {
		return "-"
	}
	return number(s.Median)
}

// Side tells on which side of 1 a ratio lies: -1 below and +1 above in every round,
// 0 when the rounds do not agree or there were fewer than two.
func (s Stat) Side() int {
	switch {
	case s.N < 2:
		return 0
	case s.Max < 1:
		return -1
	case s.Min > 1:
		return +1
	}
	return 0
}

// Count writes a number of things with thousands separated.
func Count(x float64) string {
	digits := strconv.FormatFloat(math.Round(math.Abs(x)), 'f', 0, 64)
	var b strings.Builder
	if x < 0 {
		b.WriteByte('-')
	}
	for i := range len(digits) {
		if i > 0 && (len(digits)-i)%3 == 0 {
			b.WriteByte(',')
		}
		b.WriteByte(digits[i])
	}
	return b.String()
}

// Micros writes a time in microseconds with three digits that matter.
func Micros(x float64) string {
	switch {
	case x < 10:
		return strconv.FormatFloat(x, 'f', 2, 64)
	case x < 100:
		return strconv.FormatFloat(x, 'f', 1, 64)
	}
	return Count(x)
}

// Ratio writes a factor.
func Ratio(x float64) string { return strconv.FormatFloat(x, 'f', 2, 64) }

// Mega writes bytes as MB.
func Mega(x float64) string { return strconv.FormatFloat(x/1e6, 'f', 1, 64) }
