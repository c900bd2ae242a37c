package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
)

// serverFlags are the flags that all servers share.
type serverFlags struct {
	addr string
	burn int
}

// newFlagSet returns the flags of one command. Its help shows the intent, the flags and the examples, and goes to out
// when it was asked for.
func newFlagSet(name, intent, examples string) *flag.FlagSet {
	fs := flag.NewFlagSet("pollux "+name, flag.ContinueOnError)
	fs.SetOutput(io.Discard) // parse prints, once, to the right place.
	fs.Usage = func() {
		w := fs.Output()
		fmt.Fprintf(w, "%s\n\nUsage:\n\n\tpollux %s [flags]\n\nFlags:\n\n", intent, name)
		fs.PrintDefaults()
		fmt.Fprintf(w, "\nExamples:\n\n%s", examples)
	}
	return fs
}

// register adds the shared flags to fs.
func (f *serverFlags) register(fs *flag.FlagSet, addr string) {
	fs.StringVar(&f.addr, "addr", addr, "comma separated `addresses` to serve: tcp://host:port, tcp4://, tcp6://,\nunix:///path, fd://N (an inherited socket), systemd:// (socket activation)")
	fs.IntVar(&f.burn, "burn", 0, "run `N` CPU-bound goroutines in the same process, to see what a busy\nservice feels")
}

// parse reads the arguments of a command that takes flags only. ok is false when the command is over, with the exit
// status.
func parse(fs *flag.FlagSet, args []string, out, errs io.Writer) (status int, ok bool) {
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		fs.SetOutput(out)
		fs.Usage()
		return exitOK, false
	case err != nil:
		return fail(errs, fs, err.Error()), false
	case fs.NArg() > 0:
		return fail(errs, fs, fmt.Sprintf("unexpected argument %q", fs.Arg(0))), false
	}
	// No flag of any command means something when it is negative.
	var negative *flag.Flag
	fs.Visit(func(f *flag.Flag) {
		if strings.HasPrefix(f.Value.String(), "-") {
			negative = f
		}
	})
	if negative != nil {
		return fail(errs, fs, fmt.Sprintf("-%s %s: it must not be negative", negative.Name, negative.Value)), false
	}
	return exitOK, true
}

// fail reports a wrong command line.
func fail(errs io.Writer, fs *flag.FlagSet, problem string) int {
	fmt.Fprintf(errs, "%s: %s. Try \"%s -h\".\n", fs.Name(), problem, fs.Name())
	return exitUsage
}
