//go:build linux

package test

import (
	"bytes"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pollux-go/pollux"
	"github.com/pollux-go/pollux/internal/testutil"
)

// halfCloser is what a *net.TCPConn, a *net.UnixConn and a *pollux.NetConn have in common beyond net.Conn.
type halfCloser interface {
	net.Conn
	CloseRead() error
	CloseWrite() error
	SetReadBuffer(int) error
	SetWriteBuffer(int) error
	SyscallConn() (syscall.RawConn, error)
}

// readNothing reads and reports what a caller sees.
func readNothing(c net.Conn) (int, error) { return c.Read(make([]byte, 16)) }

// reset makes the peer of a TCP connection get a reset.
func reset(t testing.TB, c net.Conn) {
	t.Helper()
	l, ok := c.(interface{ SetLinger(int) error })
	if !ok {
		t.Fatalf("a %T has no SetLinger", c)
	}
	if err := l.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

// fill writes until the connection takes no more, and returns how many bytes that were.
func fill(t testing.TB, c net.Conn) (total int) {
	t.Helper()
	piece := make([]byte, 64<<10)
	for {
		if err := c.SetWriteDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		n, err := c.Write(piece)
		total += n
		if err != nil {
			expectTimeout(t, err)
			if err := c.SetWriteDeadline(never); err != nil {
				t.Fatal(err)
			}
			return total
		}
	}
}

// TestAfterClose checks every method of a closed connection.
func TestAfterClose(t *testing.T) {
	parityNetworks(t, func(t *testing.T, s stack, network string, tr *trace) {
		c, _ := pair(t, s, std, network)
		tr.conn(c)
		local, remote := c.LocalAddr().String(), c.RemoteAddr().String()
		tr.see("Close", 0, c.Close())
		n, err := readNothing(c)
		tr.see("Read", n, err)
		expectClosed(t, err)
		n, err = c.Read(nil)
		tr.see("Read of nothing", n, err)
		n, err = c.Write([]byte("x"))
		tr.see("Write", n, err)
		expectClosed(t, err)
		n, err = c.Write(nil)
		tr.see("Write of nothing", n, err)
		err = c.Close()
		tr.see("second Close", 0, err)
		expectClosed(t, err)
		err = c.SetDeadline(time.Now().Add(time.Hour))
		tr.see("SetDeadline", 0, err)
		expectClosed(t, err)
		tr.see("SetReadDeadline", 0, c.SetReadDeadline(past))
		tr.see("SetWriteDeadline", 0, c.SetWriteDeadline(never))
		h := c.(halfCloser)
		tr.see("CloseRead", 0, h.CloseRead())
		tr.see("CloseWrite", 0, h.CloseWrite())
		tr.see("SetReadBuffer", 0, h.SetReadBuffer(4096))
		tr.see("SetWriteBuffer", 0, h.SetWriteBuffer(4096))
		if network == "tcp" {
			k := c.(interface {
				SetNoDelay(bool) error
				SetKeepAlive(bool) error
				SetKeepAlivePeriod(time.Duration) error
				SetLinger(int) error
			})
			tr.see("SetNoDelay", 0, k.SetNoDelay(true))
			tr.see("SetKeepAlive", 0, k.SetKeepAlive(true))
			tr.see("SetKeepAlivePeriod", 0, k.SetKeepAlivePeriod(time.Second))
			tr.see("SetLinger", 0, k.SetLinger(0))
		}
		raw, err := h.SyscallConn()
		tr.see("SyscallConn", raw != nil, err)
		if err == nil {
			called := false
			tr.see("Control", called, raw.Control(func(uintptr) { called = true }))
			tr.see("raw Read", called, raw.Read(func(uintptr) bool { called = true; return true }))
			tr.see("raw Write", called, raw.Write(func(uintptr) bool { called = true; return true }))
			if called {
				t.Error("a function was given the descriptor of a closed connection")
			}
		}
		if c.LocalAddr().String() != local || c.RemoteAddr().String() != remote {
			t.Errorf("the addresses after the Close are %v and %v, before they were %s and %s", c.LocalAddr(), c.RemoteAddr(), local, remote)
		}
	})
}

// TestReset checks reads and writes on a connection that the peer has reset.
func TestReset(t *testing.T) {
	for _, wait := range []string{"reset comes first", "reset finds a reader"} {
		t.Run(wait, func(t *testing.T) {
			parity(t, func(t *testing.T, s stack, tr *trace) {
				c, peer := pair(t, s, std, "tcp")
				tr.conn(c)
				if wait == "reset comes first" {
					reset(t, peer)
				} else {
					defer time.AfterFunc(10*time.Millisecond, func() { reset(t, peer) }).Stop()
				}
				n, err := readNothing(c)
				tr.see("Read", n, err)
				expectErrno(t, err, syscall.ECONNRESET)
				n, err = readNothing(c)
				tr.see("Read again", n, err)
				expectEOF(t, err)
				n, err = c.Write([]byte("x"))
				tr.see("Write", n, err)
				expectErrno(t, err, syscall.EPIPE)
				tr.see("Close", 0, c.Close())
			})
		})
	}
}

// TestWriteOnReset checks that a reset ends a Write that waits for room, with the number of bytes that the kernel took.
func TestWriteOnReset(t *testing.T) {
	parity(t, func(t *testing.T, s stack, tr *trace) {
		c, peer := pair(t, s, std, "tcp")
		tr.conn(c)
		took := fill(t, c)
		if took == 0 {
			t.Fatal("nothing was written")
		}
		result := make(chan error, 1)
		go func() {
			_, err := c.Write(make([]byte, 1<<20))
			result <- err
		}()
		reset(t, peer)
		err := await(t, "the end of a Write", result)
		tr.see("Write that waits", 0, err)
		expectErrno(t, err, syscall.ECONNRESET)
		n, err := c.Write([]byte("x"))
		tr.see("Write after it", n, err)
		expectErrno(t, err, syscall.EPIPE)
	})
}

// TestWriteToClosedUnix checks a Write to a peer that is gone.
func TestWriteToClosedUnix(t *testing.T) {
	parity(t, func(t *testing.T, s stack, tr *trace) {
		c, peer := pair(t, s, std, "unix")
		tr.conn(c)
		peer.Close()
		n, err := c.Write([]byte("x"))
		tr.see("Write", n, err)
		expectErrno(t, err, syscall.EPIPE)
		n, err = readNothing(c)
		tr.see("Read", n, err)
		expectEOF(t, err)
	})
}

// TestEndOfStream checks that the end of a stream is a bare io.EOF, each time anew, behind all bytes, and that it does
// not end the other direction.
func TestEndOfStream(t *testing.T) {
	parityNetworks(t, func(t *testing.T, s stack, network string, tr *trace) {
		c, peer := pair(t, s, std, network)
		if _, err := peer.Write([]byte("last words")); err != nil {
			t.Fatal(err)
		}
		expectNil(t, peer.(halfCloser).CloseWrite())
		b := make([]byte, 100)
		n, err := io.ReadFull(c, b)
		tr.see("ReadFull", n, err)
		if string(b[:n]) != "last words" {
			t.Errorf("read %q", b[:n])
		}
		for range 3 {
			n, err := c.Read(b)
			tr.see("Read", n, err)
			expectEOF(t, err)
		}
		n, err = c.Read(nil)
		tr.see("Read of nothing", n, err)
		n, err = c.Write([]byte("the answer"))
		tr.see("Write", n, err)
		expectNil(t, c.Close())
		got, err := io.ReadAll(peer)
		tr.see("ReadAll", string(got), err)
	})
}

// TestHalfClose checks CloseWrite and CloseRead of this end.
func TestHalfClose(t *testing.T) {
	parityNetworks(t, func(t *testing.T, s stack, network string, tr *trace) {
		c, peer := pair(t, s, std, network)
		tr.conn(c)
		h := c.(halfCloser)
		tr.see("CloseWrite", 0, h.CloseWrite())
		n, err := c.Write([]byte("x"))
		tr.see("Write after CloseWrite", n, err)
		expectErrno(t, err, syscall.EPIPE)
		n, err = readNothing(peer)
		tr.see("the peer's Read", n, err)
		expectEOF(t, err)
		if _, err := peer.Write([]byte("still open")); err != nil {
			t.Fatal(err)
		}
		n, err = readNothing(c)
		tr.see("Read after CloseWrite", n, err)
		tr.see("second CloseWrite", 0, h.CloseWrite())
		tr.see("CloseRead", 0, h.CloseRead())
		n, err = readNothing(c)
		tr.see("Read after CloseRead", n, err)
		expectEOF(t, err)
	})
}

// TestCloseReadEndsRead checks that CloseRead ends a Read that waits, also one that knows already that nothing is there.
func TestCloseReadEndsRead(t *testing.T) {
	parityNetworks(t, func(t *testing.T, s stack, network string, tr *trace) {
		c, peer := pair(t, s, std, network)
		if _, err := peer.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		n, err := readNothing(c) // A short read, after which the next one waits first.
		tr.see("Read", n, err)
		result := make(chan error, 1)
		go func() {
			_, err := readNothing(c)
			result <- err
		}()
		expectNil(t, c.(halfCloser).CloseRead())
		err = await(t, "the end of a Read", result)
		tr.see("Read that waits", 0, err)
		expectEOF(t, err)
	})
}

// TestZeroLengthRead checks that a Read of nothing returns at once, data or none, deadline or none, and takes no byte.
func TestZeroLengthRead(t *testing.T) {
	parityNetworks(t, func(t *testing.T, s stack, network string, tr *trace) {
		c, peer := pair(t, s, std, network)
		n, err := c.Read(nil)
		tr.see("without data", n, err)
		expectNil(t, err)
		if _, err := peer.Write([]byte("ab")); err != nil {
			t.Fatal(err)
		}
		n, err = c.Read([]byte{})
		tr.see("with data", n, err)
		expectNil(t, c.SetReadDeadline(past))
		n, err = c.Read(nil)
		tr.see("after the deadline", n, err)
		expectNil(t, c.SetReadDeadline(never))
		b := make([]byte, 2)
		n, err = io.ReadFull(c, b)
		tr.see("the data", string(b[:n]), err)
		n, err = c.Write(nil)
		tr.see("Write of nothing", n, err)
		expectNil(t, c.SetWriteDeadline(past))
		n, err = c.Write(nil)
		tr.see("Write of nothing after the deadline", n, asTimeout(err))
	})
}

// TestCloseEndsEverything checks that Close ends all calls that wait on a connection or queue for it, with net.ErrClosed
// and never with EBADF, and returns when they have left.
func TestCloseEndsEverything(t *testing.T) {
	parityNetworks(t, func(t *testing.T, s stack, network string, tr *trace) {
		c, _ := pair(t, s, std, network)
		tr.conn(c)
		fill(t, c)
		const each = 8
		results := make(chan error, 2*each)
		var started sync.WaitGroup
		for range each {
			started.Add(2)
			go func() {
				started.Done()
				_, err := readNothing(c)
				results <- err
			}()
			go func() {
				started.Done()
				_, err := c.Write(make([]byte, 1<<20))
				results <- err
			}()
		}
		started.Wait()
		within(t, "Close", func() { tr.see("Close", 0, c.Close()) })
		seen := map[string]bool{}
		for range 2 * each {
			err := await(t, "the end of a Read or Write", results)
			expectClosed(t, err)
			seen[describe(err)] = true
		}
		if len(seen) != 2 {
			t.Errorf("the calls returned %d different errors, want one for reads and one for writes: %v", len(seen), seen)
		}
	})
}

// TestRawConn checks SyscallConn: its functions get the descriptor, are called again after a wait, and obey deadlines.
func TestRawConn(t *testing.T) {
	parityNetworks(t, func(t *testing.T, s stack, network string, tr *trace) {
		c, peer := pair(t, s, std, network)
		tr.conn(c)
		raw, err := c.(syscall.Conn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		kind := -1
		err = raw.Control(func(fd uintptr) { kind, _ = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_TYPE) })
		tr.see("Control", kind, err)
		if kind != syscall.SOCK_STREAM {
			t.Errorf("Control: the socket is of type %d", kind)
		}

		b := make([]byte, 16)
		calls, n := 0, 0
		wrote := make(chan error, 1)
		err = raw.Read(func(fd uintptr) bool {
			if calls++; calls == 1 {
				go func() { // Only now, so that the first call has found nothing.
					_, err := peer.Write([]byte("raw"))
					wrote <- err
				}()
				var errno error
				n, errno = syscall.Read(int(fd), b)
				if errno == nil {
					calls++ // The bytes were fast: as good.
					return true
				}
				if errno != syscall.EAGAIN {
					t.Errorf("read(2): %v", errno)
				}
				return false
			}
			var errno error
			n, errno = syscall.Read(int(fd), b)
			return errno != syscall.EAGAIN
		})
		tr.see("Read", string(b[:n]), err)
		if calls < 2 {
			t.Errorf("the function was called %d times", calls)
		}
		expectNil(t, await(t, "the peer's Write", wrote))

		err = raw.Write(func(fd uintptr) bool { n, _ = syscall.Write(int(fd), []byte("back")); return true })
		tr.see("Write", n, err)
		n, err = io.ReadFull(peer, b[:4])
		tr.see("what the peer read", string(b[:n]), err)

		expectNil(t, c.SetReadDeadline(time.Now().Add(5*time.Millisecond)))
		err = raw.Read(func(uintptr) bool { return false })
		tr.see("Read after the deadline", 0, err)
		expectTimeout(t, err)
		expectNil(t, c.SetReadDeadline(never))

		// A raw read that leaves bytes behind must not hide them from the next Read, not even when one before has found
		// everything read.
		if _, err := peer.Write([]byte("w")); err != nil {
			t.Fatal(err)
		}
		n, err = c.Read(b)
		tr.see("Read of all there is", string(b[:n]), err)
		if _, err := peer.Write([]byte("xyz")); err != nil {
			t.Fatal(err)
		}
		err = raw.Read(func(fd uintptr) bool { n, err = syscall.Read(int(fd), b[:1]); return err != syscall.EAGAIN })
		tr.see("Read of one byte", n, err)
		n, err = io.ReadFull(c, b[:2])
		tr.see("Read of the rest", string(b[:n]), err)
	})
}

// TestCloseWaits checks that Close does not return while a function of SyscallConn has the descriptor, whose number would
// be another file's by then.
func TestCloseWaits(t *testing.T) {
	parityNetworks(t, func(t *testing.T, s stack, network string, tr *trace) {
		c, _ := pair(t, s, std, network)
		raw, err := c.(syscall.Conn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		entered, release := make(chan struct{}), make(chan struct{})
		controlled, closed := make(chan error, 1), make(chan error, 1)
		go func() {
			controlled <- raw.Control(func(fd uintptr) {
				close(entered)
				<-release
				if _, err := syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_TYPE); err != nil {
					t.Errorf("the descriptor is gone under the function: %v", err)
				}
			})
		}()
		await(t, "the call of the function", entered)
		go func() { closed <- c.Close() }()
		select {
		case err := <-closed:
			t.Errorf("Close has not waited: %v", err)
			closed <- err
		case <-time.After(soon):
		}
		close(release)
		tr.see("Control", 0, await(t, "the end of Control", controlled))
		tr.see("Close", 0, await(t, "the end of Close", closed))
	})
}

// TestRawReadEndsByClose checks that Close ends a raw read that waits.
func TestRawReadEndsByClose(t *testing.T) {
	parityNetworks(t, func(t *testing.T, s stack, network string, tr *trace) {
		c, _ := pair(t, s, std, network)
		tr.conn(c)
		raw, err := c.(syscall.Conn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		asked := make(chan struct{}, 16)
		result := make(chan error, 1)
		go func() { result <- raw.Read(func(uintptr) bool { asked <- struct{}{}; return false }) }()
		await(t, "the first call of the function", asked)
		expectNil(t, c.Close())
		err = await(t, "the end of the raw read", result)
		tr.see("Read", 0, err)
		expectClosed(t, err)
	})
}

// TestWritesDoNotMix has many goroutines write records that fill the send buffer many times over. Every record must
// arrive whole: a Write is atomic towards the others, also where it has to wait in its middle.
func TestWritesDoNotMix(t *testing.T) {
	const writers, records = 16, 60
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			s := ours(t)
			c, peer := pair(t, s, std, network)
			expectNil(t, c.(halfCloser).SetWriteBuffer(8<<10))
			var wg sync.WaitGroup
			defer wg.Wait()
			defer c.Close()
			for id := range uint64(writers) {
				wg.Go(func() {
					for sequence := range uint64(records) {
						record := testutil.AppendRecord(nil, id, sequence, int(1+id*1021+sequence*131))
						var n int
						var err error
						if sequence%2 == 0 {
							n, err = c.Write(record)
						} else { // Writev queues with Write.
							var n64 int64
							n64, err = c.(*pollux.NetConn).Writev(record[:10], record[10:20], nil, record[20:])
							n = int(n64)
						}
						if n != len(record) || err != nil {
							t.Errorf("writer %d: %d of %d bytes written: %v", id, n, len(record), err)
							return
						}
					}
				})
			}
			go func() {
				wg.Wait()
				c.Close()
			}()
			next := [writers]uint64{}
			for range writers * records {
				id, err := readAny(peer, &next)
				if err != nil {
					t.Fatal(err)
				}
				next[id]++
			}
			_, err := readNothing(peer)
			expectEOF(t, err)
		})
	}
}

// readAny reads a record of any stream; its head says of which.
func readAny(r io.Reader, next *[16]uint64) (id uint64, err error) {
	var head [8]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, err
	}
	id = uint64(head[7])
	sequence := uint64(0)
	if id < uint64(len(next)) {
		sequence = next[id]
	}
	return id, testutil.ReadRecord(io.MultiReader(bytes.NewReader(head[:]), r), id, sequence)
}

// TestWritev writes thousands of slices, more than one system call takes and more bytes than the socket holds.
func TestWritev(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			s := ours(t)
			c, peer := pair(t, s, std, network)
			nc := c.(*pollux.NetConn)
			var bufs [][]byte
			var want []byte
			for i := range 5000 {
				b := bytes.Repeat([]byte{byte(i)}, i%700)
				bufs = append(bufs, b)
				want = append(want, b...)
			}
			first := &bufs[1][0]
			got := make([]byte, len(want))
			var n int
			var err error
			done := make(chan struct{})
			go func() {
				n, err = io.ReadFull(peer, got)
				close(done)
			}()
			m, writeErr := nc.Writev(bufs...)
			if m != int64(len(want)) || writeErr != nil {
				t.Fatalf("Writev = %d, %v; want %d", m, writeErr, len(want))
			}
			await(t, "the end of the read", done)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("the peer read %d bytes (%v), which are not what was written", n, err)
			}
			if len(bufs) != 5000 || len(bufs[1]) != 1 || &bufs[1][0] != first {
				t.Error("Writev has changed its caller's slices")
			}
			for _, none := range [][][]byte{nil, {}, {nil}, {{}, nil, {}}} {
				if n, err := nc.Writev(none...); n != 0 || err != nil {
					t.Errorf("Writev of nothing = %d, %v", n, err)
				}
			}
			// Nobody reads any more: a deadline ends it, with the number of bytes that are on their way.
			expectNil(t, nc.SetWriteDeadline(time.Now().Add(30*time.Millisecond)))
			var sent int64
			for writeErr = nil; writeErr == nil; {
				m, writeErr = nc.Writev(bufs...)
				sent += m
			}
			expectTimeout(t, writeErr)
			c.Close()
			if rest, err := io.Copy(io.Discard, peer); err != nil || rest != sent {
				t.Errorf("the peer read %d bytes more (%v); Writev said %d", rest, err, sent)
			}
			m, err = nc.Writev(bufs...)
			if m != 0 {
				t.Errorf("Writev after Close wrote %d bytes", m)
			}
			expectClosed(t, err)
		})
	}
}

// TestNetBuffers writes a net.Buffers, which package net alone turns into one call: here it is a Write a slice.
func TestNetBuffers(t *testing.T) {
	parityNetworks(t, func(t *testing.T, s stack, network string, tr *trace) {
		c, peer := pair(t, s, std, network)
		bufs := net.Buffers{[]byte("one "), nil, []byte("two "), []byte("three")}
		n, err := bufs.WriteTo(c)
		tr.see("WriteTo", n, err)
		expectNil(t, c.Close())
		got, err := io.ReadAll(peer)
		tr.see("ReadAll", string(got), err)
	})
}

// TestLargeTransfer moves more than any buffer holds in both directions at once, with io.Copy.
func TestLargeTransfer(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			s := ours(t)
			c, peer := pair(t, s, s, network)
			const size = 10 << 20
			var wg sync.WaitGroup
			for _, end := range []net.Conn{c, peer} {
				wg.Go(func() {
					n, err := io.Copy(end, io.LimitReader(&pattern{}, size))
					if n != size || err != nil {
						t.Errorf("written: %d, %v", n, err)
					}
					expectNil(t, end.(halfCloser).CloseWrite())
				})
				wg.Go(func() {
					check := &pattern{}
					n, err := io.CopyBuffer(struct{ io.Writer }{check}, end, make([]byte, 61<<10))
					if n != size || err != nil {
						t.Errorf("read: %d, %v", n, err)
					}
				})
			}
			within(t, "the end of the transfer", wg.Wait)
		})
	}
}

// pattern is an endless stream in which every byte depends on its place; written to, it checks.
type pattern struct{ at uint64 }

func (p *pattern) byte() byte {
	b := byte(p.at*0x9e3779b97f4a7c15>>56) ^ byte(p.at)
	p.at++
	return b
}

func (p *pattern) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = p.byte()
	}
	return len(b), nil
}

func (p *pattern) Write(b []byte) (int, error) {
	for i := range b {
		if at := p.at; b[i] != p.byte() {
			return i, &patternError{at}
		}
	}
	return len(b), nil
}
