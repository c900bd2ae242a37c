package main

import (
	"time"

	"github.com/pollux-go/pollux"
)

const (
	// endingTime is how long nothing may move on an ending connection before it is cut. It is long because the kernel
	// holds megabytes for a slow reader, and takes more from the write queue only now and then.
	endingTime = time.Minute
	// endingBytes is how much a closing connection may still send before it is cut.
	endingBytes = 1 << 20
)

// ending closes a connection so that its last reply arrives: a socket that is closed with unread input resets the
// connection, and a reset destroys what the peer has not read yet. So the writing side ends first, and what the peer
// still sends is thrown away until it ends too, within bounds.
type ending struct {
	begun bool
	left  int
}

// begin ends the writing side, behind everything that was written. Close would do that too, but gives a slow reader
// only the linger time for what is queued.
func (e *ending) begin(c *pollux.Conn, silence time.Duration) error {
	e.begun, e.left = true, endingBytes
	if err := c.CloseWrite(); err != nil {
		return err
	}
	if err := c.SetIdleTimeout(silence); err != nil {
		return err
	}
	return e.drain(c)
}

// drain is OnData from begin on.
func (e *ending) drain(c *pollux.Conn) error {
	n, err := c.Discard(c.Buffered())
	e.left -= n
	if err != nil || e.left < 0 {
		return c.Close()
	}
	return nil
}
