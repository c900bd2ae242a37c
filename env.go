package pollux

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"

	"github.com/pollux-go/pollux/cgo"
	"github.com/pollux-go/pollux/internal/uring"
)

// settings is the one table of the environment: its tags name each variable, its default, what is allowed and what it
// is for. ConfigFromEnv parses it, Variables prints it, and the README's table is checked against it.
type settings struct {
	Backend Kind     `env:"POLLUX_BACKEND" envDefault:"auto" allowed:"auto, epoll, io_uring" help:"what the event loops wait on"`
	Loops   count    `env:"POLLUX_LOOPS" envDefault:"0" allowed:"0 to 1024" help:"number of event loops; 0: one for each CPU that GOMAXPROCS allows, and that is left for them with POLLUX_ISOLATE"`
	Profile Profile  `env:"POLLUX_PROFILE" envDefault:"balanced" allowed:"balanced, latency, throughput" help:"sets the defaults of POLLUX_HOT, POLLUX_PROCS, POLLUX_CPUS, POLLUX_SCHED and POLLUX_SPIN"`
	Hot     heat     `env:"POLLUX_HOT" envDefault:"auto" allowed:"auto, always, never or a duration up to 1m" help:"how long after its last event a loop waits with its P kept; auto: never, always in the latency profile"`
	Procs   procsEnv `env:"POLLUX_PROCS" envDefault:"auto" allowed:"auto, keep or 1 to 1024" help:"GOMAXPROCS while the loops run; auto: one more for each loop, and where they are always hot another one, and 4, 5 or at least 7 in all; kept in the throughput profile; keep: left alone, and no loop is hot"`
	CPUs    cpuList  `env:"POLLUX_CPUS" envDefault:"" allowed:"none, auto or a list as 2-3,6" help:"the CPUs that the loops are pinned to, one after the other; empty: none, auto in the latency profile"`
	Isolate onOff    `env:"POLLUX_ISOLATE" envDefault:"off" allowed:"off, on" help:"keep every other thread of the process off the loops' CPUs"`
	Sched   schedule `env:"POLLUX_SCHED" envDefault:"" allowed:"other, slice:100us to slice:100ms, nice:-20 to nice:19, fifo:1 to fifo:98" help:"how the kernel schedules the loops' threads, fifo with an attendant, which needs cgo; empty: other, slice:100us in the latency profile"`

	Spin spinTime `env:"POLLUX_SPIN" envDefault:"" allowed:"auto, off or a duration from 1us to 1s; with fifo only with POLLUX_ISOLATE" help:"how long a loop looks for events before it sleeps; auto: while it pays, and not on two CPUs or under a quota; empty: off, auto in the latency profile"`

	BusyPoll busyPollEnv `env:"POLLUX_BUSY_POLL" envDefault:"off" allowed:"off or a duration from 1us to 10ms" help:"how long a wait looks at the network card's queues before it sleeps; pollux doctor says whether that can work here"`

	Dispatch Dispatch `env:"POLLUX_DISPATCH" envDefault:"auto" allowed:"auto, inline, steal, workers" help:"where handlers run: on the loops, there and on workers those that are slow, on workers; auto: steal, inline on one CPU"`
	Workers  count    `env:"POLLUX_WORKERS" envDefault:"256" allowed:"1 to 4096" help:"most workers, which are started as they are needed"`

	MaxConns   count `env:"POLLUX_MAX_CONNS" envDefault:"0" allowed:"0 to 1073741824" help:"most connections with handlers at once; 0: no limit"`
	ReadLimit  size  `env:"POLLUX_READ_LIMIT" envDefault:"1MiB" allowed:"1 to 1GiB" help:"most bytes that a handler may leave unread before its connection is closed"`
	WriteLimit size  `env:"POLLUX_WRITE_LIMIT" envDefault:"1MiB" allowed:"1 to 1GiB" help:"most bytes queued for a peer that does not read; beyond, Write returns ErrWouldBlock"`
	WriteLow   size  `env:"POLLUX_WRITE_LOW" envDefault:"0" allowed:"0 to POLLUX_WRITE_LIMIT" help:"OnWritable is called when the queue has drained to so many bytes; 0: a quarter of the write limit"`
	BufferSize size  `env:"POLLUX_BUFFER_SIZE" envDefault:"64KiB" allowed:"4KiB to 16MiB" help:"each loop's read buffer, and what a connection may read before others have their turn"`

	RingEntries    count    `env:"POLLUX_RING_ENTRIES" envDefault:"1024" allowed:"a power of two, 8 to 8192" help:"io_uring: submissions that a loop has room for, and an eighth of its completions"`
	RingBuffers    count    `env:"POLLUX_BUFFERS" envDefault:"1024" allowed:"a power of two, 4 to 32768" help:"io_uring: buffers that the kernel receives into, for each loop"`
	RingBufferSize size     `env:"POLLUX_RING_BUFFER_SIZE" envDefault:"4KiB" allowed:"256 to 1MiB" help:"io_uring: size of each of those buffers; all of a loop's together: 1GiB at most"`
	Direct         count    `env:"POLLUX_DIRECT" envDefault:"0" allowed:"0 to 1048576, and at most RLIMIT_NOFILE" help:"io_uring: TCP connections of each loop that need no file descriptor; 0: ordinary descriptors"`
	UringFeatures  features `env:"POLLUX_URING_FEATURES" envDefault:"" allowed:"names with a - before them, separated by commas; pollux doctor lists them" help:"io_uring: features not to use, as on a kernel without them"`

	Linger    time.Duration `env:"POLLUX_LINGER" envDefault:"5s" allowed:"a duration; below 0: no time at all" help:"how long a closing connection waits for its peer to take more of what is queued"`
	Drain     time.Duration `env:"POLLUX_DRAIN" envDefault:"10s" allowed:"a duration above 0" help:"how long ListenAndServe waits for its connections to finish when its context has ended"`
	KeepAlive time.Duration `env:"POLLUX_KEEPALIVE" envDefault:"15s" allowed:"a duration; below 0: never" help:"after how long a silence, and how often, TCP asks whether the peer is there"`
	Backlog   count         `env:"POLLUX_BACKLOG" envDefault:"0" allowed:"0 to 65536" help:"connections that may wait to be accepted; 0: as net.core.somaxconn"`
	Log       logLevel      `env:"POLLUX_LOG" envDefault:"warn" allowed:"off, error, warn, info, debug" help:"what is written to the log"`
}

// config turns the settings into a Config that has been checked.
func (s *settings) config() (Config, error) {
	c := Config{
		Backend:    s.Backend,
		Profile:    s.Profile,
		Hot:        time.Duration(s.Hot),
		Procs:      int(s.Procs),
		CPUs:       string(s.CPUs),
		Isolate:    bool(s.Isolate),
		Sched:      string(s.Sched),
		Spin:       time.Duration(s.Spin),
		Loops:      int(s.Loops),
		BusyPoll:   time.Duration(s.BusyPoll),
		Dispatch:   s.Dispatch,
		Workers:    notZero(s.Workers),
		MaxConns:   int(s.MaxConns),
		ReadLimit:  notZero(s.ReadLimit),
		WriteLimit: notZero(s.WriteLimit),
		WriteLow:   int(s.WriteLow),
		BufferSize: notZero(s.BufferSize),

		RingEntries:    notZero(s.RingEntries),
		RingBuffers:    notZero(s.RingBuffers),
		RingBufferSize: notZero(s.RingBufferSize),

		DirectDescriptors: int(s.Direct),

		UringFeatures: string(s.UringFeatures),

		Linger:    s.Linger,
		Drain:     s.Drain,
		KeepAlive: s.KeepAlive,
		Backlog:   int(s.Backlog),
		Logger:    s.Log.logger(),
	}
	return c.withDefaults()
}

// notZero makes a 0 that somebody has written out of range: in a Config, it would be the default.
func notZero[T ~int](n T) int {
	if n == 0 {
		return -1
	}
	return int(n)
}

// count is a number that is not negative.
type count int

func (c *count) UnmarshalText(text []byte) error {
	n, err := strconv.ParseUint(string(text), 10, 31)
	if err != nil {
		return errors.Unwrap(err)
	}
	*c = count(n)
	return nil
}

// size is a number of bytes, with or without a unit: 65536, 64KiB, 1MiB, 1GiB; k, m and g are short for those.
type size int

func (s *size) UnmarshalText(text []byte) error {
	number := strings.TrimRight(string(text), "kKmMgGiIbB")
	shift := 0
	switch strings.ToLower(string(text[len(number):])) {
	case "", "b":
	case "k", "kib":
		shift = 10
	case "m", "mib":
		shift = 20
	case "g", "gib":
		shift = 30
	default:
		return errors.New("the unit must be KiB, MiB or GiB")
	}
	n, err := strconv.ParseUint(number, 10, 31)
	if err != nil {
		return errors.Unwrap(err)
	}
	if n > math.MaxInt32>>shift {
		return strconv.ErrRange
	}
	*s = size(n << shift)
	return nil
}

// features is a mask of features of io_uring, as "-multishot_recv,-buffer_ring".
type features string

func (f *features) UnmarshalText(text []byte) error {
	_, err := uring.ParseMask(string(text))
	*f = features(text)
	return err
}

// hotMost is the longest duration that a loop is told to stay hot for.
const hotMost = time.Minute

// heat is Config.Hot.
type heat time.Duration

func (h *heat) UnmarshalText(text []byte) error {
	switch string(text) {
	case "auto":
		*h = 0
		return nil
	case "always":
		*h = heat(HotAlways)
		return nil
	case "never", "0":
		*h = heat(HotNever)
		return nil
	}
	d, err := time.ParseDuration(string(text))
	if err == nil && (d <= 0 || d > hotMost) {
		err = strconv.ErrRange
	}
	*h = heat(d)
	return err
}

// procsEnv is Config.Procs.
type procsEnv int

func (p *procsEnv) UnmarshalText(text []byte) error {
	switch string(text) {
	case "auto":
		*p = 0
		return nil
	case "keep":
		*p = ProcsKeep
		return nil
	}
	n, err := strconv.ParseUint(string(text), 10, 16)
	if err != nil {
		return errors.Unwrap(err)
	}
	if n < 1 || n > procsMax {
		return strconv.ErrRange
	}
	*p = procsEnv(n)
	return nil
}

// cpuList is Config.CPUs.
type cpuList string

func (c *cpuList) UnmarshalText(text []byte) error {
	_, err := parseCPUs(string(text))
	*c = cpuList(text)
	return err
}

// schedule is Config.Sched.
type schedule string

func (s *schedule) UnmarshalText(text []byte) error {
	_, err := cgo.ParseSched(string(text))
	*s = schedule(text)
	return err
}

// spinTime is Config.Spin.
type spinTime time.Duration

func (s *spinTime) UnmarshalText(text []byte) error {
	switch string(text) {
	case "auto":
		*s = spinTime(SpinAuto)
		return nil
	case "off", "0":
		*s = spinTime(SpinNever)
		return nil
	}
	d, err := time.ParseDuration(string(text))
	if err == nil && (d < time.Microsecond || d > time.Second) {
		err = strconv.ErrRange
	}
	*s = spinTime(d)
	return err
}

// busyPollEnv is Config.BusyPoll.
type busyPollEnv time.Duration

func (p *busyPollEnv) UnmarshalText(text []byte) error {
	if s := string(text); s == "off" || s == "0" {
		*p = 0
		return nil
	}
	d, err := time.ParseDuration(string(text))
	if err == nil && (d < time.Microsecond || d > busyPollMost || d%time.Microsecond != 0) {
		err = strconv.ErrRange
	}
	*p = busyPollEnv(d)
	return err
}

// onOff is a switch.
type onOff bool

func (o *onOff) UnmarshalText(text []byte) error {
	switch string(text) {
	case "on", "off":
		*o = string(text) == "on"
		return nil
	}
	return errors.New("it must be on or off")
}

// logLevel is a slog level or "off".
type logLevel string

func (l *logLevel) UnmarshalText(text []byte) error {
	switch v := logLevel(text); v {
	case "off", "error", "warn", "info", "debug":
		*l = v
		return nil
	}
	return errors.New("there is no such level")
}

// logger returns the default logger, less what is below the level.
func (l logLevel) logger() *slog.Logger {
	if l == "off" {
		return slog.New(slog.DiscardHandler)
	}
	var level slog.Level
	_ = level.UnmarshalText([]byte(l)) // The names were checked.
	return slog.New(&leveled{slog.Default().Handler(), level})
}

// leveled passes on what is not below a level.
type leveled struct {
	slog.Handler
	least slog.Level
}

func (h *leveled) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= h.least && h.Handler.Enabled(ctx, level)
}

func (h *leveled) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &leveled{h.Handler.WithAttrs(attrs), h.least}
}

func (h *leveled) WithGroup(name string) slog.Handler {
	return &leveled{h.Handler.WithGroup(name), h.least}
}

// A Variable is one row of the table of environment variables.
type Variable struct {
	Name    string // POLLUX_LOOPS, for instance
	Value   string // in force
	FromEnv bool   // the environment says so, and not the default
	Default string
	Allowed string
	Help    string
}

// Variables returns every variable that [ConfigFromEnv] reads, with the value in force. lookup is asked for each, as
// os.LookupEnv would be. The error is what ConfigFromEnv returns; the rows are complete all the same.
func Variables(lookup func(string) (string, bool)) ([]Variable, error) {
	rows, _ := variables(lookup)
	_, err := ConfigFromEnv(lookup)
	return rows, err
}

// variables reads the table, and the values that are set, by name. One that is set to nothing counts as not set.
func variables(lookup func(string) (string, bool)) ([]Variable, map[string]string) {
	table := reflect.TypeFor[settings]()
	rows := make([]Variable, table.NumField())
	set := map[string]string{}
	for i := range rows {
		tag := table.Field(i).Tag
		row := Variable{
			Name:    tag.Get("env"),
			Default: tag.Get("envDefault"),
			Allowed: tag.Get("allowed"),
			Help:    tag.Get("help"),
		}
		row.Value = row.Default
		if value, ok := lookup(row.Name); ok && value != "" {
			row.Value, row.FromEnv = value, true
			set[row.Name] = value
		}
		rows[i] = row
	}
	return rows, set
}

// ConfigFromEnv makes a Config from environment variables, which lookup finds as os.LookupEnv does. It reads nothing
// else and changes nothing. A value that is not allowed is an error that names the variable, the value and what is
// allowed; all of them are reported together.
func ConfigFromEnv(lookup func(string) (string, bool)) (Config, error) {
	rows, set := variables(lookup)
	set["POLLUX_"] = "set" // An empty map would make the parser read the process's environment.
	var s settings
	if err := env.ParseWithOptions(&s, env.Options{Environment: set}); err != nil {
		return Config{}, envErrors(err, rows)
	}
	c, err := s.config()
	if err == nil {
		return c, nil
	}
	// The values have the right form. Either some are out of range, which shows where each is looked at alone, or each is
	// right, and some do not go together.
	var errs []error
	for i, row := range rows {
		alone := settings{}
		_ = env.ParseWithOptions(&alone, env.Options{Environment: map[string]string{row.Name: row.Value}})
		if _, err := alone.config(); row.FromEnv && len(clashes(err)) < len(each(err)) {
			errs = append(errs, notAllowed(rows[i], nil))
		}
	}
	if len(errs) == 0 {
		for _, clash := range clashes(err) {
			var values []string
			for _, row := range rows {
				if slices.Contains(clash.names, row.Name) {
					values = append(values, fmt.Sprintf("%s=%q", row.Name, row.Value))
				}
			}
			errs = append(errs, fmt.Errorf("environment: %s do not go together: %w", strings.Join(values, ", "), clash))
		}
	}
	return Config{}, errors.Join(errs...)
}

// each is what an error joins.
func each(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	return nil
}

// clashes are those of the errors of a Config that no setting makes alone.
func clashes(err error) (all []*clashError) {
	for _, err := range each(err) {
		if clash, ok := err.(*clashError); ok {
			all = append(all, clash)
		}
	}
	return all
}

// envErrors turns the parser's errors, which name the fields of a struct, into ones that name variables.
func envErrors(err error, rows []Variable) error {
	var all env.AggregateError
	if !errors.As(err, &all) {
		return err
	}
	var errs []error
	for _, err := range all.Errors {
		var parse env.ParseError
		if errors.As(err, &parse) {
			if field, ok := reflect.TypeFor[settings]().FieldByName(parse.Name); ok {
				err = notAllowed(rows[field.Index[0]], parse.Err)
			}
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func notAllowed(row Variable, cause error) error {
	if cause == nil {
		return fmt.Errorf("environment: %s=%q is out of range: allowed is %s", row.Name, row.Value, row.Allowed)
	}
	return fmt.Errorf("environment: %s=%q is not valid: %w: allowed is %s", row.Name, row.Value, cause, row.Allowed)
}
