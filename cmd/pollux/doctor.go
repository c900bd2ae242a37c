package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/pollux-go/pollux"
)

// runDoctor is "pollux doctor".
func runDoctor(args []string, out, errs io.Writer) int {
	var (
		asJSON bool
		fs     = newFlagSet("doctor", `Examine the machine: what the kernel, the sandbox and the limits allow, which features
of io_uring there are and what pollux does without them, which backend it takes and
why, and what to change to do better. Nothing is changed. The exit status is 0 whatever
is found.`, `	pollux doctor
	POLLUX_BACKEND=io_uring pollux doctor
	POLLUX_URING_FEATURES=-multishot_recv pollux doctor
	pollux doctor -json | jq -r '.advice[].set'
`)
	)
	fs.BoolVar(&asJSON, "json", false, "print a JSON object instead of text")
	if status, ok := parse(fs, args, out, errs); !ok {
		return status
	}
	r := examine(os.LookupEnv)
	r.Advice = advise(r)
	write := doctorText
	if asJSON {
		write = doctorJSON
	}
	if err := write(out, r); err != nil {
		fmt.Fprintf(errs, "pollux doctor: %v\n", err)
		return exitFailed
	}
	return exitOK
}

// report is what the doctor has found. What could not be read is empty, 0 or null.
type report struct {
	Kernel   kernelReport    `json:"kernel"`
	Sandbox  sandboxReport   `json:"sandbox"`
	Limits   limitsReport    `json:"limits"`
	CPU      cpuReport       `json:"cpu"`
	Features []featureReport `json:"features"`
	Config   configReport    `json:"config"`
	Backend  backendReport   `json:"backend"`
	Advice   []advice        `json:"advice"`
}

type kernelReport struct {
	System  string `json:"system"`
	Release string `json:"release"`
	Machine string `json:"machine"`
}

type sandboxReport struct {
	Seccomp       string `json:"seccomp"` // off, strict or filter
	NoNewPrivs    bool   `json:"no_new_privs"`
	UringDisabled string `json:"io_uring_disabled"` // kernel.io_uring_disabled
}

type limitsReport struct {
	Memlock    *limitReport `json:"memlock"` // bytes
	MayLock    bool         `json:"cap_ipc_lock"`
	MemlockUse int          `json:"memlock_use"` // bytes that the rings of all loops take of it
	Nofile     *limitReport `json:"nofile"`
	Somaxconn  int          `json:"somaxconn"`
	Cards      []string     `json:"network_cards"` // whose queues may be polled
	BusyPoll   bool         `json:"busy_poll"`     // the kernel can
}

// limitReport is a resource limit; below 0: there is none.
type limitReport struct {
	Soft int64 `json:"soft"`
	Hard int64 `json:"hard"`
}

type cpuReport struct {
	Model       string   `json:"model"`
	Hypervisor  bool     `json:"hypervisor"`
	Online      string   `json:"online"`
	Isolated    string   `json:"isolated"`
	Packages    int      `json:"packages"`
	Cores       int      `json:"cores"`
	Siblings    []string `json:"siblings"`
	Nodes       string   `json:"nodes"`
	CacheLine   int      `json:"cache_line"`
	Affinity    string   `json:"affinity"` // what cpusets, taskset and the like have left
	Usable      int      `json:"usable"`   // CPUs of the affinity
	Quota       float64  `json:"quota"`    // CPUs' time; 0: no limit
	QuotaSource string   `json:"quota_source"`
	GOMAXPROCS  int      `json:"gomaxprocs"`
}

type featureReport struct {
	Name    string `json:"name"`
	Answer  string `json:"answer"` // yes, no, unknown, or masked off
	Since   string `json:"since"`
	Without string `json:"without"`
	Detail  string `json:"detail,omitempty"` // why it is unknown
}

// Answers of a [featureReport].
const (
	answerYes     = "yes"
	answerNo      = "no"
	answerUnknown = "unknown"
	answerMasked  = "masked off"
)

type configReport struct {
	Error    string `json:"error,omitempty"` // of the environment; the defaults were examined then
	Backend  string `json:"backend"`
	Loops    int    `json:"loops"`
	Features string `json:"uring_features"`
}

type backendReport struct {
	Auto    string          `json:"auto"` // what auto takes
	Reason  string          `json:"reason"`
	Backend []backendAnswer `json:"backends"`
}

// backendAnswer tells whether a backend works when it is asked for by name.
type backendAnswer struct {
	Name  string `json:"name"`
	Works bool   `json:"works"`
	Error string `json:"error,omitempty"`
}

// works tells whether the backend of that name works.
func (b backendReport) works(name pollux.Kind) bool {
	for _, a := range b.Backend {
		if a.Name == string(name) {
			return a.Works
		}
	}
	return false
}

// advice is a change that would make pollux do better.
type advice struct {
	Set  string `json:"set"`  // NAME=value for the environment, or a command
	Kind string `json:"kind"` // environment or system
	Why  string `json:"why"`
}

// doctorJSON prints the report for programs.
func doctorJSON(w io.Writer, r report) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(r)
}

// doctorText prints the report for people.
func doctorText(w io.Writer, r report) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(tw, "%s\t%s\n", name, fmt.Sprintf(format, args...))
	}
	row("kernel", "%s %s %s", r.Kernel.System, orDash(r.Kernel.Release), r.Kernel.Machine)
	row("seccomp", "%s, no_new_privs %s", orDash(r.Sandbox.Seccomp), yesNo(r.Sandbox.NoNewPrivs))
	row("io_uring_disabled", "%s", uringDisabled(r.Sandbox.UringDisabled))
	row("memlock", "%s, CAP_IPC_LOCK %s; the rings of %d loops take %s", limitText(r.Limits.Memlock, bytesText), yesNo(r.Limits.MayLock),
		r.Config.Loops, bytesText(int64(r.Limits.MemlockUse)))
	row("nofile", "%s", limitText(r.Limits.Nofile, numberText))
	row("somaxconn", "%s", orDash(number(r.Limits.Somaxconn)))
	row("busy_poll", "%s", busyPollText(r.Limits))
	row("cpu", "%s", cpuText(r.CPU))
	row("affinity", "%s of %s", orDash(r.CPU.Affinity), orDash(r.CPU.Online))
	row("quota", "%s", quotaText(r.CPU))
	row("gomaxprocs", "%d", r.CPU.GOMAXPROCS)
	if err := tw.Flush(); err != nil {
		return err
	}

	fmt.Fprintln(w)
	fmt.Fprintln(tw, "IO_URING FEATURE\tANSWER\tSINCE\tWITHOUT IT")
	for _, f := range r.Features {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\n", f.Name, f.Answer, f.Since, f.Without)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for _, f := range r.Features {
		if f.Detail != "" {
			fmt.Fprintf(w, "%s\n", f.Detail)
			break // They have the same cause, as a rule.
		}
	}

	fmt.Fprintln(w)
	if r.Config.Error != "" {
		row("environment", "%s", oneLine(r.Config.Error))
	}
	for _, b := range r.Backend.Backend {
		answer := "works"
		if !b.Works {
			answer = oneLine(b.Error)
		}
		row(b.Name, "%s", answer)
	}
	if r.Backend.Auto != "" {
		row("auto", "takes %s: %s", r.Backend.Auto, r.Backend.Reason)
	} else {
		row("auto", "%s", oneLine(r.Backend.Reason))
	}
	row("in force", "POLLUX_BACKEND=%s, %d loops; the net API uses epoll in any case", r.Config.Backend, r.Config.Loops)
	if err := tw.Flush(); err != nil {
		return err
	}

	fmt.Fprintln(w, "\nTo do better:")
	for _, a := range r.Advice {
		fmt.Fprintf(tw, "  %s\t# %s\n", a.Set, a.Why)
	}
	if len(r.Advice) == 0 {
		fmt.Fprintln(tw, "  nothing to change")
	}
	return tw.Flush()
}

// busyPollText says whether POLLUX_BUSY_POLL can work.
func busyPollText(l limitsReport) string {
	switch {
	case !l.BusyPoll:
		return "cannot work: the kernel has no busy polling for waits, which came with Linux 6.9"
	case len(l.Cards) == 0:
		return "cannot work: there is no network card, and loopback has no queues to poll"
	}
	return "can work for what comes by " + strings.Join(l.Cards, ", ") + ", if the driver has NAPI; not on loopback"
}

func uringDisabled(value string) string {
	switch value {
	case "":
		return "- (the kernel has no such setting, or it is hidden)"
	case "0":
		return "0: everybody may use io_uring"
	case "1":
		return "1: only CAP_SYS_ADMIN and the group kernel.io_uring_group may use io_uring"
	case "2":
		return "2: nobody may use io_uring"
	}
	return value
}

func limitText(l *limitReport, text func(int64) string) string {
	if l == nil {
		return "-"
	}
	return fmt.Sprintf("%s, at most %s", text(l.Soft), text(l.Hard))
}

func numberText(n int64) string {
	if n < 0 {
		return "no limit"
	}
	return fmt.Sprint(n)
}

func bytesText(n int64) string {
	switch {
	case n < 0:
		return "no limit"
	case n >= 1<<20 && n%(1<<20) == 0:
		return fmt.Sprintf("%d MiB", n>>20)
	default:
		return fmt.Sprintf("%d KiB", (n+1023)>>10)
	}
}

// number is empty for 0, which stands for what is not known.
func number(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}

func cpuText(c cpuReport) string {
	parts := []string{orDash(c.Model)}
	if c.Hypervisor {
		parts = append(parts, "in a virtual machine")
	}
	parts = append(parts, fmt.Sprintf("%d cores in %d packages", c.Cores, c.Packages))
	if len(c.Siblings) > 0 {
		parts = append(parts, "hyper-threads "+strings.Join(c.Siblings, " "))
	}
	if c.Isolated != "" {
		parts = append(parts, "isolated "+c.Isolated)
	}
	if c.Nodes != "" {
		parts = append(parts, "memory nodes "+c.Nodes)
	}
	if c.CacheLine > 0 {
		parts = append(parts, fmt.Sprintf("cache lines of %d bytes", c.CacheLine))
	}
	return strings.Join(parts, ", ")
}

func quotaText(c cpuReport) string {
	if c.Quota == 0 {
		return "no limit"
	}
	return fmt.Sprintf("%.2f CPUs by %s", c.Quota, c.QuotaSource)
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// oneLine joins the lines of an error.
func oneLine(s string) string { return strings.ReplaceAll(s, "\n", "; ") }
