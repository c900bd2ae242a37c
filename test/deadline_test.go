//go:build linux

package test

import (
	"fmt"
	"io"
	"math"
	"net"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"
)

// soon is a deadline that tests wait for. It is short, because no test depends on what happens before it.
const soon = 20 * time.Millisecond

// TestPastDeadline checks that a deadline which has passed fails a call before it has moved any byte, data and room
// there or not, each time anew, one direction without the other; and that the zero time revives the connection.
func TestPastDeadline(t *testing.T) {
	parityNetworks(t, func(t *testing.T, s stack, network string, tr *trace) {
		c, peer := pair(t, s, std, network)
		tr.conn(c)
		if _, err := peer.Write([]byte("waiting")); err != nil {
			t.Fatal(err)
		}
		for _, at := range []time.Time{past, time.Now(), time.Now().Add(-time.Nanosecond), time.Unix(0, 0), time.Unix(-1<<40, 0)} {
			expectNil(t, c.SetReadDeadline(at))
			n, err := readNothing(c)
			tr.see("Read", n, err)
			expectTimeout(t, err)
			n, err = c.Write([]byte("."))
			tr.see("Write", n, err) // Not concerned.
			expectNil(t, c.SetReadDeadline(never))
		}
		expectNil(t, c.SetWriteDeadline(past))
		for range 3 {
			n, err := c.Write([]byte("never"))
			tr.see("Write", n, err)
			expectTimeout(t, err)
		}
		b := make([]byte, 7)
		n, err := c.Read(b[:2])
		tr.see("Read", string(b[:n]), err) // Not concerned.
		m, err := io.ReadFull(c, b[n:])
		tr.see("Read of the rest", string(b[:n+m]), err)
		expectNil(t, c.SetWriteDeadline(never))
		n, err = c.Write([]byte("!"))
		tr.see("Write after the revival", n, err)
		expectNil(t, c.SetDeadline(past))
		n, err = readNothing(c)
		tr.see("Read with both passed", n, err)
		n, err = c.Write([]byte("never"))
		tr.see("Write with both passed", n, err)
		expectNil(t, c.SetDeadline(never))
		expectNil(t, c.Close())
		got, err := io.ReadAll(peer)
		tr.see("what the peer read", string(got), err)
	})
}

// TestDeadlineEndsRead checks that a deadline ends a Read that waits, that one in the past does so at once, and that it
// is not earlier than promised.
func TestDeadlineEndsRead(t *testing.T) {
	parityNetworks(t, func(t *testing.T, s stack, network string, tr *trace) {
		c, _ := pair(t, s, std, network)
		tr.conn(c)
		at := time.Now().Add(soon)
		expectNil(t, c.SetReadDeadline(at))
		n, err := readNothing(c)
		if early := time.Until(at); early > 0 {
			t.Errorf("the Read has ended %v before its deadline", early)
		}
		tr.see("Read", n, err)
		expectTimeout(t, err)

		expectNil(t, c.SetDeadline(never))
		result := make(chan error, 1)
		go func() {
			_, err := readNothing(c)
			result <- err
		}()
		expectNil(t, c.SetReadDeadline(time.Now().Add(time.Hour)))
		expectNil(t, c.SetReadDeadline(past))
		err = await(t, "the end of a Read", result)
		tr.see("Read that waits", 0, err)
		expectTimeout(t, err)
	})
}

// TestDeadlineIsMoved checks a Read that waits while its deadline is moved: later means later, earlier earlier.
func TestDeadlineIsMoved(t *testing.T) {
	parityNetworks(t, func(t *testing.T, s stack, network string, tr *trace) {
		c, peer := pair(t, s, std, network)
		tr.conn(c)
		result := make(chan error, 1)
		read := func() {
			_, err := readNothing(c)
			result <- err
		}
		first := time.Now().Add(2 * soon)
		expectNil(t, c.SetReadDeadline(first))
		go read()
		second := time.Now().Add(6 * soon)
		expectNil(t, c.SetReadDeadline(second))
		err := await(t, "the end of a Read", result)
		if early := time.Until(second); early > 0 {
			t.Errorf("the Read has ended %v before the deadline that it was given last", early)
		}
		tr.see("moved away", 0, err)
		expectTimeout(t, err)

		// By less than timers are coarse: the one of the first deadline must not do for the second.
		expectNil(t, c.SetReadDeadline(time.Now().Add(soon)))
		second = time.Now().Add(soon + soon/4)
		expectNil(t, c.SetReadDeadline(second))
		go read()
		err = await(t, "the end of a Read", result)
		if early := time.Until(second); early > 0 {
			t.Errorf("the Read has ended %v before the deadline that it was given last", early)
		}
		tr.see("moved away a little", 0, err)

		expectNil(t, c.SetReadDeadline(time.Now().Add(time.Hour)))
		go read()
		expectNil(t, c.SetReadDeadline(time.Now().Add(soon)))
		err = await(t, "the end of a Read", result)
		tr.see("moved nearer", 0, err)
		expectTimeout(t, err)

		expectNil(t, c.SetReadDeadline(time.Now().Add(soon)))
		expectNil(t, c.SetReadDeadline(never))
		go read()
		select {
		case err := <-result:
			t.Errorf("the Read has ended by a deadline that was cleared: %v", err)
		case <-time.After(3 * soon):
			if _, err := peer.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			tr.see("cleared", 0, await(t, "the end of a Read", result))
		}
	})
}

// TestOneDeadlineADirection checks that reads and writes have deadlines of their own, also when one call sets both and
// another then moves one.
func TestOneDeadlineADirection(t *testing.T) {
	parityNetworks(t, func(t *testing.T, s stack, network string, tr *trace) {
		c, _ := pair(t, s, std, network)
		tr.conn(c)
		fill(t, c)
		readResult, writeResult := make(chan error, 1), make(chan error, 1)
		expectNil(t, c.SetDeadline(time.Now().Add(soon)))
		expectNil(t, c.SetWriteDeadline(time.Now().Add(time.Hour)))
		go func() {
			_, err := readNothing(c)
			readResult <- err
		}()
		go func() {
			_, err := c.Write(make([]byte, 1<<20))
			writeResult <- err
		}()
		err := await(t, "the end of the Read", readResult)
		tr.see("Read", 0, err)
		expectTimeout(t, err)
		select {
		case err := <-writeResult:
			t.Errorf("the Write has ended with the reads' deadline: %v", err)
		case <-time.After(soon):
		}
		expectNil(t, c.SetWriteDeadline(time.Now().Add(soon)))
		err = await(t, "the end of the Write", writeResult)
		tr.see("Write", 0, err)
		expectTimeout(t, err)
	})
}

// TestPartialWrite checks that a Write which times out says how many bytes the peer will read.
func TestPartialWrite(t *testing.T) {
	parityNetworks(t, func(t *testing.T, s stack, network string, tr *trace) {
		c, peer := pair(t, s, std, network)
		tr.conn(c)
		expectNil(t, c.SetWriteDeadline(time.Now().Add(soon)))
		n, err := io.CopyN(struct{ io.Writer }{onlyWriter{c}}, &pattern{}, 64<<20)
		tr.see("Write of 64 MiB", n > 0 && n < 64<<20, err)
		expectTimeout(t, err)
		m, err := c.Write([]byte("x"))
		tr.see("the next one", m, err)
		expectNil(t, c.Close())
		got, err := io.Copy(struct{ io.Writer }{&pattern{}}, peer)
		if got != n || err != nil {
			t.Errorf("the peer read %d bytes (%v); the Writes returned %d", got, err, n)
		}
	})
}

// onlyWriter hides the other methods, and writes in pieces that do not fit into the socket's buffer.
type onlyWriter struct{ net.Conn }

func (w onlyWriter) Write(b []byte) (int, error) { return w.Conn.Write(b) }

// TestHugeDeadlines checks deadlines that no clock reaches, those included whose distance overflows.
func TestHugeDeadlines(t *testing.T) {
	parityNetworks(t, func(t *testing.T, s stack, network string, tr *trace) {
		c, peer := pair(t, s, std, network)
		tr.conn(c)
		for _, at := range []time.Time{
			time.Now().Add(math.MaxInt64),
			time.Now().Add(math.MaxInt64 - 1),
			time.Now().Add(math.MaxInt64).Add(math.MaxInt64),
			time.Unix(math.MaxInt32, 0),
			time.Unix(1<<40, 0),
			time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		} {
			expectNil(t, c.SetDeadline(at))
			n, err := c.Write([]byte("x"))
			tr.see("Write", n, err)
			result := make(chan error, 1)
			go func() {
				_, err := readNothing(c)
				result <- err
			}()
			if _, err := peer.Write([]byte("y")); err != nil {
				t.Fatal(err)
			}
			tr.see("Read", 1, await(t, "the end of a Read", result))
		}
		// A time that is only huge behind the clock's back must still have passed.
		expectNil(t, c.SetDeadline(time.Now().Add(math.MinInt64)))
		n, err := readNothing(c)
		tr.see("Read long after the deadline", n, err)
		expectTimeout(t, err)
	})
}

// mustNotReturn has call run after a deadline that has passed was cleared again: it must go on waiting.
func mustNotReturn(t *testing.T, clear func() error, call func() error, end func()) {
	t.Helper()
	result := make(chan error, 1)
	go func() {
		expectNil(t, clear())
		result <- call()
	}()
	select {
	case err := <-result:
		t.Errorf("it has returned: %v", err)
	case <-time.After(4 * soon):
		end()
		expectClosed(t, await(t, "the end of the call", result))
	}
}

// TestTimeoutMustNotReturn checks that a deadline which was set and cleared leaves no trace, for each kind of call.
func TestTimeoutMustNotReturn(t *testing.T) {
	for _, kind := range []string{"Read", "Write", "Accept"} {
		t.Run(kind, func(t *testing.T) {
			parity(t, func(t *testing.T, s stack, tr *trace) {
				if kind == "Accept" {
					ln := s.mustListen(t, "tcp")
					d := ln.(deadliner)
					mustNotReturn(t, func() error {
						expectNil(t, d.SetDeadline(time.Now().Add(-5*time.Second)))
						return d.SetDeadline(never)
					}, func() error { _, err := ln.Accept(); return err }, func() { ln.Close() })
					return
				}
				c, _ := pair(t, s, std, "tcp")
				clear := func() error {
					expectNil(t, c.SetDeadline(time.Now().Add(-5*time.Second)))
					expectNil(t, c.SetDeadline(time.Now().Add(time.Nanosecond)))
					return c.SetDeadline(never)
				}
				call := func() error { _, err := readNothing(c); return err }
				if kind == "Write" {
					call = func() error {
						for {
							if _, err := c.Write([]byte("TIMEOUT TRANSMITTER")); err != nil {
								return err
							}
						}
					}
				}
				mustNotReturn(t, clear, call, func() { c.Close() })
			})
		})
	}
}

// TestTimeoutFluctuation measures how late deadlines are. The bound is what package net's own tests demand, 10 %; on a
// busy machine the deadlines grow until it holds, or until they are too long to be an excuse.
func TestTimeoutFluctuation(t *testing.T) {
	s := ours(t)
	ln := s.mustListen(t, "tcp")
	c, _ := pair(t, s, std, "tcp")
	b := make([]byte, 256)
	for _, it := range []struct {
		name string
		set  func(time.Time) error
		call func() error
	}{
		{"Read", c.SetReadDeadline, func() error { _, err := c.Read(b); return err }},
		{"Write", c.SetWriteDeadline, func() error {
			for {
				if _, err := c.Write(b); err != nil {
					return err
				}
			}
		}},
		{"Accept", ln.(deadliner).SetDeadline, func() error { _, err := ln.Accept(); return err }},
	} {
		const longest = 4 * time.Second
		t.Run(it.name, func(t *testing.T) {
			for d := time.Millisecond; ; d = d * 3 / 2 {
				start := time.Now()
				expectNil(t, it.set(start.Add(d)))
				err := it.call()
				took := time.Since(start)
				expectTimeout(t, err)
				if took < d {
					t.Fatalf("a deadline of %v was met after %v", d, took)
				}
				if took <= d*11/10 {
					return
				}
				if d > longest {
					t.Fatalf("a deadline of %v was met after %v", d, took)
				}
			}
		})
	}
}

// TestVariousDeadlines sets deadlines from a nanosecond to half a second, with one P, four, and as many as there are.
func TestVariousDeadlines(t *testing.T) {
	for _, procs := range []int{1, 4, runtime.GOMAXPROCS(0)} {
		t.Run(fmt.Sprintf("procs=%d", procs), func(t *testing.T) {
			s := ours(t)
			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(procs))
			ln := s.mustListen(t, "tcp")
			var wg sync.WaitGroup
			defer wg.Wait()
			defer ln.Close()
			wg.Go(func() {
				for {
					c, err := ln.Accept()
					if err != nil {
						return
					}
					wg.Go(func() {
						_, _ = c.Read(make([]byte, 1)) // Until the client closes.
						c.Close()
					})
				}
			})
			for _, timeout := range []time.Duration{
				1, 2, 5, 50, 100, 200, 500, 750, 1 * time.Microsecond, 5 * time.Microsecond, 25 * time.Microsecond,
				250 * time.Microsecond, 500 * time.Microsecond, 1 * time.Millisecond, 5 * time.Millisecond,
				50 * time.Millisecond, 100 * time.Millisecond, 500 * time.Millisecond,
			} {
				runs := 3
				if timeout > 10*time.Millisecond {
					runs = 1
				}
				for range runs {
					c := s.mustDial(t, ln)
					start := time.Now()
					expectNil(t, c.SetDeadline(start.Add(timeout)))
					n, err := io.Copy(io.Discard, c)
					took := time.Since(start)
					c.Close()
					if n != 0 {
						t.Errorf("%d bytes were read", n)
					}
					expectTimeout(t, err)
					if took < timeout {
						t.Errorf("a deadline of %v was met after %v", timeout, took)
					}
				}
			}
		})
	}
}

// TestDeadlineEachCall sets a deadline before each call, in both directions at once, as servers do. No call may fail.
func TestDeadlineEachCall(t *testing.T) {
	s := ours(t)
	a, b := pair(t, s, s, "tcp")
	const rounds = 2000
	var wg sync.WaitGroup
	for _, c := range []net.Conn{a, b} {
		wg.Go(func() {
			p := make([]byte, 1)
			for range rounds {
				expectNil(t, c.SetReadDeadline(time.Now().Add(time.Hour)))
				if _, err := c.Read(p); err != nil {
					t.Error(err)
					return
				}
			}
		})
		wg.Go(func() {
			p := make([]byte, 1)
			for range rounds {
				expectNil(t, c.SetWriteDeadline(time.Now().Add(time.Hour)))
				if _, err := c.Write(p); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	within(t, "the end of all rounds", wg.Wait)
}

// TestReadWriteDeadlineRace lets deadlines of 2 us pass while calls begin and end. Whatever the calls return, no byte may
// be lost or written twice, and the connection must work afterwards.
func TestReadWriteDeadlineRace(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			s := ours(t)
			c, peer := pair(t, s, std, network)
			const rounds = 3000
			var wg, echo sync.WaitGroup
			echo.Go(func() {
				_, _ = io.Copy(peer, peer)
				peer.Close()
			})
			wg.Go(func() {
				for range rounds {
					expectNil(t, c.SetReadDeadline(time.Now().Add(2*time.Microsecond)))
					expectNil(t, c.SetWriteDeadline(time.Now().Add(2*time.Microsecond)))
					runtime.Gosched()
				}
			})
			check, sent := &pattern{}, &pattern{}
			wg.Go(func() {
				b := make([]byte, 13)
				for range rounds {
					n, err := c.Read(b)
					if _, bad := check.Write(b[:n]); bad != nil {
						t.Error(bad)
						return
					}
					if err != nil && !isTimeout(err) {
						t.Errorf("Read: %v", err)
					}
				}
			})
			wg.Go(func() {
				b := make([]byte, 7)
				for range rounds {
					at := sent.at
					_, _ = sent.Read(b)
					n, err := c.Write(b)
					sent.at = at + uint64(n)
					if err != nil && !isTimeout(err) {
						t.Errorf("Write: %v", err)
					}
				}
			})
			within(t, "the end of the race", wg.Wait)
			expectNil(t, c.SetDeadline(never))
			expectNil(t, c.(halfCloser).CloseWrite())
			if _, err := io.Copy(struct{ io.Writer }{check}, c); err != nil {
				t.Error(err)
			}
			if check.at != sent.at {
				t.Errorf("%d bytes were written and %d came back", sent.at, check.at)
			}
			echo.Wait()
		})
	}
}

// TestConcurrentSetDeadline has many goroutines move the deadlines of many connections, steadily nearer, so that timers
// are set and set again; some are in the past for a moment. Then all connections close under them.
func TestConcurrentSetDeadline(t *testing.T) {
	s := ours(t)
	const goroutines, conns, tries = 8, 10, 100
	var all []net.Conn
	for range conns {
		c, _ := pair(t, s, std, "tcp")
		all = append(all, c)
	}
	var readers, setters sync.WaitGroup
	for _, c := range all {
		readers.Go(func() {
			for {
				_, err := readNothing(c)
				if !isTimeout(err) {
					expectClosed(t, err)
					return
				}
				runtime.Gosched()
			}
		})
	}
	now := time.Now()
	for i := range goroutines {
		setters.Go(func() {
			for j := range slices.Backward(make([]struct{}, tries)) {
				for k, c := range all {
					expectNil(t, c.SetReadDeadline(now.Add(2*time.Hour+time.Duration(i*j*k)*time.Second)))
					expectNil(t, c.SetWriteDeadline(now.Add(time.Hour+time.Duration(i*j*k)*time.Second)))
					if j%16 == 0 {
						expectNil(t, c.SetReadDeadline(past))
						expectNil(t, c.SetDeadline(never))
					}
				}
			}
		})
	}
	within(t, "the end of the setters", setters.Wait)
	var closers sync.WaitGroup
	for _, c := range all {
		closers.Go(func() { _ = c.SetDeadline(time.Now().Add(time.Millisecond)) })
		closers.Go(func() { c.Close() })
	}
	within(t, "the end of the readers", func() { closers.Wait(); readers.Wait() })
}
