package pollux

import (
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/pollux-go/pollux/cgo"
	"github.com/pollux-go/pollux/internal/host"
	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/internal/testutil"
)

// TestTimeslices looks at the slices of the process's threads while engines with realtime loops come and go: they are short until the
// last one has closed, those of new threads too, and what somebody has set himself is his again afterwards.
func TestTimeslices(t *testing.T) {
	testutil.CheckLeaks(t)
	usual, errno := sys.SliceOf(0)
	if errno != 0 || usual == 0 || !cgo.Attends {
		t.Skip("the kernel has no slices, or there are no attendants without cgo")
	}
	var own [2]int // threads that have slices of their own
	stop, ended := make(chan struct{}), make(chan struct{})
	defer func() { close(stop); <-ended; <-ended }() // Their threads end with them.
	for i, slice := range []time.Duration{10 * time.Millisecond, shortSlice} {
		ready := make(chan struct{})
		go func() {
			defer func() { ended <- struct{}{} }()
			runtime.LockOSThread() // For good.
			own[i] = sys.Gettid()
			if errno := sys.SetSlice(0, slice); errno != 0 {
				t.Error(errno)
			}
			close(ready)
			<-stop
		}()
		<-ready
	}
	// is tells whether every thread has that slice, but for those two.
	is := func(want, first, second time.Duration) bool {
		for _, tid := range host.Threads() {
			slice, errno := sys.SliceOf(tid)
			want := want
			switch tid {
			case own[0]:
				want = first
			case own[1]:
				want = second
			}
			if errno == 0 && slice != 0 && slice != want {
				return false
			}
		}
		return true
	}
	log := new(lines)
	config := Config{Loops: 1, Sched: "fifo:2", Logger: log.logger()}
	a, b := newEngine(t, config), newEngine(t, config)
	sa, _ := bind(t, a, "tcp", echo{})
	if strings.Contains(strings.Join(log.all(), "\n"), "CAP_SYS_NICE") {
		t.Skip("the process may not")
	}
	ping(t, dial(t, sa.Addrs()[0]))
	eventually(t, "short slices", func() bool { return is(shortSlice, shortSlice, shortSlice) })
	sb, _ := bind(t, b, "tcp", echo{})
	ping(t, dial(t, sb.Addrs()[0]))
	a.Close()
	eventually(t, "short slices of the second engine", func() bool { return is(shortSlice, shortSlice, shortSlice) })
	b.Close()
	if !is(usual, 10*time.Millisecond, shortSlice) {
		t.Error("they are not what they were")
	}
}
