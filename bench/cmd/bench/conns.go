package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/pollux-go/pollux/bench/internal/load"
	"github.com/pollux-go/pollux/bench/internal/proc"
	"github.com/pollux-go/pollux/bench/internal/report"
)

const connsUsage = `bench conns shows how many connections one process can hold.

pollux on io_uring with direct descriptors is started, which RLIMIT_NOFILE does not
count; then other processes open -conns connections to it, from several source
addresses, and its resident memory and the kernel's slab are read. Then every
connection sends one request, which must be answered right. The same is done with
ordinary descriptors, on io_uring and on epoll, with as many connections as the limit
allows. The exit status is 1 when a connection was refused, lost or answered wrong.

It takes about a minute, and about 12 KB of memory a connection for both of its ends.

flags:
`

// connsClient is the subcommand of the processes that hold the clients' ends.
const connsClient = "conns-client"

const (
	connsLimit     = 4 * time.Minute // Bound on everything.
	connsSize      = 64              // Bytes of a request.
	connsPerClient = 16384           // Two source addresses each, and within the limit.
	// connsMemory is what a connection takes at both ends, in all, with something to spare.
	connsMemory = 24 << 10
)

// settleConns waits for what a server and the kernel do after so many connections were opened.
func settleConns(n int) { time.Sleep(min(settle+time.Duration(n)*100*time.Microsecond, 2*time.Second)) }

// connsRow is one mode and what was measured with it.
type connsRow struct {
	name        string
	env         []string
	conns       int
	loops       int
	limit       int
	descriptors int
	workers     int
	rss, slab   int64 // more than before, with the connections idle
	pinged      int64 // more than before, after a request on each
	opening     time.Duration
}

// conns runs the conns scenario.
func conns(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	f := flag.NewFlagSet("bench conns", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.Usage = func() {
		fmt.Fprint(stderr, connsUsage)
		f.PrintDefaults()
	}
	direct := f.Int("conns", 100_000, "number of connections with direct descriptors")
	ordinary := f.Int("ordinary", 15_000, "number of connections with ordinary descriptors; 0: leave those out")
	loops := f.Int("loops", 6, "event loops; each has a table of direct descriptors, which may be as large as RLIMIT_NOFILE")
	dir := f.String("dir", "", "`directory` of the bench module (default: found from the current one)")
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return errUsage
	}
	if f.NArg() > 0 || *direct < 1 || *ordinary < 0 || *loops < 1 {
		fmt.Fprintln(stderr, "bench conns: -conns and -loops must be above 0, and nothing may follow the flags (-h explains them)")
		return errUsage
	}
	ctx, cancel := context.WithTimeoutCause(ctx, connsLimit, fmt.Errorf("not done after %v", connsLimit))
	defer cancel()

	memory, err := proc.ReadMemory()
	if err != nil {
		return err
	}
	if need := int64(*direct) * connsMemory; need > memory.Available {
		return fmt.Errorf("%d connections may take %s MB of memory, and %s MB are available", *direct, report.Mega(float64(need)),
			report.Mega(float64(memory.Available)))
	}
	limit, err := proc.Limit(os.Getpid())
	if err != nil {
		return err
	}
	o := &options{servers: []contender{{program: program{name: "pollux"}, label: "pollux"}}, conns: []int{1}, dir: *dir, loops: *loops}
	b, err := newBench(ctx, o, stdout, stderr)
	if err != nil {
		return err
	}
	defer b.close()
	if len(b.servers) == 0 {
		return b.finish(ctx, "", nil)
	}

	// A little more than its share for each loop, as they need not get the same.
	table := min(*direct / *loops + *direct / *loops / 8 + 64, limit)
	rows := []*connsRow{{name: "io_uring, direct", env: []string{"POLLUX_BACKEND=io_uring", "POLLUX_DIRECT=" + strconv.Itoa(table)}, conns: *direct, loops: *loops}}
	if *ordinary > 0 {
		rows = append(rows,
			&connsRow{name: "io_uring", env: []string{"POLLUX_BACKEND=io_uring"}, conns: *ordinary, loops: *loops},
			&connsRow{name: "epoll", env: []string{"POLLUX_BACKEND=epoll"}, conns: *ordinary, loops: *loops})
	}
	var failure error
	for _, r := range rows {
		if err := b.holdConns(ctx, r); err != nil {
			failure = fmt.Errorf("%s, %d connections: %w", r.name, r.conns, err)
			break
		}
	}
	b.printMachine("clients in other processes")
	t := report.Table{Header: []string{"descriptors", "connections", "RLIMIT_NOFILE", "open files", "RSS a connection", "after a request", "slab a connection, both ends", "iou-wrk", "opened in"}}
	for _, r := range rows {
		if r.limit == 0 {
			continue
		}
		per := func(n int64) string { return report.Count(float64(n)/float64(r.conns)) + " B" }
		t.Rows = append(t.Rows, []string{r.name, report.Count(float64(r.conns)), report.Count(float64(r.limit)), report.Count(float64(r.descriptors)),
			per(r.rss), per(r.pinged), per(r.slab), strconv.Itoa(r.workers), r.opening.Round(100 * time.Millisecond).String()})
	}
	if err := b.table(t); err != nil {
		return err
	}
	b.para("Slab is the whole machine's, so it has the client's end of a connection in it (with an epoll entry) and whatever else has happened meanwhile.")
	d := rows[0]
	switch {
	case failure != nil:
		fmt.Fprintf(stdout, "FAIL: %v\n", failure)
		return failure
	case d.workers > 0:
		failure = fmt.Errorf("%d kernel threads have worked for the ring", d.workers)
		fmt.Fprintf(stdout, "FAIL: %v\n", failure)
		return failure
	}
	fmt.Fprintf(stdout, "PASS: one process held %s connections at RLIMIT_NOFILE %s with %d files open, and each answered.\n",
		report.Count(float64(d.conns)), report.Count(float64(d.limit)), d.descriptors)
	return nil
}

// holdConns starts the server, has clients open connections to it and ask each, and stops all.
func (b *bench) holdConns(ctx context.Context, r *connsRow) error {
	fmt.Fprintf(b.progress, "%s: %d connections\n", r.name, r.conns)
	c := b.servers[0]
	c.env = r.env
	s, err := c.start(ctx, b.launcher, b.o)
	if err != nil {
		return err
	}
	defer s.stop()
	first, err := load.OpenIdle(ctx, s.addr, 1, connsSize)
	if err != nil {
		return err
	}
	err = first.Ping()
	first.Close()
	if err != nil {
		return err
	}
	limit, err := proc.Limit(s.pid())
	if err != nil {
		return err
	}

	var clients []*connsProcess
	defer func() {
		for _, p := range clients {
			p.stop()
		}
	}()
	for done := 0; done < r.conns; done += connsPerClient {
		p, err := startConnsProcess(ctx, s.addr, done, min(connsPerClient, r.conns-done))
		if err != nil {
			return err
		}
		clients = append(clients, p)
	}
	settleConns(r.conns)
	memory, err := proc.ReadMemory()
	if err != nil {
		return err
	}
	before, err := proc.RSS(s.pid())
	if err != nil {
		return err
	}

	all := func(command string) error {
		for _, p := range clients {
			if err := p.say(command); err != nil {
				return err
			}
		}
		for _, p := range clients {
			if err := p.answer(ctx, s); err != nil {
				return err
			}
		}
		return nil
	}
	start := time.Now()
	if err := all("open"); err != nil {
		return fmt.Errorf("open: %w", err)
	}
	r.opening = time.Since(start)
	settleConns(r.conns)
	idle, err := proc.RSS(s.pid())
	if err != nil {
		return err
	}
	with, err := proc.ReadMemory()
	if err != nil {
		return err
	}
	r.rss, r.slab = idle-before, with.Slab-memory.Slab
	if err := all("ping"); err != nil {
		return fmt.Errorf("ask: %w", err)
	}
	after, err := proc.RSS(s.pid())
	if err != nil {
		return err
	}
	r.pinged = after - before
	if r.descriptors, err = proc.Descriptors(s.pid()); err != nil {
		return err
	}
	if r.workers, err = proc.Threads(s.pid(), "iou-wrk"); err != nil {
		return err
	}
	r.limit = limit
	return nil
}

// connsProcess is a process with clients.
type connsProcess struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan string
}

func startConnsProcess(ctx context.Context, addr string, first, n int) (*connsProcess, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &connsProcess{lines: make(chan string, 4)}
	p.cmd = exec.CommandContext(ctx, exe, connsClient, addr, strconv.Itoa(first), strconv.Itoa(n))
	p.cmd.Stderr = os.Stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start a process for clients: %w", err)
	}
	go func() {
		defer close(p.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			p.lines <- s.Text()
		}
	}()
	return p, nil
}

func (p *connsProcess) say(command string) error {
	_, err := fmt.Fprintln(p.in, command)
	return err
}

// answer waits until the process has done what it was told.
func (p *connsProcess) answer(ctx context.Context, s *child) error {
	select {
	case line := <-p.lines:
		if line != "ok" {
			return fmt.Errorf("a process with clients: %s; the server: %s", line, s.said())
		}
		return nil
	case <-s.ended:
		return fmt.Errorf("the server has ended (%v): %s", s.err, s.said())
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (p *connsProcess) stop() {
	_ = p.in.Close()
	timer := time.AfterFunc(10*time.Second, func() { _ = p.cmd.Process.Kill() })
	defer timer.Stop()
	_ = p.cmd.Wait()
}

// runConnsClient opens connections and asks each, when it is told so, and ends with its input.
func runConnsClient(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	if len(args) != 3 {
		return errUsage
	}
	first, err1 := strconv.Atoi(args[1])
	n, err2 := strconv.Atoi(args[2])
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	var open *load.Idle
	for s := bufio.NewScanner(in); s.Scan(); {
		var err error
		switch command := strings.TrimSpace(s.Text()); {
		case command == "open" && open == nil:
			if open, err = load.OpenIdleFrom(ctx, args[0], first, n, connsSize); err == nil {
				defer open.Close()
			}
		case command == "ping" && open != nil:
			err = open.Ping()
		default:
			err = fmt.Errorf("%q was not expected", command)
		}
		if err != nil {
			fmt.Fprintln(out, strings.ReplaceAll(err.Error(), "\n", "; "))
			return err
		}
		fmt.Fprintln(out, "ok")
	}
	return nil
}
