package pollux

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/poller"
)

// A NetConn is a net.Conn on a pollux poller: what Dial returns and what listeners accept. It does what a *net.TCPConn
// or a *net.UnixConn does: calls block the goroutine and no thread, all methods may be called at the same time, a Write
// is not mixed with another, and errors are *net.OpError with io.EOF (bare), net.ErrClosed, os.ErrDeadlineExceeded or an
// os.SyscallError inside.
type NetConn struct {
	desc    *poller.Desc
	network string
	local   net.Addr
	remote  net.Addr
	prefix  atomic.Pointer[[]byte] // what Detach has read before; nil: nothing. Taken under the read lock
}

var (
	_ net.Conn     = (*NetConn)(nil)
	_ syscall.Conn = (*NetConn)(nil)
	_ io.Closer    = (*NetConn)(nil)
)

// newNetConn makes a connection of a descriptor. prefix is read before anything else.
func (e *Engine) newNetConn(d *poller.Desc, prefix []byte) *NetConn {
	c := &NetConn{desc: d, local: localAddr(d.Fd()), remote: remoteAddr(d.Fd())}
	c.network = networkOf(c.local)
	if len(prefix) > 0 {
		c.prefix.Store(&prefix)
	}
	return c
}

func networkOf(a net.Addr) string {
	if a == nil {
		return "tcp"
	}
	return a.Network()
}

// opError makes a *net.OpError of what a Desc returns. io.EOF stays as it is, as in package net.
func opError(op, network string, local, remote net.Addr, err error) error {
	switch {
	case err == nil || err == io.EOF:
		return err
	case errors.Is(err, net.ErrClosed):
		err = net.ErrClosed
	}
	return &net.OpError{Op: op, Net: network, Source: local, Addr: remote, Err: err}
}

// Read reads into p once. See net.Conn.
func (c *NetConn) Read(p []byte) (int, error) {
	if c.prefix.Load() != nil {
		if n := c.readPrefix(p); n > 0 {
			return n, nil
		}
	}
	n, err := c.desc.Read(p)
	if err != nil {
		err = opError("read", c.network, c.local, c.remote, err)
	}
	return n, err
}

// readPrefix reads of what was read before the connection was detached.
func (c *NetConn) readPrefix(p []byte) (n int) {
	_ = c.desc.Use(poller.ModeRead, func(int) bool {
		rest := c.prefix.Load()
		if rest == nil {
			return true
		}
		n = copy(p, *rest)
		if left := (*rest)[n:]; len(left) > 0 {
			c.prefix.Store(&left)
		} else {
			c.prefix.Store(nil)
		}
		return true
	})
	return n
}

// Write writes all of p. See net.Conn.
func (c *NetConn) Write(p []byte) (int, error) {
	n, err := c.desc.Write(p)
	if err != nil {
		err = opError("write", c.network, c.local, c.remote, err)
	}
	return n, err
}

// Writev writes all slices in order, as one Write, in as few system calls as possible.
func (c *NetConn) Writev(bufs ...[]byte) (int64, error) {
	n, err := c.desc.Writev(bufs)
	return n, opError("writev", c.network, c.local, c.remote, err)
}

// Close closes the connection. Calls that wait return net.ErrClosed; it waits until they have left.
func (c *NetConn) Close() error {
	return opError("close", c.network, c.local, c.remote, c.desc.Close())
}

// CloseRead shuts down the reading direction.
func (c *NetConn) CloseRead() error { return c.shutdown(sys.SHUT_RD) }

// CloseWrite shuts down the writing direction: the peer reads an end of stream.
func (c *NetConn) CloseWrite() error { return c.shutdown(sys.SHUT_WR) }

func (c *NetConn) shutdown(how int) error {
	return c.set("close", func(fd int) sys.Errno { return sys.Shutdown(fd, how) }, sys.OpShutdown)
}

// set runs a call on the descriptor.
func (c *NetConn) set(op string, call func(fd int) sys.Errno, name sys.Op) error {
	return opError(op, c.network, c.local, c.remote, c.call(call, name))
}

func (c *NetConn) call(call func(fd int) sys.Errno, name sys.Op) error {
	var errno sys.Errno
	if err := c.desc.Use(0, func(fd int) bool { errno = call(fd); return true }); err != nil {
		return err
	}
	return os.NewSyscallError(name.String(), asError(errno))
}

func (c *NetConn) setInt(level, option, value int) error {
	return c.set("set", func(fd int) sys.Errno { return sys.SetsockoptInt(fd, level, option, value) }, sys.OpSetsockopt)
}

// SetNoDelay turns TCP_NODELAY on or off; it is on by default.
func (c *NetConn) SetNoDelay(on bool) error {
	return c.setInt(sys.IPPROTO_TCP, sys.TCP_NODELAY, boolInt(on))
}

// SetKeepAlive turns keep-alive probes on or off.
func (c *NetConn) SetKeepAlive(on bool) error {
	return c.setInt(sys.SOL_SOCKET, sys.SO_KEEPALIVE, boolInt(on))
}

// SetKeepAlivePeriod sets after how long a silence probes are sent. It is rounded up to seconds. How often they are sent
// stays as Config.KeepAlive says.
func (c *NetConn) SetKeepAlivePeriod(d time.Duration) error {
	return c.setInt(sys.IPPROTO_TCP, sys.TCP_KEEPIDLE, int((d+time.Second-1)/time.Second))
}

// SetLinger says what a Close does with unsent bytes: with 0 it throws them away and resets the connection, below 0 the
// kernel sends them in the background, as is the default.
func (c *NetConn) SetLinger(seconds int) error {
	return c.set("set", func(fd int) sys.Errno { return sys.SetLinger(fd, seconds) }, sys.OpSetsockopt)
}

// SetReadBuffer sets the size of the kernel's receive buffer.
func (c *NetConn) SetReadBuffer(bytes int) error { return c.setBuffer(sys.SO_RCVBUF, bytes) }

// SetWriteBuffer sets the size of the kernel's send buffer.
func (c *NetConn) SetWriteBuffer(bytes int) error { return c.setBuffer(sys.SO_SNDBUF, bytes) }

// setBuffer is setInt with the addresses that package net gives this error.
func (c *NetConn) setBuffer(option, bytes int) error {
	return opError("set", c.network, nil, c.local, c.call(func(fd int) sys.Errno {
		return sys.SetsockoptInt(fd, sys.SOL_SOCKET, option, bytes)
	}, sys.OpSetsockopt))
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// LocalAddr returns the address of this end.
func (c *NetConn) LocalAddr() net.Addr { return c.local }

// RemoteAddr returns the address of the peer.
func (c *NetConn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline sets both deadlines. See net.Conn.
func (c *NetConn) SetDeadline(t time.Time) error { return c.deadline(c.desc.SetDeadline(t)) }

// SetReadDeadline sets the deadline of reads, those that wait included.
func (c *NetConn) SetReadDeadline(t time.Time) error { return c.deadline(c.desc.SetReadDeadline(t)) }

// SetWriteDeadline sets the deadline of writes, those that wait included.
func (c *NetConn) SetWriteDeadline(t time.Time) error { return c.deadline(c.desc.SetWriteDeadline(t)) }

func (c *NetConn) deadline(err error) error {
	if err == nil {
		return nil
	}
	return opError("set", c.network, nil, c.local, err)
}

// SyscallConn gives access to the descriptor. Its Read and Write functions are called again after each wait until they
// return true, as those of package net are.
func (c *NetConn) SyscallConn() (syscall.RawConn, error) {
	return &rawConn{c.desc, c.network, c.local, c.remote}, nil
}

// rawConn is the syscall.RawConn of a Desc.
type rawConn struct {
	desc          *poller.Desc
	network       string
	local, remote net.Addr
}

func (r *rawConn) Control(f func(fd uintptr)) error {
	err := r.desc.Use(0, func(fd int) bool { f(uintptr(fd)); return true })
	local := r.local
	if local == nil {
		local = r.remote // A listener's address.
	}
	return opError("raw-control", r.network, nil, local, err)
}

func (r *rawConn) Read(f func(fd uintptr) bool) error {
	err := r.desc.Use(poller.ModeRead, func(fd int) bool { return f(uintptr(fd)) })
	return opError("raw-read", r.network, r.local, r.remote, err)
}

func (r *rawConn) Write(f func(fd uintptr) bool) error {
	err := r.desc.Use(poller.ModeWrite, func(fd int) bool { return f(uintptr(fd)) })
	return opError("raw-write", r.network, r.local, r.remote, err)
}

// netListener is a net.Listener on a pollux poller.
type netListener struct {
	engine  *Engine
	desc    *poller.Desc
	ln      *listening
	network string // as it was asked for, tcp4 for instance: errors say it
}

var (
	_ net.Listener = (*netListener)(nil)
	_ syscall.Conn = (*netListener)(nil)
)

// Listen is net.Listen for the networks tcp, tcp4, tcp6 and unix: Accept blocks the goroutine, and the connections are
// [NetConn]s. The listener has SetDeadline and SyscallConn as those of package net have.
//
// The file of a unix socket gets Config.UnixMode; one that nobody listens on any more is replaced.
func (e *Engine) Listen(network, address string) (net.Listener, error) {
	ln, err := e.config.listen(context.Background(), network, address)
	if err != nil {
		return nil, err
	}
	p, err := e.netPoller()
	if err != nil {
		ln.close()
		return nil, &net.OpError{Op: "listen", Net: network, Addr: ln.addr, Err: err}
	}
	d, err := p.OpenStream(ln.fd, false)
	if err != nil {
		ln.close()
		return nil, &net.OpError{Op: "listen", Net: network, Addr: ln.addr, Err: err}
	}
	l := &netListener{engine: e, desc: d, ln: ln, network: network}
	e.mu.Lock()
	e.nets[l] = struct{}{}
	e.mu.Unlock()
	return l, nil
}

// Accept waits for a connection. Running out of descriptors is an error that is Temporary, as in package net.
func (l *netListener) Accept() (net.Conn, error) {
	fd, from, err := l.desc.Accept()
	if err != nil {
		return nil, opError("accept", l.network, nil, l.ln.addr, err)
	}
	d, err := l.engine.openStream(fd, l.ln.stream)
	if err != nil {
		return nil, opError("accept", l.network, nil, l.ln.addr, err)
	}
	c := &NetConn{desc: d, network: l.network, local: l.ln.addr}
	if l.ln.stream {
		c.remote = tcpAddr(from)
		if local := localAddr(fd); local != nil {
			c.local = local
		}
	} else {
		c.remote = remoteAddr(fd)
	}
	return c, nil
}

// openStream gives a socket to the poller. It takes fd over, and closes it if it fails.
func (e *Engine) openStream(fd int, tcp bool) (*poller.Desc, error) {
	p, err := e.netPoller()
	if err != nil {
		sys.Close(fd)
		return nil, err
	}
	d, err := p.OpenStream(fd, tcp)
	if err != nil {
		sys.Close(fd)
		return nil, err
	}
	return d, nil
}

// Close stops listening. An Accept that waits returns net.ErrClosed.
func (l *netListener) Close() error {
	err := l.desc.Close()
	if err == nil {
		l.ln.unlink()
		l.engine.mu.Lock()
		delete(l.engine.nets, l)
		l.engine.mu.Unlock()
	}
	return opError("close", l.network, nil, l.ln.addr, err)
}

// Addr returns the address that is listened on.
func (l *netListener) Addr() net.Addr { return l.ln.addr }

// SetDeadline sets the deadline of Accept.
func (l *netListener) SetDeadline(t time.Time) error {
	return opError("set", l.network, nil, l.ln.addr, l.desc.SetReadDeadline(t))
}

// SyscallConn gives access to the descriptor.
func (l *netListener) SyscallConn() (syscall.RawConn, error) {
	return &rawConn{l.desc, l.network, nil, l.ln.addr}, nil
}
