package pollux

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"runtime"
	"time"

	"github.com/pollux-go/pollux/cgo"
	"github.com/pollux-go/pollux/internal/host"
	"github.com/pollux-go/pollux/internal/uring"
)

// Config says how an [Engine] works. The zero Config is the default one, and so is a zero in any field; [Default]
// returns it with the defaults spelled out, [ConfigFromEnv] one from the environment.
type Config struct {
	// Backend is what the event loops wait on.
	Backend Kind

	// Loops is the number of event loops, each with a thread of its own. 0: one for each CPU that GOMAXPROCS allows, and with
	// Isolate one for each that the loops get.
	Loops int

	// Profile sets the defaults of Hot, Procs, CPUs, Sched and Spin.
	Profile Profile

	// Hot is for how long after its last event a loop waits hot: in a system call that keeps the P, so that nothing that the
	// process does stands between the next event and its handler. HotAlways has no end, and costs some wake-ups a second when
	// nothing happens; HotNever is that. What a handler makes ready meanwhile, a goroutine that it sends to for instance,
	// waits on that P until another one that has nothing to do takes it; see ARCHITECTURE.md. 0: as the profile says.
	Hot time.Duration

	// Procs is how many goroutines run at once, GOMAXPROCS, while the loops run. 0: one more for each loop than it was, so that
	// none has to wait for another goroutine's time slice, and another one where they are always hot. ProcsKeep leaves it alone,
	// and makes no loop hot. It is set back when the engine closes. Where it was the runtime's own choice, it follows the CPUs and the
	// quota meanwhile, while the loops do something, but for a number that is given here; afterwards the runtime has it back.
	Procs int

	// CPUs says where the loops' threads run: "none" pins none, "auto" each to a CPU of its own as far as there are enough,
	// a list as "2-3,6" one after the other to those. Threads that the runtime makes are not pinned; a process that a callback
	// starts is, by the kernel's rules, unless the callback leaves that to a goroutine. Empty: as the profile says.
	CPUs string

	// Isolate keeps every other thread of the process off the CPUs that the loops are pinned to, until the engine closes.
	// CPUs is "auto" then where it does not say more; at least one CPU must be left for the others.
	Isolate bool

	// Sched is how the kernel schedules the loops' threads: "other" as any thread, "slice:100us" with shorter slices, which
	// come sooner (since Linux 6.12), "nice:-10" before others, "fifo:10" before everybody, as SCHED_FIFO, but for callbacks that
	// compute for more than 5 ms. The last two need CAP_SYS_NICE. Where it is refused, the loops run without it and the log says so.
	// In a build without cgo, "fifo" needs Isolate. A process that a callback starts itself inherits it, SCHED_FIFO too, and has no
	// attendant: leave that to a goroutine. Empty: as the profile says.
	Sched string

	// Spin is for how long a loop looks for events before it sleeps, which saves the time that the kernel needs to wake it and
	// costs the CPU. SpinAuto finds out whether it pays, and never does on two CPUs or fewer or under a CPU quota. SpinNever
	// sleeps at once. With Sched "fifo" it needs Isolate, and a CPU for each loop. 0: as the profile says.
	Spin time.Duration

	// BusyPoll is for how long a wait looks at the receive queues of the network card before it sleeps, in whole microseconds up to
	// 10 ms: the kernel's NAPI busy polling, since Linux 6.9. TCP connections of handlers ask for it, too (SO_BUSY_POLL and
	// SO_PREFER_BUSY_POLL), which needs CAP_NET_ADMIN: without it the waits alone do so, and the log says it. It does nothing on
	// loopback and on unix sockets, which have no NAPI id. 0: not at all.
	BusyPoll time.Duration

	// Dispatch says where handlers run. "inline": on the event loops, so they must not block. "steal": there too; on epoll, once
	// some were slow, another thread becomes the loop when a callback sleeps 100 us after it began or has computed for 250 us, and
	// OnClose runs on a worker; and the callbacks of a service of which more than one in 16 is slow, or one in 256 on io_uring,
	// run on workers, goroutines that may block, until it is fast again. Slow are those that take longer than 200 us and sleep, or
	// compute for more than 500 us. A loop that has callbacks for more than 200 us at once, of more than 20 us each, shares them
	// with workers while other CPUs are idle. "workers": always on workers. In every way one callback of a connection runs at a
	// time, in order. Empty: steal, and inline on one CPU.
	Dispatch Dispatch

	// Workers is the largest number of workers. They are started as they are needed, more of them only when all are blocked, and end
	// when they have been idle for 10 s. 0: 256.
	Workers int

	// MaxConns is the largest number of connections with handlers that are open at once. Beyond it, connections wait in
	// the listeners' queues. 0: no limit but that of the descriptors.
	MaxConns int

	// ReadLimit is the largest number of bytes that a handler may leave unread in a connection's buffer. One that leaves
	// more has its connection closed with ErrReadLimit, unless it has called Pause.
	ReadLimit int

	// WriteLimit is the high mark: the largest number of bytes that are queued for a peer that does not read. What a
	// Write offers beyond is refused with ErrWouldBlock.
	WriteLimit int

	// WriteLow is the low mark: OnWritable is called when the queue has drained to it. 0: a quarter of WriteLimit.
	WriteLow int

	// BufferSize is the size of each loop's read buffer, and the most that one connection may read before others have
	// their turn.
	BufferSize int

	// RingEntries is the room for submissions in each loop's io_uring, a power of two; there is room for eight times as
	// many completions. Where memory is short it becomes less, down to 64.
	RingEntries int

	// RingBuffers is the number of buffers, a power of two, that the kernel receives into on io_uring, for each loop.
	// Connections without unread bytes hold none. Where memory is short it becomes less, down to 64.
	RingBuffers int

	// RingBufferSize is the size of each of those buffers.
	RingBufferSize int

	// DirectDescriptors is the size of each loop's table of direct descriptors, on io_uring: TCP connections of the event API
	// are accepted into it, and RLIMIT_NOFILE does not count them. The kernel allows a table as many as RLIMIT_NOFILE, so that
	// a process holds as many times more as it has loops. What is full accepts no more until a connection is closed. It needs
	// Backend io_uring by its name, Linux 6.13, and no MaxConns. 0: ordinary descriptors.
	DirectDescriptors int

	// UringFeatures masks features of io_uring off, as "-multishot_recv,-buffer_ring": pollux behaves as on a kernel that
	// does not have them. It is for tests, and for kernels where one of them is broken.
	UringFeatures string

	// Linger is how long a closing connection waits for its peer to take more of what is queued. What is left then is
	// dropped, and the connection reset. Negative: no time at all.
	Linger time.Duration

	// Drain is how long ListenAndServe waits for its connections to finish when its context has ended.
	Drain time.Duration

	// KeepAlive is after how long a silence, and how often, TCP asks whether the peer is still there. Negative: never.
	KeepAlive time.Duration

	// Backlog is how many connections may wait to be accepted. 0: as many as net.core.somaxconn allows.
	Backlog int

	// UnixMode is the mode of the files of listening unix sockets.
	UnixMode fs.FileMode

	// Logger gets what no caller can be told: panics of handlers, and accepts that fail. nil: slog.Default().
	Logger *slog.Logger
}

// Default returns the configuration in force where nothing is set. WriteLow is 0, since it follows WriteLimit.
func Default() Config {
	return Config{
		Backend:    KindAuto,
		Profile:    Balanced,
		Loops:      runtime.GOMAXPROCS(0),
		Dispatch:   defaultDispatch(),
		Workers:    workersDefault,
		ReadLimit:  1 << 20,
		WriteLimit: 1 << 20,
		BufferSize: 64 << 10,

		RingEntries:    1024,
		RingBuffers:    1024,
		RingBufferSize: 4 << 10,

		Linger:    5 * time.Second,
		Drain:     10 * time.Second,
		KeepAlive: 15 * time.Second,
		UnixMode:  0o600,
		Logger:    slog.Default(),
	}
}

// Limits of the numbers in a [Config].
const (
	loopsMax      = 1024
	procsMax      = 1024
	connsMax      = 1 << 30
	limitMax      = 1 << 30
	bufferSizeMin = 4 << 10
	bufferSizeMax = 16 << 20
	backlogMax    = 1 << 16

	ringEntriesMin    = 8
	ringEntriesMax    = 8 << 10 // The kernel allows 64 Ki completions.
	ringBuffersMin    = 4
	ringBuffersMax    = 32 << 10 // The kernel's limit.
	ringBufferSizeMin = 256
	ringBufferSizeMax = 1 << 20
	ringMemoryMax     = 1 << 30 // of a loop's buffers
)

// withDefaults fills the zeros of c and checks the rest.
func (c Config) withDefaults() (Config, error) {
	d := Default()
	setDefault(&c.Profile, d.Profile)
	profile, known := profiles[c.Profile]
	setDefault(&c.Hot, profile.Hot)
	setDefault(&c.Procs, profile.Procs)
	setDefault(&c.Sched, profile.Sched)
	setDefault(&c.Spin, profile.Spin)
	if c.CPUs == "" && c.Isolate {
		c.CPUs = cpusAuto
	}
	setDefault(&c.CPUs, profile.CPUs)
	setDefault(&c.Backend, d.Backend)
	setDefault(&c.Loops, c.loopsDefault(host.Affinity(), d.Loops))
	setDefault(&c.Dispatch, d.Dispatch)
	setDefault(&c.Workers, d.Workers)
	setDefault(&c.ReadLimit, d.ReadLimit)
	setDefault(&c.WriteLimit, d.WriteLimit)
	setDefault(&c.WriteLow, max(1, c.WriteLimit/4))
	setDefault(&c.BufferSize, d.BufferSize)
	setDefault(&c.RingEntries, d.RingEntries)
	setDefault(&c.RingBuffers, d.RingBuffers)
	setDefault(&c.RingBufferSize, d.RingBufferSize)
	setDefault(&c.Linger, d.Linger)
	setDefault(&c.Drain, d.Drain)
	setDefault(&c.KeepAlive, d.KeepAlive)
	setDefault(&c.UnixMode, d.UnixMode)
	setDefault(&c.Logger, d.Logger)

	var errs []error
	check := func(name string, value, least, most int) {
		if value < least || value > most {
			errs = append(errs, fmt.Errorf("config: %s is %d: it must be from %d to %d", name, value, least, most))
		}
	}
	clash := func(err error, names ...string) { errs = append(errs, &clashError{err, names}) }
	checkPower := func(name string, value, least, most int) {
		if value < least || value > most || value&(value-1) != 0 {
			errs = append(errs, fmt.Errorf("config: %s is %d: it must be a power of two from %d to %d", name, value, least, most))
		}
	}
	if err := new(Kind).UnmarshalText([]byte(c.Backend)); err != nil {
		errs = append(errs, fmt.Errorf("config: Backend: %w: it must be auto, epoll or io_uring", err))
	}
	check("Loops", c.Loops, 1, loopsMax)
	if !known {
		errs = append(errs, fmt.Errorf("config: Profile is %q: it must be balanced, latency or throughput", c.Profile))
	}
	if c.Procs != ProcsKeep {
		check("Procs", c.Procs, 0, procsMax)
	}
	if _, err := parseCPUs(c.CPUs); err != nil {
		errs = append(errs, fmt.Errorf("config: CPUs is %q: %w", c.CPUs, err))
	}
	if c.Isolate && c.CPUs == cpusNone {
		clash(errors.New("config: Isolate needs loops that are pinned: CPUs must not be none"), "POLLUX_ISOLATE", "POLLUX_CPUS")
	}
	if _, err := cgo.ParseSched(c.Sched); err != nil {
		errs = append(errs, fmt.Errorf("config: Sched is %q: %w", c.Sched, err))
	}
	if err := c.checkRealtime(); err != nil {
		clash(err, "POLLUX_SCHED", "POLLUX_SPIN", "POLLUX_ISOLATE", "POLLUX_LOOPS", "POLLUX_CPUS")
	}
	if err := new(Dispatch).UnmarshalText([]byte(c.Dispatch)); err != nil || c.Dispatch == "auto" {
		errs = append(errs, fmt.Errorf("config: Dispatch is %q: it must be inline, steal or workers", c.Dispatch))
	}
	if c.BusyPoll < 0 || c.BusyPoll > busyPollMost || c.BusyPoll%time.Microsecond != 0 {
		errs = append(errs, fmt.Errorf("config: BusyPoll is %v: it must be from 0 to %v, in whole microseconds", c.BusyPoll, busyPollMost))
	}
	check("Workers", c.Workers, 1, workersMax)
	check("MaxConns", c.MaxConns, 0, connsMax)
	check("ReadLimit", c.ReadLimit, 1, limitMax)
	check("WriteLimit", c.WriteLimit, 1, limitMax)
	check("WriteLow", c.WriteLow, 1, limitMax)
	check("BufferSize", c.BufferSize, bufferSizeMin, bufferSizeMax)
	check("Backlog", c.Backlog, 0, backlogMax)
	checkPower("RingEntries", c.RingEntries, ringEntriesMin, ringEntriesMax)
	checkPower("RingBuffers", c.RingBuffers, ringBuffersMin, ringBuffersMax)
	check("DirectDescriptors", c.DirectDescriptors, 0, directMax)
	check("RingBufferSize", c.RingBufferSize, ringBufferSizeMin, ringBufferSizeMax)
	if len(errs) == 0 && c.RingBuffers*c.RingBufferSize > ringMemoryMax {
		clash(fmt.Errorf("config: RingBuffers is %d and RingBufferSize %d: together they must not be above %d bytes",
			c.RingBuffers, c.RingBufferSize, ringMemoryMax), "POLLUX_BUFFERS", "POLLUX_RING_BUFFER_SIZE")
	}
	if _, err := uring.ParseMask(c.UringFeatures); err != nil {
		errs = append(errs, fmt.Errorf("config: UringFeatures is %q: %w", c.UringFeatures, err))
	}
	if c.Drain < 0 {
		errs = append(errs, fmt.Errorf("config: Drain is %v: it must be above 0", c.Drain))
	}
	if c.WriteLow > c.WriteLimit {
		clash(fmt.Errorf("config: WriteLow is %d: it must not be above WriteLimit, which is %d", c.WriteLow, c.WriteLimit),
			"POLLUX_WRITE_LOW", "POLLUX_WRITE_LIMIT")
	}
	if len(errs) == 0 {
		c.checkDirect(clash)
	}
	if c.UnixMode&^fs.ModePerm != 0 {
		errs = append(errs, fmt.Errorf("config: UnixMode is %#o: only permission bits are allowed", uint32(c.UnixMode)))
	}
	return c, errors.Join(errs...)
}

// clashError is settings that are allowed each, and not together. It knows the variables that set them.
type clashError struct {
	error
	names []string
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}
