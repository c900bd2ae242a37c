package pollux

import (
	"context"
	"errors"
	"net"
	"os"
	"time"

	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/poller"
)

// fallbackDelay is how long the addresses of one family are tried alone before those of the other one are tried beside
// them (RFC 8305 calls it the connection attempt delay; the value is that of package net).
const fallbackDelay = 300 * time.Millisecond

// DialContext is net.Dialer.DialContext for the networks tcp, tcp4, tcp6 and unix. A host with several addresses has
// them tried in order, those of the second family beside the first one's after 300 ms. The connection is a [*NetConn],
// with TCP_NODELAY and keep-alive on. ctx bounds the dialing and not the connection.
func (e *Engine) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	d, err := e.dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	c := e.newNetConn(d, nil)
	c.network = network
	return c, nil
}

// dial returns a connected descriptor.
func (e *Engine) dial(ctx context.Context, network, address string) (*poller.Desc, error) {
	if address == "" {
		return nil, &net.OpError{Op: "dial", Net: network, Err: errors.New("missing address")}
	}
	points, err := resolve(ctx, network, address)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Err: err}
	}
	primaries, others := split(points)
	if len(others) == 0 {
		return e.dialSerial(ctx, network, primaries)
	}
	return e.dialParallel(ctx, network, primaries, others)
}

// split separates the addresses of the first one's family from the others.
func split(points []endpoint) (primaries, others []endpoint) {
	for _, p := range points {
		if p.inet.Family == points[0].inet.Family {
			primaries = append(primaries, p)
		} else {
			others = append(others, p)
		}
	}
	return primaries, others
}

// dialParallel tries both families, the second one after a delay, and returns the first connection.
func (e *Engine) dialParallel(ctx context.Context, network string, primaries, others []endpoint) (*poller.Desc, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		d   *poller.Desc
		err error
	}
	results := make(chan result)
	try := func(points []endpoint) {
		d, err := e.dialSerial(ctx, network, points)
		select {
		case results <- result{d, err}:
		case <-ctx.Done():
			if d != nil {
				d.Close()
			}
		}
	}
	go try(primaries)
	running := 1
	delay := time.NewTimer(fallbackDelay)
	defer delay.Stop()
	var first error
	for {
		select {
		case <-delay.C:
			go try(others)
			running++
		case r := <-results:
			if r.err == nil {
				return r.d, nil
			}
			if first == nil {
				first = r.err
			}
			if running--; running > 0 {
				continue
			}
			if !delay.Stop() {
				return nil, first
			}
			go try(others) // The first family has failed early.
			running++
		case <-ctx.Done():
			return nil, &net.OpError{Op: "dial", Net: network, Addr: primaries[0].addr(), Err: contextError(ctx)}
		}
	}
}

// dialSerial tries one address after the other; each may use an equal share of the time that is left.
func (e *Engine) dialSerial(ctx context.Context, network string, points []endpoint) (*poller.Desc, error) {
	var first error
	for i, p := range points {
		d, err := e.dialOne(ctx, p, len(points)-i)
		if err == nil {
			return d, nil
		}
		if first == nil {
			first = &net.OpError{Op: "dial", Net: network, Addr: p.addr(), Err: err}
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, first
}

// contextError says why a context has ended, as package net says it.
func contextError(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return dialTimeout{}
	}
	if cause := context.Cause(ctx); cause != context.Canceled {
		return dialCanceled{cause}
	}
	return dialCanceled{}
}

// dialTimeout is a timeout of dialing. Package net returns now an os.ErrDeadlineExceeded and now an error that is
// context.DeadlineExceeded, as the race between the two goes; this is always both.
type dialTimeout struct{}

func (dialTimeout) Error() string   { return os.ErrDeadlineExceeded.Error() }
func (dialTimeout) Timeout() bool   { return true }
func (dialTimeout) Temporary() bool { return true }
func (dialTimeout) Is(target error) bool {
	return target == os.ErrDeadlineExceeded || target == context.DeadlineExceeded
}

// dialCanceled is the end of a dial whose context was canceled: a context.Canceled, and its cause.
type dialCanceled struct{ cause error }

func (e dialCanceled) Error() string {
	if e.cause != nil {
		return "operation was canceled: " + e.cause.Error()
	}
	return "operation was canceled"
}
func (e dialCanceled) Unwrap() error        { return e.cause }
func (e dialCanceled) Is(target error) bool { return target == context.Canceled }

// selfConnects is how often an ephemeral port that has connected to itself is given back.
const selfConnects = 2

func (e *Engine) dialOne(ctx context.Context, p endpoint, share int) (*poller.Desc, error) {
	for tries := 0; ; tries++ {
		d, err := e.connect(ctx, p, share)
		if err != nil {
			return nil, err
		}
		if tries < selfConnects && p.inet.Family != 0 && selfConnected(d.Fd()) {
			d.Close()
			continue
		}
		return d, nil
	}
}

// selfConnected tells whether a connection to a free local port has met itself: the kernel allows that (simultaneous
// open), and nobody wants it.
func selfConnected(fd int) bool {
	local, errno := sys.Getsockname(fd)
	if errno != 0 {
		return false
	}
	remote, errno := sys.Getpeername(fd)
	return errno == 0 && local == remote
}

// shareLeast is the least time that an address gets where there is so much: that of package net.
const shareLeast = 2 * time.Second

// partialDeadline gives one of several addresses an equal share of the time until end.
func partialDeadline(now, end time.Time, addresses int) time.Time {
	left := end.Sub(now)
	return now.Add(min(left, max(left/time.Duration(addresses), shareLeast)))
}

// unixRetry is how long a connect waits that found the queue of a unix listener full: no event says when it is not.
const unixRetry = time.Millisecond

// connect connects to one address.
func (e *Engine) connect(ctx context.Context, p endpoint, share int) (_ *poller.Desc, err error) {
	if ctx.Err() != nil {
		return nil, contextError(ctx)
	}
	family := int(p.inet.Family)
	if family == 0 {
		family = sys.AF_UNIX
	}
	fd, errno := sys.Socket(family)
	if errno != 0 {
		return nil, os.NewSyscallError(sys.OpSocket.String(), errno)
	}
	if family != sys.AF_UNIX {
		if err := e.config.tune(fd); err != nil {
			sys.Close(fd)
			return nil, err
		}
	}
	// The connect comes before the poller: it would report the hang-up that a socket without a peer is in.
	if family == sys.AF_UNIX {
		errno, err = connectUnix(ctx, fd, p.unix)
	} else {
		errno = sys.Connect(fd, &p.inet)
	}
	if err == nil && errno != 0 && errno != sys.EINPROGRESS {
		err = os.NewSyscallError(sys.OpConnect.String(), errno)
	}
	if err != nil {
		sys.Close(fd)
		return nil, err
	}
	d, err := e.openStream(fd, family != sys.AF_UNIX)
	if err != nil || errno == 0 {
		return d, err
	}
	defer func() {
		if err != nil {
			d.Close()
		}
	}()
	if end, ok := ctx.Deadline(); ok {
		_ = d.SetWriteDeadline(partialDeadline(time.Now(), end, share))
	}
	stop := context.AfterFunc(ctx, func() { _ = d.SetWriteDeadline(time.Unix(1, 0)) })
	defer func() {
		if !stop() && err == nil {
			err = contextError(ctx) // It has ended, and has set or is setting a deadline that would stay.
		}
		if err == nil {
			err = d.SetWriteDeadline(time.Time{})
		}
		switch {
		case err == nil:
		case ctx.Err() != nil:
			err = contextError(ctx)
		case errors.Is(err, os.ErrDeadlineExceeded):
			err = dialTimeout{} // The poller's timer was faster than the context's.
		}
	}()
	waitErr := d.Use(poller.ModeWrite, func(fd int) bool {
		// An event may be spurious: only a peer proves a connection, and only SO_ERROR says why there is none.
		value, failed := sys.GetsockoptInt(fd, sys.SOL_SOCKET, sys.SO_ERROR)
		if failed != 0 {
			errno = failed
			return true
		}
		if errno = sys.Errno(value); errno != 0 {
			return true
		}
		_, errno = sys.Getpeername(fd)
		return errno != sys.ENOTCONN
	})
	if waitErr != nil {
		return nil, waitErr
	}
	return d, os.NewSyscallError(sys.OpConnect.String(), asError(errno))
}

// connectUnix connects a unix socket, which succeeds or fails at once but for a listener whose queue is full.
func connectUnix(ctx context.Context, fd int, path sys.UnixAddr) (sys.Errno, error) {
	for {
		errno := sys.ConnectUnix(fd, path)
		if errno != sys.EAGAIN {
			return errno, nil
		}
		select {
		case <-ctx.Done():
			return 0, contextError(ctx)
		case <-time.After(unixRetry):
		}
	}
}
