package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pollux-go/pollux/cmd/pollux/internal/http1"
)

// eachHTTP runs a test on both ways to serve HTTP.
func eachHTTP(t *testing.T, test func(t *testing.T, p *proc), options ...option) {
	for _, name := range []string{"http", "http-std"} {
		t.Run(name, func(t *testing.T) {
			p := start(t, append(append([]string(nil), servers[name]...), "-addr", "tcp://127.0.0.1:0"), options...)
			test(t, p)
			p.stop(t)
		})
	}
}

const get = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"

// answers reads the answers to requests of the given methods, and whatever comes behind them.
func answers(t *testing.T, c net.Conn, methods ...string) (list []*http.Response, bodies []string, r *bufio.Reader) {
	t.Helper()
	r = bufio.NewReader(c)
	for _, m := range methods {
		res, err := http.ReadResponse(r, &http.Request{Method: m})
		if err != nil {
			t.Fatalf("after %d answers: %v", len(list), err)
		}
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatalf("body of answer %d, %d bytes: %v", len(list), len(body), err)
		}
		list, bodies = append(list, res), append(bodies, string(body))
	}
	return list, bodies, r
}

func TestHTTPAnswers(t *testing.T) {
	eachHTTP(t, func(t *testing.T, p *proc) {
		for _, tc := range []struct {
			request string
			status  int
			length  int64
			body    string
			close   bool
		}{
			{"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 200, 13, hello, false},
			{"GET /?q HTTP/1.1\r\nHost: x\r\n\r\n", 200, 13, hello, false},
			{"GET http://x/ HTTP/1.1\r\nHost: x\r\n\r\n", 200, 13, hello, false},
			{"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n", 200, 13, "", false},
			{"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 200, 13, hello, true},
			{"GET / HTTP/1.0\r\n\r\n", 200, 13, hello, true},
			{"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", 200, 13, hello, false},
			{"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n12345", 200, 13, hello, false},
			{"GET /size/0 HTTP/1.1\r\nHost: x\r\n\r\n", 200, 0, "", false},
			{"GET /size/10 HTTP/1.1\r\nHost: x\r\n\r\n", 200, 10, string(fill[:10]), false},
			{"HEAD /size/1000000 HTTP/1.1\r\nHost: x\r\n\r\n", 200, 1000000, "", false},
			{"GET /size/-1 HTTP/1.1\r\nHost: x\r\n\r\n", 404, -1, "*", false},
			{"GET /size/67108865 HTTP/1.1\r\nHost: x\r\n\r\n", 404, -1, "*", false},
			{"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n", 404, -1, "*", false},
			{"HEAD /nothing HTTP/1.1\r\nHost: x\r\n\r\n", 404, -1, "", false},
			{"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n12345", 405, -1, "*", false},
			{"DELETE /nothing HTTP/1.1\r\nHost: x\r\n\r\n", 405, -1, "*", false},
			{"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, -1, "*", true},
			{"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400, -1, "*", true},
			{"GET / HTTP/1.1\r\n\r\n", 400, -1, "*", true},
			{"garbage\r\n\r\n", 400, -1, "*", true},
			{"GET / HTTP/2.0\r\n\r\n", 505, -1, "*", true},
		} {
			c := p.dial(t)
			method, _, _ := strings.Cut(tc.request, " ")
			io.WriteString(c, tc.request)
			list, bodies, r := answers(t, c, method)
			res := list[0]
			if res.StatusCode != tc.status || tc.length >= 0 && res.ContentLength != tc.length || bodies[0] != tc.body && tc.body != "*" || tc.body == "*" && bodies[0] == "" {
				t.Errorf("%q: status %d, length %d, body %q", tc.request, res.StatusCode, res.ContentLength, bodies[0])
			}
			if tc.status < 400 || !tc.close {
				if date, err := http.ParseTime(res.Header.Get("Date")); err != nil || time.Since(date).Abs() > time.Minute {
					t.Errorf("%q: Date: %q", tc.request, res.Header.Get("Date"))
				}
			}
			if tc.status == 405 && res.Header.Get("Allow") != "GET, HEAD" {
				t.Errorf("%q: Allow: %q", tc.request, res.Header.Get("Allow"))
			}
			if ct := res.Header.Get("Content-Type"); !strings.HasPrefix(ct, "text/plain") {
				t.Errorf("%q: Content-Type: %q", tc.request, ct)
			}
			if tc.close {
				if rest, err := io.ReadAll(r); len(rest) > 0 || err != nil {
					t.Errorf("%q: at the end: %q, %v", tc.request, rest, err)
				}
				continue
			}
			io.WriteString(c, get)
			if _, bodies, _ := answers(t, c, "GET"); bodies[0] != hello {
				t.Errorf("%q: the next answer is %q", tc.request, bodies[0])
			}
		}
	})
}

// What the two parsers of requests think differently about, or what net/http answers by a close.
func TestHTTPRefusals(t *testing.T) {
	p := start(t, []string{"http", "-addr", "tcp://127.0.0.1:0"})
	for request, status := range map[string]int{
		"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n":                      501,
		"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n": 400,
		"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 67108865\r\n\r\n":                                 413,
		"GET / HTTP/1.1\r\nX: " + strings.Repeat("x", http1.HeadMax):                                     431,
		"GET /" + strings.Repeat("x", 100_000):                                                           414,
		"GET / HTTP/1.1\nHost: x\n\n":                                                                    400,
		"GET / HTTP/1.1\r\nHost: x\r\nExpect: cake\r\n\r\n":                                              417,
	} {
		c := p.dial(t)
		go io.WriteString(c, request+strings.Repeat("and more ", 50_000)) // What comes behind must not reset the answer away.
		list, _, r := answers(t, c, "GET")
		if list[0].StatusCode != status || !list[0].Close {
			t.Errorf("%.60q: status %d, close %v", request, list[0].StatusCode, list[0].Close)
		}
		if rest, err := io.ReadAll(r); len(rest) > 0 || err != nil {
			t.Errorf("%.60q: at the end: %q, %v", request, rest, err)
		}
	}
	p.stop(t)
}

// Pipelined requests are answered in order, also when they come byte by byte.
func TestHTTPPipeline(t *testing.T) {
	eachHTTP(t, func(t *testing.T, p *proc) {
		const rounds = 500
		request := get + "GET /size/100000 HTTP/1.1\r\nHost: x\r\n\r\n" +
			"GET /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc" + "HEAD / HTTP/1.1\r\nHost: x\r\n\r\n"
		methods := []string{"GET", "GET", "GET", "HEAD"}
		check := func(bodies []string) {
			if len(bodies) != 4 || bodies[0] != hello || len(bodies[1]) != 100_000 || bodies[2] == "" || bodies[3] != "" {
				t.Fatalf("%.200q", bodies)
			}
		}
		c := p.dial(t)
		go io.WriteString(c, strings.Repeat(request, rounds))
		var all []string
		for range rounds {
			all = append(all, methods...)
		}
		_, bodies, _ := answers(t, c, all...)
		for i := range rounds {
			check(bodies[4*i : 4*i+4])
		}

		slow := p.dial(t)
		slow.(*net.TCPConn).SetNoDelay(true)
		go func() {
			for _, b := range []byte(request) {
				slow.Write([]byte{b})
			}
		}()
		_, bodies, _ = answers(t, slow, methods...)
		check(bodies)
	})
}

// A big body goes out as the client takes it: right to the last byte, without filling the server's memory, and without
// holding up others.
func TestHTTPSlowReader(t *testing.T) {
	eachHTTP(t, func(t *testing.T, p *proc) {
		const size = 60 << 20
		var clients []net.Conn
		for range 3 {
			c := p.dial(t)
			fmt.Fprintf(c, "GET /size/%d HTTP/1.1\r\nHost: x\r\n\r\n%s", size, get)
			clients = append(clients, c)
		}
		p.greet(t, p.dial(t))
		time.Sleep(200 * time.Millisecond) // So that the server really gets stuck; nothing else depends on it.
		if kb := p.peakKB(t); !raceEnabled && kb > 64<<10 {
			t.Errorf("the server has used %d KB for three slow clients", kb)
		}
		for _, c := range clients {
			r := bufio.NewReaderSize(c, 1<<20)
			res, err := http.ReadResponse(r, nil)
			if err != nil || res.ContentLength != size {
				t.Fatalf("%v, %v", res, err)
			}
			got, piece := 0, make([]byte, len(fill))
			for got < size {
				n, err := io.ReadFull(res.Body, piece)
				if !bytes.Equal(piece[:n], fill[:n]) {
					t.Fatalf("wrong bytes behind %d", got)
				}
				if got += n; err != nil {
					break
				}
			}
			if got != size {
				t.Fatalf("%d of %d bytes", got, size)
			}
			res.Body.Close()
			if res, err = http.ReadResponse(r, nil); err != nil || res.ContentLength != int64(len(hello)) {
				t.Fatalf("the answer behind: %v, %v", res, err)
			}
		}
	})
}

// A body is read and thrown away, also one that does not fit into the read limit.
func TestHTTPRequestBody(t *testing.T) {
	eachHTTP(t, func(t *testing.T, p *proc) {
		url := "http://" + p.hostPort() + "/"
		client := &http.Client{Timeout: patience, Transport: &http.Transport{ExpectContinueTimeout: patience}}
		defer client.CloseIdleConnections()
		for _, size := range []int{1, 1000, 100_000, 10 << 20} {
			for _, expect := range []string{"", "100-continue"} {
				req, err := http.NewRequest(http.MethodPut, url, bytes.NewReader(noise(size)))
				if err != nil {
					t.Fatal(err)
				}
				if expect != "" {
					req.Header.Set("Expect", expect)
				}
				res, err := client.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				io.Copy(io.Discard, res.Body)
				res.Body.Close()
				if res.StatusCode != http.StatusMethodNotAllowed {
					t.Errorf("%d bytes, expect %q: %s", size, expect, res.Status)
				}
			}
		}
	}, withEnv("POLLUX_READ_LIMIT=16384"))
}

// A client may end its side right behind its request.
func TestHTTPHalfClose(t *testing.T) {
	eachHTTP(t, func(t *testing.T, p *proc) {
		c := p.dial(t).(*net.TCPConn)
		io.WriteString(c, "GET /size/20000000 HTTP/1.1\r\nHost: x\r\n\r\n")
		c.CloseWrite()
		_, bodies, _ := answers(t, c, "GET")
		if len(bodies[0]) != 20000000 {
			t.Errorf("%d bytes", len(bodies[0]))
		}
	})
}

func TestHTTPIdleTimeout(t *testing.T) {
	for _, name := range []string{"http", "http-std"} {
		p := start(t, append(append([]string(nil), servers[name]...), "-addr", "tcp://127.0.0.1:0", "-idle", "100ms"))
		c := p.dial(t)
		p.greet(t, c)
		if rest := ended(t, c); rest != "" {
			t.Errorf("%s: %q", name, rest)
		}
		p.stop(t)
	}
}

// A shutdown lets an answer that is being written go out to its last byte.
func TestHTTPShutdownDuringAnswer(t *testing.T) {
	for _, name := range []string{"http", "http-std"} {
		p := start(t, append(append([]string(nil), servers[name]...), "-addr", "tcp://127.0.0.1:0"))
		const size = 30 << 20
		c := p.dial(t)
		fmt.Fprintf(c, "GET /size/%d HTTP/1.1\r\nHost: x\r\n\r\n", size)
		r := bufio.NewReader(c)
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		p.signal(t, syscall.SIGTERM)
		n, err := io.Copy(io.Discard, res.Body)
		if n != size || err != nil {
			t.Errorf("%s: %d of %d bytes, %v", name, n, size, err)
		}
		p.ends(t)
		if p.ProcessState.ExitCode() != 0 {
			t.Errorf("%s: %v", name, p.ProcessState)
		}
	}
}

// Nothing is allocated between the parser and the reply buffer.
func TestHTTPHotPathDoesNotAllocate(t *testing.T) {
	var (
		h   httpHandler
		s   httpConn
		r   http1.Request
		in  = []byte(get)
		out = make([]byte, 0, 1024)
	)
	if n := testing.AllocsPerRun(200, func() {
		if _, err := s.parser.Next(in, &r); err != nil {
			t.Fatal(err)
		}
		out = h.reply(&s, h.accept(&s, out[:0], &r))
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
	if !bytes.HasSuffix(out, []byte("Content-Length: "+strconv.Itoa(len(hello))+"\r\nDate: "+h.clock.now().date+"\r\n\r\n"+hello)) {
		t.Errorf("%q", out)
	}
}
