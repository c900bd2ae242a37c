package pollux

import (
	"context"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/pollux-go/pollux/internal/host"
	"github.com/pollux-go/pollux/scheduler"
)

// Dispatch says where handlers run.
type Dispatch string

// The ways to dispatch.
const (
	DispatchInline  Dispatch = "inline"  // on the loops
	DispatchSteal   Dispatch = "steal"   // on the loops, and on workers those that are slow
	DispatchWorkers Dispatch = "workers" // on workers
)

// UnmarshalText accepts the names of the ways, and auto.
func (d *Dispatch) UnmarshalText(text []byte) error {
	switch Dispatch(text) {
	case DispatchInline, DispatchSteal, DispatchWorkers:
		*d = Dispatch(text)
	case "auto":
		*d = ""
	default:
		return fmt.Errorf("%q is no way to dispatch", text)
	}
	return nil
}

// defaultDispatch is the way where nothing is said: on one CPU there is nobody to steal. Tests change it.
var defaultDispatch = func() Dispatch {
	if runtime.NumCPU() < 2 {
		return DispatchInline
	}
	return DispatchSteal
}

// Workers of an engine.
const (
	workersMax     = 1 << 12
	workersDefault = 256

	// parallelLeast is how many workers are started readily, on few CPUs too: some may be blocked.
	parallelLeast = 4

	// workerRetire is how long a worker is idle before it ends.
	workerRetire = 10 * time.Second

	// sourceCapacity is how many callbacks of a loop wait for workers before they overflow into the queue for all.
	sourceCapacity = 256
)

// makeDispatcher makes what runs callbacks on workers, none of which is started yet. mu is held.
func (e *Engine) makeDispatcher() error {
	if e.config.Dispatch == DispatchInline {
		return nil
	}
	ids := make([]atomic.Uint64, e.config.Workers)
	d, err := scheduler.New(scheduler.Config{
		Run:      e.runItem,
		Begin:    func(worker int) { ids[worker].Store(goroutineID()) },
		Sources:  e.config.Loops,
		Capacity: sourceCapacity,
		Workers:  e.config.Workers,
		Parallel: min(max(parallelLeast, len(host.Affinity())), e.config.Workers),
		Retire:   workerRetire,
		Held:     e.config.Procs != ProcsKeep && e.config.Hot > 0,
	})
	e.dispatcher, e.workerIDs = d, ids
	return err
}

// endDispatcher ends the workers, which have nothing to do any more.
func (e *Engine) endDispatcher() error {
	if e.dispatcher == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), handlerGrace)
	defer cancel()
	_, err := e.dispatcher.Close(ctx)
	return err
}

// onWorker tells whether the caller is a callback that a worker runs, or one whose loop was taken over.
func (e *Engine) onWorker() bool {
	if e.reliefs.stuckHere(false) != nil {
		return true
	}
	e.mu.Lock()
	ids := e.workerIDs
	e.mu.Unlock()
	if len(ids) == 0 {
		return false
	}
	id := goroutineID()
	for i := range ids {
		if ids[i].Load() == id {
			return true
		}
	}
	return false
}

// goroutineID returns the number by which stack traces name the calling goroutine, which is never given to another one. It takes
// about a microsecond.
func goroutineID() uint64 {
	var buf [64]byte
	text := strings.TrimPrefix(string(buf[:runtime.Stack(buf[:], false)]), "goroutine ")
	number, _, _ := strings.Cut(text, " ")
	id, _ := strconv.ParseUint(number, 10, 64)
	return id
}
