package prometheus_test

import (
	"io"
	"log/slog"
	"net"
	"strings"
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
	quiet := slog.New(slog.DiscardHandler)
	for name, config := range map[string]pollux.Config{
		"default":  {Loops: 2, Logger: quiet},
		"epoll":    {Loops: 2, Logger: quiet, Backend: pollux.KindEpoll, Dispatch: pollux.DispatchInline},
		"io_uring": {Loops: 2, Logger: quiet, Backend: pollux.KindUring, Dispatch: pollux.DispatchWorkers, Workers: 4},
	} {
		t.Run(name, func(t *testing.T) { collect(t, config) })
	}
}

func collect(t *testing.T, config pollux.Config) {
	e, err := pollux.New(config)
	if err != nil && config.Backend == pollux.KindUring {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	collector := polluxprom.New(e, "test")
	registry := prometheus.NewPedanticRegistry()
	if err := registry.Register(collector); err != nil {
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
	got["sends"] = got["pollux_loop_sends_total"] + got["pollux_uring_sends_total"]
	many := []string{"pollux_loop_callbacks_total", "pollux_loop_events_total", "pollux_loop_turn_seconds", "sends"}
	once := []string{"pollux_loop_accepts_total"}
	none := []string{"pollux_loop_short_sends_total", "pollux_loop_send_eagains_total", "pollux_loop_queue_depth", "pollux_worker_queue_depth"}
	if config.Backend == pollux.KindUring {
		many = append(many, "pollux_uring_enters_total", "pollux_uring_cqes_total", "pollux_uring_cqe_batch_size", "pollux_loop_callbacks_offloaded_total",
			"pollux_worker_steals_total")
		once = append(once, "pollux_worker_events_total")
		none = append(none, "pollux_uring_dropped_total", "pollux_uring_cancel_failures_total", "pollux_uring_multishot_ended_total", "pollux_uring_buffers_low_total")
		if got["pollux_uring_info"] != 2 || got["pollux_uring_multishot_armed_total"] != 2 {
			t.Errorf("%v rings, and %v requests for a listener and a connection", got["pollux_uring_info"], got["pollux_uring_multishot_armed_total"])
		}
		described := make(chan *prometheus.Desc)
		go func() { collector.Describe(described); close(described) }()
		for desc := range described {
			_, name, _ := strings.Cut(desc.String(), `fqName: "`)
			name, _, _ = strings.Cut(name, `"`)
			if _, ok := got[name]; !ok {
				t.Errorf("%s is not collected", name)
			}
		}
	}
	for _, name := range many {
		if got[name] < pings-1 { // The turn of the last one may not be over.
			t.Errorf("%s is %v after %d requests", name, got[name], pings)
		}
	}
	for _, name := range once {
		if got[name] < 1 {
			t.Errorf("%s is %v after one connection", name, got[name])
		}
	}
	for _, name := range none {
		if got[name] != 0 {
			t.Errorf("%s is %v", name, got[name])
		}
	}
	if problems, err := testutil.GatherAndLint(registry); err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
}
