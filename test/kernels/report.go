//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
)

// A result is what one kernel has said.
type result struct {
	name     string // as "5.10"
	auto     string // the backend that auto must take when it tries io_uring first
	byName   string // whether io_uring works for who asks for it: works or refused
	runs     map[string]*output
	done     bool
	doctor   doctor
	problems []string
}

// output is what one command has printed, and how it ended.
type output struct {
	lines           []string
	status, seconds string
	// Of a test binary: the tests without subtests of their own, by how they ended.
	passed, failed, skipped []string
}

// doctor is the part of "pollux doctor -json" that is needed here.
type doctor struct {
	Kernel   struct{ Release string }
	Features []struct{ Name, Answer string }
	Backend  struct {
		Backends []struct {
			Name, Error string
			Works       bool
		}
	}
}

// runReport reads what the machines have printed. Its arguments are the list of tests, and for each kernel its name, what auto
// must take, whether io_uring must work by name, and a file, with commas between them. The tables go to the standard output
// and what is wrong to the standard error.
func runReport(args []string) int {
	if len(args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: kernels LIST NAME,epoll|io_uring,works|refused,FILE...")
		return 2
	}
	list, err := readList(args[0])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	var results []*result
	for _, arg := range args[1:] {
		fields := strings.SplitN(arg, ",", 4)
		if len(fields) != 4 {
			fmt.Fprintf(os.Stderr, "%q has not four parts\n", arg)
			return 2
		}
		text, err := os.ReadFile(fields[3])
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 2
		}
		r := &result{name: fields[0], auto: fields[1], byName: fields[2], runs: map[string]*output{}}
		r.read(string(text))
		r.check(list)
		results = append(results, r)
	}
	printTables(results, list)
	status := 0
	for _, r := range results {
		for _, p := range r.problems {
			fmt.Fprintf(os.Stderr, "%s: %s\n", r.name, p)
			status = 1
		}
	}
	return status
}

// ended matches the line that says how a test has ended.
var ended = regexp.MustCompile(`^((?:    )*)--- (PASS|FAIL|SKIP): (\S+) \(`)

// read takes apart what init has printed.
func (r *result) read(text string) {
	var current *output
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		switch {
		case strings.HasPrefix(line, markBegin):
			current = &output{status: "never-ended"}
			r.runs[strings.TrimPrefix(line, markBegin)] = current
		case strings.HasPrefix(line, markEnd):
			fields := strings.Fields(strings.TrimPrefix(line, markEnd))
			if o := r.runs[fields[0]]; o != nil && len(fields) == 3 {
				o.status, o.seconds = fields[1], fields[2]
			}
			current = nil
		case line == markDone:
			r.done = true
		case current != nil:
			current.lines = append(current.lines, line)
		case strings.HasPrefix(line, "init: "):
			r.problem("%s", line)
		}
	}
	for _, o := range r.runs {
		o.count()
	}
	if o := r.runs["doctor-json"]; o != nil {
		if err := json.Unmarshal([]byte(strings.Join(o.lines, "\n")), &r.doctor); err != nil {
			r.problem("pollux doctor -json: %v", err)
		}
	}
}

// count finds the tests. Their parents say no more than they do.
func (o *output) count() {
	how := map[string]string{}
	parents := map[string]bool{}
	for _, line := range o.lines {
		m := ended.FindStringSubmatch(line)
		if m == nil || len(m[1])/4 > strings.Count(m[3], "/") {
			continue // What a test's child has printed is indented by more than subtests are.
		}
		how[m[3]] = m[2]
		for i, c := range m[3] {
			if c == '/' {
				parents[m[3][:i]] = true
			}
		}
	}
	for test, verdict := range how {
		switch {
		case verdict == "FAIL":
			o.failed = append(o.failed, test)
		case parents[test]:
		case verdict == "SKIP":
			o.skipped = append(o.skipped, test)
		default:
			o.passed = append(o.passed, test)
		}
	}
	slices.Sort(o.failed)
	slices.Sort(o.skipped)
}

func (r *result) problem(format string, args ...any) {
	r.problems = append(r.problems, fmt.Sprintf(format, args...))
}

// check holds the result against what is expected.
func (r *result) check(list []item) {
	if !r.done {
		r.problem("the machine did not come to its end")
	}
	if !strings.HasPrefix(r.doctor.Kernel.Release, r.name+".") {
		r.problem("the kernel calls itself %q", r.doctor.Kernel.Release)
	}
	for _, it := range list {
		o := r.runs[it.name]
		if o == nil {
			if !it.uring || r.byName == "works" {
				r.problem("%s was not run", it.name)
			}
			continue
		}
		if o.status != "ok" {
			r.problem("%s: %s after %s s", it.name, o.status, o.seconds)
		}
		for _, test := range o.failed {
			r.problem("%s: %s has failed", it.name, test)
		}
		if o.status == "ok" && it.isTest() && len(o.passed) == 0 {
			r.problem("%s: no test has passed", it.name)
		}
		for _, line := range o.lines {
			// What tests say when they do without io_uring.
			if r.auto == "io_uring" && strings.Contains(line, "io_uring with the features of Linux 6.1: ") ||
				r.byName == "works" && strings.Contains(line, "io_uring is not tested: ") {
				r.problem("%s: %s", it.name, strings.TrimSpace(line))
			}
		}
	}
	for _, b := range r.doctor.Backend.Backends {
		if want := b.Name == "epoll" || r.byName == "works"; b.Works != want {
			r.problem("pollux doctor says of %s: works: %v %s", b.Name, b.Works, b.Error)
		}
	}
	if got := r.said("expect", "io_uring by name: "); (got == "works") != (r.byName == "works") {
		r.problem("io_uring by name: %s", got)
	}
	for _, f := range r.doctor.Features {
		if r.byName == "works" && f.Answer != "yes" && f.Answer != "no" {
			r.problem("pollux doctor says of %s: %s", f.Name, f.Answer)
		}
	}
}

// said returns what follows the words in the output of a command, or "-".
func (r *result) said(command, words string) string {
	if o := r.runs[command]; o != nil {
		for _, line := range o.lines {
			if _, rest, ok := strings.Cut(line, words); ok {
				return rest
			}
		}
	}
	return "-"
}

// echo tells on what the echo of the event API was served.
func (r *result) echo() string {
	const test = "TestKernelExpectation/"
	var served []string
	o := r.runs["expect"]
	if o == nil {
		return "-"
	}
	for _, t := range []string{"auto", "epoll", "io_uring"} {
		switch {
		case slices.Contains(o.failed, test+t):
			served = append(served, t+" FAILED")
		case slices.Contains(o.passed, test+t) && (t == "auto" || r.said("expect", t+" by name: ") == "works"):
			served = append(served, t)
		}
	}
	return strings.Join(served, ", ")
}

func printTables(results []*result, list []item) {
	row := func(cells ...string) { fmt.Println("| " + strings.Join(cells, " | ") + " |") }
	rule := func(n int) { fmt.Println("|" + strings.Repeat("---|", n)) }

	row("kernel", "auto, io_uring first, takes", "io_uring by name", "echo served on")
	rule(4)
	for _, r := range results {
		row(r.doctor.Kernel.Release, r.said("expect", "auto takes "), r.said("expect", "io_uring by name: "), r.echo())
	}

	fmt.Println()
	head := []string{"feature of io_uring"}
	for _, r := range results {
		head = append(head, r.name)
	}
	row(head...)
	rule(len(head))
	for i, f := range results[0].doctor.Features {
		cells := []string{f.Name}
		for _, r := range results {
			answer := "-"
			if i < len(r.doctor.Features) {
				answer = r.doctor.Features[i].Answer
			}
			cells = append(cells, answer)
		}
		row(cells...)
	}

	fmt.Println()
	head[0] = "tests passed, skipped, failed"
	row(head...)
	rule(len(head))
	for _, it := range list {
		if !it.isTest() {
			continue
		}
		cells := []string{it.name}
		for _, r := range results {
			o := r.runs[it.name]
			if o == nil {
				cells = append(cells, "-")
				continue
			}
			cell := fmt.Sprintf("%d, %d, %d", len(o.passed), len(o.skipped), len(o.failed))
			if o.status != "ok" {
				cell += ": " + o.status
			}
			cells = append(cells, cell)
		}
		row(cells...)
	}
}
