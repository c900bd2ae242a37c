package pollux

// A Handler gets the events of connections. Embed [NopHandler] and write the methods that matter: OnData is enough for
// a server.
//
// One callback of a connection runs at a time, in the order of the events; callbacks of different connections run at
// the same time, so what they share needs its own protection. Callbacks run on an event loop, whose other connections wait
// meanwhile, or on a worker: see Config.Dispatch. Unless it is "workers", they should not block.
//
// An error that a callback returns closes the connection, after what was queued has been sent, and is what OnClose gets.
// A panic closes the connection at once, and no other; OnClose gets a [*PanicError].
type Handler interface {
	// OnOpen is called once, before everything else, when a connection has been accepted or dialed.
	OnOpen(c *Conn) error

	// OnData is called when bytes have arrived. What it does not consume stays buffered, and comes with the next bytes.
	OnData(c *Conn) error

	// OnEOF is called once, after the last OnData, when the peer has shut down its writing direction. The peer may still
	// read: whoever answers later must return nil without closing. The default closes, after what is queued was sent.
	OnEOF(c *Conn) error

	// OnWritable is called after a Write has returned ErrWouldBlock, when the queue has drained below the low mark.
	OnWritable(c *Conn) error

	// OnClose is called exactly once for each OnOpen, last. err is nil after an orderly end: after Close, or after the
	// peer's end of stream.
	OnClose(c *Conn, err error)
}

// NopHandler has every method of a [Handler]. It throws away what arrives and closes at the end of the stream.
type NopHandler struct{}

// OnOpen does nothing.
func (NopHandler) OnOpen(*Conn) error { return nil }

// OnData discards what has arrived.
func (NopHandler) OnData(c *Conn) error {
	_, err := c.Discard(-1)
	return err
}

// OnEOF closes the connection after what is queued was sent, so that a client that has only shut down its writing
// direction still gets its answer.
func (NopHandler) OnEOF(c *Conn) error { return c.Close() }

// OnWritable does nothing.
func (NopHandler) OnWritable(*Conn) error { return nil }

// OnClose does nothing.
func (NopHandler) OnClose(*Conn, error) {}
