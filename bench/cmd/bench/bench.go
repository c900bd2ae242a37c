package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pollux-go/pollux/bench/internal/proc"
	"github.com/pollux-go/pollux/bench/internal/report"
)

// machine says where the figures come from.
type machine struct {
	Kernel    string `json:"kernel"`
	CPU       string `json:"cpu"`
	CPUs      int    `json:"cpus"`
	Go        string `json:"go"`
	Arch      string `json:"arch"`
	ServerCPU string `json:"server_cpu"`
	ClientCPU string `json:"client_cpu"`
	Client    string `json:"client"` // spin or block
}

// failure is a server that is not in a table, and why.
type failure struct {
	Server string `json:"server"`
	Where  string `json:"where,omitempty"`
	Reason string `json:"reason"`
	// Wrong is set when it ran and did wrong: a byte, a closed connection, no answer.
	Wrong bool `json:"wrong"`
}

// bench is one run of the program.
type bench struct {
	o        *options
	out      io.Writer // Tables and what belongs to them.
	progress io.Writer // What is being done just now.
	launcher *proc.Launcher
	machine  machine
	shared   bool        // Client and server share a CPU.
	spin     bool        // The client never sleeps.
	servers  []contender // Those that could be built.
	failures []failure
	warnings []string
	command  []string
	binTemp  string // To be removed at the end.
}

func newBench(ctx context.Context, o *options, out, progress io.Writer) (*bench, error) {
	b := &bench{o: o, out: out, progress: progress, command: os.Args}
	if err := checkFiles(slices.Max(o.conns)); err != nil {
		return nil, err
	}
	if err := b.placeCPUs(); err != nil {
		return nil, err
	}
	// Build before pinning: compilers may use every CPU.
	if err := b.build(ctx); err != nil {
		b.close()
		return nil, err
	}
	if len(o.clientCPUs) > 0 {
		if err := proc.Pin(o.clientCPUs); err != nil {
			b.close()
			return nil, err
		}
	}
	launcher, err := proc.NewLauncher(o.serverCPUs, o.isolated)
	if err != nil {
		b.close()
		return nil, err
	}
	b.launcher = launcher
	b.describe()
	return b, nil
}

// close removes what was built. Every server has been stopped by then, each by the
// function that started it.
func (b *bench) close() {
	if b.binTemp != "" {
		_ = os.RemoveAll(b.binTemp)
	}
}

// checkFiles tells a limit of ours from a fault of a server's. The Go runtime has
// raised the soft limit to the hard one already.
func checkFiles(conns int) error {
	const others = 64
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("read the limit on open files: %w", err)
	}
	if uint64(conns)+others > limit.Cur {
		return fmt.Errorf("%d connections need as many open files in client and server, and the limit is %d (ulimit -n)", conns, limit.Cur)
	}
	return nil
}

// placeCPUs makes do with the CPUs there are and decides how the client waits.
func (b *bench) placeCPUs() error {
	allowed, err := proc.AllowedCPUs()
	if err != nil {
		return err
	}
	place := func(flag string, cpus []int) []int {
		have := slices.DeleteFunc(slices.Clone(cpus), func(c int) bool { return !slices.Contains(allowed, c) })
		if len(have) == len(cpus) {
			return cpus
		}
		if len(have) == 0 {
			have = allowed[len(allowed)-1:]
		}
		b.warn("%s: CPU %s is not all there, CPU %s is used", flag, proc.FormatCPUs(cpus), proc.FormatCPUs(have))
		return have
	}
	b.o.serverCPUs = place("-server-cpu", b.o.serverCPUs)
	b.o.clientCPUs = place("-client-cpu", b.o.clientCPUs)
	b.shared = len(b.o.serverCPUs) == 0 || len(b.o.clientCPUs) == 0 ||
		slices.ContainsFunc(b.o.clientCPUs, func(c int) bool { return slices.Contains(b.o.serverCPUs, c) })
	if b.shared {
		b.warn("client and server share CPUs: latencies and requests/s say how the two share them, not how good the server is; CPU per request still does")
	}
	b.spin = b.o.client == "spin" || b.o.client == "auto" && !b.shared
	return nil
}

func (b *bench) warn(format string, args ...any) {
	b.warnings = append(b.warnings, fmt.Sprintf(format, args...))
}

// build builds the servers. Those that cannot be are left out, with the reason.
func (b *bench) build(ctx context.Context) error {
	dir, bin := b.o.dir, b.o.bin
	var err error
	if dir == "" {
		if dir, err = moduleDir(ctx); err != nil {
			return err
		}
	}
	if bin == "" {
		if bin, err = os.MkdirTemp("", "pollux-bench-"); err != nil {
			return fmt.Errorf("make a directory for the servers: %w", err)
		}
		b.binTemp = bin
	} else if err := os.MkdirAll(bin, 0o755); err != nil {
		return fmt.Errorf("make a directory for the servers: %w", err)
	}
	if !absolute(bin) {
		wd, err := os.Getwd()
		if err != nil {
			return fmt.Errorf("find the current directory: %w", err)
		}
		bin = wd + "/" + bin
	}
	fmt.Fprintln(b.progress, "building the servers")
	built := map[string]string{}
	broken := map[string]error{}
	for _, c := range b.o.servers {
		switch {
		case b.o.deadline > 0 && !c.blocking:
			b.leaveOut(c.label, "", errors.New("it has no deadlines to set"))
			continue
		case b.o.loops > 1 && c.oneLoop:
			b.leaveOut(c.label, "", errors.New("it has one loop only"))
			continue
		}
		if built[c.name] == "" && broken[c.name] == nil {
			built[c.name], broken[c.name] = c.build(ctx, dir, bin)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := broken[c.name]; err != nil {
			b.leaveOut(c.label, "", err)
			continue
		}
		c.bin = built[c.name]
		b.servers = append(b.servers, c)
	}
	return nil
}

func absolute(path string) bool { return strings.HasPrefix(path, "/") }

func (b *bench) leaveOut(server, where string, err error) {
	fmt.Fprintf(b.progress, "%s left out: %v\n", server, err)
	b.failures = append(b.failures, failure{Server: server, Where: where, Reason: err.Error()})
}

func (b *bench) wrong(server, where string, err error) {
	fmt.Fprintf(b.progress, "%s FAILED: %v\n", server, err)
	b.failures = append(b.failures, failure{Server: server, Where: where, Reason: err.Error(), Wrong: true})
}

func (b *bench) describe() {
	b.machine = machine{
		Kernel: "unknown", CPU: "unknown CPU", CPUs: runtime.NumCPU(), // As the process began, before it was pinned.
		Go: runtime.Version(), Arch: runtime.GOARCH,
		ServerCPU: proc.FormatCPUs(b.o.serverCPUs), ClientCPU: proc.FormatCPUs(b.o.clientCPUs), Client: "block",
	}
	if b.spin {
		b.machine.Client = "spin"
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		b.machine.Kernel = unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:])
	}
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
				b.machine.CPU = strings.TrimSpace(value)
				break
			}
		}
	}
}

// printMachine writes the lines that a figure must not be published without.
func (b *bench) printMachine(what string) {
	m := b.machine
	pinned := func(cpus string) string {
		if cpus == "" {
			return "any CPU"
		}
		return "CPU " + cpus
	}
	procs := "GOMAXPROCS left alone"
	if b.o.gomaxprocs > 0 {
		procs = fmt.Sprintf("GOMAXPROCS=%d", b.o.gomaxprocs)
	}
	b.para(fmt.Sprintf("%s, %s, %d CPUs, %s %s", m.Kernel, m.CPU, m.CPUs, m.Go, m.Arch))
	b.para(fmt.Sprintf("server on %s (%s, %d %s), client on %s; a fresh process for each figure; %s",
		pinned(m.ServerCPU), procs, b.o.loops, plural(b.o.loops, "event loop", "event loops"), pinned(m.ClientCPU), what))
	if b.o.isolated {
		b.para("the servers have no CAP_SYS_NICE")
	}
	for _, w := range b.warnings {
		b.para("WARNING: " + w)
	}
	if !b.o.markdown {
		fmt.Fprintln(b.out)
	}
}

func plural(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}

// para writes a paragraph of one line; Markdown needs the empty line after it.
func (b *bench) para(text string) {
	fmt.Fprintln(b.out, text)
	if b.o.markdown {
		fmt.Fprintln(b.out)
	}
}

func (b *bench) heading(text string) {
	if b.o.markdown {
		fmt.Fprintf(b.out, "### %s\n\n", text)
		return
	}
	fmt.Fprintln(b.out, text)
}

func (b *bench) items(items []string) {
	for _, s := range items {
		fmt.Fprintln(b.out, "-", s)
	}
	if len(items) > 0 {
		fmt.Fprintln(b.out)
	}
}

func (b *bench) table(t report.Table) error {
	write := t.WriteText
	if b.o.markdown {
		write = t.WriteMarkdown
	}
	if err := write(b.out); err != nil {
		return fmt.Errorf("write the table: %w", err)
	}
	fmt.Fprintln(b.out)
	return nil
}

// finish lists what is not in the tables, writes the JSON and tells whether all was
// right. notShown ends the report.
func (b *bench) finish(ctx context.Context, notShown string, result any) error {
	if len(b.failures) > 0 {
		b.heading("Left out")
		var items []string
		for _, f := range b.failures {
			where := f.Where
			if where != "" {
				where = " (" + where + ")"
			}
			kind := ""
			if f.Wrong {
				kind = "FAILED: "
			}
			items = append(items, fmt.Sprintf("%s%s: %s%s", f.Server, where, kind, f.Reason))
		}
		b.items(items)
	}
	b.para("Not shown: " + notShown)
	if b.o.json != "" {
		if err := b.writeJSON(result); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if slices.ContainsFunc(b.failures, func(f failure) bool { return f.Wrong }) {
		return errors.New("a server did wrong: see above")
	}
	if len(b.servers) == 0 {
		return errors.New("no server could be run")
	}
	return nil
}

func (b *bench) writeJSON(result any) error {
	data, err := json.MarshalIndent(struct {
		Time     time.Time `json:"time"`
		Command  []string  `json:"command"`
		Machine  machine   `json:"machine"`
		Warnings []string  `json:"warnings,omitempty"`
		Failures []failure `json:"failures,omitempty"`
		Result   any       `json:"result"`
	}{time.Now().UTC().Truncate(time.Second), b.command, b.machine, b.warnings, b.failures, result}, "", "\t")
	if err != nil {
		return fmt.Errorf("encode the result: %w", err)
	}
	if err := os.WriteFile(b.o.json, append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return nil
}
