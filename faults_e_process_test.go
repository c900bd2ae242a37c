//go:build linux

package pollux

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pollux-go/pollux/internal/invariants"
	"github.com/pollux-go/pollux/poller"
)

// What happens around the rings of group e: signals, processes, the collector, wake-ups from other threads.

func init() { children["uring"] = uringChild }

// restart is how long the address of a process that was killed may stay in use. The kernel ends its rings in the background,
// and an accept that is under way holds the listening socket until then: mostly no time at all, and some milliseconds on a
// busy machine.
const restart = time.Second

// uringChild serves an echo on the address it is given, on small rings, until it is killed.
func uringChild(in *bufio.Scanner) error {
	if !in.Scan() {
		return io.ErrUnexpectedEOF
	}
	e, err := New(Config{Backend: KindUring, Loops: 2, RingEntries: 8, RingBuffers: 4, RingBufferSize: 2 << 10, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	s, err := e.Bind(echo{}, in.Text())
	for end := time.Now().Add(restart); errors.Is(err, syscall.EADDRINUSE) && time.Now().Before(end); time.Sleep(time.Millisecond) {
		s, err = e.Bind(echo{}, in.Text())
	}
	if err != nil {
		return err
	}
	fmt.Println(s.Addrs()[0])
	in.Scan() // It ends with its parent.
	return e.Close()
}

// TestE4Signals interrupts the loops' threads up to 20,000 times a second, with traffic on them.
func TestE4Signals(t *testing.T) {
	config := tinyRings(t)
	config.Loops = 2
	e := newEngine(t, config)
	s, a := bind(t, e, "tcp", echo{})
	// A signal that nobody has asked for is ignored by the kernel, and interrupts nothing. The runtime has asked for SIGURG.
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, syscall.SIGWINCH)
	defer signal.Stop(caught)
	stop, interrupted := make(chan struct{}), atomic.Int64{}
	var storm sync.WaitGroup
	for _, l := range e.loops {
		storm.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(time.Millisecond):
				}
				for i := range 20 {
					sent := [...]unix.Signal{unix.SIGURG, unix.SIGWINCH}[i%2]
					if err := unix.Tgkill(os.Getpid(), int(l.thread.Load()), sent); err != nil {
						t.Error(err)
						return
					}
					interrupted.Add(1)
				}
			}
		})
	}
	const n = 20
	conns := 0
	for start := time.Now(); time.Since(start) < time.Second; conns += n {
		exchangeAll(t, s.Addrs()[0], n, 50, 2000)
	}
	close(stop)
	within(t, "the storm", storm.Wait)
	a.wait(t, conns)
	t.Logf("%d signals, %d connections", interrupted.Load(), conns)
}

// TestE25Exec starts programs while rings are busy. A child has none of them: neither the descriptors, nor the mappings for
// as long as it is only a fork.
func TestE25Exec(t *testing.T) {
	config := tinyRings(t)
	config.Loops = 2
	e := newEngine(t, config)
	s, a := bind(t, e, "tcp", echo{})
	if err := pingPong(dial(t, s.Addrs()[0]), 0, 0); err != nil {
		t.Fatal(err)
	}
	maps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	rings, here := 0, false
	for line := range strings.Lines(string(maps)) {
		if head, _, _ := strings.Cut(line, " "); strings.Contains(head, "-") {
			here = strings.Contains(line, "[io_uring]")
		}
		if flags, ok := strings.CutPrefix(line, "VmFlags:"); ok && here {
			rings++
			if !strings.Contains(flags, " dc ") {
				t.Errorf("a fork gets a copy of a ring's mapping:%s", flags)
			}
		}
	}
	if rings < 2*config.Loops {
		t.Errorf("%d mappings of rings were found", rings)
	}
	var done atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		defer done.Store(true)
		for range 50 {
			out, err := exec.Command("/bin/ls", "-l", "/proc/self/fd").CombinedOutput()
			if err != nil {
				t.Errorf("%v: %s", err, out)
				return
			}
			if strings.Contains(string(out), "io_uring") || strings.Contains(string(out), "eventpoll") {
				t.Errorf("a child has inherited\n%s", out)
				return
			}
		}
	})
	conns := 1
	for !done.Load() {
		exchangeAll(t, s.Addrs()[0], 20, 20, 2000)
		conns += 20
	}
	wg.Wait()
	e.Close()
	a.wait(t, conns)
}

// TestE26KilledUnderLoad kills a server whose rings are full, and starts the next one on the same port, which works at once or
// very soon.
func TestE26KilledUnderLoad(t *testing.T) {
	tinyRings(t)
	addr := "127.0.0.1:0"
	for range 3 {
		start := time.Now()
		c := inChild(t, "uring")
		got := c.ask("tcp://" + addr)
		if strings.HasPrefix(got, "error") {
			t.Fatal(got)
		}
		addr = got
		to, err := net.ResolveTCPAddr("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		if err := pingPong(dial(t, to), 1, 0); err != nil {
			t.Fatal(err)
		}
		t.Log("serves after", time.Since(start))
		var served atomic.Int64
		var wg sync.WaitGroup
		for i := range 30 {
			wg.Go(func() {
				for range 1000 {
					c, err := net.Dial("tcp", addr)
					if err != nil {
						return
					}
					c.SetDeadline(time.Now().Add(patience))
					err = exchange(c, uint64(i), 20, 5000)
					c.Close()
					if err != nil {
						return // It has been killed.
					}
					served.Add(1)
				}
			})
		}
		eventually(t, "the load", func() bool { return served.Load() > 30 })
		start = time.Now()
		if err := c.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		c.cmd.Wait()
		if d := time.Since(start); d > 5*time.Second {
			t.Errorf("it took %v to end", d)
		}
		within(t, "the clients", wg.Wait)
	}
}

// TestE29Collector has Go collect garbage all the time. What the kernel reads and writes meanwhile stays where it is.
func TestE29Collector(t *testing.T) {
	config := tinyRings(t)
	config.Loops = 2
	defer debug.SetGCPercent(debug.SetGCPercent(1))
	e := newEngine(t, config)
	s, a := bind(t, e, "tcp", funcs{data: func(c *Conn) error {
		garbage.Store(new([4 << 10]byte)) // Of the size that answers are sent from.
		return echo{}.OnData(c)
	}, writable: echo{}.OnWritable})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				runtime.GC()
			}
		}
	})
	const n = 60
	exchangeAll(t, s.Addrs()[0], n, 20, 2000)
	// Connections go while their answers are being sent: the kernel holds on to what nobody else does.
	everyone(t, n, func(i int) error {
		c := dial(t, s.Addrs()[0])
		defer c.Close()
		for range 5 {
			if _, err := c.Write(patterned(uint64(i), 10_000)); err != nil {
				return err
			}
		}
		if i%2 == 0 {
			reset(c)
		}
		return nil
	})
	close(stop)
	wg.Wait()
	a.wait(t, 2*n)
}

// garbage keeps the last piece of it, so that the compiler must make it.
var garbage atomic.Pointer[[4 << 10]byte]

// TestE30WakeUps wakes a loop that sleeps, very often and from everywhere. None is lost: with one caller at a time nothing
// else would wake the loop.
func TestE30WakeUps(t *testing.T) {
	many := 100_000
	if invariants.Enabled {
		many = 20_000
	}
	for _, mask := range []string{"", "-epoll_wait", "-epoll_wait,-multishot_poll", "-defer_taskrun"} {
		t.Run("mask="+mask, func(t *testing.T) {
			config := tinyRings(t)
			config.UringFeatures = mask
			e := newEngine(t, config)
			conns := make(chan *Conn, 1)
			s, _ := bind(t, e, "tcp", funcs{open: func(c *Conn) error { conns <- c; return nil }})
			dial(t, s.Addrs()[0])
			c := receive(t, "the connection", conns)
			for _, callers := range []int{1, 8} {
				var ran atomic.Int64
				var wg sync.WaitGroup
				for range callers {
					wg.Go(func() {
						answer := make(chan struct{}, 1)
						for range many / 8 / callers {
							if err := c.Async(func(*Conn) { ran.Add(1); answer <- struct{}{} }); err != nil {
								t.Error(err)
								return
							}
							<-answer
						}
					})
				}
				within(t, "the answers", wg.Wait)
				if n := int64(many / 8 / callers * callers); ran.Load() != n {
					t.Errorf("%d of %d functions have run", ran.Load(), n)
				}
			}
			// Without waiting for answers, and with wake-ups that have nothing to say.
			stop := make(chan struct{})
			var breaks sync.WaitGroup
			for range 2 {
				breaks.Go(func() {
					for {
						select {
						case <-stop:
							return
						default:
							_ = e.loops[0].backend.Break()
						}
					}
				})
			}
			var ran, posted atomic.Int64
			everyone(t, 4, func(int) error {
				for range many / 4 {
					switch err := c.Async(func(*Conn) { ran.Add(1) }); {
					case err == nil:
						posted.Add(1)
					case errors.Is(err, poller.ErrMailboxFull):
						runtime.Gosched()
					default:
						return err
					}
				}
				return nil
			})
			close(stop)
			breaks.Wait()
			eventually(t, "every function", func() bool { return ran.Load() == posted.Load() })
			quietUring(t, e)
		})
	}
}
