package main

import (
	"errors"
	"io"

	"github.com/pollux-go/pollux"

	"github.com/pollux-go/pollux/cmd/pollux/internal/kv"
	"github.com/pollux-go/pollux/cmd/pollux/internal/resp"
)

// commandMax is the largest command, with its framing, that the server takes, if the connections may buffer that much.
const commandMax = 1 << 20

// commandSlack is how much of the read limit a command must leave free, so that the read buffer is never full of a
// command that is not refused yet: the length line that says so.
const commandSlack = 64

// runResp is "pollux resp".
func runResp(args []string, out, errs io.Writer) int {
	var (
		flags    serverFlags
		storeMax int64
		fs       = newFlagSet("resp", "Serve a key-value store in memory to Redis clients.\n\nIt knows PING, ECHO, SET [NX|XX], GET, INCR, DEL, EXISTS, DBSIZE, QUIT, and as much\nof COMMAND, CONFIG GET, CLIENT and SELECT as clients ask for when they connect.", `	pollux resp -addr tcp://127.0.0.1:6379
	redis-cli set greeting hello
	redis-benchmark -t ping,set,get,incr -P 16
`)
	)
	flags.register(fs, "tcp://127.0.0.1:6379")
	fs.Int64Var(&storeMax, "maxmemory", 1<<30, "about how many `bytes` the store may grow to; then SET fails")
	if status, ok := parse(fs, args, out, errs); !ok {
		return status
	}
	return serve(service{
		name:  "resp",
		flags: flags,
		event: func(cfg pollux.Config) pollux.Handler {
			return &respHandler{
				store:      kv.New(storeMax),
				commandMax: max(min(commandMax, cfg.ReadLimit-commandSlack), commandSlack),
			}
		},
	}, out, errs)
}

// respHandler is the server; the state of a connection is its context, a *respConn.
type respHandler struct {
	pollux.NopHandler
	store      *kv.Store
	commandMax int
}

// respConn is what the server remembers of a connection between two callbacks.
type respConn struct {
	parser resp.Parser
	out    outbox
	ending ending
	quit   bool // The connection ends once the outbox is empty.
	eof    bool // The peer has ended its side.
}

// OnOpen gives the connection its state.
func (h *respHandler) OnOpen(c *pollux.Conn) error {
	c.SetContext(&respConn{parser: resp.Parser{CommandMax: h.commandMax}})
	return nil
}

// OnData executes the commands that are complete.
func (h *respHandler) OnData(c *pollux.Conn) error {
	s := c.Context().(*respConn)
	switch {
	case s.ending.begun:
		return s.ending.drain(c)
	case s.out.blocked():
		return nil // Paused; OnWritable goes on.
	}
	return h.serve(c, s)
}

// OnWritable sends the replies that were left, and goes on with the commands that were left.
func (h *respHandler) OnWritable(c *pollux.Conn) error {
	s := c.Context().(*respConn)
	if !s.out.blocked() {
		return nil
	}
	if err := s.out.retry(c); err != nil || s.out.blocked() {
		return err
	}
	if err := h.serve(c, s); err != nil || s.out.blocked() {
		return err
	}
	c.Resume()
	return nil
}

// OnEOF closes the connection, behind the replies that wait to be sent.
func (h *respHandler) OnEOF(c *pollux.Conn) error {
	s := c.Context().(*respConn)
	s.eof = true
	if s.out.blocked() {
		return nil
	}
	return c.Close()
}

// serve executes commands, a batch at a time, until they are done, the replies are not taken any more, or the
// connection ends.
func (h *respHandler) serve(c *pollux.Conn, s *respConn) error {
	buf := batches.Get().(*[]byte)
	defer freeBatch(buf)
	for more := true; more && !s.quit && !s.out.blocked(); {
		var err error
		if *buf, more, err = h.batch(c, s, (*buf)[:0]); err != nil {
			return err
		}
		if err = s.out.send(c, *buf); err != nil {
			return err
		}
	}
	switch {
	case s.out.blocked():
		return nil
	case s.eof:
		return c.Close()
	case s.quit:
		return s.ending.begin(c, endingTime)
	}
	return nil
}

// batch executes commands until out is a batch. more is false when only an incomplete command is left.
func (h *respHandler) batch(c *pollux.Conn, s *respConn, out []byte) (_ []byte, more bool, err error) {
	b, err := c.Peek(-1)
	if err != nil {
		return out, false, err
	}
	off := 0
	for more = true; more && !s.quit && len(out) < batchMax; {
		args, n, err := s.parser.Next(b[off:])
		switch {
		case errors.Is(err, resp.ErrIncomplete):
			more = false
		case err != nil:
			// Where the next command begins is not known.
			out = resp.AppendError(out, "ERR "+err.Error())
			s.quit = true
		case len(args) > 0:
			out = h.execute(s, out, args)
		}
		off += n
	}
	_, err = c.Discard(off)
	return out, more, err
}
