// Command bench compares pollux with Go's net package, other event libraries and a
// server in C: the same echo, the same load, one server at a time, in turn.
//
//	go run ./cmd/bench echo -quick      about a minute
//	go run ./cmd/bench echo             about eight minutes
//	go run ./cmd/bench echo -share 0.5  latency at half of std's peak, open loop
//	go run ./cmd/bench busy             latency in a process that computes all the time
//	go run ./cmd/bench skew             latency of requests beside others that are slow
//	go run ./cmd/bench pingpong         latency of one connection, with and without a spin
//	go run ./cmd/bench handover         from a handler to the goroutine that it sends to
//	go run ./cmd/bench idle             memory per idle connection
//	go run ./cmd/bench conns            more connections than RLIMIT_NOFILE allows
//	go run ./cmd/bench list             the servers
//
// Each subcommand explains its flags with -h. How to read the tables, and what they
// do not show, is in README.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

const usage = `bench compares echo servers: pollux, Go's net, other event libraries, C.

usage: bench [echo|busy|skew|pingpong|handover|idle|conns|list] [flags]

  echo      requests/s, latency and CPU per request (the default)
  busy      latency while the server's process computes or collects garbage
  skew      latency of requests beside others that are slow
  pingpong  latency of one connection, with servers that sleep and servers that spin
  handover  from a handler to the goroutine that it sends to
  idle      memory per idle connection
  conns     more connections in one process than RLIMIT_NOFILE allows, by direct descriptors
  list      the servers there are

bench SUBCOMMAND -h explains the flags.
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp):
	case errors.Is(err, errUsage):
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// errUsage is a mistake in the command line that has been explained already.
var errUsage = errors.New("wrong usage")

// run is the program without the process around it.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	name := "echo"
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		name, args = args[0], args[1:]
	} else if len(args) > 0 && (args[0] == "-h" || args[0] == "-help" || args[0] == "--help") {
		fmt.Fprint(stdout, usage)
		return nil
	}
	switch name {
	case "echo", "busy", "skew", "pingpong", "handover", "idle":
		o, err := parseOptions(ctx, name, args, stderr)
		if err != nil {
			return err
		}
		b, err := newBench(ctx, o, stdout, stderr)
		if err != nil {
			return err
		}
		defer b.close()
		switch name {
		case "idle":
			return b.idle(ctx)
		case "handover":
			return b.handover(ctx)
		}
		return b.echo(ctx, name)
	case "conns":
		return conns(ctx, args, stdout, stderr)
	case connsClient:
		return runConnsClient(ctx, args, os.Stdin, stdout)
	case "list":
		return list(stdout)
	case "help":
		fmt.Fprint(stdout, usage)
		return nil
	}
	fmt.Fprintf(stderr, "bench: there is no subcommand %q\n\n%s", name, usage)
	return errUsage
}

func list(w io.Writer) error {
	for _, p := range programs {
		flags := ""
		if p.blocking {
			flags = " (-deadline)"
		}
		if _, err := fmt.Fprintf(w, "%-12s %s%s\n", p.name, p.about, flags); err != nil {
			return err
		}
	}
	return nil
}
