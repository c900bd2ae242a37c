//go:build linux

package test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pollux-go/pollux"
)

// A site is a net/http server on a listener of pollux, and a client.
type site struct {
	server  *httptest.Server
	client  *http.Client
	base    string // of URLs
	clients stack  // that dial
	conns   atomic.Int64
}

// siteMode is one way of serving.
type siteMode struct {
	network string
	tls, h2 bool
	ours    bool        // the client dials with pollux too
	events  pollux.Kind // not empty: the server's connections are of the event API, on this backend
}

func (m siteMode) String() string {
	protocol := "http"
	switch {
	case m.h2:
		protocol = "h2"
	case m.tls:
		protocol = "https"
	}
	client := "std"
	if m.ours {
		client = "pollux"
	}
	if m.events != "" {
		return fmt.Sprintf("events of %s, %s over %s from %s", m.events, protocol, m.network, client)
	}
	return fmt.Sprintf("%s over %s from %s", protocol, m.network, client)
}

// siteModes is every way of serving. net/http reads and writes connections from goroutines of its own: on those of the net API
// no handler runs, and neither the backend nor Dispatch matters. On those of the event API, every byte goes through handlers.
func siteModes() (modes []siteMode) {
	for _, ours := range []bool{false, true} {
		modes = append(modes,
			siteMode{"tcp", false, false, ours, ""},
			siteMode{"unix", false, false, ours, ""},
			siteMode{"tcp", true, false, ours, ""},
			siteMode{"tcp", true, true, ours, ""},
		)
	}
	for _, kind := range kinds() {
		modes = append(modes, siteMode{"tcp", false, false, false, kind}, siteMode{"tcp", true, true, false, kind})
	}
	return modes
}

// eachSite runs a test with every way of serving.
func eachSite(t *testing.T, h http.Handler, test func(t *testing.T, s *site, m siteMode)) {
	t.Helper()
	for _, m := range siteModes() {
		t.Run(m.String(), func(t *testing.T) { test(t, newSite(t, m, h, nil), m) })
	}
}

func newSite(t *testing.T, m siteMode, h http.Handler, configure func(*http.Server)) *site {
	t.Helper()
	us := oursOn(t, m.events)
	s := &site{server: httptest.NewUnstartedServer(h), clients: std}
	s.server.Listener.Close()
	if m.events != "" {
		s.server.Listener = newEventListener(t, us.engine)
	} else {
		s.server.Listener = us.mustListen(t, m.network)
	}
	s.server.EnableHTTP2 = m.h2
	s.server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			s.conns.Add(1)
		}
	}
	s.server.Config.ErrorLog = log.New(io.Discard, "", 0)
	if configure != nil {
		configure(s.server.Config)
	}
	s.base = "http://example.com"
	if m.tls {
		s.base = "https://example.com" // That is in the certificate.
		s.server.StartTLS()
	} else {
		s.server.Start()
	}
	if m.ours {
		s.clients = us
	}
	transport := s.server.Client().Transport.(*http.Transport).Clone()
	transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return s.dial(ctx) }
	transport.MaxIdleConnsPerHost = 100
	s.client = &http.Client{Transport: transport}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		s.server.Client().CloseIdleConnections()
		within(t, "the end of the HTTP server", s.server.Close)
	})
	return s
}

func (s *site) dial(ctx context.Context) (net.Conn, error) {
	a := s.server.Listener.Addr()
	return s.clients.dialContext(ctx, a.Network(), a.String())
}

// raw is a connection without a client on it.
func (s *site) raw(t *testing.T) net.Conn {
	t.Helper()
	c, err := s.dial(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	expectNil(t, c.SetDeadline(time.Now().Add(patience)))
	return c
}

// do sends a request and reads the answer.
func (s *site) do(t *testing.T, method, path string, body io.Reader) (*http.Response, []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, s.base+path, body)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("read the answer to %s %s: %v (after %d bytes)", method, path, err, len(b))
	}
	return resp, b
}

// TestHTTPKeepAlive checks that requests one after the other share a connection.
func TestHTTPKeepAlive(t *testing.T) {
	echo := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s %s", r.Proto, r.URL.Path, r.RemoteAddr)
	})
	eachSite(t, echo, func(t *testing.T, s *site, m siteMode) {
		const requests = 50
		reused := 0
		ctx := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{
			GotConn: func(info httptrace.GotConnInfo) {
				if info.Reused {
					reused++
				}
			},
		})
		remote := ""
		for i := range requests {
			req, err := http.NewRequestWithContext(ctx, "GET", fmt.Sprintf("%s/%d", s.base, i), nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := s.client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			expectNil(t, err)
			words := strings.Fields(string(b))
			proto := map[bool]string{false: "HTTP/1.1", true: "HTTP/2.0"}[m.h2]
			if len(words) != 3 || words[0] != proto || words[1] != fmt.Sprintf("/%d", i) {
				t.Fatalf("the answer is %q, want one of %s", b, proto)
			}
			if remote == "" {
				remote = words[2]
			}
			if words[2] != remote || m.network == "unix" && remote != "@" {
				t.Errorf("the server saw the client %s, before it was %s", words[2], remote)
			}
		}
		if n := s.conns.Load(); n != 1 || reused != requests-1 {
			t.Errorf("%d requests used %d connections; %d times one was reused", requests, n, reused)
		}
	})
}

// TestHTTPChunked streams in both directions at once, so that each chunk answers the one before it: nothing may be held
// back until more comes.
func TestHTTPChunked(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(w)
		if r.ProtoMajor == 1 {
			expectNil(t, control.EnableFullDuplex())
			if len(r.TransferEncoding) != 1 || r.TransferEncoding[0] != "chunked" {
				t.Errorf("the request has the transfer encoding %v", r.TransferEncoding)
			}
		}
		w.Header().Set("Trailer", "X-Sum")
		w.WriteHeader(http.StatusOK)
		expectNil(t, control.Flush())
		sum := 0
		b := make([]byte, 1000)
		for {
			n, err := r.Body.Read(b)
			sum += n
			if _, err := w.Write(bytes.ToUpper(b[:n])); err != nil {
				t.Error(err)
				return
			}
			expectNil(t, control.Flush())
			if err != nil {
				expectEOF(t, err)
				break
			}
		}
		w.Header().Set("X-Sum", fmt.Sprint(sum))
	})
	eachSite(t, h, func(t *testing.T, s *site, m siteMode) {
		body, feed := io.Pipe()
		req, err := http.NewRequest("POST", s.base, body)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := s.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if !m.h2 && (len(resp.TransferEncoding) != 1 || resp.TransferEncoding[0] != "chunked") {
			t.Errorf("the answer has the transfer encoding %v", resp.TransferEncoding)
		}
		sum := 0
		for i := range 200 {
			piece := strings.Repeat("x", i%17*31+1)
			sum += len(piece)
			if _, err := io.WriteString(feed, piece); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, len(piece))
			if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != strings.ToUpper(piece) {
				t.Fatalf("chunk %d came back as %q: %v", i, got, err)
			}
		}
		expectNil(t, feed.Close())
		rest, err := io.ReadAll(resp.Body)
		if len(rest) > 0 || err != nil {
			t.Errorf("the answer ends with %q: %v", rest, err)
		}
		if got := resp.Trailer.Get("X-Sum"); got != fmt.Sprint(sum) {
			t.Errorf("the trailer says that %s bytes came, there were %d", got, sum)
		}
	})
}

// TestHTTPLargeBodies sends and gets bodies that are far larger than every buffer, from a file too.
func TestHTTPLargeBodies(t *testing.T) {
	const size = 4 << 20
	content := make([]byte, size)
	_, _ = (&pattern{}).Read(content)
	file := filepath.Join(t.TempDir(), "large")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	want := sha256.Sum256(content)
	mux := http.NewServeMux()
	mux.HandleFunc("POST /sum", func(w http.ResponseWriter, r *http.Request) {
		sum := sha256.New()
		n, err := io.Copy(sum, r.Body)
		if n != size || err != nil {
			t.Errorf("the server read %d bytes: %v", n, err)
		}
		_, _ = w.Write(sum.Sum(nil))
	})
	mux.HandleFunc("GET /file", func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, file) })
	mux.HandleFunc("GET /copy", func(w http.ResponseWriter, _ *http.Request) {
		f, err := os.Open(file)
		if err != nil {
			t.Error(err)
			return
		}
		defer f.Close()
		if n, err := io.Copy(w, f); n != size || err != nil {
			t.Errorf("the server wrote %d bytes: %v", n, err)
		}
	})
	mux.HandleFunc("POST /echo", func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		_, _ = w.Write(b)
	})
	eachSite(t, mux, func(t *testing.T, s *site, _ siteMode) {
		if _, sum := s.do(t, "POST", "/sum", bytes.NewReader(content)); !bytes.Equal(sum, want[:]) {
			t.Error("the server read something else than was sent")
		}
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, sum := s.do(t, "POST", "/sum", f); !bytes.Equal(sum, want[:]) {
			t.Error("the server read something else than was sent from a file")
		}
		for _, path := range []string{"/file", "/copy"} {
			if _, got := s.do(t, "GET", path, nil); sha256.Sum256(got) != want {
				t.Errorf("%s is not the file", path)
			}
		}
		if _, got := s.do(t, "POST", "/echo", bytes.NewReader(content)); sha256.Sum256(got) != want {
			t.Error("the echo is not what was sent")
		}
	})
}

// TestHTTPManyAtOnce sends requests of many goroutines; over h2 they are streams of one connection.
func TestHTTPManyAtOnce(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		expectNil(t, err)
		_, _ = w.Write(b)
	})
	eachSite(t, h, func(t *testing.T, s *site, m siteMode) {
		s.do(t, "GET", "/", nil) // Now there is a connection, which is enough for h2.
		var wg sync.WaitGroup
		for i := range 48 {
			wg.Go(func() {
				for j := range 4 {
					want := bytes.Repeat([]byte{byte(i), byte(j)}, 1+i*731)
					resp, err := s.client.Post(s.base, "application/octet-stream", bytes.NewReader(want))
					if err != nil {
						t.Error(err)
						return
					}
					got, err := io.ReadAll(resp.Body)
					resp.Body.Close()
					if err != nil || !bytes.Equal(got, want) {
						t.Errorf("%d bytes were sent and %d came back: %v", len(want), len(got), err)
					}
				}
			})
		}
		within(t, "the end of the requests", wg.Wait)
		if n := s.conns.Load(); m.h2 && n != 1 {
			t.Errorf("h2 used %d connections", n)
		}
	})
}

// TestHTTPClientGone checks that the context of a request ends when its client goes, and so does a stream of h2.
func TestHTTPClientGone(t *testing.T) {
	entered, gone, read := make(chan struct{}), make(chan error), make(chan struct{})
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		expectNil(t, http.NewResponseController(w).Flush())
		entered <- struct{}{}
		<-r.Context().Done()
		gone <- r.Context().Err()
		<-read // An answer that ends well could still be faster than the client's close.
	})
	eachSite(t, h, func(t *testing.T, s *site, _ siteMode) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, "POST", s.base, strings.NewReader("question"))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := s.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		await(t, "the request", entered)
		cancel()
		if err := await(t, "the end of the request's context", gone); !errors.Is(err, context.Canceled) {
			t.Errorf("the request's context ended with %v", err)
		}
		if _, err := io.ReadAll(resp.Body); !errors.Is(err, context.Canceled) {
			t.Errorf("the client reads %v", err)
		}
		read <- struct{}{}
	})
}

// TestHTTPHijack takes connections over from the server: with bytes that came behind the request, and while the server
// looks out for the client's going, which is a Read that waits and has to be got rid of without losing what comes.
func TestHTTPHijack(t *testing.T) {
	const hello = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n"
	var pollers atomic.Int64
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil { // From its end on, the server reads in the background.
			t.Error(err)
		}
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		if _, ok := conn.(*pollux.NetConn); ok {
			pollers.Add(1)
		}
		if _, err := io.WriteString(conn, hello); err != nil {
			t.Error(err)
		}
		// An echo, and a last word after the client's end.
		n, err := io.Copy(conn, rw)
		if err != nil {
			t.Errorf("echo: %v", err)
		}
		fmt.Fprintf(conn, " (%d bytes)", n)
	})
	ofPollers := int64(0)
	for _, m := range siteModes() {
		if m.tls {
			continue
		}
		for _, early := range []string{"", "and this came along with the request"} {
			t.Run(fmt.Sprintf("%v, %d bytes early", m, len(early)), func(t *testing.T) {
				s := newSite(t, m, h, nil)
				for range 20 {
					if m.events == "" {
						ofPollers++
					}
					c := s.raw(t)
					if _, err := io.WriteString(c, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc"+early); err != nil {
						t.Fatal(err)
					}
					got := make([]byte, len(hello)+len(early))
					if _, err := io.ReadFull(c, got); err != nil || string(got) != hello+early {
						t.Fatalf("read %q: %v", got, err)
					}
					for i := range 20 {
						fmt.Fprintf(c, "message %02d", i)
						b := make([]byte, 10)
						if _, err := io.ReadFull(c, b); err != nil || string(b) != fmt.Sprintf("message %02d", i) {
							t.Fatalf("read %q: %v", b, err)
						}
					}
					expectNil(t, c.(halfCloser).CloseWrite())
					rest, err := io.ReadAll(c)
					if want := fmt.Sprintf(" (%d bytes)", len(early)+200); string(rest) != want || err != nil {
						t.Errorf("the last word is %q (%v), want %q", rest, err, want)
					}
					expectNil(t, c.Close())
				}
			})
		}
	}
	if !t.Failed() && pollers.Load() != ofPollers {
		t.Errorf("%d connections were a *pollux.NetConn, want %d", pollers.Load(), ofPollers)
	}
}

// TestHTTPExpectContinue checks that a body which is asked for is sent, and one that is refused is not.
func TestHTTPExpectContinue(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/refuse" {
			w.WriteHeader(http.StatusExpectationFailed)
			return
		}
		_, _ = io.Copy(w, r.Body)
	})
	eachSite(t, h, func(t *testing.T, s *site, m siteMode) {
		s.client.Transport.(*http.Transport).ExpectContinueTimeout = patience
		for _, path := range []string{"/accept", "/refuse", "/accept"} {
			var touched atomic.Bool
			continued := false
			ctx := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{Got100Continue: func() { continued = true }})
			body := &touchReader{Reader: strings.NewReader("the body"), touched: &touched}
			req, err := http.NewRequestWithContext(ctx, "POST", s.base+path, body)
			if err != nil {
				t.Fatal(err)
			}
			req.ContentLength = int64(len("the body"))
			req.Header.Set("Expect", "100-continue")
			resp, err := s.client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			expectNil(t, err)
			if path == "/accept" && (string(got) != "the body" || !continued || !touched.Load()) {
				t.Errorf("%s: got %q, 100 Continue: %t", path, got, continued)
			}
			if path == "/refuse" && (resp.StatusCode != http.StatusExpectationFailed || continued || touched.Load()) {
				t.Errorf("%s: got %s, 100 Continue: %t, the body was sent: %t", path, resp.Status, continued, touched.Load())
			}
		}
	})
}

type touchReader struct {
	io.Reader
	touched *atomic.Bool
}

func (r *touchReader) Read(b []byte) (int, error) {
	r.touched.Store(true)
	return r.Reader.Read(b)
}

// TestHTTPShutdown shuts a server down while requests run: they are answered, new connections are refused, and then
// Shutdown returns.
func TestHTTPShutdown(t *testing.T) {
	const requests = 10
	for _, m := range siteModes() {
		if m.events != "" {
			continue // A service of the event API closes its listeners and its connections together.
		}
		t.Run(m.String(), func(t *testing.T) {
			entered, release := make(chan struct{}, requests), make(chan struct{})
			s := newSite(t, m, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/first" {
					return
				}
				entered <- struct{}{}
				<-release
				_, _ = io.WriteString(w, "answered")
			}), nil)
			// Now there is a connection for all of h2. The spare ones of a first burst hold up a Shutdown of package net's too.
			s.do(t, "GET", "/first", nil)
			idle := s.raw(t)
			var wg sync.WaitGroup
			for range requests {
				wg.Go(func() {
					resp, err := s.client.Get(s.base)
					if err != nil {
						t.Error(err)
						return
					}
					b, err := io.ReadAll(resp.Body)
					resp.Body.Close()
					if string(b) != "answered" || err != nil {
						t.Errorf("read %q: %v", b, err)
					}
				})
			}
			for range requests {
				await(t, "the requests", entered)
			}
			shut := make(chan error, 1)
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			go func() { shut <- s.server.Config.Shutdown(ctx) }()
			// The listener is closed first.
			for end := time.Now().Add(patience); ; {
				c, err := s.dial(ctx)
				if err != nil {
					break
				}
				c.Close()
				if time.Now().After(end) {
					t.Fatal("the server still accepts")
				}
			}
			select {
			case err := <-shut:
				t.Fatalf("Shutdown has not waited: %v", err)
			default:
			}
			idle.Close() // A connection without a request is waited for some seconds, in package net too.
			close(release)
			within(t, "the end of the requests", wg.Wait)
			s.client.CloseIdleConnections()
			expectNil(t, await(t, "the end of Shutdown", shut))
		})
	}
}

// TestHTTPServerTimeouts checks that the timeouts of an http.Server end what they are for.
func TestHTTPServerTimeouts(t *testing.T) {
	const timeout = 60 * time.Millisecond
	errs := make(chan error, 8)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/read":
			_, err := io.ReadAll(r.Body)
			errs <- err
		case "/write":
			var err error
			for b := make([]byte, 64<<10); err == nil; {
				_, err = w.Write(b)
			}
			errs <- err
		default:
			_, _ = io.WriteString(w, "ok")
		}
	})
	for _, m := range siteModes() {
		if m.tls {
			continue
		}
		t.Run(m.String(), func(t *testing.T) {
			// ended reads until the server hangs up, and says when.
			ended := func(t *testing.T, c net.Conn, start time.Time) {
				t.Helper()
				b, err := io.ReadAll(c)
				if err != nil {
					t.Errorf("the server has not hung up properly: %v (after %q)", err, b)
				}
				if took := time.Since(start); took < timeout {
					t.Errorf("the server hung up after %v, before the timeout", took)
				}
			}
			t.Run("ReadHeaderTimeout", func(t *testing.T) {
				s := newSite(t, m, h, func(srv *http.Server) { srv.ReadHeaderTimeout = timeout })
				start := time.Now() // The server's time begins with the connection.
				c := s.raw(t)
				_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost:")
				ended(t, c, start)
			})
			t.Run("ReadTimeout", func(t *testing.T) {
				s := newSite(t, m, h, func(srv *http.Server) { srv.ReadTimeout = timeout })
				c := s.raw(t)
				_, _ = io.WriteString(c, "POST /read HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nonly this")
				expectTimeout(t, await(t, "the end of the request's body", errs))
			})
			t.Run("WriteTimeout", func(t *testing.T) {
				s := newSite(t, m, h, func(srv *http.Server) { srv.WriteTimeout = timeout })
				c := s.raw(t)
				_, _ = io.WriteString(c, "GET /write HTTP/1.1\r\nHost: h\r\n\r\n")
				expectTimeout(t, await(t, "the end of the answer", errs))
			})
			t.Run("IdleTimeout", func(t *testing.T) {
				s := newSite(t, m, h, func(srv *http.Server) { srv.IdleTimeout = timeout })
				c := s.raw(t)
				r := bufio.NewReader(c)
				for range 3 {
					_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
					resp, err := http.ReadResponse(r, nil)
					if err != nil {
						t.Fatal(err)
					}
					if b, err := io.ReadAll(resp.Body); string(b) != "ok" || err != nil {
						t.Fatalf("read %q: %v", b, err)
					}
				}
				_, err := r.ReadByte()
				expectEOF(t, err)
			})
			t.Run("ResponseController", func(t *testing.T) {
				s := newSite(t, m, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					control := http.NewResponseController(w)
					expectNil(t, control.SetReadDeadline(time.Now().Add(timeout)))
					_, err := io.ReadAll(r.Body)
					errs <- err
					expectNil(t, control.SetWriteDeadline(time.Now().Add(timeout)))
					for b := make([]byte, 64<<10); ; {
						if _, err := w.Write(b); err != nil {
							errs <- err
							return
						}
					}
				}), nil)
				c := s.raw(t)
				_, _ = io.WriteString(c, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nonly this")
				expectTimeout(t, await(t, "the end of the request's body", errs))
				expectTimeout(t, await(t, "the end of the answer", errs))
			})
		})
	}
}

// TestHTTPClientTimeouts checks that a client on connections of pollux gives up when it is told to.
func TestHTTPClientTimeouts(t *testing.T) {
	for _, m := range siteModes() {
		if !m.ours {
			continue
		}
		t.Run(m.String(), func(t *testing.T) {
			release := make(chan struct{})
			s := newSite(t, m, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/body" {
					_, _ = io.WriteString(w, "some")
					if err := http.NewResponseController(w).Flush(); err != nil && r.Context().Err() == nil {
						t.Error(err) // Nobody has given up yet.
					}
				}
				if r.URL.Path != "/" {
					<-release // Not before: an answer that ends well could be faster than the timeout's close.
				}
			}), nil)
			defer close(release)
			for _, path := range []string{"/header", "/body"} {
				ctx, cancel := context.WithTimeout(context.Background(), 3*soon)
				req, err := http.NewRequestWithContext(ctx, "GET", s.base+path, nil)
				if err != nil {
					t.Fatal(err)
				}
				resp, err := s.client.Do(req)
				if err == nil {
					_, err = io.ReadAll(resp.Body)
					resp.Body.Close()
				}
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("%s: got %v, want context.DeadlineExceeded", path, err)
				}
				cancel()
			}
			impatient := *s.client
			impatient.Timeout = 3 * soon
			_, err := impatient.Get(s.base + "/header")
			if ne, ok := errors.AsType[net.Error](err); !ok || !ne.Timeout() {
				t.Errorf("Client.Timeout: got %v", err)
			}
			transport := s.client.Transport.(*http.Transport).Clone()
			transport.ResponseHeaderTimeout = 3 * soon
			_, err = (&http.Client{Transport: transport}).Get(s.base + "/header")
			if ne, ok := errors.AsType[net.Error](err); !m.h2 && (!ok || !ne.Timeout()) {
				t.Errorf("ResponseHeaderTimeout: got %v", err)
			}
			transport.CloseIdleConnections()
			// The client still works.
			if resp, _ := s.do(t, "GET", "/", nil); resp.StatusCode != http.StatusOK {
				t.Errorf("got %s", resp.Status)
			}
		})
	}
}

// TestHTTPClientDial checks what a client reports that cannot connect.
func TestHTTPClientDial(t *testing.T) {
	us := ours(t)
	transport := &http.Transport{DialContext: us.dialContext}
	client := &http.Client{Transport: transport}
	defer transport.CloseIdleConnections()
	_, err := client.Get("http://" + refusedAddress(t))
	if opErr, ok := errors.AsType[*net.OpError](err); !ok || opErr.Op != "dial" {
		t.Errorf("got %v, want a *net.OpError of dialing", err)
	}
	full := fullListener(t, "tcp")
	ctx, cancel := context.WithTimeout(context.Background(), 2*soon)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", "http://"+full, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err = client.Do(req); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want context.DeadlineExceeded", err)
	}
	client.Timeout = 2 * soon
	_, err = client.Get("http://" + full)
	if ne, ok := errors.AsType[net.Error](err); !ok || !ne.Timeout() {
		t.Errorf("got %v, want a timeout", err)
	}
}

// TestHTTP2Cancel cancels streams in the middle of large bodies in both directions. The connection and its other streams
// must not be hurt.
func TestHTTP2Cancel(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "POST" {
			_, _ = io.Copy(io.Discard, r.Body)
			return
		}
		n := int64(1 << 20)
		if r.URL.RawQuery == "endless" {
			n = math.MaxInt64 // What is canceled must not have ended by itself.
		}
		_, _ = io.Copy(w, io.LimitReader(&pattern{}, n))
	})
	for _, m := range siteModes() {
		if !m.h2 {
			continue
		}
		t.Run(m.String(), func(t *testing.T) {
			s := newSite(t, m, h, nil)
			s.do(t, "GET", "/", nil) // Now there is a connection.
			var wg sync.WaitGroup
			for i := range 24 {
				wg.Go(func() {
					ctx, cancel := context.WithCancel(context.Background())
					defer cancel()
					if i%3 == 0 { // These are to survive.
						resp, err := s.client.Get(s.base)
						if err != nil {
							t.Error(err)
							return
						}
						defer resp.Body.Close()
						if n, err := io.Copy(struct{ io.Writer }{&pattern{}}, resp.Body); n != 1<<20 || err != nil {
							t.Errorf("read %d bytes: %v", n, err)
						}
						return
					}
					method, body := "GET", io.Reader(nil)
					if i%3 == 1 {
						method, body = "POST", &cancelReader{cancel, 64 << 10}
					}
					req, err := http.NewRequestWithContext(ctx, method, s.base+"?endless", body)
					if err != nil {
						t.Error(err)
						return
					}
					resp, err := s.client.Do(req)
					if err == nil {
						_, _ = io.CopyN(io.Discard, resp.Body, 100<<10)
						cancel()
						_, err = io.Copy(io.Discard, resp.Body)
						resp.Body.Close()
					}
					if !errors.Is(err, context.Canceled) {
						t.Errorf("%s: got %v", method, err)
					}
				})
			}
			within(t, "the end of the streams", wg.Wait)
			if n := s.conns.Load(); n != 1 {
				t.Errorf("there were %d connections: a canceled stream has cost one", n)
			}
		})
	}
}

// cancelReader cancels a request after so many bytes of its body, which has no end.
type cancelReader struct {
	cancel func()
	left   int
}

func (r *cancelReader) Read(b []byte) (int, error) {
	if r.left -= len(b); r.left < 0 {
		r.cancel()
	}
	clear(b)
	return len(b), nil
}
