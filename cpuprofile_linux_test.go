package pollux

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/internal/testutil"
)

// TestCPUProfileShowsHandlers takes a profile while a handler computes on a pinned loop. SIGPROF is a thread's own timer, or the
// process's, and must reach the loop's thread however it waits: there is a sample that shows the handler below the loop.
func TestCPUProfileShowsHandlers(t *testing.T) {
	for name, set := range map[string]func(*Config){
		"cold":      func(c *Config) { c.Hot = HotNever },
		"hot":       func(c *Config) { c.Hot = HotAlways },
		"hot, spin": func(c *Config) { c.Hot, c.Spin = HotAlways, 100*time.Microsecond },
	} {
		t.Run(name, func(t *testing.T) {
			eachBackend(t, func(t *testing.T, config Config) {
				testutil.CheckLeaks(t)
				config.Loops, config.CPUs, config.Dispatch = 1, "auto", DispatchInline
				set(&config)
				e := newEngine(t, config)
				s, _ := bind(t, e, "tcp", funcs{data: func(c *Conn) error {
					if int64(sys.Gettid()) != e.loops[0].thread.Load() {
						t.Error("the handler does not run on the loop's thread")
					}
					computesForProfile(100 * time.Millisecond)
					return echo{}.OnData(c)
				}})
				c := dial(t, s.Addrs()[0])
				// It waits as it does when nobody takes a profile.
				ping(t, c)
				var out bytes.Buffer
				for range 20 {
					out.Reset()
					if err := pprof.StartCPUProfile(&out); err != nil {
						t.Skip(err) // go test -cpuprofile
					}
					ping(t, c)
					pprof.StopCPUProfile()
					stacks, err := profileStacks(out.Bytes())
					if err != nil {
						t.Fatal(err)
					}
					if slices.ContainsFunc(stacks, func(stack []string) bool {
						at := slices.IndexFunc(stack, func(f string) bool { return strings.HasSuffix(f, ".computesForProfile") })
						return at >= 0 && slices.ContainsFunc(stack[at:], func(f string) bool { return strings.HasSuffix(f, "poller.(*Loop).run") })
					}) {
						return
					}
				}
				t.Error("twenty profiles, each of 100 ms in a handler, and no sample of it")
			})
		})
	}
}

// computesForProfile is what a profile is to show. It computes for so long.
//
//go:noinline
func computesForProfile(d time.Duration) { spin(d) }

// TestProfileStacks reads a profile of this goroutine, and what is none.
func TestProfileStacks(t *testing.T) {
	testutil.CheckLeaks(t)
	var out bytes.Buffer
	if err := pprof.Lookup("goroutine").WriteTo(&out, 0); err != nil {
		t.Fatal(err)
	}
	pc, _, _, _ := runtime.Caller(0)
	stacks, err := profileStacks(out.Bytes())
	if err != nil || !slices.ContainsFunc(stacks, func(stack []string) bool { return slices.Contains(stack, runtime.FuncForPC(pc).Name()) }) {
		t.Errorf("%v, %v", stacks, err)
	}
	if _, err := profileStacks([]byte("none")); err == nil {
		t.Error("no error")
	}
}

// profileStacks returns the names of the functions of each sample of a profile, the innermost one first. The profile is a
// message Profile of github.com/google/pprof/proto/profile.proto, compressed.
func profileStacks(compressed []byte) (stacks [][]string, err error) {
	z, err := gzip.NewReader(bytes.NewReader(compressed))
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(z)
	if err != nil {
		return nil, err
	}
	var names []string
	var samples [][]uint64             // ids of locations
	locations := map[uint64][]uint64{} // ids of functions, of those that were inlined first
	functions := map[uint64]uint64{}   // indexes of names
	const nested, packed = 2, 2        // kinds of fields on the wire
	for field := range protoFields(b, &err) {
		if field.kind != nested {
			continue
		}
		var id, name uint64
		var ids []uint64
		if field.number == 6 { // string_table
			names = append(names, string(field.bytes))
			continue
		}
		for f := range protoFields(field.bytes, &err) {
			switch [2]int{field.number, f.number} {
			case [2]int{2, 1}: // Sample.location_id
				if f.kind != packed {
					ids = append(ids, f.value)
					break
				}
				for list := f.bytes; len(list) > 0; {
					v, n := binary.Uvarint(list)
					if n <= 0 {
						return nil, errProto
					}
					ids, list = append(ids, v), list[n:]
				}
			case [2]int{4, 4}: // Location.line
				for l := range protoFields(f.bytes, &err) {
					if l.number == 1 { // Line.function_id
						ids = append(ids, l.value)
					}
				}
			case [2]int{4, 1}, [2]int{5, 1}: // Location.id, Function.id
				id = f.value
			case [2]int{5, 2}: // Function.name
				name = f.value
			}
		}
		switch field.number {
		case 2:
			samples = append(samples, ids)
		case 4:
			locations[id] = ids
		case 5:
			functions[id] = name
		}
	}
	for _, sample := range samples {
		var stack []string
		for _, location := range sample {
			for _, function := range locations[location] {
				if name := functions[function]; name < uint64(len(names)) {
					stack = append(stack, names[name])
				}
			}
		}
		stacks = append(stacks, stack)
	}
	return stacks, err
}

var errProto = errors.New("this is no profile")

// protoField is a field of a protocol buffer: a number, or bytes.
type protoField struct {
	number, kind int
	value        uint64
	bytes        []byte
}

// protoFields yields the fields of a message.
func protoFields(b []byte, err *error) func(yield func(protoField) bool) {
	return func(yield func(protoField) bool) {
		for len(b) > 0 {
			key, n := binary.Uvarint(b)
			value, m := uint64(0), 0
			if n > 0 {
				value, m = binary.Uvarint(b[n:])
			}
			f := protoField{number: int(key >> 3), kind: int(key & 7), value: value}
			if m <= 0 || f.kind != 0 && f.kind != 2 || f.kind == 2 && value > uint64(len(b)-n-m) {
				*err = errProto
				return
			}
			b = b[n+m:]
			if f.kind == 2 {
				f.bytes, b = b[:value], b[value:]
			}
			if !yield(f) {
				return
			}
		}
	}
}
