//go:build linux

package pollux

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/pollux-go/pollux/internal/sys"
)

// FuzzConfigFromEnv sets any two variables to any strings: the result is a configuration that New accepts, or an error
// that names a variable and its value.
func FuzzConfigFromEnv(f *testing.F) {
	table, _ := Variables(func(string) (string, bool) { return "", false })
	for i, row := range table {
		for _, value := range []string{"", "0", "1", "-1", "9223372036854775808", "1e9", "0x10", "010", "+1", " 1", "1 ", "NaN", "\x00", "ä",
			"1KiB", "1GiB", "2GiB", "4294967295GiB", "KiB", "1kk", "1h", "-1ns", "2562047h47m16.854775807s", "auto", "epoll", "off", "${HOME}", row.Default} {
			f.Add(uint8(i), value, uint8(i+1), value)
		}
	}
	f.Add(uint8(4), "1KiB", uint8(5), "1MiB") // A low mark above the limit.
	f.Fuzz(func(t *testing.T, i uint8, value string, j uint8, other string) {
		first, second := table[int(i)%len(table)].Name, table[int(j)%len(table)].Name
		lookup := func(name string) (string, bool) {
			switch name {
			case first:
				return value, true
			case second:
				return other, true
			}
			return "", false
		}
		c, err := ConfigFromEnv(lookup)
		if _, same := Variables(lookup); (same == nil) != (err == nil) {
			t.Errorf("Variables returns %v, ConfigFromEnv %v", same, err)
		}
		if err != nil {
			names := func(name, value string) bool {
				return strings.Contains(err.Error(), name) && strings.Contains(err.Error(), quoted(value))
			}
			if !names(first, value) && !names(second, other) {
				t.Errorf("%s=%q, %s=%q: the error names neither: %v", first, value, second, other, err)
			}
			return
		}
		c.Logger = slog.New(slog.DiscardHandler)
		e, err := New(c)
		if err != nil {
			t.Fatalf("%s=%q, %s=%q: New does not accept %+v: %v", first, value, second, other, c, err)
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
}

// quoted is how %q writes a value.
func quoted(value string) string { return strconv.Quote(value) }

// FuzzParseAddress parses any string: what is accepted is a network that there is, and means the same when it is
// written and parsed again.
func FuzzParseAddress(f *testing.F) {
	for _, s := range []string{"", "tcp://", "tcp://:0", "tcp://127.0.0.1:80", "tcp6://[::1%lo]:80", "tcp4://localhost:http", "tcp://a:65536", "tcp://a:-1",
		"tcp://a:80/x", "udp://a:1", "unix://", "unix://@", "unix://@name", "unix:///tmp/s", "unix:///tmp/\x00", "unix://" + strings.Repeat("x", 108),
		"fd://3", "fd://-1", "fd://010", "fd://0x3", "fd://99999999999", "fd:// 3", "systemd://", "systemd://web", "://", "a://b://c", "tcp://[::1]:80,unix://@x"} {
		f.Add(s)
	}
	networks := []string{"tcp", "tcp4", "tcp6", "unix", "fd", "systemd"}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := parseAddress(s)
		if err != nil {
			if !strings.Contains(err.Error(), quoted(s)) {
				t.Errorf("the error of %q does not name it: %v", s, err)
			}
			return
		}
		if !slices.Contains(networks, a.network) {
			t.Errorf("%q has the network %q", s, a.network)
		}
		if again, err := parseAddress(a.String()); err != nil || again != a {
			t.Errorf("%q is %+v, which is written %q and parsed as %+v, error %v", s, a, a.String(), again, err)
		}
		if a.network == "unix" && (a.rest == "" || len(a.rest) > unixPathMax || strings.Contains(a.rest, "\x00")) {
			t.Errorf("%q is accepted", s)
		}
		all, err := parseAddresses(s + "," + s)
		if strings.Contains(s, ",") || strings.TrimSpace(s) != s {
			return
		}
		if err != nil || len(all) != 2 || all[0] != a || all[1] != a {
			t.Errorf("a list of %q twice is %v, error %v", s, all, err)
		}
	})
}

// FuzzInbound compares the input buffer with a plain slice, while reads of random sizes fill it and callbacks consume
// it. The loop's buffer is overwritten between two turns, as the reads of other connections do.
func FuzzInbound(f *testing.F) {
	f.Add([]byte{0, 200, 1, 100, 0, 255, 2, 50})
	f.Add([]byte{0, 255, 0, 255, 0, 255, 0, 255, 1, 255, 0, 3, 2, 0})
	f.Add([]byte{0, 15, 0, 15, 0, 15, 0, 17, 1, 1, 0, 40, 3, 0, 0, 64})
	f.Add(bytes.Repeat([]byte{0, 250}, 40))
	f.Add(append(bytes.Repeat([]byte{0, 250}, 40), 1, 254, 1, 254, 1, 254))
	f.Fuzz(func(t *testing.T, script []byte) {
		const size = 64
		scratch := make([]byte, size)
		var in inbound
		var model []byte
		next := byte(0)
		for ; len(script) >= 2; script = script[2:] {
			arg := int(script[1])
			switch script[0] % 4 {
			case 0: // A read, which gives from 1 byte to everything there is room for.
				if len(model) > 1000*size {
					continue // The connection's read limit. What is read grows with what is there, which goes far.
				}
				space := in.space(scratch)
				if len(space) < size/2 {
					t.Fatalf("there is room for %d bytes where %d are unread", len(space), in.len())
				}
				n := 1 + arg*len(space)/256
				for i := range n {
					space[i] = next
					model = append(model, next)
					next++
				}
				in.filled(scratch, n)
			case 1: // A callback that consumes some, and its end.
				n := min(arg*(1+len(model)/200), len(model))
				b, err := in.peek(n)
				if err != nil || !bytes.Equal(b, model[:n]) || cap(b) != n {
					t.Fatalf("peek(%d): %d bytes, room for %d, error %v", n, len(b), cap(b), err)
				}
				in.discard(n)
				model = model[n:]
			case 2: // More than there is.
				if b, err := in.peek(len(model) + 1 + arg); !errors.Is(err, io.ErrShortBuffer) || !bytes.Equal(b, model) {
					t.Fatalf("peek of too much: %d of %d bytes, error %v", len(b), len(model), err)
				}
				continue
			case 3: // A read that finds nothing.
				in.space(scratch)
				continue
			}
			if arg%3 == 0 && script[0]%4 == 0 {
				continue // The connection reads again within its turn.
			}
			in.keep()
			for i := range scratch {
				scratch[i] = 0xdd
			}
			if b, err := in.peek(-1); err != nil || !bytes.Equal(b, model) || in.len() != len(model) {
				t.Fatalf("%d bytes are buffered, %d must be; error %v", len(b), len(model), err)
			}
			if len(model) == 0 && (in.view != nil || in.memory != 0) {
				t.Fatal("an empty buffer keeps its memory")
			}
			if int(in.memory) < cap(in.view) || int(in.memory) > 8*len(model)+4*size {
				t.Fatalf("%d bytes of memory are kept for %d", in.memory, len(model))
			}
		}
	})
}

// FuzzOutbound writes pieces of random sizes to a connection whose socket takes them in parts, from inside and outside
// of callbacks, and compares what the kernel got with what the writes have accepted.
func FuzzOutbound(f *testing.F) {
	f.Add([]byte{1, 100, 5, 200, 7, 50, 0, 0, 3, 255}, []byte{0, 3, 1, 0, 9})
	f.Add([]byte{2, 255, 2, 255, 2, 255, 4, 0, 0, 10, 6, 30}, []byte{255, 0, 255, 1, 0, 0, 2})
	f.Add([]byte("9000"), []byte("\x01"))
	f.Add([]byte{3, 0, 0, 60, 3, 0, 5, 0, 5, 0}, []byte{0, 3}) // A callback whose bytes do not all go.
	f.Add(bytes.Repeat([]byte{1, 1, 2, 90}, 30), []byte{0, 1, 0, 2, 0, 3, 0, 4})
	f.Fuzz(func(t *testing.T, script, kernel []byte) {
		const limit = 20_000
		pair, errno := sys.Socketpair()
		if errno != 0 {
			t.Fatal(errno)
		}
		defer sys.Close(pair[0])
		defer sys.Close(pair[1])
		step := 0
		full := false // after a real EAGAIN, every send gets one until an edge says that there is room
		remove := sys.Inject(func(op sys.Op, fd int) sys.Fault {
			if op != sys.OpSend || fd != pair[0] || len(kernel) == 0 {
				return sys.Fault{}
			}
			step++
			k := kernel[step%len(kernel)]
			if full = full || k == 0; full {
				return sys.Fault{Errno: sys.EAGAIN}
			}
			return sys.Fault{Short: 1 + int(k)*int(k)}
		})
		restore := sync.OnceFunc(remove)
		defer restore()
		l := &loop{cork: outbound{buf: make([]byte, 0, corkSize)}}
		c := &Conn{loop: l, fd: int32(pair[0]), service: &Service{writeLimit: limit, writeLow: limit / 4}}
		// What is asked of the loop is not posted: nobody would answer.
		c.asked |= posted
		var want, got []byte
		next := byte(0)
		piece := func(n int) []byte {
			b := make([]byte, n)
			for i := range b {
				b[i] = next
				next++
			}
			return b
		}
		drain := func() {
			b := make([]byte, 64<<10)
			for {
				n, errno := sys.Recv(pair[1], b)
				if errno != 0 || n == 0 {
					return
				}
				got = append(got, b[:n]...)
			}
		}
		accept := func(b []byte, n int, err error) {
			if n < 0 || n > len(b) || (n < len(b)) != errors.Is(err, ErrWouldBlock) {
				t.Fatalf("a write of %d bytes: %d, error %v", len(b), n, err)
			}
			want = append(want, b[:n]...)
			for i := range b {
				b[i] = 0xee // The caller reuses it.
			}
		}
		for ; len(script) >= 2; script = script[2:] {
			n := int(script[1]) * int(script[1]) / 4
			switch script[0] % 6 {
			case 0, 1:
				b := piece(n)
				m, err := c.Write(b)
				accept(b, m, err)
			case 2:
				b := piece(n)
				m, err := c.Writev(b[:n/3], nil, b[n/3:n/2], b[n/2:])
				accept(b, m, err)
			case 3:
				if l.current.Load() == nil {
					l.enter(c)
				} else if _, _, err, _ := l.leave(c); err != nil {
					t.Fatal(err)
				}
				c.asked |= posted
				if l.current.Load() == nil {
					for i := range l.cork.buf[:cap(l.cork.buf)] {
						l.cork.buf[:cap(l.cork.buf)][i] = 0xdd // The callback of another connection.
					}
				}
			case 4:
				if err := c.Flush(); err != nil {
					t.Fatal(err)
				}
			case 5: // The peer has read, and the edge comes.
				drain()
				full = false
				c.mu.Lock()
				if c.blocked.Load() {
					if err := c.flush(); err != nil {
						t.Fatal(err)
					}
				}
				c.mu.Unlock()
			}
			if q := c.Queued(); q > limit {
				t.Fatalf("%d bytes are queued, the limit is %d", q, limit)
			}
			drain()
			if !bytes.HasPrefix(want, got) || len(got)+c.Queued() != len(want) {
				t.Fatalf("%d bytes were accepted, %d have arrived, %d are queued; right so far: %v", len(want), len(got), c.Queued(), bytes.HasPrefix(want, got))
			}
			if !c.blocked.Load() && c.Queued() > 0 && l.current.Load() == nil {
				t.Fatal("bytes are queued and nothing will send them")
			}
		}
		l.leave(c)
		restore()
		drain()
		c.mu.Lock()
		err := c.flush()
		c.mu.Unlock()
		drain()
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d of %d bytes arrived, error %v", len(got), len(want), err)
		}
	})
}
