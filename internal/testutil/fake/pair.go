package fake

import (
	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/poller"
)

// An End is one end of a stream in memory. Its methods never block, and answer as the system calls do.
type End struct {
	backend *Backend
	fd      int
	peer    *End

	in      []byte // what the peer has written and nobody has read
	most    int    // bytes that in holds
	full    bool   // a write of the peer was refused: reading makes an edge
	shut    bool   // we have ended our writing direction
	closed  bool
	failure sys.Errno // pending error, reported once
}

// Pair makes two connected ends that hold so many unread bytes each.
func (b *Backend) Pair(most int) (*End, *End) {
	b.mu.Lock()
	defer b.mu.Unlock()
	x, y := b.end(most), b.end(most)
	x.peer, y.peer = y, x
	return x, y
}

func (b *Backend) end(most int) *End {
	// The lowest free number, as the kernel does: numbers come back at once.
	fd := firstEnd
	for b.ends[fd] != nil {
		fd++
	}
	e := &End{backend: b, fd: fd, most: most}
	b.ends[fd] = e
	return e
}

// Fd returns the number to register the end under.
func (e *End) Fd() int { return e.fd }

// level is what poll(2) would say. The backend's lock is held.
func (e *End) level() (r poller.Ready) {
	ended := e.peer.shut || e.peer.closed || e.failure != 0
	if len(e.in) > 0 || ended {
		r |= poller.Readable
	}
	if len(e.peer.in) < e.peer.most || e.shut || e.peer.closed {
		r |= poller.Writable
	}
	if ended {
		r |= poller.PeerClosed
	}
	if e.peer.closed || e.peer.shut && e.shut {
		r |= poller.HungUp
	}
	if e.failure != 0 {
		r |= poller.Failed
	}
	return r
}

// Read takes bytes out. It answers 0 at the end of the stream, and EAGAIN when nothing is there.
func (e *End) Read(p []byte) (int, sys.Errno) {
	e.backend.mu.Lock()
	defer e.backend.mu.Unlock()
	switch {
	case e.closed:
		return 0, sys.EBADF
	case e.failure != 0:
		errno := e.failure
		e.failure = 0
		return 0, errno
	case len(p) == 0:
		return 0, 0
	case len(e.in) > 0:
		n := copy(p, e.in)
		e.in = e.in[n:]
		if e.full {
			e.full = false
			e.backend.edge(e.peer.fd)
		}
		return n, 0
	case e.peer.shut || e.peer.closed:
		return 0, 0
	}
	return 0, sys.EAGAIN
}

// Write gives bytes to the peer: as many as there is room for, EAGAIN if there is none.
func (e *End) Write(p []byte) (int, sys.Errno) {
	e.backend.mu.Lock()
	defer e.backend.mu.Unlock()
	switch {
	case e.closed:
		return 0, sys.EBADF
	case e.failure != 0:
		errno := e.failure
		e.failure = 0
		return 0, errno
	case e.shut || e.peer.closed:
		return 0, sys.EPIPE
	}
	n := min(len(p), e.peer.most-len(e.peer.in))
	if n < len(p) {
		e.peer.full = true
	}
	if n == 0 && len(p) > 0 {
		return 0, sys.EAGAIN
	}
	e.peer.in = append(e.peer.in, p[:n]...)
	e.backend.edge(e.peer.fd)
	return n, 0
}

// CloseWrite ends our writing direction.
func (e *End) CloseWrite() {
	e.backend.mu.Lock()
	defer e.backend.mu.Unlock()
	if e.shut {
		return
	}
	e.shut = true
	e.backend.edge(e.peer.fd)
	if e.peer.shut {
		e.backend.edge(e.fd)
	}
}

// Close closes the end; its number is free for the next one.
func (e *End) Close() { e.close(0) }

// Reset closes the end so that the peer fails.
func (e *End) Reset() { e.close(sys.ECONNRESET) }

func (e *End) close(failure sys.Errno) {
	b := e.backend
	b.mu.Lock()
	defer b.mu.Unlock()
	if e.closed {
		return
	}
	e.closed = true
	b.forget(e.fd)
	delete(b.ends, e.fd)
	if failure != 0 && !e.peer.closed {
		e.peer.failure = failure
		e.peer.in = nil
	}
	if !e.peer.closed {
		b.edge(e.peer.fd)
	}
}
