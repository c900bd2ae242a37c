package pollux

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pollux-go/pollux/cgo"
	"github.com/pollux-go/pollux/internal/host"
	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/internal/testutil"
)

// computer is an echo that computes for as long as it likes.
type computer struct {
	echo
	until func() bool
}

func (h *computer) OnData(c *Conn) error {
	for !h.until() {
	}
	return h.echo.OnData(c)
}

// TestRealtimeTurnThatDoesNotEnd has a callback of a loop with SCHED_FIFO compute until the loop has lost its priority. It has
// it back in the next turns, and the attendant ends with the engine.
func TestRealtimeTurnThatDoesNotEnd(t *testing.T) {
	if !cgo.Attends {
		t.Skip("there are no attendants without cgo")
	}
	eachBackend(t, func(t *testing.T, config Config) {
		for _, profile := range []Profile{Balanced, Latency} {
			t.Run(string(profile), func(t *testing.T) {
				testutil.CheckLeaks(t)
				log := new(lines)
				config.Loops, config.Sched, config.CPUs, config.Profile, config.Logger = 1, "fifo:2", "auto", profile, log.logger()
				config.Dispatch = DispatchInline
				e := newEngine(t, config)
				var goal atomic.Uint64
				var limit atomic.Int64
				demotions := func() uint64 { return e.Stats().Loops[0].Demotions }
				s, _ := bind(t, e, "tcp", &computer{until: func() bool {
					return goal.Load() == 0 || demotions() >= goal.Load() || time.Now().UnixNano() > limit.Load()
				}})
				c := dial(t, s.Addrs()[0])
				ping(t, c)
				if strings.Contains(strings.Join(log.all(), "\n"), "CAP_SYS_NICE") {
					t.Skip("the process may not")
				}
				loop := loopThreads(e)[0]
				realtime := func() bool {
					s, errno := sys.GetSched(loop)
					return errno == 0 && s == sys.Sched{FIFO: true, Priority: 2}
				}
				if !realtime() || attendants(t) != 1 {
					t.Fatalf("the loop is realtime: %v, with %d attendants", realtime(), attendants(t))
				}
				for i := range uint64(3) {
					end := time.Now().Add(20 * time.Second)
					limit.Store(end.UnixNano())
					goal.Store(i + 1)
					ping(t, c)
					if n := demotions(); n != i+1 {
						t.Fatalf("%d demotions after %d turns that did not end", n, i+1)
					}
					goal.Store(0)
					for ; !realtime(); time.Sleep(time.Millisecond) {
						if ping(t, c); time.Now().After(end) {
							t.Fatal("the priority does not come back")
						}
					}
				}
				if err := e.Close(); err != nil {
					t.Error(err)
				}
				if n := attendants(t); n != 0 {
					t.Errorf("%d attendants after the close", n)
				}
			})
		}
	})
}

// TestAttendantHearsOfStops stops the world while a loop waits hot: the attendant wakes up for it.
func TestAttendantHearsOfStops(t *testing.T) {
	if !cgo.Attends {
		t.Skip("there are no attendants without cgo")
	}
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		log := new(lines)
		config.Loops, config.Sched, config.Profile, config.Logger = 1, "fifo:2", Latency, log.logger()
		e := newEngine(t, config)
		s, _ := bind(t, e, "tcp", echo{})
		c := dial(t, s.Addrs()[0])
		ping(t, c)
		if strings.Contains(strings.Join(log.all(), "\n"), "CAP_SYS_NICE") {
			t.Skip("the process may not")
		}
		l := e.loops[0]
		l.attendance.mu.Lock()
		a := l.attendance.attendant
		l.attendance.mu.Unlock()
		for end := time.Now().Add(20 * time.Second); a.Counts().Ticks == 0; runtime.GC() {
			if time.Now().After(end) {
				t.Fatal("no wake-up")
			}
		}
		ping(t, c)
	})
}

// TestRealtimeRefusedAfterItsAttendant has an attendant start and the loop stay an ordinary thread: the attendant goes, and on
// epoll the loop can be relieved as every ordinary one.
func TestRealtimeRefusedAfterItsAttendant(t *testing.T) {
	if !cgo.Attends {
		t.Skip("there are no attendants without cgo")
	}
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		log := new(lines)
		config.Loops, config.Sched, config.Dispatch, config.Logger = 1, "fifo:2", DispatchSteal, log.logger()
		e := newEngine(t, config)
		var asked atomic.Int32
		defer sys.Inject(func(op sys.Op, _ int) sys.Fault {
			if op == sys.OpSchedSetattr && asked.Add(1) > 1 {
				return sys.Fault{Errno: sys.EPERM}
			}
			return sys.Fault{}
		})()
		s, _ := bind(t, e, "tcp", echo{})
		ping(t, dial(t, s.Addrs()[0]))
		all := strings.Join(log.all(), "\n")
		if !strings.Contains(all, "schedule the thread as fifo:2: operation not permitted") {
			if strings.Contains(all, "start its attendant") {
				t.Skip("the process may not have one") // Which comes first.
			}
			t.Errorf("the log is %q", all)
		}
		if n := attendants(t); n != 0 {
			t.Errorf("%d attendants", n)
		}
		l := e.loops[0]
		<-l.begun
		if l.relievable() != l.movable {
			t.Error("it cannot be relieved")
		}
	})
}

// attendants counts the threads of that name.
func attendants(t *testing.T) (n int) {
	t.Helper()
	for _, tid := range host.Threads() {
		if isAttendant(tid) {
			n++
		}
	}
	return n
}

func isAttendant(tid int) bool {
	name, _ := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/comm", tid))
	return strings.HasPrefix(string(name), "pollux-attend")
}

// TestRealtimeAloneNeedsNoAttendant keeps the other threads off the loop's CPU.
func TestRealtimeAloneNeedsNoAttendant(t *testing.T) {
	testutil.CheckLeaks(t)
	if len(host.Affinity()) < 2 {
		t.Skip("there is one CPU only")
	}
	e := newEngine(t, Config{Loops: 1, Sched: "fifo:2", CPUs: "auto", Isolate: true, Logger: new(lines).logger()})
	s, _ := bind(t, e, "tcp", echo{})
	ping(t, dial(t, s.Addrs()[0]))
	if n := attendants(t); n != 0 {
		t.Errorf("%d attendants", n)
	}
}

// TestRealtimeWithoutCgo is refused, unless the loops have their CPUs for themselves.
func TestRealtimeWithoutCgo(t *testing.T) {
	_, err := New(Config{Sched: "fifo:1"})
	if cgo.Attends {
		if err != nil {
			t.Error(err)
		}
		return
	}
	if err == nil || !strings.Contains(err.Error(), "cgo") || !strings.Contains(err.Error(), "Isolate") || !strings.Contains(err.Error(), "nice:-20") {
		t.Error(err)
	}
	if _, err := (&Config{Sched: "fifo:1", CPUs: "0", Isolate: true}).withDefaults(); err != nil {
		t.Error(err)
	}
}
