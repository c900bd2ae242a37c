package pollux

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/poller"
	"github.com/pollux-go/pollux/scheduler"
)

// An Engine is what everything runs on: event loops for connections with handlers, and a poller for goroutines that
// block. Both start when they are first needed. All its methods may be called from any goroutine.
type Engine struct {
	config Config
	log    *slog.Logger
	conns  atomic.Int64 // with handlers
	told   sync.Map     // warnings that were logged
	teller teller

	reliefs reliefs
	stuck   atomic.Uint64 // callbacks that the watchdog has counted
	cpus    atomic.Int64  // that the process has for its goroutines
	roomy   atomic.Bool   // a spin may pay
	around  surroundings  // as they were last, from when the loops run on the watchdog's

	mu         sync.Mutex // protects what follows; loops is read without it by who has been given one
	closed     bool
	choice     *choice
	loops      []*loop
	dispatcher *scheduler.Dispatcher // nil: every callback runs on its loop
	workerIDs  []atomic.Uint64       // the goroutines of its workers
	procs      *procsShare           // of GOMAXPROCS; nil: it is left alone
	isolated   bool                  // other threads are kept off the loops' CPUs
	lowered    []*lowered            // to be ended with the engine
	poller     *poller.Poller
	services   map[*Service]struct{}
	nets       map[*netListener]struct{}
}

// New makes an engine. It reads no environment: see [ConfigFromEnv] for that. A Config that does not hold together is an
// error, and so is a backend that does not work here.
func New(config Config) (*Engine, error) {
	config, err := config.withDefaults()
	if err != nil {
		return nil, err
	}
	choice, err := choose(config)
	if err != nil {
		return nil, err
	}
	e := &Engine{
		config:   config,
		log:      config.Logger,
		choice:   choice,
		services: map[*Service]struct{}{},
		nets:     map[*netListener]struct{}{},
	}
	e.logChoice()
	return e, nil
}

// logChoice says which backend was taken, where nobody has asked for one.
func (e *Engine) logChoice() {
	if e.choice.auto() {
		e.log.Info("pollux: the event loops use "+string(e.choice.kind), "backend", e.choice.kind, "reason", e.choice.reason())
	}
}

// Backend returns the name of the backend that the event loops use: "epoll" or "io_uring". Where the configuration leaves
// the choice to pollux, it may still change until they have started.
func (e *Engine) Backend() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return string(e.choice.kind)
}

// BackendReason says in one line why that backend is used and not another one: what the kernel has refused, for instance.
func (e *Engine) BackendReason() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.choice.reason()
}

// Loops returns the number of event loops.
func (e *Engine) Loops() int { return e.config.Loops }

// Conns returns how many connections with handlers are open.
func (e *Engine) Conns() int { return int(e.conns.Load()) }

// start starts the event loops if they do not run yet. mu is held.
func (e *Engine) start() error {
	if e.closed {
		return ErrClosed
	}
	if e.loops != nil {
		return nil
	}
	threads, err := e.config.threads()
	if err != nil {
		return err
	}
	if err := e.makeDispatcher(threads); err != nil {
		return err
	}
	elsewhere(func() { e.around = surroundingsNow() })
	e.roomy.Store(e.around.roomy())
	loops, err := e.openLoops()
	for err != nil && len(e.choice.left) > 0 {
		// What worked once does not work so many times: memory that the kernel locks has run out, for instance.
		if err = e.choice.next(err); err == nil {
			e.logChoice()
			loops, err = e.openLoops()
		}
	}
	if err != nil {
		return fmt.Errorf("start %d event loops: %w", e.config.Loops, err)
	}
	e.loops = loops
	e.cpus.Store(int64(backlogCPUs(e.around.cpus, procsOfOthers())))
	if e.config.Procs != ProcsKeep {
		e.procs = &procsShare{loops: len(loops), hot: e.config.Hot == HotAlways, fixed: e.config.Procs}
		takeProcs(e.procs, e.around)
	}
	for i, l := range loops {
		l.pin, l.index = threads[i], i
	}
	for _, l := range loops {
		go l.run()
	}
	if e.config.Isolate {
		for _, l := range loops {
			<-l.begun
		}
		e.isolated = true
		isolated.begin(loops)
	}
	if threads[0].Sched.FIFO && !e.config.Isolate {
		<-loops[0].begun
		if loops[0].attendance.there() {
			if errno := e.lower(&shortSlices); errno != 0 { // The attendant does what it can.
				e.refused(fmt.Errorf("shorten the time slices of the process's threads: %w: it needs a sandbox that allows sched_setattr", errno))
			}
		}
	}
	if e.config.Hot == HotAlways && e.config.Procs != ProcsKeep {
		if errno := e.lower(&shortSlack); errno != 0 {
			e.refused(fmt.Errorf("shorten the timer slack of the process's threads: %w: it needs CAP_SYS_NICE", errno))
		}
	}
	if e.dispatcher != nil && !e.config.keepsP() {
		if errno := e.lower(&workerSlack); errno != 0 { // No warning: so it is for every user without privileges, and nothing is lacking.
			e.log.Debug("pollux: threads that have run workers stay a little more punctual than others when the engine has closed: to give them their timer slack back needs CAP_SYS_NICE",
				"error", errno)
		}
	}
	return nil
}

// refused logs once what the kernel has refused of what the loops' threads were to be like.
func (e *Engine) refused(err error) {
	if _, told := e.told.LoadOrStore(err.Error(), true); !told {
		e.log.Warn("pollux: the event loops run without what the kernel has refused", "error", err)
	}
}

// undo gives back what the loops have changed in the process. They have ended.
func (e *Engine) undo() {
	if e.isolated {
		isolated.end(e.loops)
	}
	for _, l := range e.lowered {
		l.end()
	}
	if e.procs != nil {
		giveProcs(e.procs)
	}
}

// lower keeps something of the process's threads low until the engine closes. mu is held.
func (e *Engine) lower(l *lowered) sys.Errno {
	e.lowered = append(e.lowered, l)
	return l.begin()
}

// openLoops opens a backend for each event loop. mu is held.
func (e *Engine) openLoops() ([]*loop, error) {
	var loops []*loop
	for range e.config.Loops {
		b, err := e.choice.open()
		if err != nil {
			for _, l := range loops {
				l.backend.Close()
			}
			return nil, err
		}
		e.busyPollLoop(b)
		loops = append(loops, newLoop(e, b))
	}
	return loops, nil
}

// netPoller returns the poller of the net API, which it starts if need be. It is epoll whatever the configuration says:
// goroutines that block need a loop that is an ordinary goroutine itself.
func (e *Engine) netPoller() (*poller.Poller, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, ErrClosed
	}
	if e.poller == nil {
		b, err := newEpoll()
		if err != nil {
			return nil, err
		}
		if e.poller, err = poller.New(b); err != nil {
			return nil, err
		}
	}
	return e.poller, nil
}

// Open registers a file descriptor that goroutines want to wait on: a pipe, an eventfd, a timerfd, a tun device, a
// socket. The Desc owns fd from then on; see [poller.Poller.Open].
func (e *Engine) Open(fd int) (*poller.Desc, error) {
	p, err := e.netPoller()
	if err != nil {
		return nil, err
	}
	return p.Open(fd)
}

// A Service is a handler and the addresses it is served on.
type Service struct {
	engine    *Engine
	handler   Handler
	acceptors []*acceptor // one for each address
	others    []*acceptor // where every loop accepts for itself: those of the other loops
	dialed    bool        // made by Dial: it ends with its connections
	opened    func()      // with Dial: OnOpen has returned, or never will

	readLimit  int
	writeLimit int
	writeLow   int

	conns    atomic.Int64
	draining atomic.Bool
	closing  atomic.Bool // what waits in the listeners' queues is not accepted any more
	empty    chan struct{}
	emptied  sync.Once
	stopping sync.Once
	stopped  chan struct{} // closed when nothing is accepted any more

	localMu sync.Mutex // protects the fields below
	locals  []net.Addr // addresses of this end, of connections with direct descriptors, which have the index plus 1
	localBy map[sys.Sockaddr]uint16

	pace pace
}

func (e *Engine) newService(h Handler) *Service {
	return &Service{
		engine:     e,
		handler:    h,
		readLimit:  e.config.ReadLimit,
		writeLimit: e.config.WriteLimit,
		writeLow:   e.config.WriteLow,
		empty:      make(chan struct{}),
		stopped:    make(chan struct{}),
	}
}

// join counts a connection that is about to be given to l.
func (s *Service) join(l *loop) {
	s.engine.conns.Add(1)
	s.conns.Add(1)
	l.count.Add(1)
}

// leave counts one that has ended. It is the last thing that happens to it.
func (s *Service) leave(l *loop) {
	l.count.Add(-1)
	s.engine.conns.Add(-1)
	if s.conns.Add(-1) == 0 {
		if s.draining.Load() {
			s.emptied.Do(func() { close(s.empty) })
		}
		if s.dialed {
			s.engine.forget(s)
		}
	}
}

func (e *Engine) forget(s *Service) {
	e.mu.Lock()
	delete(e.services, s)
	e.mu.Unlock()
}

// addr returns the address of the first listener, or nil.
func (s *Service) addr() net.Addr {
	if len(s.acceptors) == 0 {
		return nil
	}
	return s.acceptors[0].ln.addr
}

// Addrs returns the addresses that are listened on, with the ports that the kernel has chosen.
func (s *Service) Addrs() []net.Addr {
	addrs := make([]net.Addr, len(s.acceptors))
	for i, a := range s.acceptors {
		addrs[i] = a.ln.addr
	}
	return addrs
}

// Files returns copies of the listening sockets, in the order of Addrs, to hand to a process that takes over, as
// exec.Cmd.ExtraFiles for instance; it serves them as fd:// addresses. The caller closes them. The files of unix sockets
// are not removed any more when the service ends.
func (s *Service) Files() ([]*os.File, error) {
	files := make([]*os.File, 0, len(s.acceptors))
	for _, a := range s.acceptors {
		fd, err := a.ln.dup()
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			return nil, fmt.Errorf("copy the listening socket of %v: %w", a.ln.addr, err)
		}
		files = append(files, os.NewFile(uintptr(fd), a.ln.addr.String()))
	}
	return files, nil
}

// Conns returns how many connections of the service are open.
func (s *Service) Conns() int { return int(s.conns.Load()) }

// Bind listens on the addresses and has h called for their connections. It does not wait for any. A handler must not call
// it: it gets [ErrInHandler]. An address is one of
//
//	tcp://host:port  tcp4://  tcp6://   an empty host is every address, port 0 lets the kernel choose
//	unix:///path  unix://@name          a file of mode Config.UnixMode, or an abstract name
//	fd://3                              a listening socket that the process has inherited; it is taken over
//	systemd://  systemd://name          those that systemd passes, all or the ones of that name
//
// or several of them separated by commas. The file of a unix socket that nobody listens on any more is replaced; any
// other file is left alone.
func (e *Engine) Bind(h Handler, addrs ...string) (*Service, error) {
	if h == nil {
		return nil, errors.New("pollux: the handler is nil")
	}
	parsed, err := parseAddresses(addrs...)
	if err != nil {
		return nil, err
	}
	var open []*listening
	for _, a := range parsed {
		some, err := e.listenOn(a)
		open = append(open, some...)
		if err != nil {
			for _, ln := range open {
				ln.close()
			}
			return nil, err
		}
	}
	return e.serve(h, open)
}

// The kernel ends the rings of a process that was killed in the background. A server that is started again at once finds its
// address in use until then, which takes some tens of milliseconds.
const (
	usedMost  = 250 * time.Millisecond
	usedPause = 5 * time.Millisecond
)

func (e *Engine) listenOn(a address) ([]*listening, error) {
	var fds []int
	switch a.network {
	case "fd":
		fd, _ := strconv.Atoi(a.rest) // parseAddress has checked it.
		fds = []int{fd}
	case "systemd":
		var err error
		if fds, err = inherited(a.rest); err != nil {
			return nil, err
		}
	default:
		ln, err := e.config.listen(context.Background(), a.network, a.rest)
		for waited := time.Duration(0); errors.Is(err, sys.EADDRINUSE) && e.Backend() == string(KindUring) && waited < usedMost; waited += usedPause {
			time.Sleep(usedPause)
			ln, err = e.config.listen(context.Background(), a.network, a.rest)
		}
		if err != nil {
			return nil, err
		}
		return []*listening{ln}, nil
	}
	var open []*listening
	for _, fd := range fds {
		ln, err := e.config.adopt(fd)
		if err != nil {
			return open, err
		}
		open = append(open, ln)
	}
	return open, nil
}

// serve starts to accept. It takes the sockets over, and closes them if it fails.
func (e *Engine) serve(h Handler, open []*listening) (*Service, error) {
	if e.inHandler() {
		for _, ln := range open {
			ln.close()
		}
		return nil, ErrInHandler
	}
	s := e.newService(h)
	e.mu.Lock()
	if err := e.start(); err != nil {
		e.mu.Unlock()
		for _, ln := range open {
			ln.close()
		}
		return nil, err
	}
	for i, ln := range open {
		if ln.stream {
			e.busyPollSocket(ln.fd)
		}
		a := &acceptor{loop: e.loops[i%len(e.loops)], service: s, ln: ln, next: i}
		s.acceptors = append(s.acceptors, a)
		if ln.stream && a.loop.direct != nil {
			s.acceptEverywhere(a)
		}
	}
	e.services[s] = struct{}{}
	e.mu.Unlock() // The loops take it too: it must not be held while one is waited for.

	everyone := s.everyAcceptor()
	results := make(chan error, len(everyone))
	for _, a := range everyone {
		if err := a.loop.inner.PostAlways(func() { results <- a.loop.addAcceptor(a) }); err != nil {
			a.ln.close()
			results <- err
		}
	}
	var errs []error
	for range everyone {
		errs = append(errs, <-results)
	}
	if err := errors.Join(errs...); err != nil {
		s.closing.Store(true)
		_ = s.shutdown(canceled(err))
		return nil, err
	}
	for _, a := range s.acceptors {
		if a.turn != nil {
			_ = a.loop.inner.PostAlways(a.take) // Now that every loop can be given the turn.
		}
	}
	return s, nil
}

// canceled returns a context that has ended because of err.
func canceled(err error) context.Context {
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(err)
	return ctx
}

// Serve has h called for the connections of ln, which must be a TCP or unix listener with a file descriptor, as those of
// package net and of pollux are: one that a parent process or systemd has passed, for instance. It returns when the
// service has ended, with [ErrClosed], and has closed ln then.
func (e *Engine) Serve(ln net.Listener, h Handler) error {
	if h == nil || ln == nil {
		return errors.New("pollux: the listener or the handler is nil")
	}
	adopted, err := e.config.adoptListener(ln)
	if err != nil {
		return err
	}
	defer ln.Close()
	s, err := e.serve(h, []*listening{adopted})
	if err != nil {
		return err
	}
	<-s.empty
	return ErrClosed
}

// ListenAndServe is Bind that returns when ctx ends, after a [Service.Shutdown] within Config.Drain, whose result it
// returns. When the service ends otherwise it returns [ErrClosed].
func (e *Engine) ListenAndServe(ctx context.Context, addr string, h Handler) error {
	s, err := e.Bind(h, addr)
	if err != nil {
		return err
	}
	select {
	case <-s.empty:
		return ErrClosed
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), e.config.Drain)
	defer cancel()
	return s.Shutdown(drain)
}

// Dial connects to an address, tcp:// or unix://, and has h called for the connection. It waits until OnOpen has
// returned or ctx ends, so a handler must not call it: it gets [ErrInHandler].
func (e *Engine) Dial(ctx context.Context, addr string, h Handler) (*Conn, error) {
	if h == nil {
		return nil, errors.New("pollux: the handler is nil")
	}
	if e.inHandler() {
		return nil, ErrInHandler
	}
	a, err := parseAddress(addr)
	if err != nil {
		return nil, err
	}
	if a.network == "fd" || a.network == "systemd" {
		return nil, fmt.Errorf("dial %q: only tcp and unix addresses can be dialed", addr)
	}
	d, err := e.dial(ctx, a.network, a.rest)
	if err != nil {
		return nil, err
	}
	fd, err := d.Release()
	if err != nil {
		d.Close()
		return nil, err
	}
	from, errno := sys.Getpeername(fd)
	if errno != 0 {
		sys.Close(fd)
		return nil, &net.OpError{Op: "dial", Net: a.network, Err: os.NewSyscallError(sys.OpGetpeername.String(), errno)}
	}
	if from.Family != sys.AF_UNIX {
		e.busyPollSocket(fd)
	}
	s := e.newService(h)
	s.dialed = true
	e.mu.Lock()
	if err := e.start(); err != nil {
		e.mu.Unlock()
		sys.Close(fd)
		return nil, err
	}
	e.services[s] = struct{}{}
	l := e.loops[0]
	for _, other := range e.loops {
		if other.count.Load() < l.count.Load() {
			l = other
		}
	}
	s.join(l)
	e.mu.Unlock()
	c := newConn(l, s, fd, from, from.Family != sys.AF_UNIX)
	open := make(chan struct{})
	s.opened = sync.OnceFunc(func() { close(open) })
	err = l.inner.PostAlways(func() {
		defer func() {
			if c.duty.Load() == 0 || c.isClosed() { // Else OnOpen is still to return, on a worker.
				s.opened()
			}
		}()
		l.register(c)
	})
	if err != nil {
		sys.Close(fd)
		s.leave(l)
		return nil, ErrClosed
	}
	select {
	case <-open:
		return c, nil
	case <-ctx.Done():
		_ = c.Close()
		return nil, ctx.Err()
	}
}

// inHandler tells whether the caller runs on the thread of one of the loops.
func (e *Engine) inHandler() bool {
	e.mu.Lock()
	loops := e.loops
	e.mu.Unlock()
	if len(loops) == 0 {
		return false
	}
	// Locked, or the thread that was asked for its id might be a loop's by the time that the ids are compared: the goroutine
	// moves to another one, and a loop that has just been started locks this one.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	id := int64(sys.Gettid())
	for _, l := range loops {
		if l.thread.Load() == id {
			return true
		}
	}
	return false
}

// Shutdown ends the service gracefully. It accepts what waits in the listeners' queues and closes them; each connection
// is closed as soon as every byte that the kernel has accepted for it was handled and every answer was sent. A
// connection is not waited for once it is idle; one whose handler works for it elsewhere says so by Pause.
//
// When ctx ends first, the rest is closed at once, and the error says how many connections and queued bytes that were.
// When Shutdown returns, no handler of the service runs any more. Inside a handler it cannot wait: there it returns nil
// at once, and goes on in the background.
func (s *Service) Shutdown(ctx context.Context) error {
	if s.engine.inHandler() || s.engine.onWorker() {
		go func() { _ = s.shutdown(ctx) }()
		return nil
	}
	return s.shutdown(ctx)
}

// handlerGrace is how long a shutdown that closes connections by force waits for handlers that are running.
const handlerGrace = 5 * time.Second

func (s *Service) shutdown(ctx context.Context) error {
	defer s.engine.forget(s)
	s.stopping.Do(func() { go s.stopAccepting() })
	select {
	case <-s.stopped:
	case <-ctx.Done():
		s.closing.Store(true)
		// Soon, unless a handler is running: what is accepted later than the force below would outlive it.
		select {
		case <-s.stopped:
		case <-time.After(handlerGrace):
		}
	}
	s.draining.Store(true)
	if s.conns.Load() == 0 {
		s.emptied.Do(func() { close(s.empty) })
	}
	s.each(func(l *loop, c *Conn) { l.drain(c) })
	select {
	case <-s.empty:
		return nil
	case <-ctx.Done():
	}
	conns, queued := s.force()
	grace := time.NewTimer(handlerGrace)
	defer grace.Stop()
	select {
	case <-s.empty:
	case <-grace.C:
		return fmt.Errorf("shutdown: a handler has been running for %v after its time and still runs: %w", handlerGrace, context.Cause(ctx))
	}
	if conns == 0 {
		return nil
	}
	return fmt.Errorf("shutdown: %d connections with %d queued bytes were closed by force: %w", conns, queued, context.Cause(ctx))
}

// stopAccepting closes the listeners, each on its loop.
func (s *Service) stopAccepting() {
	everyone := s.everyAcceptor()
	done := make(chan struct{}, len(everyone))
	for _, a := range everyone {
		err := a.loop.inner.PostAlways(func() {
			a.loop.removeAcceptor(a, func() { done <- struct{}{} })
		})
		if err != nil {
			<-a.loop.done // It may be closing the listener itself.
			a.ln.close()  // The loop is gone. It has closed what it knew, which is not a listener that it never had.
			done <- struct{}{}
		}
	}
	for range everyone {
		<-done
	}
	close(s.stopped)
}

// each has f called on its loop for every connection of the service, soon. Where a callback of one of them ends the loop's
// goroutine, f is called again for all that are left.
func (s *Service) each(f func(*loop, *Conn)) {
	for _, l := range s.engine.loops {
		var call func()
		call = func() {
			ended := false
			defer func() {
				if !ended {
					_ = l.inner.PostAlways(call)
				}
			}()
			for _, src := range l.sources.All {
				if c := src.conn; c != nil && c.service == s {
					l.guard(func() { f(l, c) })
				}
			}
			ended = true
		}
		_ = l.inner.PostAlways(call)
	}
}

// force closes every connection of the service at once, and returns how many there were and what they had queued.
func (s *Service) force() (conns, queued int64) {
	var n, bytes atomic.Int64
	s.each(func(l *loop, c *Conn) {
		n.Add(1)
		bytes.Add(int64(c.Queued()))
		l.destroy(c, ErrShutdown)
	})
	select {
	case <-s.empty:
	case <-time.After(handlerGrace):
	}
	return n.Load(), bytes.Load()
}

// Shutdown ends the engine: every service as [Service.Shutdown] does, and the net API, whose listeners are closed at
// once and whose connections may be used until ctx ends. Inside a handler it returns nil at once and goes on in the
// background. A second one, or one after Close, returns [ErrClosed].
func (e *Engine) Shutdown(ctx context.Context) error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return ErrClosed
	}
	e.closed = true
	e.mu.Unlock()
	if e.inHandler() || e.onWorker() {
		go func() { _ = e.shutdown(ctx) }()
		return nil
	}
	return e.shutdown(ctx)
}

// Close is Shutdown without the grace: what is queued is lost, and OnClose gets [ErrShutdown]. That connections were closed by force is
// no error here; that a handler does not return is one, as an event loop does not end then.
func (e *Engine) Close() error { return except(e.Shutdown(canceled(errClosedNow)), errClosedNow) }

var errClosedNow = errors.New("the engine was closed")

// except returns what is left of joined errors without those that are the given one.
func except(err, one error) error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var left []error
		for _, err := range joined.Unwrap() {
			left = append(left, except(err, one))
		}
		return errors.Join(left...)
	}
	if errors.Is(err, one) {
		return nil
	}
	return err
}

func (e *Engine) shutdown(ctx context.Context) error {
	e.mu.Lock()
	var services []*Service
	for s := range e.services {
		services = append(services, s)
	}
	for ln := range e.nets {
		go ln.Close()
	}
	p := e.poller
	e.mu.Unlock()

	errs := make([]error, len(services))
	var wg sync.WaitGroup
	for i, s := range services {
		wg.Go(func() { errs[i] = s.shutdown(ctx) })
	}
	var netErr error
	if p != nil {
		netErr = errors.Join(waitForDescs(ctx, p), p.Close())
	}
	wg.Wait()
	errs = append(errs, netErr)
	for _, l := range e.loops {
		l.inner.Stop()
	}
	ended := true
	for _, l := range e.loops {
		select {
		case <-l.done:
		case <-time.After(handlerGrace):
			ended = false
			errs = append(errs, errors.New("shutdown: an event loop does not end: a handler still runs"))
		}
	}
	errs = append(errs, e.endDispatcher())
	if ended {
		e.reliefs.crew.Wait()
	}
	if e.loops != nil {
		e.undo()
	}
	return errors.Join(errs...)
}

// waitForDescs waits until the users of the net API have closed what they have open.
func waitForDescs(ctx context.Context, p *poller.Poller) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for p.Len() > 0 {
		select {
		case <-ctx.Done():
			if n := p.Len(); n > 0 {
				return fmt.Errorf("shutdown: %d descriptors of the net API were still open: %w", n, context.Cause(ctx))
			}
		case <-tick.C:
		}
	}
	return nil
}
