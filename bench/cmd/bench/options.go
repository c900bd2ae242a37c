package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pollux-go/pollux/bench/internal/proc"
	"github.com/pollux-go/pollux/bench/internal/skew"
)

// options is the command line.
type options struct {
	servers    []contender
	base       string
	conns      []int
	rounds     int
	loops      int
	gomaxprocs int
	serverCPUs []int
	clientCPUs []int
	json       string
	markdown   bool
	dir        string
	bin        string

	// The echo scenario's.
	size     int
	pipeline int
	duration time.Duration
	warmup   time.Duration
	turns    int
	rate     float64
	share    float64
	deadline time.Duration
	client   string

	// The busy scenario's, besides.
	burn, churn int
	isolated    bool

	// The skew scenario's.
	sleep, compute time.Duration

	// The echo scenario's, besides.
	cost time.Duration

	// The idle scenario's.
	watch time.Duration
}

const echoUsage = `bench echo measures requests/s, latency and CPU time per request.

Each server in turn is started, warmed up, measured and stopped: a fresh process
for every figure, pinned to its CPU from its first instruction on, with no other
server up beside it. When all have had their turn, the next round begins. The load
comes from this process, on another CPU, and every byte of every answer is checked.

On a machine that others disturb, -turns gives closer ratios: all servers of a round
are up, and each has many short turns, between which it waits for nothing to come.
What lasts longer than a turn then disturbs all of them alike. A row that spins is
no good there: it takes the CPU from the others.

The default run takes about eight minutes, -quick about one and without the servers
on io_uring.

flags:
`

const idleUsage = `bench idle measures what an idle connection costs: memory, wake-ups and CPU.

Each server in turn is started, sent one request, and its resident memory is read;
then come the connections, and it is read again when the server has accepted all;
then each connection sends one request, which must be answered right, and it is
read once more. The kernel's own memory for a socket is not in it. After two more
seconds it is watched for a while (-watch): how often a thread of the process wakes
up, and what CPU it uses while nothing happens.

flags:
`

const busyUsage = `bench busy measures the latency of a server whose process has other things to do.

Requests come at a fixed rate, of which the server's CPU could do many times more;
but beside the server, in its process and on its CPU, goroutines compute all the
time (-burn), or replace one after the other the objects of a map of a million, so
that the collector always runs (-churn). The rest is as in bench echo.

A row of pollux may say how the loop's thread is treated, for instance
pollux@POLLUX_PROFILE=latency@POLLUX_SCHED=fifo:1; nice and fifo need CAP_SYS_NICE.
c-epoll@SCHED=fifo:1 and c-uring@SCHED=fifo:1 are the same in C, with threads for the
goroutines (those that allocate free by hand): what the machine can do at best.

-isolated is for services without such a privilege: the servers have both CPUs and
no CAP_SYS_NICE, and the loop of pollux has one of them to itself (POLLUX_ISOLATE).

flags:
`

const pingpongUsage = `bench pingpong measures one connection with one request under way: nothing but the
time from the client's send to the server's answer and back.

Rows with a spin never sleep, or do so only after a while; they take a CPU all the
time, and are compared with a loop in C that spins too. The rest is as in bench echo.

flags:
`

const skewUsage = `bench skew measures how requests fare beside others that are slow: one in a hundred,
by its first bytes, sleeps in the handler (-sleep), or computes (-compute). The
latencies are those of the other requests. The rest is as in bench echo.

flags:
`

const handoverUsage = `bench handover measures how long an ordinary goroutine takes to run when a handler
sends to a channel that it waits on: with the server's loop idle and busy, and
without and with goroutines that compute. The servers measure it themselves. The table has
beside it what the clients wait for, which is where a request waits that has not
reached the handler yet. c-epoll@HAND=1 is a loop in C that gives its work to another
thread: what a loop that stays on a thread of its own can have at best.

flags:
`

// parseOptions reads the flags of the subcommand name.
func parseOptions(ctx context.Context, name string, args []string, stderr io.Writer) (*options, error) {
	o := &options{size: 64, pipeline: 1}
	f := flag.NewFlagSet("bench "+name, flag.ContinueOnError)
	f.SetOutput(stderr)
	text := echoUsage
	switch name {
	case "idle":
		text = idleUsage
	case "busy":
		text = busyUsage
	case "pingpong":
		text = pingpongUsage
	case "handover":
		text = handoverUsage
	case "skew":
		text = skewUsage
	}
	f.Usage = func() {
		fmt.Fprint(stderr, text)
		f.PrintDefaults()
	}
	var servers, conns, serverCPU, clientCPU string
	var quick bool
	f.StringVar(&servers, "servers", "",
		"comma-separated `list` of servers; NAME@VAR=VALUE runs one with a variable set, as a row of its own (default: all; see bench list)")
	f.StringVar(&o.base, "base", "std", "the `server` that ratios are relative to")
	f.StringVar(&serverCPU, "server-cpu", "0", "CPU `list` for the servers (0, 0-1, 0,2); empty: not pinned")
	f.StringVar(&clientCPU, "client-cpu", "1", "CPU `list` for this process, that is the client; empty: not pinned")
	f.IntVar(&o.gomaxprocs, "gomaxprocs", 0, "GOMAXPROCS of the servers (0: left alone)")
	f.IntVar(&o.loops, "loops", 1, "event loops of the servers that have them")
	f.StringVar(&o.json, "json", "", "write options, machine, every sample and the sums to this `file`")
	f.BoolVar(&o.markdown, "markdown", false, "write the tables as Markdown")
	f.StringVar(&o.dir, "dir", "", "`directory` of the bench module (default: found from the current one)")
	f.StringVar(&o.bin, "bin", "", "keep the built servers in this `directory` (default: a temporary one)")
	if name == "idle" {
		f.StringVar(&conns, "conns", "10000", "number of idle connections")
		f.IntVar(&o.rounds, "rounds", 3, "number of rounds")
		f.DurationVar(&o.watch, "watch", 5*time.Second, "how long each server is watched while nothing happens (0: not at all)")
	} else {
		f.StringVar(&conns, "conns", "1,64,1000", "comma-separated `list` of numbers of connections; each gives a table")
		f.IntVar(&o.rounds, "rounds", 5, "number of rounds")
		f.IntVar(&o.size, "size", 64, "size of a request, and of its answer, in `bytes`")
		f.IntVar(&o.pipeline, "pipeline", 1, "requests under way per connection (closed loop)")
		f.DurationVar(&o.duration, "duration", 2*time.Second, "timed window of one server in one round")
		f.DurationVar(&o.warmup, "warmup", 500*time.Millisecond, "load before the timed window")
		f.IntVar(&o.turns, "turns", 1, "have all servers of a round up together, and drive each in so many turns, for closer ratios (closed loop)")
		f.Float64Var(&o.rate, "rate", 0, "open loop at this many requests/s over all connections (0: closed loop)")
		f.Float64Var(&o.share, "share", 0, "open loop at this share of what the base server does in a closed loop, measured first")
		if name == "busy" {
			f.IntVar(&o.burn, "burn", 2, "number of goroutines that compute")
			f.IntVar(&o.churn, "churn", 0, "number of goroutines that allocate")
			f.BoolVar(&o.isolated, "isolated", false, "the servers have no CAP_SYS_NICE; where not set, -server-cpu 0-1 and rows of pollux whose loop has CPU 0 to itself")
		}
		if name == "echo" {
			f.DurationVar(&o.cost, "cost", 0, "how long every request computes in its handler; the servers in C cannot")
		}
		if name == "skew" {
			f.DurationVar(&o.sleep, "sleep", 0, "how long a slow request sleeps (5ms, unless -compute is set)")
			f.DurationVar(&o.compute, "compute", 0, "how long a slow request computes")
		}
		f.DurationVar(&o.deadline, "deadline", 0, "read deadline set before every read; only the servers that list marks with it take part")
		f.StringVar(&o.client, "client", "auto", "how the client waits: spin, block, or auto: spin where it has a CPU to itself")
		f.BoolVar(&quick, "quick", false, "a run of about a minute: -conns 1,64 -rounds 3 -duration 1s -warmup 200ms, where not set, without the servers on io_uring")
	}
	if err := f.Parse(args); err != nil {
		if err == flag.ErrHelp {
			return nil, err
		}
		return nil, errUsage // The flag set has explained it.
	}
	set := map[string]bool{}
	f.Visit(func(f *flag.Flag) { set[f.Name] = true })
	switch {
	case set["servers"]:
	case name == "busy" && o.isolated:
		servers = isolatedServers()
	case name == "busy":
		servers = busyServers()
	case name == "pingpong":
		servers = pingpongServers(ctx)
	case name == "skew" || o.cost > 0:
		servers = skewServers()
	case name == "handover":
		servers = handoverServers()
	default:
		servers = defaultServers(ctx, quick)
	}
	presets := map[string][][2]string{
		"busy":     {{"conns", "16"}, {"rate", "5000"}, {"duration", "3s"}},
		"handover": {{"base", handoverBase}, {"duration", "2s"}},
		"skew":     {{"conns", "256"}, {"rate", "5000"}, {"duration", "3s"}},
		"pingpong": {{"conns", "1"}, {"duration", "1s"}, {"rounds", "7"}},
	}
	if of := presets[name]; of != nil {
		for _, preset := range of {
			if !set[preset[0]] {
				if err := f.Set(preset[0], preset[1]); err != nil {
					return nil, err
				}
			}
		}
	}
	if o.isolated && !set["server-cpu"] {
		serverCPU = "0-1"
	}
	if name == "skew" && !set["sleep"] && !set["compute"] {
		o.sleep = 5 * time.Millisecond
	}
	if quick {
		for _, preset := range [][2]string{{"conns", "1,64"}, {"rounds", "3"}, {"duration", "1s"}, {"warmup", "200ms"}} {
			if !set[preset[0]] {
				if err := f.Set(preset[0], preset[1]); err != nil {
					return nil, err
				}
			}
		}
	}
	err := func() (err error) {
		if f.NArg() > 0 {
			return fmt.Errorf("unexpected argument %q", f.Arg(0))
		}
		if o.servers, err = parseContenders(servers); err != nil {
			return err
		}
		if o.serverCPUs, err = proc.ParseCPUs(serverCPU); err != nil {
			return fmt.Errorf("-server-cpu: %w", err)
		}
		if o.clientCPUs, err = proc.ParseCPUs(clientCPU); err != nil {
			return fmt.Errorf("-client-cpu: %w", err)
		}
		for item := range strings.SplitSeq(conns, ",") {
			n, err := strconv.Atoi(strings.TrimSpace(item))
			if err != nil || n < 1 {
				return fmt.Errorf("-conns: %q is not a number of connections", item)
			}
			if !slices.Contains(o.conns, n) {
				o.conns = append(o.conns, n)
			}
		}
		return o.check(name)
	}()
	if err != nil {
		fmt.Fprintf(stderr, "bench %s: %v (-h explains the flags)\n", name, err)
		return nil, errUsage
	}
	return o, nil
}

func (o *options) check(name string) error {
	switch {
	case o.rounds < 1:
		return fmt.Errorf("-rounds %d: at least 1 is needed", o.rounds)
	case o.loops < 1:
		return fmt.Errorf("-loops %d: at least 1 is needed", o.loops)
	case o.gomaxprocs < 0:
		return fmt.Errorf("-gomaxprocs %d: must not be negative", o.gomaxprocs)
	}
	if name == "idle" {
		if len(o.conns) != 1 {
			return fmt.Errorf("-conns: one number is needed")
		}
		if o.watch < 0 {
			return fmt.Errorf("-watch %v: must not be negative", o.watch)
		}
		return nil
	}
	switch {
	case o.size < 1 || o.size > 64<<20:
		return fmt.Errorf("-size %d: 1 byte to 64 MiB", o.size)
	case o.pipeline < 1 || o.pipeline > 4096:
		return fmt.Errorf("-pipeline %d: 1 to 4096", o.pipeline)
	case o.size*o.pipeline > 64<<20:
		return fmt.Errorf("-size %d with -pipeline %d: more than 64 MiB under way per connection", o.size, o.pipeline)
	case o.duration <= 0 || o.warmup < 0:
		return fmt.Errorf("-duration must be above zero and -warmup not below")
	case o.turns < 1 || o.turns > turnsMost:
		return fmt.Errorf("-turns %d: 1 to %d", o.turns, turnsMost)
	case o.turns > 1 && (name != "echo" || o.rate > 0 || o.share > 0):
		return fmt.Errorf("-turns is for echo in a closed loop")
	case o.duration/time.Duration(o.turns) < turnLeast:
		return fmt.Errorf("-turns %d: that is less than %v each of the -duration of %v", o.turns, turnLeast, o.duration)
	case o.rate < 0 || o.share < 0:
		return fmt.Errorf("-rate and -share must not be negative")
	case o.rate > 0 && o.share > 0:
		return fmt.Errorf("-rate and -share exclude each other")
	case (o.rate > 0 || o.share > 0) && o.pipeline != 1:
		return fmt.Errorf("-pipeline is for the closed loop: at a fixed rate nothing limits the requests under way")
	case o.burn < 0 || o.churn < 0:
		return fmt.Errorf("-burn and -churn must not be negative")
	case (name == "busy" || name == "skew") && o.rate == 0 && o.share == 0:
		return fmt.Errorf("%s is an open loop: -rate or -share is needed", name)
	case o.sleep < 0 || o.compute < 0:
		return fmt.Errorf("-sleep and -compute must not be negative")
	case name == "skew" && o.size < skew.Least:
		return fmt.Errorf("-size %d: %d bytes are needed to tell the slow requests", o.size, skew.Least)
	case o.cost < 0:
		return fmt.Errorf("-cost must not be negative")
	case o.cost > 0 && o.size < skew.Least:
		return fmt.Errorf("-size %d: with -cost, %d bytes are needed", o.size, skew.Least)
	case o.deadline < 0:
		return fmt.Errorf("-deadline must not be negative")
	case o.client != "auto" && o.client != "spin" && o.client != "block":
		return fmt.Errorf("-client %q: auto, spin or block", o.client)
	}
	return nil
}
