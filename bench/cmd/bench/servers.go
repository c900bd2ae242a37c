package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/pollux-go/pollux/bench/internal/proc"
	"github.com/pollux-go/pollux/bench/internal/progress"
)

// program is one of the echo servers under servers/.
type program struct {
	name     string
	about    string
	c        bool   // Built by the C compiler.
	library  string // What it is linked with: -lNAME, and its header is NAME.h with lib before.
	oneLoop  bool   // -loops above 1 is refused.
	blocking bool   // Takes -deadline and -buffer.
	handover bool   // For the handover scenario only.
}

// programs is every server there is, in the order of the tables.
var programs = []program{
	{name: "std", about: "Go's net package, a goroutine per connection: the base of all ratios", blocking: true},
	{name: "c-epoll", about: "C, one thread, level-triggered epoll: the floor for epoll on this machine", c: true, oneLoop: true},
	{name: "c-uring", about: "C, one thread, io_uring with liburing: the floor for io_uring on this machine", c: true, library: "uring", oneLoop: true},
	{name: "gnet", about: "panjf2000/gnet v2, event loops"},
	{name: "nbio", about: "lesismal/nbio, event loops"},
	{name: "netpoll", about: "cloudwego/netpoll, event loops and a goroutine pool"},
	{name: "evio", about: "tidwall/evio, event loops"},
	{name: "pollux", about: "pollux, event API"},
	{name: "pollux-net", about: "pollux, net API: the program of std on pollux.Listen", blocking: true},
	{name: "handover-std", about: "bench handover: std, another goroutine answers", handover: true},
	{name: "handover-pollux", about: "bench handover: pollux, event API, an ordinary goroutine answers", handover: true},
}

// contender is a program with the environment it is to run in.
type contender struct {
	program
	label string // What the tables call it: the program's name, or NAME@VAR=VALUE.
	env   []string
	bin   string
}

// parseContenders reads the list of the -servers flag.
func parseContenders(list string) ([]contender, error) {
	var out []contender
	seen := map[string]bool{}
	for item := range strings.SplitSeq(list, ",") {
		item = strings.TrimSpace(item)
		if item == "" || seen[item] {
			continue
		}
		seen[item] = true
		parts := strings.Split(item, "@")
		var found bool
		for _, p := range programs {
			if p.name == parts[0] {
				found = true
				out = append(out, contender{program: p, label: item, env: parts[1:]})
			}
		}
		if !found {
			return nil, fmt.Errorf("-servers: there is no server %q (there are: %s)", parts[0], strings.Join(programNames(), ", "))
		}
		for _, v := range parts[1:] {
			if name, _, ok := strings.Cut(v, "="); !ok || name == "" {
				return nil, fmt.Errorf("-servers: %q in %q is not VARIABLE=VALUE", v, item)
			}
		}
	}
	if len(out) == 0 {
		return nil, errors.New("-servers: the list is empty")
	}
	return out, nil
}

// defaultServers is the list of a run that is not told one. A quick run has each
// program that needs nothing but Go and a C compiler, and pollux on the backend
// that it takes by itself; a full one has C on io_uring too, and pollux on both.
func defaultServers(ctx context.Context, quick bool) string {
	var list []string
	for _, p := range programs {
		switch {
		case p.handover:
		case p.name == "pollux" && !quick:
			list = append(list, p.name+"@POLLUX_BACKEND=epoll", p.name+"@POLLUX_BACKEND=io_uring")
		case p.library == "" || !quick && p.hasHeader(ctx):
			list = append(list, p.name)
		}
	}
	return strings.Join(list, ",")
}

// realtime is the row of busy that the others are compared with, beside the base: in C, with the highest privilege that a row of
// pollux has.
const realtime = "c-epoll@SCHED=fifo:1"

// busyServers is the list of a busy run that is not told one: what is written in Go, pollux as it is and as its settings for
// latency make it, and as the floor a loop in C with the same privilege.
func busyServers() string {
	var list []string
	for _, p := range programs {
		switch {
		case p.handover, p.library != "":
		case p.c:
			list = append(list, realtime)
		case p.name == "pollux":
			for _, backend := range []string{"epoll", "io_uring"} {
				list = append(list, "pollux@POLLUX_BACKEND="+backend,
					"pollux@POLLUX_BACKEND="+backend+"@POLLUX_PROFILE=latency",
					"pollux@POLLUX_BACKEND="+backend+"@POLLUX_PROFILE=latency@POLLUX_SCHED=nice:-20",
					"pollux@POLLUX_BACKEND="+backend+"@POLLUX_PROFILE=latency@POLLUX_SCHED=fifo:1")
			}
		default:
			list = append(list, p.name)
		}
	}
	return strings.Join(list, ",")
}

// isolatedServers is the list of a run of busy in which nobody has a privilege, and the loop of pollux a CPU to itself.
func isolatedServers() string {
	var list []string
	for _, p := range programs {
		switch {
		case p.handover, p.library != "":
		case p.name == "pollux":
			for _, backend := range []string{"epoll", "io_uring"} {
				list = append(list, "pollux@POLLUX_BACKEND="+backend+"@POLLUX_PROFILE=latency@POLLUX_CPUS=0@POLLUX_ISOLATE=on")
			}
		default:
			list = append(list, p.name)
		}
	}
	return strings.Join(list, ",")
}

// skewServers is the list of a skew run that is not told one: what is written in Go, and pollux in each way to dispatch.
func skewServers() string {
	var list []string
	for _, p := range programs {
		switch {
		case p.c || p.handover:
		case p.name == "pollux":
			for _, backend := range []string{"epoll", "io_uring"} {
				for _, dispatch := range []string{"inline", "steal", "workers"} {
					list = append(list, "pollux@POLLUX_BACKEND="+backend+"@POLLUX_DISPATCH="+dispatch)
				}
			}
		default:
			list = append(list, p.name)
		}
	}
	return strings.Join(list, ",")
}

// spinning is the row of pingpong that the others are compared with, beside the base: in C, and never asleep.
const spinning = "c-epoll@SPIN=1"

// pingpongServers is the list of a run of pingpong that is not told one.
func pingpongServers(ctx context.Context) string {
	list := []string{"std", "c-epoll", spinning}
	if programs[slices.IndexFunc(programs, func(p program) bool { return p.name == "c-uring" })].hasHeader(ctx) {
		list = append(list, "c-uring@SPIN=1")
	}
	for _, backend := range []string{"epoll", "io_uring"} {
		list = append(list, "pollux@POLLUX_BACKEND="+backend,
			"pollux@POLLUX_BACKEND="+backend+"@POLLUX_PROFILE=latency",
			"pollux@POLLUX_BACKEND="+backend+"@POLLUX_PROFILE=latency@POLLUX_SPIN=1ms",
			"pollux@POLLUX_BACKEND="+backend+"@POLLUX_HOT=never@POLLUX_SPIN=1ms")
	}
	return strings.Join(list, ",")
}

// handoverServers is the list of a run of handover that is not told one.
func handoverServers() string {
	list := []string{handoverBase, handing}
	for _, backend := range []string{"epoll", "io_uring"} {
		list = append(list, "handover-pollux@POLLUX_BACKEND="+backend, "handover-pollux@POLLUX_BACKEND="+backend+"@POLLUX_PROFILE=latency")
	}
	return strings.Join(list, ",")
}

const handoverBase = "handover-std"

// handing is the row of handover that the others are compared with, beside the base: a loop in C that gives its work to another
// thread.
const handing = "c-epoll@HAND=1"

// header is the file that the program includes to use its library.
func (p program) header() string { return "lib" + p.library + ".h" }

// hasHeader tells whether the C compiler finds the header of the program's library.
func (p program) hasHeader(ctx context.Context) bool {
	cmd := exec.CommandContext(ctx, compiler(), "-E", "-x", "c", "-")
	cmd.Stdin = strings.NewReader("#include <" + p.header() + ">\n")
	return cmd.Run() == nil
}

// compiler is the C compiler to use.
func compiler() string {
	if cc := os.Getenv("CC"); cc != "" {
		return cc
	}
	return "gcc"
}

func programNames() []string {
	names := make([]string, len(programs))
	for i, p := range programs {
		names[i] = p.name
	}
	return names
}

// moduleDir finds the directory of this module, which the servers are built from.
func moduleDir(ctx context.Context) (string, error) {
	const module = "github.com/pollux-go/pollux/bench"
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	dir := strings.TrimSpace(string(out))
	if err != nil || dir == "" {
		return "", fmt.Errorf("module %s is not here: run this in its directory, or say -dir", module)
	}
	return dir, nil
}

// build builds the program from the module in dir into bin and returns the path.
func (p program) build(ctx context.Context, dir, bin string) (string, error) {
	out := filepath.Join(bin, p.name)
	cmd := exec.CommandContext(ctx, "go", "build", "-o", out, "./servers/"+p.name)
	if p.c {
		cc := compiler()
		if _, err := exec.LookPath(cc); err != nil {
			return "", fmt.Errorf("no C compiler: %w", err)
		}
		args := []string{"-O2", "-o", out, filepath.Join("servers", p.name, "main.c")}
		if p.library != "" {
			if !p.hasHeader(ctx) {
				return "", fmt.Errorf("%s is missing (Debian: lib%s-dev)", p.header(), p.library)
			}
			args = append(args, "-l"+p.library)
		}
		cmd = exec.CommandContext(ctx, cc, args...)
	}
	cmd.Dir = dir
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build: %w: %s", err, firstLines(string(text), 3))
	}
	return out, nil
}

// firstLines is text cut to n lines that say something, on one line.
func firstLines(text string, n int) string {
	var kept []string
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if len(kept) == n {
			kept = append(kept, "…")
			break
		}
		kept = append(kept, line)
	}
	return strings.Join(kept, "; ")
}

// readyPrefix begins the line by which a server says that it is ready.
const readyPrefix = "listening on "

const (
	startLimit = 10 * time.Second // For a server to say that it listens.
	stopGrace  = 2 * time.Second  // From SIGTERM to SIGKILL.
)

// progressFiles is how many files were made for what is done beside servers. Each one is small, and stays mapped.
var progressFiles atomic.Int64

// child is a running server.
type child struct {
	cmd    *exec.Cmd
	addr   string
	done   *progress.Counts // what is done beside the server; nil: nothing
	stdout *head            // after the line that says it is ready
	stderr *head
	ended  chan struct{} // Closed when the process has ended; err is set then.
	err    error
}

// start starts the server on a free port and waits until it listens.
func (c contender) start(ctx context.Context, l *proc.Launcher, o *options) (*child, error) {
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	args := []string{"-addr", addr, "-loops", strconv.Itoa(o.loops)}
	var done *progress.Counts
	if o.burn > 0 || o.churn > 0 {
		path := filepath.Join(filepath.Dir(c.bin), "progress-"+strconv.FormatInt(progressFiles.Add(1), 10))
		if done, err = progress.Map(path); err != nil {
			return nil, err
		}
		defer os.Remove(path)
		args = append(args, "-burn", strconv.Itoa(o.burn), "-churn", strconv.Itoa(o.churn), "-progress", path)
	}
	if o.sleep > 0 || o.compute > 0 {
		args = append(args, "-sleep", o.sleep.String(), "-compute", o.compute.String(), "-size", strconv.Itoa(o.size))
	}
	if o.cost > 0 {
		args = append(args, "-cost", o.cost.String(), "-size", strconv.Itoa(o.size))
	}
	if c.blocking {
		// A buffer for all that a client may have under way, within reason: what the
		// author of a blocking server would choose.
		size := min(max(o.size*o.pipeline, 4<<10), 64<<10)
		args = append(args, "-deadline", o.deadline.String(), "-buffer", strconv.Itoa(size))
	}
	cmd := exec.Command(c.bin, args...)
	cmd.Env = append(os.Environ(), c.env...)
	if o.gomaxprocs > 0 {
		cmd.Env = append(cmd.Env, "GOMAXPROCS="+strconv.Itoa(o.gomaxprocs))
	}
	s := &child{cmd: cmd, addr: addr, done: done, stdout: &head{}, stderr: &head{}, ended: make(chan struct{})}
	cmd.Stderr = s.stderr
	cmd.WaitDelay = time.Second
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start: %w", err)
	}
	if err := l.Start(cmd); err != nil {
		return nil, fmt.Errorf("start: %w", err)
	}
	line := make(chan string, 1)
	go func() {
		r := bufio.NewReader(stdout)
		for {
			// Some libraries have something to say themselves before.
			text, err := r.ReadString('\n')
			if err != nil || strings.HasPrefix(text, readyPrefix) {
				line <- text
				break
			}
		}
		_, _ = io.Copy(s.stdout, r)
		s.err = cmd.Wait()
		close(s.ended)
	}()
	timeout := time.NewTimer(startLimit)
	defer timeout.Stop()
	select {
	case text := <-line:
		if strings.HasPrefix(text, readyPrefix) {
			return s, nil
		}
		s.stop()
		return nil, fmt.Errorf("start: it ended (%v): %s", s.err, s.said())
	case <-timeout.C:
		s.stop()
		return nil, fmt.Errorf("start: not listening after %v: %s", startLimit, s.said())
	case <-ctx.Done():
		s.stop()
		return nil, context.Cause(ctx)
	}
}

// stop ends the server and waits until it has ended.
func (s *child) stop() {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.ended:
		return
	case <-time.After(stopGrace):
	}
	_ = s.cmd.Process.Kill()
	<-s.ended
}

func (s *child) pid() int { return s.cmd.Process.Pid }

// said is what the server wrote to its standard error, shortened.
func (s *child) said() string {
	if text := firstLines(s.stderr.String(), 3); text != "" {
		return text
	}
	return "it wrote no reason"
}

// head keeps the first bytes of what is written to it and drops the rest.
type head struct {
	mu  sync.Mutex
	buf bytes.Buffer // mu protects it.
}

const headMax = 4 << 10

// Write never fails: a server must not notice who listens.
func (h *head) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.buf.Write(p[:min(len(p), headMax-h.buf.Len())])
	return len(p), nil
}

func (h *head) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.buf.String()
}

// freeAddr finds a loopback port to listen on, below the range from which the
// kernel takes the ports of outgoing connections.
func freeAddr() (string, error) {
	var last error
	for range 50 {
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(15000+rand.IntN(15000)))
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			last = err
			continue
		}
		return addr, ln.Close()
	}
	return "", fmt.Errorf("find a free port: %w", last)
}
