package pollux

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"runtime"
	"time"
)

// Config says how an [Engine] works. The zero Config is the default one, and so is a zero in any field; [Default]
// returns it with the defaults spelled out, [ConfigFromEnv] one from the environment.
type Config struct {
	// Backend is what the event loops wait on.
	Backend Kind

	// Loops is the number of event loops, each with a thread of its own. 0: one for each CPU that GOMAXPROCS allows.
	Loops int

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
		Loops:      runtime.GOMAXPROCS(0),
		ReadLimit:  1 << 20,
		WriteLimit: 1 << 20,
		BufferSize: 64 << 10,
		Linger:     5 * time.Second,
		Drain:      10 * time.Second,
		KeepAlive:  15 * time.Second,
		UnixMode:   0o600,
		Logger:     slog.Default(),
	}
}

// Limits of the numbers in a [Config].
const (
	loopsMax      = 1024
	connsMax      = 1 << 30
	limitMax      = 1 << 30
	bufferSizeMin = 4 << 10
	bufferSizeMax = 16 << 20
	backlogMax    = 1 << 16
)

// withDefaults fills the zeros of c and checks the rest.
func (c Config) withDefaults() (Config, error) {
	d := Default()
	setDefault(&c.Backend, d.Backend)
	setDefault(&c.Loops, d.Loops)
	setDefault(&c.ReadLimit, d.ReadLimit)
	setDefault(&c.WriteLimit, d.WriteLimit)
	setDefault(&c.WriteLow, max(1, c.WriteLimit/4))
	setDefault(&c.BufferSize, d.BufferSize)
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
	if err := new(Kind).UnmarshalText([]byte(c.Backend)); err != nil {
		errs = append(errs, fmt.Errorf("config: Backend: %w: it must be auto or epoll", err))
	}
	check("Loops", c.Loops, 1, loopsMax)
	check("MaxConns", c.MaxConns, 0, connsMax)
	check("ReadLimit", c.ReadLimit, 1, limitMax)
	check("WriteLimit", c.WriteLimit, 1, limitMax)
	check("WriteLow", c.WriteLow, 1, limitMax)
	check("BufferSize", c.BufferSize, bufferSizeMin, bufferSizeMax)
	check("Backlog", c.Backlog, 0, backlogMax)
	if c.Drain < 0 {
		errs = append(errs, fmt.Errorf("config: Drain is %v: it must be above 0", c.Drain))
	}
	if c.WriteLow > c.WriteLimit {
		errs = append(errs, fmt.Errorf("config: WriteLow is %d: it must not be above WriteLimit, which is %d", c.WriteLow, c.WriteLimit))
	}
	if c.UnixMode&^fs.ModePerm != 0 {
		errs = append(errs, fmt.Errorf("config: UnixMode is %#o: only permission bits are allowed", uint32(c.UnixMode)))
	}
	return c, errors.Join(errs...)
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}
