// Command systems checks packages for the systems that they are to build on, and for those that they must refuse, as lint does.
//
// It checks types from source, the standard library's too, and Go's declarations against the assembly. Nothing is compiled, so that
// it takes seconds where `go vet` and `go build` first build the standard library for each system: `make systems` does that.
package main

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"sync"

	"golang.org/x/tools/go/analysis"
	"golang.org/x/tools/go/analysis/checker"
	"golang.org/x/tools/go/analysis/passes/asmdecl"
	"golang.org/x/tools/go/analysis/passes/buildtag"
	"golang.org/x/tools/go/packages"
)

// analyzers are those of go vet's that depend on the system and need nothing from other packages.
var analyzers = []*analysis.Analyzer{asmdecl.Analyzer, buildtag.Analyzer}

func main() {
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), `usage: systems -on GOOS/GOARCH,... [-not GOOS/GOARCH=error,...] package...

It checks that the packages build on some systems, without cgo, and that they fail on others with an error that contains a text.

`)
		flag.PrintDefaults()
	}
	on := flag.String("on", "", "the `systems` that the packages must build on, as linux/arm64,windows/amd64")
	not := flag.String("not", "", "the `systems` that they must refuse, each with a part of the error, as linux/386=needs64Bits")
	flag.Parse()
	if flag.NArg() == 0 || *on == "" && *not == "" {
		flag.Usage()
		os.Exit(2)
	}
	var all sync.WaitGroup
	var mu sync.Mutex
	failed := false
	for _, system := range split(*on) {
		all.Go(func() {
			faults := check(system, flag.Args())
			mu.Lock()
			defer mu.Unlock()
			for _, fault := range faults {
				fmt.Fprintf(os.Stderr, "%s: %s\n", system, fault)
				failed = true
			}
		})
	}
	for _, refusal := range split(*not) {
		system, text, _ := strings.Cut(refusal, "=")
		all.Go(func() {
			faults := strings.Join(check(system, flag.Args()), "\n")
			mu.Lock()
			defer mu.Unlock()
			if text == "" || !strings.Contains(faults, text) {
				fmt.Fprintf(os.Stderr, "%s: the packages must fail with %q there, and have %q\n", system, text, faults)
				failed = true
			}
		})
	}
	all.Wait()
	if failed {
		os.Exit(1)
	}
}

func split(list string) []string {
	if list == "" {
		return nil
	}
	return strings.Split(list, ",")
}

// check returns what is wrong with the packages on a system.
func check(system string, patterns []string) (faults []string) {
	goos, goarch, ok := strings.Cut(system, "/")
	if !ok {
		return []string{"not a system: it has the form GOOS/GOARCH"}
	}
	found, err := packages.Load(&packages.Config{
		Mode:  packages.LoadAllSyntax,
		Tests: true,
		Env:   append(os.Environ(), "GOOS="+goos, "GOARCH="+goarch, "CGO_ENABLED=0"),
	}, patterns...)
	if err != nil {
		return []string{err.Error()}
	}
	packages.Visit(found, nil, func(p *packages.Package) {
		for _, err := range p.Errors {
			faults = append(faults, err.Error())
		}
	})
	if len(faults) > 0 {
		return faults
	}
	graph, err := checker.Analyze(analyzers, found, nil)
	if err != nil {
		return []string{err.Error()}
	}
	for action := range graph.All() {
		if action.Err != nil {
			faults = append(faults, fmt.Sprintf("%s: %s: %v", action.Package.PkgPath, action.Analyzer.Name, action.Err))
		}
		if !action.IsRoot {
			continue
		}
		for _, d := range action.Diagnostics {
			faults = append(faults, fmt.Sprintf("%s: %s", action.Package.Fset.Position(d.Pos), d.Message))
		}
	}
	return faults
}
