package pollux

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/poller"
)

// listening is an open listening socket.
type listening struct {
	mu     sync.Mutex // keeps fd open while it is copied
	fd     int        // -1: closed
	addr   net.Addr
	stream bool // TCP
	path   string
	inode  [2]uint64 // of path, which is removed at the end if it still is this one
}

// close closes the socket and removes its file.
func (ln *listening) close() {
	ln.mu.Lock()
	fd := ln.fd
	ln.fd = -1
	ln.mu.Unlock()
	if fd >= 0 {
		ln.unlink() // First, so that nobody connects to a name behind which nobody accepts.
		sys.Close(fd)
	}
}

// dup copies the descriptor, for somebody who takes over: the file of a unix socket is theirs then.
func (ln *listening) dup() (int, error) {
	ln.mu.Lock()
	defer ln.mu.Unlock()
	if ln.fd < 0 {
		return -1, ErrClosed
	}
	ln.path = ""
	fd, errno := sys.Dup(ln.fd)
	return fd, os.NewSyscallError(sys.OpFcntl.String(), asError(errno))
}

func (ln *listening) unlink() {
	if ln.path == "" {
		return
	}
	if dev, ino, errno := sys.SocketInode(ln.path); errno == 0 && ln.inode == [2]uint64{dev, ino} {
		sys.Unlink(ln.path)
	}
}

// backlogMost is more than any kernel allows, which cuts it to net.core.somaxconn.
const backlogMost = 65535

// listen opens a listening socket.
func (c *Config) listen(ctx context.Context, network, addr string) (*listening, error) {
	points, err := resolve(ctx, network, addr)
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Err: err}
	}
	for _, p := range points {
		var ln *listening
		if p.inet.Family == 0 {
			ln, err = c.listenUnix(p.unix)
		} else {
			ln, err = c.listenTCP(network, p)
		}
		if err == nil {
			return ln, nil
		}
		if !errors.Is(err, sys.EAFNOSUPPORT) && !errors.Is(err, sys.EADDRNOTAVAIL) {
			return nil, &net.OpError{Op: "listen", Net: network, Addr: p.addr(), Err: err}
		}
	}
	return nil, &net.OpError{Op: "listen", Net: network, Addr: points[0].addr(), Err: err}
}

func (c *Config) listenTCP(network string, p endpoint) (_ *listening, err error) {
	fd, errno := sys.Socket(int(p.inet.Family))
	if errno != 0 {
		return nil, os.NewSyscallError(sys.OpSocket.String(), errno)
	}
	defer func() {
		if err != nil {
			sys.Close(fd)
		}
	}()
	if errno := sys.SetsockoptInt(fd, sys.SOL_SOCKET, sys.SO_REUSEADDR, 1); errno != 0 {
		return nil, os.NewSyscallError(sys.OpSetsockopt.String(), errno)
	}
	if p.inet.Family == sys.AF_INET6 {
		only := 1
		if network == "tcp" && p.inet.IP == [16]byte{} {
			only = 0 // The wildcard of "tcp" serves IPv4 too.
		}
		if errno := sys.SetsockoptInt(fd, sys.IPPROTO_IPV6, sys.IPV6_V6ONLY, only); errno != 0 {
			return nil, os.NewSyscallError(sys.OpSetsockopt.String(), errno)
		}
	}
	if err := c.tune(fd); err != nil {
		return nil, err
	}
	if errno := sys.Bind(fd, &p.inet); errno != 0 {
		return nil, os.NewSyscallError(sys.OpBind.String(), errno)
	}
	return c.open(fd, "")
}

// tune sets the options of a TCP socket. Linux hands those of a listening socket down to what it accepts, so that an
// accepted connection costs no further call.
func (c *Config) tune(fd int) error {
	set := func(level, option, value int) error {
		return os.NewSyscallError(sys.OpSetsockopt.String(), asError(sys.SetsockoptInt(fd, level, option, value)))
	}
	if err := set(sys.IPPROTO_TCP, sys.TCP_NODELAY, 1); err != nil {
		return err
	}
	if c.KeepAlive < 0 {
		return nil
	}
	seconds := max(1, int((c.KeepAlive+time.Second-1)/time.Second))
	return errors.Join(
		set(sys.SOL_SOCKET, sys.SO_KEEPALIVE, 1),
		set(sys.IPPROTO_TCP, sys.TCP_KEEPIDLE, min(seconds, 32767)),
		set(sys.IPPROTO_TCP, sys.TCP_KEEPINTVL, min(seconds, 32767)),
	)
}

// asError makes a nil error of 0.
func asError(errno sys.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}

func (c *Config) listenUnix(path sys.UnixAddr) (_ *listening, err error) {
	fd, errno := sys.Socket(sys.AF_UNIX)
	if errno != 0 {
		return nil, os.NewSyscallError(sys.OpSocket.String(), errno)
	}
	defer func() {
		if err != nil {
			sys.Close(fd)
		}
	}()
	errno = sys.BindUnix(fd, path)
	if errno == sys.EADDRINUSE && path[0] != '@' {
		if err := removeStale(path); err != nil {
			return nil, err
		}
		errno = sys.BindUnix(fd, path)
	}
	if errno != 0 {
		return nil, os.NewSyscallError(sys.OpBind.String(), errno)
	}
	if path[0] == '@' {
		return c.open(fd, "")
	}
	// Nobody can connect before the listen that follows, so the mode is right from the first connection on.
	if errno := sys.Chmod(string(path), uint32(c.UnixMode)); errno != 0 {
		sys.Unlink(string(path))
		return nil, os.NewSyscallError(sys.OpChmod.String(), errno)
	}
	ln, err := c.open(fd, string(path))
	if err != nil {
		sys.Unlink(string(path))
	}
	return ln, err
}

// removeStale removes the file of a unix socket that a server has left behind. It touches nothing that is not a socket,
// and no socket that somebody listens on.
func removeStale(path sys.UnixAddr) error {
	inUse := os.NewSyscallError(sys.OpBind.String(), sys.EADDRINUSE)
	switch isSocket, errno := sys.IsSocket(string(path)); {
	case errno == sys.ENOENT:
		return nil // Gone meanwhile.
	case errno != 0:
		return os.NewSyscallError(sys.OpLstat.String(), errno)
	case !isSocket:
		return fmt.Errorf("%w: %s is there and is not a socket: it is left alone", inUse, path)
	}
	fd, errno := sys.Socket(sys.AF_UNIX)
	if errno != 0 {
		return os.NewSyscallError(sys.OpSocket.String(), errno)
	}
	defer sys.Close(fd)
	switch errno := sys.ConnectUnix(fd, path); errno {
	case sys.ECONNREFUSED:
		if errno := sys.Unlink(string(path)); errno != 0 && errno != sys.ENOENT {
			return os.NewSyscallError(sys.OpUnlink.String(), errno)
		}
		return nil
	case sys.ENOENT:
		return nil
	case 0, sys.EAGAIN, sys.EINPROGRESS:
		return fmt.Errorf("%w: another process listens on %s", inUse, path)
	default:
		return fmt.Errorf("%w: cannot tell whether somebody listens on %s: %w", inUse, path, errno)
	}
}

// open makes a bound socket listen.
func (c *Config) open(fd int, path string) (*listening, error) {
	backlog := c.Backlog
	if backlog == 0 {
		backlog = backlogMost
	}
	if errno := sys.Listen(fd, backlog); errno != 0 {
		return nil, os.NewSyscallError(sys.OpListen.String(), errno)
	}
	ln, err := describe(fd)
	if err != nil {
		return nil, err
	}
	if path != "" {
		dev, ino, errno := sys.SocketInode(path)
		if errno != 0 {
			return nil, os.NewSyscallError(sys.OpLstat.String(), errno)
		}
		ln.path, ln.inode = path, [2]uint64{dev, ino}
	}
	return ln, nil
}

// describe looks at a listening socket.
func describe(fd int) (*listening, error) {
	a, errno := sys.Getsockname(fd)
	if errno != 0 {
		return nil, os.NewSyscallError(sys.OpGetsockname.String(), errno)
	}
	ln := &listening{fd: fd, stream: a.Family == sys.AF_INET || a.Family == sys.AF_INET6, addr: localAddr(fd)}
	if ln.addr == nil {
		return nil, fmt.Errorf("fd %d is a socket of family %d: only TCP and unix sockets are served", fd, a.Family)
	}
	return ln, nil
}

// adopt makes a listening socket of a descriptor that was opened elsewhere. It takes fd over if it succeeds.
func (c *Config) adopt(fd int) (*listening, error) {
	if poller.IsPollDescriptor(fd) {
		return nil, fmt.Errorf("listen on fd %d: %w", fd, poller.ErrOwnDescriptor)
	}
	switch accepting, errno := sys.GetsockoptInt(fd, sys.SOL_SOCKET, sys.SO_ACCEPTCON); {
	case errno == sys.ENOTSOCK:
		return nil, fmt.Errorf("listen on fd %d: it is not a socket: %w", fd, errno)
	case errno != 0:
		return nil, fmt.Errorf("listen on fd %d: %w", fd, os.NewSyscallError(sys.OpGetsockopt.String(), errno))
	case accepting == 0:
		return nil, fmt.Errorf("listen on fd %d: the socket does not listen", fd)
	}
	if errno := sys.SetNonblock(fd); errno != 0 {
		return nil, fmt.Errorf("listen on fd %d: %w", fd, os.NewSyscallError(sys.OpFcntl.String(), errno))
	}
	if errno := sys.SetCloexec(fd); errno != 0 {
		return nil, fmt.Errorf("listen on fd %d: %w", fd, os.NewSyscallError(sys.OpFcntl.String(), errno))
	}
	ln, err := describe(fd)
	if err != nil {
		return nil, err
	}
	if ln.stream {
		if err := c.tune(fd); err != nil {
			return nil, fmt.Errorf("listen on fd %d: %w", fd, err)
		}
	}
	return ln, nil
}

// adoptListener makes a listening socket of a copy of ln's descriptor.
func (c *Config) adoptListener(ln net.Listener) (*listening, error) {
	sc, ok := ln.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("serve a %T: it has no file descriptor (a wrapped listener, as for TLS?): %w", ln, errors.ErrUnsupported)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil, err
	}
	copied, errno := -1, sys.Errno(0)
	if err := raw.Control(func(fd uintptr) { copied, errno = sys.Dup(int(fd)) }); err != nil {
		return nil, err
	}
	if errno != 0 {
		return nil, os.NewSyscallError(sys.OpFcntl.String(), errno)
	}
	l, err := c.adopt(copied)
	if err != nil {
		sys.Close(copied)
	}
	return l, err
}

// Pace of an acceptor.
const (
	acceptMost  = 64                    // connections a turn, so that a storm of them does not starve the others
	acceptPause = 20 * time.Millisecond // how long it waits when it cannot accept: for descriptors, or for MaxConns
	logPause    = time.Second           // between two lines about that
)

// acceptor accepts the connections of one listening socket. It belongs to its loop.
type acceptor struct {
	loop    *loop
	service *Service
	ln      *listening
	token   poller.Token
	again   bool  // in the loop's list
	waiting bool  // a timer will look again
	logged  int64 // when it last complained
	gone    bool
	next    int         // the loop that the next tie goes to
	turn    *acceptTurn // shared with acceptors of the other loops, which accept for themselves too; nil: this one hands out
}

// ready accepts what waits, at most one turn's worth.
func (a *acceptor) ready() {
	if a.again || a.waiting || a.gone {
		return
	}
	if !a.accept(acceptMost) {
		a.again = true
		a.loop.again = append(a.loop.again, a.token)
	}
}

// resume is ready after a pause.
func (a *acceptor) resume() {
	a.waiting = false
	a.arm()
}

// accept accepts up to most connections. It is false when there may be more.
func (a *acceptor) accept(most int) (empty bool) {
	e := a.service.engine
	failed, last := 0, sys.Errno(0)
	for range most {
		if limit := e.config.MaxConns; limit > 0 && e.conns.Load() >= int64(limit) {
			a.pause(nil)
			return true
		}
		fd, from, errno := sys.Accept(a.ln.fd)
		switch errno {
		case 0:
			a.hand(fd, from)
		case sys.EAGAIN:
			return true
		case sys.EMFILE, sys.ENFILE, sys.ENOBUFS, sys.ENOMEM:
			// The connection stays in the queue and makes no new edge. Somebody will close something.
			a.pause(explain("accept a connection", errno))
			return true
		case sys.EBADF, sys.EINVAL, sys.ENOTSOCK:
			a.loop.engine.log.Error("pollux: a listener has failed and is given up", "address", a.ln.addr, "error", errno)
			return true
		default:
			// ECONNABORTED, EPROTO, EPERM of a firewall, and the network's errors that accept(2) lists concern the
			// connection that was next, which is gone.
			failed, last = failed+1, errno
		}
	}
	if failed == most {
		// Not the connections' fault, then: a filter of system calls, perhaps.
		a.pause(explain("accept a connection", last))
		return true
	}
	return false
}

// accepted handles what a completer has accepted: a descriptor, or an error number below 0, which has ended the request.
func (a *acceptor) accepted(result int32) {
	if result < 0 {
		switch errno := sys.Errno(-result); errno {
		case sys.ECANCELED:
			if a.turn != nil {
				a.arm() // Nobody has asked for that: who leaves the turn does not hear of it.
			}
		case sys.EMFILE, sys.ENFILE, sys.ENOBUFS, sys.ENOMEM:
			a.pause(explain("accept a connection", errno))
		case sys.EBADF, sys.EINVAL, sys.ENOTSOCK:
			a.loop.engine.log.Error("pollux: a listener has failed and is given up", "address", a.ln.addr, "error", errno)
		default:
			a.arm()
		}
		return
	}
	fd := int(result)
	if a.turn != nil {
		a.acceptedDirect(fd, true)
		return
	}
	var from sys.Sockaddr
	if a.ln.stream {
		from, _ = sys.Getpeername(fd) // Gone already: it has no address, and will be found to be.
	}
	a.hand(fd, from)
}

// byCompletion tells whether a completer accepts. Where the number of connections is limited, it must not: it would
// accept more than there may be.
func (a *acceptor) byCompletion() bool {
	return a.loop.completer != nil && a.service.engine.config.MaxConns == 0
}

// arm begins to accept.
func (a *acceptor) arm() {
	var err error
	if a.turn != nil {
		a.pass()
	} else if a.byCompletion() {
		err = a.loop.completer.Accept(a.ln.fd, a.token)
	} else {
		a.ready()
	}
	if err != nil {
		a.pause(err)
	}
}

// pause looks again after a while.
func (a *acceptor) pause(why error) {
	now := a.loop.inner.Now()
	if why != nil && (a.logged == 0 || now-a.logged >= int64(logPause)) {
		a.logged = now
		e := a.service.engine
		e.log.Warn("pollux: no connections are accepted for the moment", "address", a.ln.addr, "connections", e.conns.Load(), "error", why)
	}
	a.waiting = true
	a.loop.inner.Schedule(now+int64(acceptPause), a.token)
}

// hand gives a new connection to the loop that has the fewest.
func (a *acceptor) hand(fd int, from sys.Sockaddr) {
	e := a.service.engine
	l := e.loops[a.next%len(e.loops)]
	for _, other := range e.loops {
		if other.count.Load() < l.count.Load() {
			l = other
		}
	}
	a.next++
	a.loop.accepts.Add(1)
	c := newConn(l, a.service, fd, from, a.ln.stream)
	a.service.join(l)
	if l == a.loop {
		l.register(c)
		return
	}
	// Bounded by the descriptors, or by MaxConns.
	if err := l.inner.PostAlways(func() { l.register(c) }); err != nil {
		sys.Close(fd) // The engine is closing.
		a.service.leave(l)
	}
}

func newConn(l *loop, s *Service, fd int, from sys.Sockaddr, stream bool) *Conn {
	c := &Conn{loop: l, service: s, fd: int32(fd), remote: from}
	if stream {
		c.flags |= flagStream
	}
	return c
}

// addAcceptor begins to accept on the loop. It runs there.
func (l *loop) addAcceptor(a *acceptor) error {
	if a.gone {
		return ErrClosed // The service has ended meanwhile.
	}
	token, err := l.sources.Put(source{acceptor: a})
	if err != nil {
		return err
	}
	a.token = token
	if a.turn != nil {
		return nil // The turn comes later.
	}
	if a.byCompletion() {
		err = l.completer.Accept(a.ln.fd, token)
	} else {
		err = l.backend.Add(a.ln.fd, token)
	}
	if err != nil {
		l.sources.Delete(token)
	}
	return err
}

// removeAcceptor stops accepting. What waits in the queue is accepted first, so that a graceful end resets nobody.
//
// It may be begun once more by who has taken the loop over from a callback of a connection that it accepts: see resumeLeaving.
// The done of the first time, if there is one, is called at the end, whoever comes there.
func (l *loop) removeAcceptor(a *acceptor, done func()) {
	if a.gone {
		if done != nil {
			done()
		}
		return
	}
	if l.leaving.acceptor != a {
		l.leaving = leaving{acceptor: a, done: done}
		if a.byCompletion() {
			take := func(ev *poller.Event) {
				switch {
				case ev.Result < 0:
				case a.turn != nil:
					a.acceptedDirect(int(ev.Result), false)
				default:
					a.accepted(ev.Result)
				}
			}
			l.takeBatch(a.token, take)
			l.completer.Stop(a.token, take)
			l.completer.Disarm(a.token)
		} else {
			_ = l.backend.Remove(a.ln.fd)
		}
		l.leaving.last = a.turn == nil || a.turn.left.Add(-1) == 0
	}
	last, done := l.leaving.last, l.leaving.done
	if last && !a.service.closing.Load() {
		a.accept(backlogMost)
	}
	l.leaving = leaving{}
	a.gone = true
	l.sources.Delete(a.token)
	if last {
		a.ln.close()
	}
	if done != nil {
		done()
	}
}

// leaving is an acceptor that accepts for the last time.
type leaving struct {
	acceptor *acceptor
	done     func()
	last     bool // of the acceptors of its listener
}

// resumeLeaving goes on with the end of an acceptor, where a callback of a connection that it has accepted has not returned.
func (l *loop) resumeLeaving() {
	if a := l.leaving.acceptor; a != nil {
		l.guard(func() { l.removeAcceptor(a, nil) })
	}
}
