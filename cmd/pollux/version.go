package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
)

// runVersion prints what the toolchain recorded in the binary: nothing needs to be kept up to date by hand.
func runVersion(args []string, out, errs io.Writer) int {
	fs := newFlagSet("version", "Print the version of this binary.", "\tpollux version\n")
	if status, ok := parse(fs, args, out, errs); !ok {
		return status
	}
	info, ok := debug.ReadBuildInfo()
	version, revision := "(unknown)", ""
	if ok {
		version = info.Main.Version
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" && len(s.Value) >= 12 {
				revision = " " + s.Value[:12]
			}
		}
	}
	fmt.Fprintf(out, "pollux %s%s %s %s/%s\n", version, revision, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return exitOK
}
