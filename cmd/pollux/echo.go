package main

import (
	"errors"
	"io"

	"github.com/pollux-go/pollux"
)

// runEcho is "pollux echo".
func runEcho(args []string, out, errs io.Writer) int {
	var (
		flags  serverFlags
		useNet bool
		fs     = newFlagSet("echo", "Answer every byte with itself.", `	pollux echo
	pollux echo -addr tcp://:9000,unix:///tmp/echo.sock
	pollux echo -burn 4                # what a busy process does to it ...
	pollux echo -burn 4 -net           # ... and to a goroutine per connection
	printf hello | nc -N 127.0.0.1 9000
`)
	)
	flags.register(fs, "tcp://127.0.0.1:9000")
	fs.BoolVar(&useNet, "net", false, "use the net API, a goroutine per connection, instead of event handlers")
	fs.BoolVar(&useNet, "std", false, "the same as -net")
	if status, ok := parse(fs, args, out, errs); !ok {
		return status
	}
	s := service{name: "echo", flags: flags}
	if useNet {
		s.net = newEchoServer
	} else {
		s.event = func(pollux.Config) pollux.Handler { return echoHandler{} }
	}
	return serve(s, out, errs)
}

// echoHandler echoes on the event API. It is complete, in that it survives a peer that sends without reading: what
// the write queue does not take stays in the connection's read buffer, and reading pauses until the queue has
// drained.
type echoHandler struct{ pollux.NopHandler }

// atEOF is the context of a connection whose peer has ended its side while bytes were waiting to be echoed.
type atEOF struct{}

// OnData echoes what is buffered.
func (h echoHandler) OnData(c *pollux.Conn) error {
	b, err := c.Peek(-1)
	if err != nil {
		return err
	}
	n, err := c.Write(b)
	if _, derr := c.Discard(n); derr != nil {
		return derr
	}
	if errors.Is(err, pollux.ErrWouldBlock) {
		c.Pause()
		return nil
	}
	return err
}

// OnWritable goes on where OnData stopped.
func (h echoHandler) OnWritable(c *pollux.Conn) error {
	if err := h.OnData(c); err != nil || c.Buffered() > 0 {
		return err
	}
	if _, ended := c.Context().(atEOF); ended {
		return c.Close()
	}
	c.Resume()
	return nil
}

// OnEOF closes the connection once everything is echoed.
func (h echoHandler) OnEOF(c *pollux.Conn) error {
	if c.Buffered() == 0 {
		return c.Close()
	}
	c.SetContext(atEOF{})
	return nil
}
