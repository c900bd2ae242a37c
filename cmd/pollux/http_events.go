package main

import (
	"errors"
	"time"

	"github.com/pollux-go/pollux"

	"github.com/pollux-go/pollux/cmd/pollux/internal/http1"
)

// burstMax is how much of a big body one callback writes before the loop's other connections get their turn.
const burstMax = 1 << 20

// httpHandler serves HTTP/1.1 on the event API; the state of a connection is its context, a *httpConn.
//
// A known weakness: idle bounds a silence, not a whole request, so a client that sends a byte now and then keeps its
// connection. POLLUX_MAX_CONNS bounds how many can do that; a server on the open Internet would also time each head.
type httpHandler struct {
	pollux.NopHandler
	idle    time.Duration
	headMax int
	clock   clock
}

// newHTTPHandler returns a handler whose request heads fit into what the connections may buffer.
func newHTTPHandler(cfg pollux.Config, idle time.Duration) *httpHandler {
	return &httpHandler{idle: idle, headMax: min(http1.HeadMax, cfg.ReadLimit)}
}

// httpConn is what the server remembers of a connection between two callbacks. A request goes through it from top to
// bottom: its head is parsed, its body is skipped, its answer is appended to the batch, and a big answer's body is
// written piece by piece.
type httpConn struct {
	parser http1.Parser
	due    bool   // A request's head is parsed, its answer is not given.
	answer answer // The answer that is due.
	skip   int64  // Bytes of the request's body that are still to be thrown away.
	out    outbox
	size   int64 // The size of the body that is being written,
	left   int64 // and what is left of it.
	last   bool  // The last answer is given: the connection ends behind it.
	full   bool  // The body waits for OnWritable.
	yield  bool  // The body waits for the Async that it asked for.
	eof    bool  // The peer has ended its side.
	ending ending
}

// waits reports whether the connection is paused because of what it has to write.
func (s *httpConn) waits() bool { return s.out.blocked() || s.full || s.yield }

// OnOpen gives the connection its state.
func (h *httpHandler) OnOpen(c *pollux.Conn) error {
	c.SetContext(&httpConn{parser: http1.Parser{HeadMax: h.headMax}})
	if h.idle > 0 {
		return c.SetIdleTimeout(h.idle)
	}
	return nil
}

// OnData answers the requests that are complete.
func (h *httpHandler) OnData(c *pollux.Conn) error {
	s := c.Context().(*httpConn)
	switch {
	case s.ending.begun:
		return s.ending.drain(c)
	case s.waits():
		return nil // Paused; OnWritable or the Async goes on.
	}
	return h.serve(c, s)
}

// OnWritable goes on with what did not fit into the write queue.
func (h *httpHandler) OnWritable(c *pollux.Conn) error {
	s := c.Context().(*httpConn)
	if !s.out.blocked() && !s.full {
		return nil
	}
	s.full = false
	if err := s.out.retry(c); err != nil || s.waits() {
		return err
	}
	return h.proceed(c, s)
}

// OnEOF closes the connection, behind the answers that are being written.
func (h *httpHandler) OnEOF(c *pollux.Conn) error {
	s := c.Context().(*httpConn)
	s.eof = true
	if s.waits() {
		return nil
	}
	return c.Close()
}

// proceed goes on after a pause.
func (h *httpHandler) proceed(c *pollux.Conn, s *httpConn) error {
	if err := h.body(c, s); err != nil || s.waits() {
		return err
	}
	if err := h.serve(c, s); err != nil || s.waits() {
		return err
	}
	c.Resume()
	return nil
}

// serve answers requests, a batch at a time, until they are done, the answers are not taken any more, or the
// connection ends.
func (h *httpHandler) serve(c *pollux.Conn, s *httpConn) error {
	buf := batches.Get().(*[]byte)
	defer freeBatch(buf)
	for more := true; more && !s.last && !s.waits(); {
		var err error
		if *buf, more, err = h.batch(c, s, (*buf)[:0]); err != nil {
			return err
		}
		if err = s.out.send(c, *buf); err != nil {
			return err
		}
		if !s.out.blocked() {
			if err = h.body(c, s); err != nil {
				return err
			}
		}
	}
	switch {
	case s.waits():
		return nil
	case s.eof:
		return c.Close()
	case s.last:
		silence := endingTime
		if h.idle > 0 {
			silence = min(silence, h.idle)
		}
		return s.ending.begin(c, silence)
	}
	return nil
}

// batch answers requests until out is a batch or a big body is to follow. more is false when only an incomplete
// request is left.
func (h *httpHandler) batch(c *pollux.Conn, s *httpConn, out []byte) (_ []byte, more bool, err error) {
	b, err := c.Peek(-1)
	if err != nil {
		return out, false, err
	}
	off := 0
	for more = true; more && !s.last && s.left == 0 && len(out) < batchMax; {
		if !s.due {
			var (
				r       http1.Request
				refused *http1.StatusError
			)
			n, err := s.parser.Next(b[off:], &r)
			if errors.Is(err, http1.ErrIncomplete) {
				more = false
				break
			}
			if errors.As(err, &refused) {
				out = h.refuse(s, out, refused)
				break
			}
			off += n
			if out = h.accept(s, out, &r); s.last {
				break
			}
		}
		n := min(s.skip, int64(len(b)-off))
		off, s.skip = off+int(n), s.skip-n
		if s.skip > 0 {
			more = false
			break
		}
		out = h.reply(s, out)
	}
	_, err = c.Discard(off)
	return out, more, err
}

// body writes the body of a big answer until it is done, the write queue is full, or others should have their turn.
func (h *httpHandler) body(c *pollux.Conn, s *httpConn) error {
	for burst := int64(0); s.left > 0; {
		if burst >= burstMax {
			s.yield = true
			c.Pause()
			return c.Async(h.turn)
		}
		at := (s.size - s.left) % int64(len(fill))
		p := fill[at:]
		n, err := c.Write(p[:min(int64(len(p)), s.left)])
		s.left -= int64(n)
		burst += int64(n)
		if errors.Is(err, pollux.ErrWouldBlock) {
			s.full = true
			c.Pause()
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// turn goes on with a body that has let others have their turn.
func (h *httpHandler) turn(c *pollux.Conn) {
	s := c.Context().(*httpConn)
	s.yield = false
	if s.waits() {
		return
	}
	if err := h.proceed(c, s); err != nil {
		c.Close()
	}
}
