package load

import (
	"context"
	"fmt"
	"runtime"
	"time"
)

// pingBatch is how many idle connections are asked at a time.
const pingBatch = 256

// Idle is a set of connections that do nothing, to see what they cost a server.
// Its methods are for one goroutine at a time.
type Idle struct{ g *generator }

// OpenIdle connects conns times to addr. The source addresses go round in
// 127.0.0.0/8 when the server's is in it, so that ports do not run out.
func OpenIdle(ctx context.Context, addr string, conns, size int) (*Idle, error) {
	return OpenIdleFrom(ctx, addr, 0, conns, size)
}

// OpenIdleFrom is OpenIdle for one of several processes, before which others open first connections.
func OpenIdleFrom(ctx context.Context, addr string, first, conns, size int) (*Idle, error) {
	cfg := Config{Addr: addr, First: first, Conns: conns, Size: size, Pipeline: 1, Duration: time.Second}
	if err := cfg.check(); err != nil {
		return nil, err
	}
	g, err := newGenerator(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return &Idle{g}, nil
}

// Ping asks each connection once and checks its answer: none may have been lost
// while it was idle.
func (s *Idle) Ping() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	g := s.g
	for i := range g.conns {
		c := &g.conns[i]
		if err := g.askClosed(c, 1, g.now()); err != nil {
			return err
		}
		if g.due < pingBatch && i+1 < len(g.conns) {
			continue
		}
		if err := g.drain(1 << 62); err != nil {
			return fmt.Errorf("ping of idle connections: %w", err)
		}
	}
	return nil
}

// Close closes the connections.
func (s *Idle) Close() { s.g.close() }
