//go:build linux

// Command kernels is both ends of "make kernels": in each emulated machine it is the first process, which runs the tests, and
// outside it reads what they have printed, holds it against what is expected of the kernel, and prints the tables of
// docs/kernels.md. run.sh says how the two come together.
package main

import (
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	switch {
	case filepath.Base(os.Args[0]) == "ls":
		os.Exit(runList(os.Args[1:]))
	case os.Getpid() == 1:
		runInit()
	default:
		os.Exit(runReport(os.Args[1:]))
	}
}

// runList is all of ls(1) that tests need to see what a child inherits: the names in a directory, and with -l where links
// lead.
func runList(args []string) int {
	long := false
	if len(args) > 0 && args[0] == "-l" {
		long, args = true, args[1:]
	}
	if len(args) != 1 {
		fmt.Fprintln(os.Stderr, "ls: needs one directory")
		return 2
	}
	entries, err := os.ReadDir(args[0])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for _, e := range entries {
		fmt.Print(e.Name())
		if target, err := os.Readlink(filepath.Join(args[0], e.Name())); long && err == nil {
			fmt.Print(" -> ", target)
		}
		fmt.Println()
	}
	return 0
}
