package pollux

import (
	"net"
	"sync/atomic"

	"github.com/pollux-go/pollux/internal/sys"
)

// acceptTurn is how the loops share a listening socket where each accepts into a table of its own: there is an acceptor a
// loop, and one of them at a time has the turn. Who has it accepts one connection, and gives the turn to the loop that has
// the fewest, or keeps it.
//
// Why not all at once, each by a multishot accept: the kernel wakes the first of those that wait, and always the same, so
// one loop would get everything; and an accept that finds the table full has taken the connection out of the queue by
// then, and drops it. With one request under way for a place that is kept for it, neither can be. And the request can
// bring the peer's address, which no system call could ask for later.
type acceptTurn struct {
	members  []*acceptor
	local    uint16       // the listener's address, as the connections' local
	wildcard bool         // it listens on every address, so that theirs may be others
	next     int          // where the search for a loop begins; belongs to who has the turn
	left     atomic.Int32 // members that have not left; the last one closes the socket
}

// crowd is how many more connections than the one with the fewest a loop may have to keep the turn, as a share of those: a
// turn that moves costs a wake-up.
const crowd = 16

// acceptEverywhere makes an acceptor a loop for a listening socket.
func (s *Service) acceptEverywhere(first *acceptor) {
	e := s.engine
	t := &acceptTurn{local: s.localIndex(first.ln.addr)}
	if a, ok := first.ln.addr.(*net.TCPAddr); ok {
		t.wildcard = a.IP.IsUnspecified()
	}
	t.left.Store(int32(len(e.loops)))
	for _, l := range e.loops {
		a := first
		if l != first.loop {
			a = &acceptor{loop: l, service: s, ln: first.ln}
			s.others = append(s.others, a)
		}
		a.turn = t
		t.members = append(t.members, a)
	}
}

// pass gives the turn, which a has, to the loop that has the fewest connections and room.
func (a *acceptor) pass() {
	l := a.loop
	t := a.turn
	t.next++
	var best *acceptor
	for i := range t.members {
		m := t.members[(t.next+i)%len(t.members)]
		if m.loop.direct.room() > 0 && (best == nil || m.loop.count.Load() < best.loop.count.Load()) {
			best = m
		}
	}
	if best == nil {
		// All are full. Somebody will close something.
		a.pause(explainDirect(a.service.engine.config.DirectDescriptors))
		return
	}
	if few := best.loop.count.Load(); l.direct.room() > 0 && l.count.Load() < few+few/crowd {
		best = a
	}
	if best == a {
		a.take()
		return
	}
	// Bounded by one letter a listener. It fails only when the engine is closing.
	_ = best.loop.inner.PostAlways(best.take)
}

// take accepts a connection, having the turn.
func (a *acceptor) take() {
	if a.gone {
		return // The service ends: every member leaves, and the last one accepts what waits.
	}
	if a.loop.direct.room() == 0 {
		a.pass()
		return
	}
	if err := a.loop.direct.acceptDirect(a.ln.fd, a.token); err != nil {
		a.pause(err)
	}
}

// acceptedDirect handles a connection that was accepted into the loop's table. more says that it was not the last one.
func (a *acceptor) acceptedDirect(fd int, more bool) {
	l := a.loop
	l.accepts.Add(1)
	c := newConn(l, a.service, fd, l.direct.peer(a.token), true)
	c.blocked.Store(true)
	c.local = a.localOf(fd)
	a.service.join(l)
	if more {
		a.pass() // First: the others need not wait for the handler.
	}
	l.register(c)
}

// localOf returns the address of this end of a connection, by its number. It asks for it only where it may be another one
// than the listener's, and takes it for that where no descriptor is free to ask with.
func (a *acceptor) localOf(fd int) uint16 {
	t := a.turn
	if !t.wildcard {
		return t.local
	}
	ordinary, err := a.loop.direct.install(fd)
	if err != nil {
		return t.local
	}
	defer sys.Close(ordinary)
	from, errno := sys.Getsockname(ordinary)
	if errno != 0 {
		return t.local
	}
	if index := a.service.localIndexOf(from); index != 0 {
		return index
	}
	return t.local
}

// localIndex returns the number by which connections name one of their local addresses, which are few. 0 says that there
// are too many.
func (s *Service) localIndex(addr net.Addr) uint16 {
	s.localMu.Lock()
	defer s.localMu.Unlock()
	if len(s.locals) >= 1<<16-1 {
		return 0
	}
	s.locals = append(s.locals, addr)
	return uint16(len(s.locals))
}

func (s *Service) localIndexOf(from sys.Sockaddr) uint16 {
	s.localMu.Lock()
	index, ok := s.localBy[from]
	s.localMu.Unlock()
	if ok {
		return index
	}
	index = s.localIndex(tcpAddr(from))
	s.localMu.Lock()
	defer s.localMu.Unlock()
	if s.localBy == nil {
		s.localBy = map[sys.Sockaddr]uint16{}
	}
	s.localBy[from] = index
	return index
}

// localAddr returns the address by its number.
func (s *Service) localAddr(index uint16) net.Addr {
	s.localMu.Lock()
	defer s.localMu.Unlock()
	return s.locals[index-1]
}

// everyAcceptor returns the acceptors of all loops.
func (s *Service) everyAcceptor() []*acceptor {
	return append(s.acceptors[:len(s.acceptors):len(s.acceptors)], s.others...)
}
