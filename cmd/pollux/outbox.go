package main

import (
	"errors"
	"sync"

	"github.com/pollux-go/pollux"
)

// batchMax is how many bytes of replies are gathered before they are written: a client that pipelines thousands of
// requests gets few sends, and cannot make the server hold more than one batch and one reply in memory.
const batchMax = 64 << 10

// batches holds the buffers in which replies are gathered. They belong to a callback, not to a connection: an idle
// connection holds none.
var batches = sync.Pool{New: func() any {
	b := make([]byte, 0, 4<<10)
	return &b
}}

// freeBatch gives a buffer back, unless one huge reply made it too big to keep.
func freeBatch(b *[]byte) {
	if cap(*b) <= 2*batchMax {
		batches.Put(b)
	}
}

// outbox is the part of a connection's replies that its write queue did not take. While it holds something the
// connection is paused: a client that does not read its replies is not read from either, so that nothing grows.
type outbox struct{ rest []byte }

// blocked reports whether the outbox waits for OnWritable.
func (o *outbox) blocked() bool { return len(o.rest) > 0 }

// send writes p, and keeps what was not taken. It must not be called while blocked.
func (o *outbox) send(c *pollux.Conn, p []byte) error {
	if len(p) == 0 {
		return nil
	}
	n, err := c.Write(p)
	if errors.Is(err, pollux.ErrWouldBlock) {
		o.rest = append([]byte(nil), p[n:]...)
		c.Pause()
		return nil
	}
	return err
}

// retry writes what is left.
func (o *outbox) retry(c *pollux.Conn) error {
	if !o.blocked() {
		return nil
	}
	n, err := c.Write(o.rest)
	o.rest = o.rest[n:]
	if errors.Is(err, pollux.ErrWouldBlock) {
		return nil
	}
	o.rest = nil
	return err
}
