//go:build linux

package conformance

import (
	"bytes"
	"io"
	"math/rand/v2"
	"runtime"
	"syscall"

	"github.com/pollux-go/pollux/poller"
)

// shortReads sends streams in pieces of every size, with urgent data and ends at any place, to readers with buffers of
// every size. A reader that trusts a short read where it must not waits for an edge that has been, and hangs.
func shortReads(e *env) {
	r := e.rig()
	const streams, beside = 120, 4
	for i := 0; i < streams; i += beside {
		var tasks []*task
		for j := range beside {
			d, s := e.desc(r)
			seed := uint64(i + j)
			tasks = append(tasks, e.run(func() error { return e.pour(s, seed) }), e.run(func() error { return e.sip(d, seed) }))
		}
		for k, t := range tasks {
			if _, err := t.wait(); err != nil {
				e.Fatalf("streams from %d on, task %d: %v", i, k, err)
			}
		}
	}
}

// payload is what the stream of a seed carries, urgent data left out.
func payload(seed uint64) []byte {
	random := rand.New(rand.NewPCG(seed, 1))
	p := make([]byte, random.IntN(20_000))
	for i := range p {
		p[i] = byte(random.Uint32())
	}
	return p
}

func (e *env) pour(s *stream, seed uint64) error {
	p := payload(seed)
	random := rand.New(rand.NewPCG(seed, 2))
	urgent := e.network == "tcp" && random.IntN(2) == 0
	for len(p) > 0 {
		n := min(len(p), 1+random.IntN(1<<random.IntN(13)))
		if _, err := s.Write(p[:n]); err != nil {
			return err
		}
		p = p[n:]
		// One urgent byte a stream: a second one would put the first back among the others.
		if urgent && random.IntN(4) == 0 {
			urgent = false
			raw, err := s.Conn.(syscall.Conn).SyscallConn()
			if err != nil {
				return err
			}
			var sendErr error
			if err := raw.Control(func(fd uintptr) {
				_, sendErr = syscall.SendmsgN(int(fd), []byte("!"), nil, nil, syscall.MSG_OOB)
			}); err != nil {
				return err
			}
			if sendErr != nil {
				return sendErr
			}
		}
		for range random.IntN(3) {
			runtime.Gosched()
		}
	}
	if random.IntN(2) == 0 {
		return s.CloseWrite()
	}
	return s.Close()
}

func (e *env) sip(d *poller.Desc, seed uint64) error {
	random := rand.New(rand.NewPCG(seed, 3))
	var got bytes.Buffer
	p := make([]byte, 1<<13)
	for {
		n, err := d.Read(p[:1+random.IntN(1<<random.IntN(14))])
		got.Write(p[:n])
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	if !bytes.Equal(got.Bytes(), payload(seed)) {
		return io.ErrUnexpectedEOF
	}
	return d.Close()
}
