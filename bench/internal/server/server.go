// Package server holds what the echo servers of the benchmark have in common: the
// command line, the line that says a server is ready, the end by signal, and the
// blocking echo loop that std and pollux-net share to the letter.
package server

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/pollux-go/pollux/bench/internal/progress"
	"github.com/pollux-go/pollux/bench/internal/skew"
)

// Options is the command line that every server takes.
type Options struct {
	Addr     string        // Addr is host:port to listen on.
	Loops    int           // Loops is the number of event loops, where a server has them.
	Deadline time.Duration // Deadline is set before each read when above zero; only where [ParseBlocking] offered it.
	Buffer   int           // Buffer is the size of a connection's read buffer; likewise.

	// Burn is the number of goroutines that compute all the time, and Churn the number of those that allocate all the time,
	// beside the server and in its process. They start with [Ready].
	Burn, Churn int
	Progress    string // Progress names the file where they count what they do; see package progress.

	// Sleep and Compute are how long a slow request takes, see [Serve]; Size is the size of a request.
	Sleep, Compute time.Duration
	Cost           time.Duration // what every request computes for
	Size           int
}

// Parse reads the command line of a server with event loops.
func Parse() Options {
	var o Options
	o.parse()
	return o
}

// ParseBlocking reads the command line of a server that [ServeConns] will run. It
// has two flags more. Other servers do not know them, so that asking one for a
// deadline is an error and not a silent advantage.
func ParseBlocking() Options {
	var o Options
	flag.DurationVar(&o.Deadline, "deadline", 0, "set a read deadline this far ahead before every read (0: none)")
	flag.IntVar(&o.Buffer, "buffer", 4<<10, "`size` of a connection's read buffer in bytes")
	o.parse()
	if o.Buffer < 1 {
		Fatal(fmt.Errorf("-buffer %d: at least 1 is needed", o.Buffer))
	}
	return o
}

func (o *Options) parse() {
	flag.StringVar(&o.Addr, "addr", "127.0.0.1:9000", "`host:port` to listen on")
	flag.IntVar(&o.Loops, "loops", 1, "number of event loops, where the server has them")
	flag.IntVar(&o.Burn, "burn", 0, "number of goroutines that compute all the time, in the same process")
	flag.IntVar(&o.Churn, "churn", 0, "number of goroutines that replace the objects of a map of a million all the time, so that the collector always runs")
	flag.StringVar(&o.Progress, "progress", "", "`file` where those count what they do")
	flag.DurationVar(&o.Sleep, "sleep", 0, "how long one in a hundred requests sleeps")
	flag.DurationVar(&o.Compute, "compute", 0, "how long one in a hundred requests computes")
	flag.DurationVar(&o.Cost, "cost", 0, "how long every request computes")
	flag.IntVar(&o.Size, "size", 64, "`size` of a request in bytes, for those three")
	flag.Parse()
	if o.Loops < 1 {
		Fatal(fmt.Errorf("-loops %d: at least 1 is needed", o.Loops))
	}
	if o.Burn < 0 || o.Churn < 0 {
		Fatal(fmt.Errorf("-burn %d -churn %d: 0 or more are allowed", o.Burn, o.Churn))
	}
	if o.Sleep < 0 || o.Compute < 0 || o.Cost < 0 || o.Size < skew.Least {
		Fatal(fmt.Errorf("-sleep %v -compute %v -cost %v -size %d: no less than 0, 0, 0 and %d is allowed", o.Sleep, o.Compute, o.Cost, o.Size, skew.Least))
	}
	load = *o
	slow = o.Sleep > 0 || o.Compute > 0
}

// slow says that some requests are.
var slow bool

// Serve takes the time that the requests in b are to take, where they take any. Every handler calls it.
func Serve(b []byte) {
	if !slow && load.Cost == 0 {
		return
	}
	for ; len(b) >= load.Size; b = b[load.Size:] {
		compute(load.Cost)
		if slow && skew.Slow(b) {
			time.Sleep(load.Sleep)
			compute(load.Compute)
		}
	}
}

// computeStep is more than a step of compute takes, some 200 ns, if nobody else has the CPU meanwhile.
const computeStep = time.Microsecond

// compute takes the CPU for so long. While another thread has it, or another guest of the hypervisor, time does not count.
func compute(d time.Duration) {
	x := uint64(1)
	for last := time.Now(); d > 0; {
		x = scramble(x, 1<<6)
		now := time.Now()
		d -= min(now.Sub(last), computeStep)
		last = now
	}
	burned.Add(x)
}

// Context returns a context that ends on SIGTERM or SIGINT.
func Context() (context.Context, context.CancelFunc) {
	return signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
}

// load is what runs beside the server.
var load Options

// Ready starts what is to run beside the server, and prints the one line that the runner waits for.
func Ready(addr string) {
	if load.Progress != "" {
		var err error
		if done, err = progress.Map(load.Progress); err != nil {
			Fatal(err)
		}
	}
	for i := range load.Burn {
		go burn(uint64(i)*2 + 1)
	}
	for range load.Churn {
		go churn()
	}
	fmt.Printf("listening on %s\n", addr)
}

// Fatal reports err and ends the process.
func Fatal(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// ServeConns accepts connections from ln and echoes each on a goroutine of its
// own, until a signal comes. It is the plain net program: std runs it on
// net.Listen, pollux-net on pollux.Listen, and nothing else differs.
func ServeConns(ln net.Listener, o Options) {
	ctx, stop := Context()
	defer stop()
	context.AfterFunc(ctx, func() { _ = ln.Close() })
	Ready(ln.Addr().String())
	for {
		c, err := ln.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			Fatal(fmt.Errorf("accept: %w", err))
		}
		go echo(c, o.Deadline, o.Buffer)
	}
}

func echo(c net.Conn, deadline time.Duration, size int) {
	defer func() { _ = c.Close() }()
	buf := make([]byte, size)
	for {
		if deadline > 0 {
			if err := c.SetReadDeadline(time.Now().Add(deadline)); err != nil {
				return
			}
		}
		n, err := c.Read(buf)
		if n > 0 {
			Serve(buf[:n])
			if _, err := c.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) && !errors.Is(err, syscall.ECONNRESET) {
				fmt.Fprintln(os.Stderr, "read:", err)
			}
			return
		}
	}
}
