package resp

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

// parseAll gives the parser input in pieces that end at the cuts, as a connection's buffer would grow, and returns
// the commands it found, how many bytes they took, and the protocol error it stopped at.
func parseAll(t testing.TB, p *Parser, input []byte, cuts ...int) (commands [][]string, taken int, failure error) {
	t.Helper()
	for _, end := range append(cuts, len(input)) {
		if end < taken {
			continue
		}
		for {
			// A copy, so that a slice kept across two calls is found out.
			args, n, err := p.Next(bytes.Clone(input[taken:end]))
			if errors.Is(err, ErrIncomplete) {
				if n != 0 || args != nil {
					t.Fatalf("incomplete with n = %d, args = %q", n, args)
				}
				break
			}
			if err != nil {
				if n != 0 {
					t.Fatalf("error %v with n = %d", err, n)
				}
				return commands, taken, err
			}
			if n <= 0 || n > end-taken {
				t.Fatalf("a command took %d of %d bytes", n, end-taken)
			}
			taken += n
			if len(args) > 0 {
				var command []string
				for _, a := range args {
					command = append(command, string(a))
				}
				commands = append(commands, command)
			}
		}
	}
	return commands, taken, nil
}

// everySplit parses input at once, byte by byte, and in two pieces at each place, and demands the same each time.
func everySplit(t *testing.T, max int, input string) (commands [][]string, failure error) {
	t.Helper()
	commands, taken, failure := parseAll(t, &Parser{CommandMax: max}, []byte(input))
	var bytewise []int
	for i := range len(input) {
		bytewise = append(bytewise, i)
	}
	for i := range len(input) + 1 {
		cuts := []int{i}
		if i == len(input) {
			cuts = bytewise
		}
		c, n, err := parseAll(t, &Parser{CommandMax: max}, []byte(input), cuts...)
		if !reflect.DeepEqual(c, commands) || n != taken || fmt.Sprint(err) != fmt.Sprint(failure) {
			t.Fatalf("%q cut at %d: commands %q, %d bytes, error %v; at once: %q, %d, %v", input, i, c, n, err, commands, taken, failure)
		}
	}
	return commands, failure
}

func TestParseCommands(t *testing.T) {
	for _, tc := range []struct {
		name, input string
		want        [][]string
	}{
		{"one", "*1\r\n$4\r\nPING\r\n", [][]string{{"PING"}}},
		{"pipeline", "*2\r\n$3\r\nGET\r\n$1\r\nk\r\n*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$2\r\n\r\n\r\n", [][]string{{"GET", "k"}, {"SET", "k", "\r\n"}}},
		{"empty argument", "*2\r\n$4\r\nECHO\r\n$0\r\n\r\n", [][]string{{"ECHO", ""}}},
		{"empty commands", "*0\r\n*-1\r\n\r\n\n  \r\n*1\r\n$1\r\nx\r\n", [][]string{{"x"}}},
		{"inline", "PING\r\nset  k\tv \n", [][]string{{"PING"}, {"set", "k", "v"}}},
		{"quoted", `set 'it''s' x` + "\r\n", nil},
		{"double quotes", `set "a \"b\" \x41\n" 'it\'s' "" x` + "\r\n", [][]string{{"set", "a \"b\" A\n", "it's", "", "x"}}},
		{"mixed", "PING\r\n*1\r\n$4\r\nPING\r\nPING x\r\n", [][]string{{"PING"}, {"PING"}, {"PING", "x"}}},
		{"incomplete", "*1\r\n$4\r\nPING\r\n*2\r\n$4\r\nECHO\r\n$3\r\nab", [][]string{{"PING"}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := everySplit(t, 0, tc.input)
			if tc.want == nil {
				if err == nil || err.Error() != "Protocol error: unbalanced quotes in request" {
					t.Fatalf("error %v", err)
				}
				return
			}
			if err != nil || !reflect.DeepEqual(got, tc.want) {
				t.Fatalf("got %q, error %v; want %q", got, err, tc.want)
			}
		})
	}
}

func TestParseProtocolErrors(t *testing.T) {
	for _, tc := range []struct{ name, input, want string }{
		{"garbage count", "*x\r\n", "invalid multibulk length"},
		{"no count", "*\r\n", "invalid multibulk length"},
		{"bare line feed", "*1\n$4\r\nPING\r\n", "invalid multibulk length"},
		{"lone line feed", "*\n", "invalid multibulk length"},
		{"leading zero", "*01\r\n", "invalid multibulk length"},
		{"too many", "*1048577\r\n", "invalid multibulk length"},
		{"overflow", "*18446744073709551617\r\n", "invalid multibulk length"},
		{"endless count", "*" + strings.Repeat("1", 40), "too big mbulk count string"},
		{"no dollar", "*1\r\nPING\r\n", "expected '$', got 'P'"},
		{"no dollar, unprintable", "*1\r\n\r\n", "expected '$', got '?'"},
		{"negative bulk", "*1\r\n$-1\r\n", "invalid bulk length"},
		{"garbage bulk", "*1\r\n$4x\r\nPING\r\n", "invalid bulk length"},
		{"big bulk", "*1\r\n$536870913\r\n", "invalid bulk length"},
		{"endless bulk length", "*1\r\n$" + strings.Repeat("1", 40), "too big bulk count string"},
		{"overlong bulk", "*1\r\n$4\r\nPINGPONG\r\n", "expected CRLF after a bulk string"},
		{"half a line end", "*1\r\n$4\r\nPING\rX", "expected CRLF after a bulk string"},
		{"unbalanced quotes", "set \"x\r\n", "unbalanced quotes in request"},
		{"text behind a quote", "set \"x\"y\r\n", "unbalanced quotes in request"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := everySplit(t, 0, tc.input)
			var pe ProtocolError
			if !errors.As(err, &pe) || string(pe) != tc.want {
				t.Fatalf("got %v, want %s", err, tc.want)
			}
		})
	}
}

// What can never fit is refused by the length that says so, not after the buffer is full.
func TestParseCommandMax(t *testing.T) {
	const max = 100
	fits := "*2\r\n$3\r\nGET\r\n$79\r\n" + strings.Repeat("x", 79) + "\r\n"
	if len(fits) != max-1 {
		t.Fatalf("the test's command has %d bytes", len(fits))
	}
	if got, err := everySplit(t, max, fits+fits); err != nil || len(got) != 2 {
		t.Fatalf("%d commands, %v", len(got), err)
	}
	for input, want := range map[string]string{
		"*2\r\n$3\r\nGET\r\n$81\r\n":      "invalid bulk length",
		"*17\r\n":                         "invalid multibulk length",
		strings.Repeat("x", max):          "too big inline request",
		strings.Repeat("x", max-1) + "\n": "",
	} {
		_, err := everySplit(t, max, input)
		if (want == "") != (err == nil) || err != nil && err.Error() != "Protocol error: "+want {
			t.Errorf("%.20q: %v, want %q", input, err, want)
		}
	}
	long := strings.Repeat("x", InlineMax+1)
	if _, _, err := parseAll(t, &Parser{}, []byte(long)); err != errBigInline {
		t.Errorf("an endless line: %v", err)
	}
}

// Bytes that arrive one by one must not be looked at again and again: a command of many arguments would take
// quadratic time.
func TestParseIsIncremental(t *testing.T) {
	var p Parser
	input := []byte("*1000\r\n" + strings.Repeat("$1\r\nx\r\n", 1000))
	for i := range len(input) {
		args, n, err := p.Next(input[:i])
		if args != nil || n != 0 || err != ErrIncomplete {
			t.Fatalf("at %d: %d args, n = %d, %v", i, len(args), n, err)
		}
		if back := i - p.pos; back > countLineMax {
			t.Fatalf("at %d the parse stands at %d", i, p.pos)
		}
	}
	if args, n, err := p.Next(input); len(args) != 1000 || n != len(input) || err != nil {
		t.Fatalf("%d args, n = %d of %d, %v", len(args), n, len(input), err)
	}
	if cap(p.spans) > keepSpans || cap(p.out) > keepSpans {
		t.Errorf("the parser kept room for %d arguments", cap(p.spans))
	}
}

func TestParseDoesNotAllocate(t *testing.T) {
	var p Parser
	input := []byte("*3\r\n$3\r\nSET\r\n$5\r\nhello\r\n$5\r\nworld\r\n*2\r\n$3\r\nGET\r\n$5\r\nhello\r\nPING\r\n")
	allocs := testing.AllocsPerRun(100, func() {
		for off := 0; off < len(input); {
			_, n, err := p.Next(input[off:])
			if err != nil {
				t.Fatal(err)
			}
			off += n
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}

func TestAppend(t *testing.T) {
	var b []byte
	b = AppendSimple(b, "OK")
	b = AppendError(b, "ERR bad\r\nthing")
	b = AppendInt(b, -7)
	b = AppendBulk(b, []byte("a\r\n"))
	b = AppendBulkString(b, "")
	b = AppendNull(b)
	b = AppendArray(b, 2)
	if want := "+OK\r\n-ERR bad  thing\r\n:-7\r\n$3\r\na\r\n\r\n$0\r\n\r\n$-1\r\n*2\r\n"; string(b) != want {
		t.Errorf("got %q, want %q", b, want)
	}
}

// FuzzParse demands that where the input is cut into pieces changes nothing: not the commands, not the bytes they
// take, not the error.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"*1\r\n$4\r\nPING\r\n", "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n", "PING\r\n", "set \"a b\" 'c'\n", "*0\r\n*-1\r\n\r\n",
		"*1\r\n$-1\r\n", "*99999999\r\n", "*1\r\n$99\r\n", "*2\r\n$4\r\nECHO\r\n$10\r\nabc", "\"\\x4", "*1\r\n$1\r\nx\rx",
	} {
		f.Add([]byte(s), uint16(64), uint64(0x5555))
	}
	f.Fuzz(func(t *testing.T, input []byte, max uint16, where uint64) {
		if len(input) > 4096 {
			return
		}
		var cuts []int
		for i := range input {
			if where>>(i%64)&1 != 0 {
				cuts = append(cuts, i)
			}
		}
		commands, taken, err := parseAll(t, &Parser{CommandMax: int(max)}, input)
		pieces, took, perr := parseAll(t, &Parser{CommandMax: int(max)}, input, cuts...)
		if !reflect.DeepEqual(commands, pieces) || taken != took || fmt.Sprint(err) != fmt.Sprint(perr) {
			t.Fatalf("at once: %q, %d bytes, %v; in pieces: %q, %d bytes, %v", commands, taken, err, pieces, took, perr)
		}
	})
}
