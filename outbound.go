package pollux

import (
	"os"
	"sync/atomic"

	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/internal/tally"
)

// corkMost is the largest write that is gathered inside a callback: beyond, copying costs more than a system call saves.
const corkMost = 4 << 10

// corkSize is how much a callback gathers before it is sent.
const corkSize = 16 << 10

// outbound is what has been accepted for sending and not taken by the kernel, in one piece.
//
// It is protected by the mutex of its connection. While a callback runs, the connection uses the loop's, which has
// its memory already; what that cannot send is moved to one of its own when the callback returns.
type outbound struct {
	buf  []byte
	head int // buf[head:] is unsent

	// flight is what a completer is sending, ahead of buf; nil: nothing. The connection is blocked meanwhile, so that
	// nothing overtakes it. It lies in store, which nothing else uses.
	flight, store []byte
}

func (o *outbound) len() int {
	if o == nil {
		return 0
	}
	return len(o.buf) - o.head
}

// add appends p. It moves the unsent bytes to the front before it grows, and grows to at most limit.
func (o *outbound) add(p []byte, limit int) {
	if len(o.buf)+len(p) > cap(o.buf) && o.head > 0 {
		o.buf = o.buf[:copy(o.buf, o.buf[o.head:])]
		o.head = 0
	}
	if need := len(o.buf) + len(p); need > cap(o.buf) {
		grown := make([]byte, len(o.buf), max(need, min(2*cap(o.buf), limit)))
		copy(grown, o.buf)
		o.buf = grown
	}
	o.buf = append(o.buf, p...)
}

// queued returns how many bytes were accepted and not taken by the kernel. mu is held.
func (c *Conn) queued() int {
	if c.out == nil {
		return 0
	}
	return len(c.out.flight) + c.out.len()
}

// write is Write with the mutex held.
func (c *Conn) write(p []byte) (int, error) {
	if c.state.Load() != stateOpen {
		return 0, ErrClosed
	}
	corked := c.corked()
	if corked && len(p) <= corkMost && c.out.len()+len(p) <= corkSize && c.queued()+len(p) <= c.service.writeLimit {
		// The callback's return sends it.
		if c.out == nil {
			c.out = &c.loop.cork
		}
		c.out.add(p, c.service.writeLimit)
		return len(p), nil
	}
	sent := 0
	if !c.blocked.Load() {
		if c.out.len() > 0 {
			if len(p) <= corkMost && c.out.len() < corkSize && c.out.len()+len(p) <= c.service.writeLimit {
				c.out.add(p, c.service.writeLimit) // One system call for both.
				sent = len(p)
			}
			if err := c.flush(); err != nil {
				return 0, err
			}
			if sent > 0 {
				return sent, nil
			}
		}
		if c.out.len() == 0 {
			n, err := c.send(p)
			if err != nil {
				return 0, err
			}
			sent = n
		}
	}
	return c.queue(p, sent)
}

// queue accepts what of p was not sent, up to the limit.
func (c *Conn) queue(p []byte, sent int) (int, error) {
	rest := p[sent:]
	if len(rest) == 0 {
		return sent, nil
	}
	limit := c.service.writeLimit
	fits := min(len(rest), max(0, limit-c.queued()))
	if fits > 0 {
		if c.out == nil {
			c.out = new(outbound)
		}
		c.out.add(rest[:fits], limit)
		if c.isDirect() {
			c.flushDirect()
		}
	}
	if fits < len(rest) {
		c.asked |= askWritable
		return sent + fits, ErrWouldBlock
	}
	return len(p), nil
}

// send gives p to the kernel as far as it takes it. It marks the connection as blocked when the socket is full.
func (c *Conn) send(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		rest := len(p) - n
		m, errno := sys.Send(int(c.fd), p[n:])
		n += m
		if done, err := c.sent(m, rest, errno); done {
			return n, err
		}
	}
	return n, nil
}

// sendv writes bufs, of total bytes, where nothing is queued.
func (c *Conn) sendv(bufs [][]byte, total int) (int, error) {
	offered := total
	if len(bufs) > sys.IovecsMax {
		offered = 0 // It is not known.
	}
	n, errno := sys.Sendv(int(c.fd), bufs)
	done, err := c.sent(n, offered, errno)
	if errno == sys.EAGAIN && !done {
		n, errno = sys.Sendv(int(c.fd), bufs)
		done, err = c.sent(n, offered, errno)
	}
	if err != nil {
		return 0, err
	}
	sum := n
	for _, b := range bufs {
		if n >= len(b) {
			n -= len(b)
			continue
		}
		b = b[n:]
		n = 0
		// The rest goes the common way, which queues it behind what the kernel has taken. It never overtakes: as soon as
		// something is queued, everything else is.
		var m int
		if done || c.queued() > 0 {
			m, err = c.queue(b, 0)
		} else {
			m, err = c.write(b)
		}
		sum += m
		if err != nil {
			return sum, err
		}
	}
	return sum, nil
}

// sendCounts counts sends by system calls.
//
// A loop's own are those in a callback that runs there. Whoever sends for its connection then holds the connection's mutex, without
// which the loop does not leave the callback: so they have one writer at a time. All others have any number of them.
type sendCounts struct {
	own   [sendResults]tally.Counter
	_     [64]byte // The others are not to slow the loop down.
	other [sendResults]atomic.Uint64
	_     [64]byte
}

// What has come of a send. Every one is among the first.
const (
	sendMade = iota
	sendShort
	sendEAGAIN
	sendResults
)

func (s *sendCounts) note(result int, own bool) {
	if own {
		s.own[result].Add(1)
	} else {
		s.other[result].Add(1)
	}
}

func (s *sendCounts) load(result int) uint64 { return s.own[result].Load() + s.other[result].Load() }

// sent looks at the result of a send of so many bytes, n of which the kernel has taken. done says that it makes no sense to go on.
func (c *Conn) sent(n, of int, errno sys.Errno) (done bool, err error) {
	own := c.corked()
	if own || c.asked&withWorker != 0 {
		c.asked |= spoke
	}
	c.loop.sends.note(sendMade, own)
	switch {
	case errno == sys.EAGAIN:
		c.loop.sends.note(sendEAGAIN, own)
	case errno == 0 && n < of:
		c.loop.sends.note(sendShort, own)
	}
	switch errno {
	case 0:
		if n > 0 {
			c.progress()
			if c.blocked.Load() {
				c.blocked.Store(false)
			}
		}
		return false, nil
	case sys.EAGAIN:
		if c.blocked.Load() {
			if c.loop.completer != nil {
				c.ask(askPoll)
			}
			return true, nil
		}
		// The edge that says that there is room again may come before blocked is set, and the loop would pass it by.
		// So the send is tried once more after that: if the socket is still full, the edge is yet to come.
		c.blocked.Store(true)
		return false, nil
	case sys.ENOBUFS, sys.ENOMEM:
		// The kernel has no memory at the moment. No edge will say when it has: the loop's timer tries again.
		c.blocked.Store(true)
		c.ask(askRetry)
		return true, nil
	}
	if c.loop.completer != nil {
		c.ask(askBroken) // The receive that is armed may not hear of it: see alive.
	}
	return true, os.NewSyscallError(sys.OpSend.String(), errno)
}

// flush sends what is queued, and sees to it that OnWritable is called if that makes room.
func (c *Conn) flush() error {
	err := c.flushQueue()
	if c.asked&askWritable != 0 && err == nil && c.queued() <= c.service.writeLow {
		c.ask(askDrained) // No edge will come for room that was there before it was asked for.
	}
	return err
}

// flushQueue sends what is queued, as far as the kernel takes it, and what is to follow the last byte.
func (c *Conn) flushQueue() error {
	if c.isDirect() {
		c.flushDirect()
		return nil
	}
	if c.out != nil && c.out.flight != nil {
		return nil // The queue follows when the completer has sent it.
	}
	o := c.out
	for o.len() > 0 {
		rest := o.len()
		n, errno := sys.Send(int(c.fd), o.buf[o.head:])
		o.head += n
		done, err := c.sent(n, rest, errno)
		if err != nil {
			return err
		}
		if done {
			break
		}
	}
	if o.len() > 0 {
		return nil
	}
	c.blocked.Store(false)
	if o != nil {
		o.buf, o.head = o.buf[:0], 0
		c.out = nil
		if c.state.Load() == stateFinished {
			return c.shutdownWrite()
		}
	}
	return nil
}
