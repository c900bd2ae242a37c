// Command pollux lets you try the pollux network poller in a minute: small servers that real clients can be pointed
// at, and the configuration as it is in force.
//
//	pollux echo -addr tcp://127.0.0.1:9000
//	pollux resp -addr tcp://127.0.0.1:6379     # then: redis-benchmark -t ping,set,get,incr -P 16
//	pollux http -addr tcp://127.0.0.1:8080     # then: wrk -c 64 http://127.0.0.1:8080/
//	pollux doctor
//	pollux env
//
// Every server takes its engine's configuration from the POLLUX_* environment variables, prints one line that says
// what it runs on, and shuts down gracefully on SIGINT and SIGTERM, for which POLLUX_DRAIN gives it time; a second
// signal ends it at once. -burn fills the same process with CPU-bound goroutines, which is what a busy service looks
// like to its poller, and -net or -std serves the same through the net API, for comparison.
//
// The exit status is 0 after a clean shutdown, 1 when serving failed, and 2 for a wrong command line or environment.
package main

import (
	"fmt"
	"io"
	"os"
	"strings"
)

// The exit statuses of the command.
const (
	exitOK     = 0
	exitFailed = 1 // The world said no: an address in use, a backend that the kernel refuses.
	exitUsage  = 2 // The caller can fix it: arguments, environment.
)

// command is one subcommand. run gets the arguments behind its name and returns the exit status.
type command struct {
	name, summary string
	run           func(args []string, out, errs io.Writer) int
}

// commands is in the order of the help text.
var commands = []command{
	{"echo", "answer every byte with itself", runEcho},
	{"resp", "a key-value server that Redis clients can talk to", runResp},
	{"http", "an HTTP/1.1 server with fixed answers", runHTTP},
	{"doctor", "examine the machine and say how to do better", runDoctor},
	{"env", "print the POLLUX_* configuration in force", runEnv},
	{"version", "print the version", runVersion},
}

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run is main without the process around it.
func run(args []string, out, errs io.Writer) int {
	if len(args) == 0 {
		usage(out)
		return exitOK
	}
	name := args[0]
	switch name {
	case "-h", "-help", "--help", "help":
		if len(args) > 1 && name == "help" {
			return run([]string{args[1], "-h"}, out, errs)
		}
		usage(out)
		return exitOK
	case "-version", "--version":
		name = "version"
	}
	for _, c := range commands {
		if c.name == name {
			return c.run(args[1:], out, errs)
		}
	}
	names := make([]string, len(commands))
	for i, c := range commands {
		names[i] = c.name
	}
	fmt.Fprintf(errs, "pollux: unknown command %q; there are %s. Try \"pollux help\".\n", name, strings.Join(names, ", "))
	return exitUsage
}

// usage is the help of the command as a whole.
func usage(w io.Writer) {
	fmt.Fprint(w, "pollux tries out the pollux network poller.\n\nUsage:\n\n\tpollux <command> [flags]\n\nCommands:\n\n")
	for _, c := range commands {
		fmt.Fprintf(w, "\t%-8s %s\n", c.name, c.summary)
	}
	fmt.Fprint(w, `
Each command has its own help: "pollux echo -h". The servers are configured by the
POLLUX_* environment variables; "pollux env" lists them. SIGINT and SIGTERM shut them
down gracefully, a second one at once.

Examples:

	pollux echo
	POLLUX_BACKEND=epoll pollux resp -addr tcp://127.0.0.1:6379
	pollux http -addr tcp://:8080,unix:///tmp/pollux.sock
`)
}
