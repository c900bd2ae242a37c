package pollux

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net"
	"reflect"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/internal/testutil"
	"github.com/pollux-go/pollux/internal/uring"
	"github.com/pollux-go/pollux/poller"
)

// numbers makes one number of every field of a Stats, by its path: those of all loops, and of all classes, are added up.
func numbers(s Stats) map[string]uint64 {
	all := map[string]uint64{}
	var walk func(name string, v reflect.Value)
	walk = func(name string, v reflect.Value) {
		switch v.Kind() {
		case reflect.Pointer:
			if !v.IsNil() {
				walk(name, v.Elem())
			}
		case reflect.Slice, reflect.Array:
			for i := range v.Len() {
				walk(name, v.Index(i))
			}
			if v.Len() == 0 {
				walk(name, reflect.Zero(v.Type().Elem()))
			}
		case reflect.Struct:
			for i := range v.NumField() {
				field := v.Type().Field(i)
				if field.Anonymous {
					walk(name, v.Field(i))
				} else {
					walk(strings.TrimPrefix(name+"."+field.Name, "."), v.Field(i))
				}
			}
		case reflect.Int, reflect.Int32, reflect.Int64:
			all[name] += uint64(v.Int())
		case reflect.Uint32, reflect.Uint64:
			all[name] += v.Uint()
		}
	}
	walk("", reflect.ValueOf(s))
	return all
}

// counted is an engine whose counters a test looks at.
type counted struct {
	testing.TB
	engine *Engine
	addr   net.Addr

	held  chan struct{} // closed: OnData of an "h" returns
	asked atomic.Int64
	last  atomic.Pointer[Conn]
}

// onData does what the first byte says.
func (c *counted) onData(conn *Conn) error {
	b, _ := conn.Next(-1)
	c.last.Store(conn)
	c.asked.Add(1)
	switch b[0] {
	case 'e': // echo
		_, err := conn.Write(b)
		return err
	case 'h': // hold the loop, or the worker
		<-c.held
	case 's': // take time
		time.Sleep(time.Millisecond)
		_, err := conn.Write(b)
		return err
	case 'm': // send more than the peer takes
		if _, err := conn.Write(make([]byte, 1<<20)); err != nil && !errors.Is(err, ErrWouldBlock) {
			return err
		}
	case 'p': // pause
		conn.Pause()
	}
	return nil
}

func (c *counted) dial() net.Conn { return dial(c, c.addr) }

// say has the handler do something, and waits until it was asked.
func (c *counted) say(conn net.Conn, what string) {
	c.Helper()
	before := c.asked.Load()
	if _, err := conn.Write([]byte(what)); err != nil {
		c.Fatal(err)
	}
	eventually(c, "the callback", func() bool { return c.asked.Load() > before })
}

// ask waits for an answer as well.
func (c *counted) ask(conn net.Conn, what string) {
	c.Helper()
	if _, err := conn.Write([]byte(what)); err != nil {
		c.Fatal(err)
	}
	got := make([]byte, len(what))
	if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, []byte(what)) {
		c.Fatalf("%q, %v", got, err)
	}
}

// uring is the ring's backend of the first loop.
func (c *counted) uring() *uringBackend { return c.engine.loops[0].backend.(*uringBackend) }

// onLoop runs f on the first loop, and waits.
func (c *counted) onLoop(f func()) {
	c.Helper()
	done := make(chan struct{})
	if err := c.engine.loops[0].inner.PostAlways(func() { f(); close(done) }); err != nil {
		c.Fatal(err)
	}
	receive(c, "the loop", done)
}

// Each counter moves when what it counts happens, and others do not.
func TestCounters(t *testing.T) {
	few := func(c *Config) {
		c.Loops, c.RingEntries, c.RingBuffers, c.RingBufferSize = 1, 8, 4, 256
		c.UringFeatures = "" // Where each accept is a request of its own, too few of anything come at a time.
	}
	for _, test := range []struct {
		name       string
		uring      bool // it is about io_uring only
		room       int  // for completions, for each submission; 0: as usual
		config     func(*Config)
		before     func(c *counted) // what is not counted
		do         func(c *counted)
		moves      string // names of counters that must move, and of two at least that must not
		still      string
		uringMoves string // on io_uring, besides
	}{
		{
			name: "accept", do: func(c *counted) { c.dial() },
			moves: "Accepts", uringMoves: "Uring.MultishotArmed Uring.Enters Uring.EntersWithSubmit Uring.SQEs Uring.CQEs Uring.CQEBatches",
			still: "Sends Uring.Cancels Uring.MultishotEnded.EOF",
		}, {
			name: "send", do: func(c *counted) {
				conn := c.dial()
				for range 20 {
					c.ask(conn, "e")
				}
			},
			moves: "Sends", uringMoves: "Uring.Sends", still: "ShortSends SendEAGAINs Offloaded",
		}, {
			name: "send from elsewhere", before: func(c *counted) { c.say(c.dial(), "n") },
			do: func(c *counted) {
				if _, err := c.last.Load().Write([]byte("x")); err != nil {
					c.Error(err)
				}
			},
			moves: "Sends", still: "Accepts Callbacks Uring.Sends",
		}, {
			name: "a socket without room", do: func(c *counted) {
				conn := c.dial()
				for range 20 {
					c.say(conn, "m")
				}
			},
			moves: "ShortSends SendEAGAINs", still: "Uring.MultishotEnded.Reset Stale",
		}, {
			name: "a wake for nothing", do: func(c *counted) {
				if err := c.engine.loops[0].backend.Break(); err != nil {
					c.Error(err)
				}
			},
			moves: "SpuriousWakes Timeouts", uringMoves: "Uring.EpollEvents", still: "Posts WakesSent WakesElided",
		}, {
			name: "a wake for a post", do: func(c *counted) { c.onLoop(func() {}) },
			moves: "Posts", still: "MailboxDepth Accepts Callbacks",
		}, {
			name: "slow callbacks", config: func(c *Config) { c.Dispatch = DispatchSteal }, do: func(c *counted) {
				conn := c.dial()
				for range 50 {
					c.ask(conn, "s")
				}
			},
			moves: "CallbackTimes CallbackTime", still: "SendEAGAINs ShortSends",
		}, {
			name: "slow callbacks that nobody measures", do: func(c *counted) {
				conn := c.dial()
				for range 20 {
					c.ask(conn, "s")
				}
			},
			moves: "Callbacks", still: "CallbackTimes CallbackTime Offloaded",
		}, {
			name: "workers", config: func(c *Config) { c.Dispatch, c.Workers = DispatchWorkers, 1 }, do: func(c *counted) { c.ask(c.dial(), "e") },
			moves: "Offloaded Workers.Started Workers.Run Workers.Stolen EachWorker.Run EachWorker.Stolen", still: "CallbackTimes Shared QueueDepth Workers.Waiting",
		}, {
			name: "a queue", config: func(c *Config) { c.Dispatch, c.Workers = DispatchWorkers, 1 },
			before: func(c *counted) {
				c.say(c.dial(), "h")
				eventually(c, "the worker has it", func() bool { return numbers(c.engine.Stats())["Loops.QueueDepth"] == 0 })
			},
			do:    func(c *counted) { c.dial() },
			moves: "QueueDepth Offloaded", still: "EachWorker.Run Workers.Waiting Workers.Started",
		}, {
			name: "a mailbox", before: func(c *counted) { c.say(c.dial(), "h") }, config: func(c *Config) { c.Loops = 1 },
			do: func(c *counted) {
				for range 3 {
					if err := c.last.Load().Async(func(*Conn) {}); err != nil {
						c.Error(err)
					}
				}
			},
			moves: "MailboxDepth", still: "Posts Callbacks",
		}, {
			name: "a signal", uring: true, do: func(c *counted) {
				eventually(c, "an interrupted enter", func() bool {
					if err := syscall.Tgkill(syscall.Getpid(), int(c.engine.loops[0].thread.Load()), syscall.SIGURG); err != nil {
						c.Fatal(err)
					}
					return numbers(c.engine.Stats())["Loops.Uring.Interrupts"] > 0
				})
			},
			moves: "Uring.Interrupts", still: "Uring.Dropped Uring.EnterENOMEM Uring.Starved",
		}, {
			name: "deferred work of a busy loop", uring: true, config: func(c *Config) { c.Loops = 1 },
			before: func(c *counted) { c.say(c.dial(), "n") },
			do: func(c *counted) {
				var stop atomic.Bool
				l := c.engine.loops[0]
				var again func()
				again = func() {
					if !stop.Load() {
						_ = l.inner.PostAlways(again) // So that no wait may sleep, and none need enter.
					}
				}
				_ = l.inner.PostAlways(again)
				conn := c.dial()
				eventually(c, "the flag", func() bool {
					c.ask(conn, "e")
					return numbers(c.engine.Stats())["Loops.Uring.TaskrunHits"] > 0
				})
				stop.Store(true)
			},
			moves: "Uring.TaskrunHits", still: "Uring.Overflows Uring.Dropped Uring.Starved",
		}, {
			name: "the end of a stream", uring: true, do: func(c *counted) { c.dial().Close() },
			moves: "Uring.MultishotEnded.EOF", still: "Uring.MultishotEnded.Reset Uring.MultishotEnded.NoBuffers Uring.MultishotEnded.Overflow",
		}, {
			name: "a reset", uring: true, before: func(c *counted) { c.say(c.dial(), "n") }, do: func(c *counted) {
				conn := c.dial()
				c.say(conn, "n")
				conn.(*net.TCPConn).SetLinger(0)
				conn.Close()
			},
			moves: "Uring.MultishotEnded.Reset", still: "Uring.MultishotEnded.EOF Uring.MultishotEnded.NoBuffers Uring.MultishotEnded.Overflow",
		}, {
			name: "a pause", uring: true, do: func(c *counted) { c.say(c.dial(), "p") },
			moves: "Uring.MultishotEnded.Canceled Uring.Cancels", still: "Uring.MultishotEnded.EOF Uring.CancelsENOENT Uring.CancelsEALREADY",
		}, {
			name: "cancels that fail", uring: true, do: func(c *counted) {
				u := c.uring()
				c.onLoop(func() {
					u.cancel(kindReceive, 1<<poller.TokenBits-1) // There is none of that.
					// The kernel says so of a request that a kernel worker runs, of which there is none.
					u.complete(&uring.CQE{UserData: userData(kindCancel, 0), Res: -int32(sys.EALREADY)}, new(poller.Event))
				})
			},
			moves: "Uring.Cancels Uring.CancelsENOENT Uring.CancelsEALREADY", still: "Uring.MultishotEnded.Canceled Uring.Stale Uring.Rearms",
		}, {
			name: "too few buffers", uring: true, config: few, do: func(c *counted) {
				c.say(c.dial(), "h")
				for range 8 {
					if _, err := c.dial().Write(make([]byte, 1000)); err != nil {
						c.Fatal(err)
					}
				}
				close(c.held)
			},
			moves: "Uring.MultishotEnded.NoBuffers Uring.Starved Uring.BuffersLow", still: "Uring.MultishotEnded.EOF Uring.MultishotEnded.Reset Uring.MemlockFailures",
		}, {
			name: "too many completions", uring: true, room: 1, config: few, do: func(c *counted) {
				c.say(c.dial(), "h")
				for range 60 {
					c.dial()
				}
				close(c.held)
			},
			moves: "Uring.MultishotEnded.Overflow Uring.Overflows Uring.Rearms Uring.AcceptRearms", still: "Uring.MultishotEnded.EOF Uring.Dropped Uring.Starved",
		}, {
			name: "no memory to enter", uring: true, do: func(c *counted) {
				fault := &testutil.Nth{Op: sys.OpUringEnter, Fault: sys.Fault{Errno: sys.ENOMEM}}
				defer sys.Inject(fault.Hook)()
				c.onLoop(func() {})
				eventually(c, "the fault", func() bool { return numbers(c.engine.Stats())["Loops.Uring.EnterENOMEM"] > 0 })
			},
			moves: "Uring.EnterENOMEM", still: "Uring.MemlockFailures Uring.Dropped",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.room != 0 {
				completions(t, test.room)
			}
			eachBackend(t, func(t *testing.T, config Config) {
				if test.uring {
					if config.Backend != KindUring || !completing(config) {
						t.Skip("it is about io_uring that receives")
					}
					if err := checkUring(config, true); err != nil {
						t.Skip(err)
					}
				}
				skipDirect(t, config, "they are served by other requests")
				testutil.CheckLeaks(t)
				config.Dispatch = DispatchInline
				if test.config != nil {
					test.config(&config)
				}
				c := &counted{TB: t, engine: newEngine(t, config), held: make(chan struct{})}
				defer func() {
					select {
					case <-c.held:
					default:
						close(c.held)
					}
				}()
				c.addr = mustBind(t, c.engine, funcs{data: c.onData})
				c.settle()
				if test.before != nil {
					test.before(c)
				}
				before := c.settle()
				test.do(c)
				moves := strings.Fields(test.moves)
				if config.Backend == KindUring && completing(config) {
					moves = append(moves, strings.Fields(test.uringMoves)...)
				}
				var now map[string]uint64
				at := func(m map[string]uint64, name string) uint64 {
					for _, prefix := range []string{"Loops.", ""} {
						if n, ok := m[prefix+name]; ok {
							return n
						}
					}
					if !strings.HasPrefix(name, "Uring.") || config.Backend == KindUring {
						t.Fatalf("there is no counter %s", name)
					}
					return 0
				}
				for _, name := range moves {
					eventually(t, name+" moves", func() bool {
						now = numbers(c.engine.Stats())
						return at(now, name) > at(before, name)
					})
				}
				for _, name := range strings.Fields(test.still) {
					if at(now, name) != at(before, name) {
						t.Errorf("%s was %d and is %d", name, at(before, name), at(now, name))
					}
				}
			})
		})
	}
}

// settle waits until nothing happens any more, and returns the numbers.
func (c *counted) settle() map[string]uint64 {
	c.Helper()
	var last map[string]uint64
	eventually(c, "quiet", func() bool {
		before := last
		time.Sleep(2 * time.Millisecond)
		last = numbers(c.engine.Stats())
		return before != nil && before["Loops.Events"] == last["Loops.Events"] && before["Loops.Posts"] == last["Loops.Posts"]
	})
	return last
}

// What is armed and has not ended is under way: at last the accepts, one a listener. What has left is waited for, and no buffer
// stays away.
func TestUringBalance(t *testing.T) {
	needUring(t)
	testutil.CheckLeaks(t)
	e := newEngine(t, Config{Backend: KindUring, Loops: 1, RingBuffers: 64})
	c := &counted{TB: t, engine: e, held: make(chan struct{})}
	c.addr = mustBind(t, e, funcs{data: c.onData})
	conns := make([]net.Conn, 20)
	for i := range conns {
		conns[i] = c.dial()
		c.ask(conns[i], "e")
	}
	ended := func(s *UringStats) (n uint64) {
		return s.MultishotEnded.EOF + s.MultishotEnded.NoBuffers + s.MultishotEnded.Reset + s.MultishotEnded.Canceled + s.MultishotEnded.Overflow +
			s.MultishotEnded.Other
	}
	stats := func() *UringStats { return e.Stats().Loops[0].Uring }
	if s := stats(); s.MultishotArmed-ended(s) != 21 {
		t.Errorf("%d are armed and %d have ended, with 20 connections", s.MultishotArmed, ended(s))
	}
	closing := 0
	c.onLoop(func() {
		l := e.loops[0]
		l.destroy(c.last.Load(), nil)
		closing = stats().Closing
	})
	if closing != 1 {
		t.Errorf("%d have left at once, not 1", closing)
	}
	for i, conn := range conns {
		if i%2 == 0 {
			conn.(*net.TCPConn).SetLinger(0)
		}
		conn.Close()
	}
	eventually(t, "the end of all", func() bool {
		s := stats()
		return e.Conns() == 0 && s.Closing == 0 && s.MultishotArmed-ended(s) == 1
	})
	s := stats()
	if s.Buffers != 64 || s.BuffersFree != 64 || s.BuffersFreeMin >= 64 || s.BuffersFreeMin <= 0 || s.BuffersLow != 0 {
		t.Errorf("%+v", s)
	}
	sum := uint64(0)
	for _, n := range s.CQEBatches {
		sum += n
	}
	if sum == 0 || sum > s.CQEs || s.EntersWithSubmit > s.Enters || s.EntersWithSubmit > s.SQEs || s.SQEs == 0 {
		t.Errorf("%+v", s)
	}
}

// What a ring was made with is told, and so is what it has fallen back to.
func TestUringSetupIsTold(t *testing.T) {
	needUring(t)
	testutil.CheckLeaks(t)
	const deferTaskrun = 1 << 13 // IORING_SETUP_DEFER_TASKRUN
	for _, mask := range []string{"", "-defer_taskrun,-registered_ring"} {
		e := newEngine(t, Config{Backend: KindUring, UringFeatures: mask, Loops: 1})
		mustBind(t, e, echo{})
		var s *UringStats
		eventually(t, "the ring has an owner", func() bool {
			s = e.Stats().Loops[0].Uring
			return s.Uses != ""
		})
		lacks := mask != ""
		if s.Features == 0 || (s.SetupFlags&deferTaskrun == 0) != lacks ||
			strings.Contains(s.Uses, "defer_taskrun") == lacks || strings.Contains(s.Uses, "registered_ring") == lacks ||
			strings.Contains(s.Lacks, "defer_taskrun") != lacks || strings.Contains(s.Lacks, "registered_ring") != lacks {
			t.Errorf("with %q: flags %#x, features %#x, uses %s, lacks %s", mask, s.SetupFlags, s.Features, s.Uses, s.Lacks)
		}
	}
}

// Where memory is refused as a ring is made, it is tried again, and counted.
func TestMemlockIsCounted(t *testing.T) {
	needUring(t)
	testutil.CheckLeaks(t)
	e := newEngine(t, Config{Backend: KindUring, Loops: 1})
	fault := &testutil.Nth{Op: sys.OpUringSetup, Fault: sys.Fault{Errno: sys.ENOMEM}}
	restore := sys.Inject(fault.Hook)
	mustBind(t, e, echo{})
	restore()
	if s := e.Stats().Loops[0].Uring; s.MemlockFailures != 1 || s.EnterENOMEM != 0 || s.Dropped != 0 {
		t.Errorf("%+v", s)
	}
}

// A lost completion ends the engine, and is the reason that is told.
func TestDroppedIsCounted(t *testing.T) {
	needUring(t)
	testutil.CheckLeaks(t)
	e := newEngine(t, Config{Backend: KindUring, Loops: 1, Logger: slog.New(slog.DiscardHandler)})
	c := &counted{TB: t, engine: e}
	mustBind(t, e, echo{})
	c.settle()
	fault := &testutil.Nth{Op: sys.OpUringEnter, Fault: sys.Fault{Errno: sys.EBADR}}
	defer sys.Inject(fault.Hook)()
	_ = e.loops[0].inner.PostAlways(func() {})
	eventually(t, "the end", func() bool { return e.Stats().Loops[0].Uring.Dropped == 1 })
	receive(t, "the loop's end", e.loops[0].done)
	if s := e.Stats().Loops[0].Uring; s.EnterENOMEM != 0 || s.Interrupts != 0 || s.Buffers == 0 {
		t.Errorf("%+v", s)
	}
}
