package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/pollux-go/pollux"
)

// netServer serves a listener of the net API: [http.Server] is one.
type netServer interface {
	Serve(net.Listener) error
	Shutdown(context.Context) error
	Close() error
}

// service is what a command puts on an engine: exactly one of the two makes is set. They get the configuration
// because a handler's limits follow from it.
type service struct {
	name  string
	flags serverFlags
	event func(pollux.Config) pollux.Handler
	net   func() netServer
}

// serve runs a service from its command line to its exit status.
func serve(s service, out, errs io.Writer) int {
	complain := func(err error) int {
		fmt.Fprintf(errs, "pollux %s: %v\n", s.name, err)
		return exitFailed
	}
	cfg, err := pollux.ConfigFromEnv(os.LookupEnv)
	if err != nil {
		complain(err)
		return exitUsage
	}
	// Signals are caught before the address is announced: who reads the line may send one at once.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	engine, err := pollux.New(cfg)
	if err != nil {
		return complain(err)
	}
	defer engine.Close()

	start := bindEvents
	if s.net != nil {
		start = bindNet
	}
	running, err := start(engine, cfg, s)
	if err != nil {
		return complain(err)
	}
	defer burn(s.flags.burn)()
	banner(out, s, engine, running.addrs)

	select {
	case err = <-running.failed:
		return complain(err)
	case <-ctx.Done():
	}
	stop() // From here on a second signal ends the process at once, as the system does it by default.

	deadline, cancel := context.WithTimeout(context.Background(), cfg.Drain)
	defer cancel()
	begin := time.Now()
	if err := running.shutdown(deadline); errors.Is(err, context.DeadlineExceeded) {
		// Clients that do not go are no failure of the service: POLLUX_DRAIN says how long it waits for them.
		fmt.Fprintf(out, "pollux %s: after %v: %v\n", s.name, cfg.Drain, err)
	} else if err != nil {
		return complain(err)
	}
	fmt.Fprintf(out, "pollux %s: shut down in %v\n", s.name, time.Since(begin).Round(time.Millisecond))
	return exitOK
}

// running is a service that accepts connections.
type running struct {
	addrs    []net.Addr
	failed   <-chan error // Serving ended although nobody asked for it.
	shutdown func(context.Context) error
}

// bindEvents puts the service's event handler on its addresses.
func bindEvents(engine *pollux.Engine, cfg pollux.Config, s service) (running, error) {
	svc, err := engine.Bind(s.event(cfg), splitAddrs(s.flags.addr)...)
	if err != nil {
		return running{}, err
	}
	return running{addrs: svc.Addrs(), shutdown: svc.Shutdown}, nil
}

// bindNet serves listeners of the engine's net API.
func bindNet(engine *pollux.Engine, _ pollux.Config, s service) (running, error) {
	var (
		srv       = s.net()
		listeners []net.Listener
		addrs     []net.Addr
	)
	for _, addr := range splitAddrs(s.flags.addr) {
		ln, err := listen(engine, addr)
		if err != nil {
			for _, open := range listeners {
				open.Close()
			}
			return running{}, err
		}
		listeners, addrs = append(listeners, ln), append(addrs, ln.Addr())
	}
	failed := make(chan error, len(listeners)) // Every Serve can leave its error and go.
	var serving sync.WaitGroup
	for _, ln := range listeners {
		serving.Go(func() { failed <- srv.Serve(ln) })
	}
	shutdown := func(ctx context.Context) error {
		err := srv.Shutdown(ctx)
		if err != nil {
			srv.Close() // The deadline is over: cut what is left.
		}
		serving.Wait() // A Serve that had not begun closes its listener, and removes its file, only now.
		return err
	}
	return running{addrs: addrs, failed: failed, shutdown: shutdown}, nil
}

// listen opens one of the addresses that the net API knows.
func listen(engine *pollux.Engine, addr string) (net.Listener, error) {
	network, address, _ := strings.Cut(addr, "://")
	switch network {
	case "tcp", "tcp4", "tcp6", "unix":
		return engine.Listen(network, address)
	}
	return nil, fmt.Errorf("the net API listens on tcp, tcp4, tcp6 and unix addresses, not on %q: write it as tcp://host:port", addr)
}

// splitAddrs cuts a comma separated list.
func splitAddrs(list string) []string {
	addrs := strings.Split(list, ",")
	for i := range addrs {
		addrs[i] = strings.TrimSpace(addrs[i])
	}
	return addrs
}

// banner prints the one line that says what the service runs on. Scripts read the address from it: port 0 picks one.
func banner(w io.Writer, s service, engine *pollux.Engine, addrs []net.Addr) {
	bound := make([]string, len(addrs))
	for i, a := range addrs {
		bound[i] = a.Network() + "://" + a.String()
	}
	api := "events"
	if s.net != nil {
		api = "net"
	}
	fmt.Fprintf(w, "pollux %s: backend=%s loops=%d cpus=%d gomaxprocs=%d api=%s addr=%s\n",
		s.name, engine.Backend(), engine.Loops(), runtime.NumCPU(), runtime.GOMAXPROCS(0), api, strings.Join(bound, ","))
}
