package pollux

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/pollux-go/pollux/cgo"
	"github.com/pollux-go/pollux/internal/host"
	"github.com/pollux-go/pollux/internal/sys"
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

	// sourcesOf is how many queues each loop has for its callbacks: those of all loops for what is slow, then those of all loops
	// for what is shared because it is much (see backlog). A worker takes several at once, and none that is fast is to be behind
	// one that blocks.
	sourcesOf = 2
)

// makeDispatcher makes what runs callbacks on workers, none of which is started yet. mu is held.
func (e *Engine) makeDispatcher(threads []cgo.Thread) error {
	if e.config.Dispatch == DispatchInline {
		return nil
	}
	ids := make([]atomic.Uint64, e.config.Workers)
	allowed := host.Affinity()
	c := scheduler.Config{
		Run:      e.runItem,
		Begin:    func(worker int) { ids[worker].Store(goroutineID()) },
		Sources:  sourcesOf * e.config.Loops,
		Capacity: sourceCapacity,
		Workers:  e.config.Workers,
		Parallel: min(max(parallelLeast, len(allowed)), e.config.Workers),
		Retire:   workerRetire,
		Held:     e.config.keepsP(),
	}
	if !c.Held {
		c.Slack = workerSlack.low
	}
	if n := makeNear(threads, allowed, host.CacheSharers); n != nil {
		c.Near = n.sources
	}
	d, err := scheduler.New(c)
	e.dispatcher, e.workerIDs = d, ids
	return err
}

// near returns the sources of the loops whose caches are near to the CPU that the caller runs on.
type near struct {
	near [][]int // for each CPU, the sources of the loops that are pinned to those that share its last-level cache
	cpu  func() int
}

// makeNear returns nil where it makes no difference: all loops share one cache, or run anywhere. sharers tells which CPUs share
// a cache with one.
func makeNear(threads []cgo.Thread, allowed []int, sharers func(cpu int) []int) *near {
	n := &near{cpu: sys.CPU}
	differ := false
	for _, cpu := range allowed {
		for len(n.near) <= cpu {
			n.near = append(n.near, nil)
		}
		shared := sharers(cpu)
		for i, thread := range threads {
			if slices.Contains(shared, thread.CPU) {
				for k := range sourcesOf {
					n.near[cpu] = append(n.near[cpu], k*len(threads)+i)
				}
			}
		}
		differ = differ || len(n.near[cpu]) != 0 && len(n.near[cpu]) != sourcesOf*len(threads)
	}
	if !differ {
		return nil
	}
	return n
}

// sources implements Near of [scheduler.Config].
func (n *near) sources() []int {
	cpu := n.cpu()
	if cpu < 0 || cpu >= len(n.near) {
		return nil // Since the loops were started, it has been given others.
	}
	return n.near[cpu]
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
