package main

import (
	"io"
	"time"

	"github.com/pollux-go/pollux"
)

// runHTTP is "pollux http".
func runHTTP(args []string, out, errs io.Writer) int {
	var (
		flags  serverFlags
		useStd bool
		idle   time.Duration
		fs     = newFlagSet("http", `Serve HTTP/1.1 with fixed answers:

	GET /        "Hello, World!"
	GET /size/N  N bytes, up to 64 MiB`, `	pollux http -addr tcp://127.0.0.1:8080
	curl http://127.0.0.1:8080/
	wrk -t 2 -c 64 -d 10 http://127.0.0.1:8080/
	pollux http -std                   # the same paths by net/http, on pollux' listener
`)
	)
	flags.register(fs, "tcp://127.0.0.1:8080")
	fs.BoolVar(&useStd, "std", false, "serve by net/http on the net API instead of event handlers")
	fs.BoolVar(&useStd, "net", false, "the same as -std")
	fs.DurationVar(&idle, "idle", 2*time.Minute, "close connections on which nothing happens for this long; 0 never does")
	if status, ok := parse(fs, args, out, errs); !ok {
		return status
	}
	s := service{name: "http", flags: flags}
	if useStd {
		s.net = func() netServer { return newStdHTTP(idle) }
	} else {
		s.event = func(cfg pollux.Config) pollux.Handler { return newHTTPHandler(cfg, idle) }
	}
	return serve(s, out, errs)
}
