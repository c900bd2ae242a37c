package http1

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

// seen is a request as the tests compare it.
type seen struct {
	Method, Target, Path string
	Length               int64
	Minor                int
	Close, Continue      bool
}

// parseAll gives the parser input in pieces that end at the cuts, as a connection's buffer would grow, and returns
// the requests it found (their bodies skipped), how many bytes their heads and bodies took, and the error it stopped
// at.
func parseAll(t testing.TB, p *Parser, input []byte, cuts ...int) (requests []seen, taken int, failure error) {
	t.Helper()
	for _, end := range append(cuts, len(input)) {
		for taken <= end {
			var r Request
			b := bytes.Clone(input[taken:end])
			n, err := p.Next(b, &r)
			if errors.Is(err, ErrIncomplete) {
				if n != 0 {
					t.Fatalf("incomplete with n = %d", n)
				}
				break
			}
			if err != nil {
				var se *StatusError
				if n != 0 || !errors.As(err, &se) || se.Code < 400 {
					t.Fatalf("error %v with n = %d", err, n)
				}
				return requests, taken, err
			}
			if n <= 0 || n > len(b) {
				t.Fatalf("a head took %d of %d bytes", n, len(b))
			}
			requests = append(requests, seen{string(r.Method), string(r.Target), string(r.Path()), r.ContentLength, r.Minor, r.Close, r.Continue})
			taken += n
			if r.ContentLength > int64(len(input)-taken) {
				return requests, len(input), nil
			}
			taken += int(r.ContentLength)
		}
	}
	return requests, taken, nil
}

// everySplit parses input at once, byte by byte, and in two pieces at each place, and demands the same each time.
func everySplit(t *testing.T, headMax int, input string) (requests []seen, failure error) {
	t.Helper()
	requests, taken, failure := parseAll(t, &Parser{HeadMax: headMax}, []byte(input))
	var bytewise []int
	for i := range len(input) {
		bytewise = append(bytewise, i)
	}
	for i := range len(input) + 1 {
		cuts := []int{i}
		if i == len(input) {
			cuts = bytewise
		}
		r, n, err := parseAll(t, &Parser{HeadMax: headMax}, []byte(input), cuts...)
		if !reflect.DeepEqual(r, requests) || n != taken || fmt.Sprint(err) != fmt.Sprint(failure) {
			t.Fatalf("%q cut at %d: %+v, %d bytes, error %v; at once: %+v, %d, %v", input, i, r, n, err, requests, taken, failure)
		}
	}
	return requests, failure
}

func TestParseRequests(t *testing.T) {
	for _, tc := range []struct {
		name, input string
		want        []seen
	}{
		{"plain", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", []seen{{"GET", "/", "/", 0, 1, false, false}}},
		{"pipeline", "GET /a?b=/c HTTP/1.1\r\nhost:x\r\n\r\nHEAD /d HTTP/1.1\r\nHOST: \t x \t\r\n\r\n",
			[]seen{{"GET", "/a?b=/c", "/a", 0, 1, false, false}, {"HEAD", "/d", "/d", 0, 1, false, false}}},
		{"body", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nabcdeGET / HTTP/1.1\r\nHost: x\r\n\r\n",
			[]seen{{"POST", "/", "/", 5, 1, false, false}, {"GET", "/", "/", 0, 1, false, false}}},
		{"empty line in front", "\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", []seen{{"GET", "/", "/", 0, 1, false, false}}},
		{"close", "GET / HTTP/1.1\r\nHost: x\r\nConnection: foo, Close\r\n\r\n", []seen{{"GET", "/", "/", 0, 1, true, false}}},
		{"HTTP/1.0", "GET / HTTP/1.0\r\n\r\n", []seen{{"GET", "/", "/", 0, 0, true, false}}},
		{"HTTP/1.0 keep-alive", "GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", []seen{{"GET", "/", "/", 0, 0, false, false}}},
		{"expect", "PUT / HTTP/1.1\r\nHost: x\r\nExpect: 100-Continue\r\nContent-Length: 1\r\n\r\nx", []seen{{"PUT", "/", "/", 1, 1, false, true}}},
		{"expect without a body", "PUT / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\r\n", []seen{{"PUT", "/", "/", 0, 1, false, false}}},
		{"absolute form", "GET http://x/y?z HTTP/1.1\r\nHost: x\r\n\r\n", []seen{{"GET", "http://x/y?z", "/y", 0, 1, false, false}}},
		{"absolute form without a path", "GET http://x HTTP/1.1\r\nHost: x\r\n\r\n", []seen{{"GET", "http://x", "", 0, 1, false, false}}},
		{"asterisk form", "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", []seen{{"OPTIONS", "*", "", 0, 1, false, false}}},
		{"empty values", "GET / HTTP/1.1\r\nHost:\r\nX:\r\nConnection: ,,\r\n\r\n", []seen{{"GET", "/", "/", 0, 1, false, false}}},
		{"obs-text", "GET / HTTP/1.1\r\nHost: x\r\nX: \xe4\r\n\r\n", []seen{{"GET", "/", "/", 0, 1, false, false}}},
		{"incomplete", "GET / HTTP/1.1\r\nHost: x\r\n", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := everySplit(t, 0, tc.input)
			if err != nil || !reflect.DeepEqual(got, tc.want) {
				t.Fatalf("got %+v, error %v; want %+v", got, err, tc.want)
			}
		})
	}
}

func TestParseErrors(t *testing.T) {
	const host = "Host: x\r\n"
	for _, tc := range []struct {
		name, input string
		code        int
	}{
		{"garbage", "hello\r\n", 400},
		{"a TLS hello", "\x16\x03\x01\x02\x00\x01\n", 400},
		{"bare line feed", "GET / HTTP/1.1\nHost: x\n\n", 400},
		{"lone line feed", "\n", 400},
		{"carriage return in a value", "GET / HTTP/1.1\r\nX: a\rb\r\n", 400},
		{"nul in a value", "GET / HTTP/1.1\r\nX: a\x00b\r\n", 400},
		{"two spaces", "GET  / HTTP/1.1\r\n", 400},
		{"space in the target", "GET /a b HTTP/1.1\r\n", 400},
		{"leading space", " GET / HTTP/1.1\r\n", 400},
		{"no version", "GET /\r\n", 400},
		{"strange version", "GET / HTTP/11\r\n", 400},
		{"lower-case version", "GET / http/1.1\r\n", 400},
		{"HTTP/2", "PRI * HTTP/2.0\r\n", 505},
		{"method", "G(T / HTTP/1.1\r\n", 400},
		{"no colon", "GET / HTTP/1.1\r\nHost\r\n", 400},
		{"no name", "GET / HTTP/1.1\r\n: x\r\n", 400},
		{"space before the colon", "GET / HTTP/1.1\r\nHost : x\r\n", 400},
		{"folded line", "GET / HTTP/1.1\r\nHost: x\r\n folded\r\n", 400},
		{"no host", "GET / HTTP/1.1\r\n\r\n", 400},
		{"two hosts", "GET / HTTP/1.1\r\n" + host + host + "\r\n", 400},
		{"negative length", "GET / HTTP/1.1\r\nContent-Length: -1\r\n", 400},
		{"signed length", "GET / HTTP/1.1\r\nContent-Length: +1\r\n", 400},
		{"hexadecimal length", "GET / HTTP/1.1\r\nContent-Length: 0x1\r\n", 400},
		{"empty length", "GET / HTTP/1.1\r\nContent-Length:\r\n", 400},
		{"length list", "GET / HTTP/1.1\r\nContent-Length: 1, 1\r\n", 400},
		{"two lengths", "GET / HTTP/1.1\r\nContent-Length: 1\r\ncontent-length: 1\r\n", 400},
		{"huge length", "GET / HTTP/1.1\r\nContent-Length: 9999999999999999999\r\n", 400},
		{"both lengths", "POST / HTTP/1.1\r\n" + host + "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
		{"both lengths, other order", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: x\r\nContent-Length: 1\r\n\r\n", 400},
		{"chunked", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n", 501},
		{"chunked in HTTP/1.0", "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
		{"expectation", "POST / HTTP/1.1\r\n" + host + "Expect: 200-ok\r\n\r\n", 417},
		{"two expectations", "POST / HTTP/1.1\r\n" + host + "Expect: x\r\nExpect: 100-continue\r\n\r\n", 417},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := everySplit(t, 0, tc.input)
			var se *StatusError
			if !errors.As(err, &se) || se.Code != tc.code {
				t.Fatalf("got %v, want status %d", err, tc.code)
			}
		})
	}
}

func TestParseHeadMax(t *testing.T) {
	const max = 64
	field := func(n int) string { return "GET / HTTP/1.1\r\nHost: " + strings.Repeat("x", n-26) + "\r\n\r\n" }
	for _, tc := range []struct {
		input string
		code  int
	}{
		{field(max), 0},
		{field(max + 1), 431},
		{strings.Repeat("\r\n", max), 414},
		{"GET /" + strings.Repeat("x", max), 414},
		{"GET / HTTP/1.1\r\n" + strings.Repeat("X: y\r\n", max), 431},
	} {
		_, err := everySplit(t, max, tc.input)
		var se *StatusError
		if tc.code == 0 && err != nil || tc.code != 0 && (!errors.As(err, &se) || se.Code != tc.code) {
			t.Errorf("%.40q: %v, want status %d", tc.input, err, tc.code)
		}
	}
}

func TestParseDoesNotAllocate(t *testing.T) {
	var (
		p     Parser
		r     Request
		input = []byte("GET /size/100?x=y HTTP/1.1\r\nHost: localhost\r\nUser-Agent: test\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n")
	)
	if n := testing.AllocsPerRun(100, func() {
		if n, err := p.Next(input, &r); n != len(input) || err != nil {
			t.Fatal(n, err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzParse demands that where the input is cut into pieces changes nothing: not the requests, not the bytes they
// take, not the error.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.0\r\n\r\n",
		"\r\nGET http://a/b?c HTTP/1.1\r\nHost: x\r\nConnection: close, keep-alive\r\nExpect: 100-continue\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n", "GET / HTTP/1.1\nHost: x\n\n",
	} {
		f.Add([]byte(s), uint8(0), uint64(0x5555))
	}
	f.Fuzz(func(t *testing.T, input []byte, headMax uint8, where uint64) {
		if len(input) > 4096 {
			return
		}
		var cuts []int
		for i := range input {
			if where>>(i%64)&1 != 0 {
				cuts = append(cuts, i)
			}
		}
		requests, taken, err := parseAll(t, &Parser{HeadMax: int(headMax)}, input)
		pieces, took, perr := parseAll(t, &Parser{HeadMax: int(headMax)}, input, cuts...)
		if !reflect.DeepEqual(requests, pieces) || taken != took || fmt.Sprint(err) != fmt.Sprint(perr) {
			t.Fatalf("at once: %+v, %d bytes, %v; in pieces: %+v, %d bytes, %v", requests, taken, err, pieces, took, perr)
		}
	})
}
