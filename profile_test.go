package pollux

import (
	"testing"
	"time"

	"github.com/pollux-go/pollux/internal/testutil"
)

// TestSpinBudget asks for a spin by POLLUX_SPIN on machines and under quotas that are not this one's.
func TestSpinBudget(t *testing.T) {
	testutil.CheckLeaks(t)
	for _, tc := range []struct {
		spin, profile string
		cpus          int
		quota         float64
		budget        time.Duration
		adaptive      bool
	}{
		{"auto", "balanced", 1, 0, 0, false},
		{"auto", "balanced", 2, 0, 0, false},
		{"auto", "balanced", 3, 0, spinMoment, true},
		{"auto", "balanced", 64, 0, spinMoment, true},
		{"auto", "balanced", 64, 0.5, 0, false},
		{"auto", "balanced", 64, 32, 0, false},
		{"auto", "balanced", 2, 2, 0, false},

		{"1us", "balanced", 1, 0, time.Microsecond, false},
		{"50us", "balanced", 2, 0.5, 50 * time.Microsecond, false},
		{"1s", "balanced", 64, 0, time.Second, false},
		{"1s", "latency", 64, 0, time.Second, false},

		{"off", "balanced", 64, 0, 0, false},
		{"off", "latency", 64, 0, 0, false},
		{"0", "latency", 64, 0, 0, false},

		// What the profiles say.
		{"", "balanced", 64, 0, 0, false},
		{"", "throughput", 64, 0, 0, false},
		{"", "latency", 2, 0, 0, false},
		{"", "latency", 64, 0, spinMoment, true},
		{"", "latency", 64, 8, 0, false},
	} {
		roomy := surroundings{cpus: tc.cpus, quota: tc.quota}.roomy()
		c, err := ConfigFromEnv(func(name string) (string, bool) {
			value, ok := map[string]string{"POLLUX_SPIN": tc.spin, "POLLUX_PROFILE": tc.profile}[name]
			return value, ok
		})
		if err == nil {
			c, err = c.withDefaults()
		}
		if budget, adaptive := c.spinBudget(roomy); err != nil || budget != tc.budget || adaptive != tc.adaptive {
			t.Errorf("%+v: %v, %v, %v", tc, budget, adaptive, err)
		}
	}
}
