package cgo

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pollux-go/pollux/internal/sys"
)

func TestParseSched(t *testing.T) {
	for text, want := range map[string]Sched{
		"other":       {},
		"nice:-20":    {sys.Sched{Nice: -20}, true},
		"nice:19":     {sys.Sched{Nice: 19}, true},
		"fifo:1":      {sys.Sched{FIFO: true, Priority: 1}, true},
		"fifo:98":     {sys.Sched{FIFO: true, Priority: 98}, true},
		"slice:100us": {sys.Sched{Slice: 100 * time.Microsecond}, true},
		"slice:100ms": {sys.Sched{Slice: 100 * time.Millisecond}, true},
	} {
		got, err := ParseSched(text)
		if err != nil || got != want {
			t.Errorf("%q is %+v, %v", text, got, err)
		}
		if again, err := ParseSched(got.String()); err != nil || again != got {
			t.Errorf("%q is printed as %q, which is %+v, %v", text, got, again, err)
		}
	}
	for _, text := range []string{"", "fifo", "fifo:", "fifo:0", "fifo:99", "nice:-21", "nice:20", "nice:x", "slice:99us", "slice:101ms", "slice:1", "rr:1", "other:1"} {
		if got, err := ParseSched(text); err == nil {
			t.Errorf("%q is %+v", text, got)
		}
	}
}

func TestParseCPUs(t *testing.T) {
	for text, want := range map[string][]int{"0": {0}, "0-2": {0, 1, 2}, "5,0-1": {5, 0, 1}, "2, 3": {2, 3}} {
		if got, err := ParseCPUs(text); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q is %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "a", "-1", "2-1", "0-", "0,0", "0-2,1", "99999", "0-99999999999999999999"} {
		if got, err := ParseCPUs(text); err == nil {
			t.Errorf("%q is %v", text, got)
		}
	}
}

// TestPinErrors has the kernel refuse everything: each refusal is told, and names what was wanted.
func TestPinErrors(t *testing.T) {
	restore := sys.Inject(func(op sys.Op, _ int) sys.Fault {
		if op == sys.OpSchedSetaffinity || op == sys.OpSchedSetattr {
			return sys.Fault{Errno: sys.EPERM}
		}
		return sys.Fault{}
	})
	defer restore()
	allowed, errno := sys.Affinity()
	if errno != 0 {
		t.Skip(errno)
	}
	errs := Thread{CPU: allowed[0], Sched: Sched{sys.Sched{Nice: -3}, true}}.Pin()
	if len(errs) != 2 || !strings.Contains(errs[0].Error(), "CPU ") || !strings.Contains(errs[1].Error(), "nice:-3") ||
		!strings.Contains(errs[1].Error(), "CAP_SYS_NICE") {
		t.Errorf("the errors are %v", errs)
	}
	if err := PinTo(0, sys.CPUsMax-1); err == nil || !strings.Contains(err.Error(), "may run on") {
		t.Errorf("a CPU that there is not: %v", err)
	}
}
