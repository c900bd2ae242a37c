package prometheus_test

import (
	"io"
	"log/slog"
	"net"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/pollux-go/pollux"
	polluxprom "github.com/pollux-go/pollux/metrics/prometheus"
)

type echo struct{ pollux.NopHandler }

func (echo) OnData(c *pollux.Conn) error {
	b, _ := c.Next(-1)
	_, err := c.Write(b)
	return err
}

// TestCollector serves a known load and reads its numbers the way that Prometheus does.
func TestCollector(t *testing.T) {
	e, err := pollux.New(pollux.Config{Loops: 2, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	registry := prometheus.NewPedanticRegistry()
	if err := registry.Register(polluxprom.New(e, "test")); err != nil {
		t.Fatal(err)
	}
	if _, err := registry.Gather(); err != nil {
		t.Errorf("before it starts: %v", err)
	}
	s, err := e.Bind(echo{}, "tcp://127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", s.Addrs()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const pings = 50
	for range pings {
		if _, err := c.Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			labeled := false
			for _, l := range m.GetLabel() {
				labeled = labeled || l.GetName() == "engine" && l.GetValue() == "test"
			}
			if !labeled {
				t.Errorf("%s lacks its engine", f.GetName())
			}
			got[f.GetName()] += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	if got["pollux_connections"] != 1 || got["pollux_loop_connections"] != 1 || got["pollux_rescues_total"] != 0 {
		t.Errorf("the metrics are %v", got)
	}
	for _, name := range []string{"pollux_loop_callbacks_total", "pollux_loop_events_total", "pollux_loop_turn_seconds"} {
		if got[name] < pings {
			t.Errorf("%s is %v after %d requests", name, got[name], pings)
		}
	}
	if problems, err := testutil.GatherAndLint(registry); err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
}
