// Package pollux is a network poller for services that count microseconds: the job of the runtime's netpoll, done in
// user space, on Linux.
//
// There are three ways in. All of them run on an [Engine]: one from [New], or the default one, which is configured by
// the POLLUX_* variables of the environment and started on first use, behind the package-level functions.
//
// Event handlers are the fastest. A [Handler] is called on an event loop, which reads into one buffer for all its
// connections, so that an idle connection costs a few hundred bytes:
//
//	type echo struct{ pollux.NopHandler }
//
//	func (echo) OnData(c *pollux.Conn) error {
//		b, _ := c.Next(-1)
//		_, err := c.Write(b)
//		return err
//	}
//
//	err := pollux.ListenAndServe(ctx, "tcp://:9000", echo{})
//
// The net interfaces move an existing service over with one line, since [Listen] and [Dial] return a net.Listener and
// net.Conns that behave as those of package net:
//
//	ln, err := pollux.Listen("tcp", ":8080")
//	err = http.Serve(ln, mux)
//
// File descriptors of any kind that can be polled are waited for with [Open]:
//
//	d, err := pollux.Open(fd)
//	err = d.WaitRead()
//
// The rule of concurrency for handlers: one callback of a connection runs at a time, and what another goroutine may
// call is said at each method of [Conn]. Callbacks must not block.
//
// On systems other than Linux the package builds, and [New] returns an error that is errors.ErrUnsupported. On Linux it needs 64
// bits: it is tested on amd64 and builds on arm64; on 386 and arm it does not build.
package pollux
