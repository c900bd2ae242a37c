package uring

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"
	"unsafe"

	"github.com/pollux-go/pollux/internal/sys"
)

// The probes, one for each [Feature]. Each tries the real thing, on a ring and a thread of its own, or asks the kernel
// for its own list of what it can do; none looks at a version, since distributions add features to old kernels.
//
// EINVAL is how the kernel says that it does not know something. A probe takes it for a no only after the same call
// without the feature has worked.
var (
	haveExtArg          = newProbe(ExtArg, nil, featureBit(featExtArg))
	haveSkipCQE         = newProbe(SkipCQE, nil, trySkipCQE)
	haveMultishotPoll   = newProbe(MultishotPoll, nil, tryMultishotPoll)
	haveRegisteredRing  = newProbe(RegisteredRing, nil, tryRegisteredRing)
	haveCoopTaskrun     = newProbe(CoopTaskrun, setupFlag(setupCoopTaskrun|setupTaskrunFlag), nil)
	haveBufferRing      = newProbe(BufferRing, nil, tryBufferRing)
	haveMultishotAccept = newProbe(MultishotAccept, nil, tryMultishotAccept)
	haveMultishotRecv   = newProbe(MultishotRecv, nil, tryMultishotRecv)
	haveDeferTaskrun    = newProbe(DeferTaskrun, setupFlag(setupSingleIssuer|setupDeferTaskrun|setupTaskrunFlag), nil)
	haveNoSQArray       = newProbe(NoSQArray, setupFlag(setupNoSQArray), nil)
	haveEpollWait       = newProbe(EpollWait, nil, tryEpollWait)
	haveNoIOWait        = newProbe(NoIOWait, nil, featureBit(featNoIOWait))
	haveRestrictions    = newProbe(Restrictions, tryRestrictions, nil)
	haveResizeRings     = newProbe(ResizeRings, nil, tryResizeRings)
	haveDirectFiles     = newProbe(DirectFiles, nil, tryDirectFiles)
	haveFixedFDInstall  = newProbe(FixedFDInstall, nil, tryFixedFDInstall)
	haveDirectClose     = newProbe(DirectClose, nil, tryDirectClose)
)

var probes = map[Feature]*probe{
	ExtArg: haveExtArg, SkipCQE: haveSkipCQE, MultishotPoll: haveMultishotPoll, RegisteredRing: haveRegisteredRing,
	CoopTaskrun: haveCoopTaskrun, BufferRing: haveBufferRing, MultishotAccept: haveMultishotAccept,
	MultishotRecv: haveMultishotRecv, DeferTaskrun: haveDeferTaskrun, NoSQArray: haveNoSQArray,
	EpollWait: haveEpollWait, NoIOWait: haveNoIOWait, Restrictions: haveRestrictions, ResizeRings: haveResizeRings,
	DirectFiles: haveDirectFiles, FixedFDInstall: haveFixedFDInstall, DirectClose: haveDirectClose,
}

// Probe tells whether the kernel has a feature, which must be a single one: nil if it has, an [UnsupportedError] if it
// has not, and any other error if that could not be found out, because a sandbox is in the way for instance. The first
// two are remembered; the third is tried again next time. It is safe for concurrent use.
func Probe(f Feature) error {
	p := probes[f]
	if p == nil {
		return fmt.Errorf("no probe of feature %#x", uint32(f))
	}
	return p.ask(nil)
}

// probe asks the kernel about one feature, without a ring or with one.
type probe struct {
	name, since string
	bare        func() (bool, error)
	ring        func(*trial) (bool, error)

	mu    sync.Mutex // protects what follows; held while it is tried, so that it is tried once
	known bool
	has   bool
}

func newProbe(f Feature, bare func() (bool, error), ring func(*trial) (bool, error)) *probe {
	for _, n := range featureNames {
		if n.feature == f {
			return &probe{name: n.name, since: n.since, bare: bare, ring: ring}
		}
	}
	panic("uring: a probe of a feature without a name")
}

// ask returns what [Probe] does. t is a ring to use, or nil.
func (p *probe) ask(t *trial) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.known {
		has, err := p.try(t)
		if err != nil {
			return &undecidedError{p.name, err}
		}
		p.known, p.has = true, has
	}
	if !p.has {
		return &UnsupportedError{p.name, p.since}
	}
	return nil
}

func (p *probe) try(t *trial) (bool, error) {
	switch {
	case p.bare != nil:
		return p.bare()
	case t != nil:
		return p.ring(t)
	}
	var has bool // Written before the answer is sent, and read only if one came.
	err := onOwnThread(Options{}, func(t *trial) (err error) {
		has, err = p.ring(t)
		return err
	})
	if err != nil {
		return false, err
	}
	return has, nil
}

// missing asks for several features on one ring. It stops at the first that cannot be found out: what is left on the ring
// would confuse the next.
func (t *trial) missing(features Feature) (missing Feature, err error) {
	for _, n := range featureNames {
		if features&n.feature == 0 {
			continue
		}
		if err := probes[n.feature].ask(t); errors.Is(err, errors.ErrUnsupported) {
			missing |= n.feature
		} else if err != nil {
			return missing, err
		}
	}
	return missing, nil
}

// Answers asks for every feature, the oldest first.
func Answers() []Answer {
	// One ring for all of them; what it cannot tell is tried alone.
	_ = onOwnThread(Options{}, func(t *trial) error {
		_, err := t.missing(^Feature(0))
		return err
	})
	answers := make([]Answer, len(featureNames))
	for i, n := range featureNames {
		answers[i] = Answer{n.feature, n.name, n.since, n.without, Probe(n.feature)}
	}
	return answers
}

// query asks the kernel for its list of features, which it has since 6.18. It needs no ring.
func query() (q queryOpcodes, ok bool) {
	answer := new(queryOpcodes)
	// SAFETY: both lie in the heap, which does not move, until the call has returned.
	head := &queryHeader{data: uint64(uintptr(unsafe.Pointer(answer))), size: uint32(unsafe.Sizeof(*answer))}
	errno := sys.UringRegister(-1, registerQuery, unsafe.Pointer(head), 0)
	runtime.KeepAlive(answer)
	return *answer, errno == 0 && head.result == 0 && answer.requests > 0
}

// setupFlag tells whether a ring can be made with flags.
func setupFlag(flags uint32) func() (bool, error) {
	return func() (bool, error) {
		if q, ok := query(); ok {
			return q.setup&uint64(flags) == uint64(flags), nil
		}
		return trySetup(flags)
	}
}

func trySetup(flags uint32) (bool, error) {
	_, errno := setup(flags)
	if errno == sys.EINVAL {
		if _, errno := setup(0); errno == 0 {
			return false, nil
		}
	}
	return answered(errno)
}

// featureBit tells whether the set-up has answered with a bit.
func featureBit(bit uint32) func(*trial) (bool, error) {
	return func(t *trial) (bool, error) { return t.params.Features&bit != 0, nil }
}

// setup makes and closes the smallest ring.
func setup(flags uint32) (p sys.UringParams, errno sys.Errno) {
	p.Flags = flags
	fd, errno := sys.UringSetup(2, &p)
	if errno == 0 {
		errno = sys.Close(fd)
	}
	return p, errno
}

func answered(errno sys.Errno) (bool, error) {
	if errno != 0 {
		return false, errno
	}
	return true, nil
}

// answeredNo is a no, if the call without the feature has worked.
func answeredNo(errno sys.Errno) (bool, error) {
	_, err := answered(errno)
	return false, err
}

// trialTime is how long anything on a throw-away ring may take. All of it happens inside the kernel and takes
// microseconds.
const trialTime = 2 * time.Second

// onOwnThread has f try something with a small ring, on a thread that ends with it. A no-op has worked before.
func onOwnThread(o Options, f func(*trial) error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // Never unlocked: the thread ends, and with it what is registered with it.
		done <- run(o, f)
	}()
	end := time.NewTimer(2*trialTime + o.Patience)
	defer end.Stop()
	select {
	case err := <-done:
		return err
	case <-end.C:
		return errors.New("io_uring does not answer")
	}
}

func run(o Options, f func(*trial) error) error {
	o.Entries, o.CQEntries = 8, 16
	r, err := Open(o)
	if err != nil {
		return err
	}
	defer r.Close()
	// Registering the ring is a probe of its own, and so are restrictions, which would be in the way of others.
	if err := r.Enable(o.Without | RegisteredRing | Restrictions); err != nil {
		return err
	}
	t := &trial{Ring: r, end: time.Now().Add(trialTime)}
	if err := t.nop(); err != nil {
		return err
	}
	return f(t)
}

// trial is a ring that is tried out.
type trial struct {
	*Ring
	end      time.Time
	requests uint64 // that were submitted; each has its number as user_data
}

// submit has the next wait submit a request, and returns the request's number.
func (t *trial) submit(sqe SQE) (request uint64, err error) {
	e := t.Next()
	if e == nil {
		return 0, errors.New("the queue of an io_uring is full")
	}
	t.requests++
	sqe.UserData = t.requests
	*e = sqe
	return t.requests, nil
}

// do submits a request and returns its first completion.
func (t *trial) do(sqe SQE) (CQE, error) {
	request, err := t.submit(sqe)
	if err != nil {
		return CQE{}, err
	}
	return t.next(request)
}

// next returns the next completion of a request. Those of others are what nobody has waited for: a request that failed
// where it was not looked for, on a kernel without the feature.
func (t *trial) next(request uint64) (CQE, error) {
	for {
		if c, err := t.any(); err != nil || c.UserData == request {
			return c, err
		}
	}
}

// any returns the next completion.
func (t *trial) any() (c CQE, err error) {
	for t.Reap(1, func(got *CQE) { c = *got }) == 0 {
		left := time.Until(t.end)
		if left <= 0 {
			return c, errors.New("a request to io_uring does not complete")
		}
		if errno := t.Enter(true, left); errno != 0 {
			return c, fmt.Errorf("enter the io_uring: %w", errno)
		}
	}
	return c, nil
}

// nop shows that the ring works at all.
func (t *trial) nop() error {
	c, err := t.do(SQE{Opcode: OpNop})
	if err == nil && c.Res != 0 {
		err = fmt.Errorf("a no-op came back as %+v", c)
	}
	if err != nil {
		return fmt.Errorf("submit a no-op: %w", err)
	}
	return nil
}

// cancel ends a request that lives on, and waits for its end and that of the cancel, which come in any order.
func (t *trial) cancel(request uint64) error {
	cancel, err := t.submit(SQE{Opcode: OpAsyncCancel, Addr: request})
	for left := 2; err == nil && left > 0; {
		var c CQE
		c, err = t.any()
		if c.UserData == cancel || c.UserData == request && c.Flags&CQEMore == 0 {
			left--
		}
	}
	return err
}

// verdict is what the first completion of a request says about it.
func verdict(c CQE, err error) (bool, error) {
	switch {
	case err != nil:
		return false, err
	case c.Res == -int32(sys.EINVAL):
		return false, nil
	case c.Res < 0:
		return false, sys.Errno(-c.Res)
	}
	return true, nil
}

// multishot is verdict for a request that must live on: it is ended.
func (t *trial) multishot(sqe SQE) (bool, error) {
	c, err := t.do(sqe)
	has, err := verdict(c, err)
	if !has || err != nil || c.Flags&CQEMore == 0 {
		return false, err
	}
	return true, t.cancel(c.UserData)
}

func trySkipCQE(t *trial) (bool, error) {
	skipped, err := t.submit(SQE{Opcode: OpNop, Flags: SkipSuccess})
	if err != nil {
		return false, err
	}
	last, err := t.submit(SQE{Opcode: OpNop})
	if err != nil {
		return false, err
	}
	// The last one completes in any case, after what the first one may have to say.
	for has := true; ; {
		switch c, err := t.any(); {
		case err != nil:
			return false, err
		case c.UserData == skipped:
			if has, err = verdict(c, nil); err != nil {
				return false, err
			}
		case c.UserData == last:
			return has, nil
		}
	}
}

func tryRegisteredRing(t *trial) (bool, error) {
	update := &resourceUpdate{offset: ^uint32(0), data: uint64(t.fd)}
	switch errno := sys.UringRegister(t.fd, registerRingFDs, unsafe.Pointer(update), 1); errno {
	case 0:
		// Else it would hold the ring until the thread ends.
		update = &resourceUpdate{offset: update.offset}
		return answered(sys.UringRegister(t.fd, unregisterRingFDs, unsafe.Pointer(update), 1))
	case sys.EINVAL:
		return false, nil
	default:
		return false, errno
	}
}

// tryRestrictions makes a ring that takes no-ops alone, and has it refuse something else.
func tryRestrictions() (bool, error) {
	r, errno := open(step{flags: setupDisabled}, Options{Entries: 2}, new(uint32))
	if errno != 0 {
		return false, errno
	}
	defer r.Close()
	all := []restriction{{kind: restrictSQEOp, what: OpNop}, {kind: restrictRegisterOp, what: registerEnable}}
	switch errno := sys.UringRegister(r.fd, registerRestrictions, unsafe.Pointer(&all[0]), uint32(len(all))); errno {
	case 0:
	case sys.EINVAL:
		return answeredNo(sys.UringRegister(r.fd, registerEnable, nil, 0))
	default:
		return false, errno
	}
	if errno := sys.UringRegister(r.fd, registerEnable, nil, 0); errno != 0 {
		return false, errno
	}
	t := &trial{Ring: r, end: time.Now().Add(trialTime)}
	if err := t.nop(); err != nil {
		return false, err
	}
	c, err := t.do(SQE{Opcode: OpAsyncCancel})
	return c.Res == -int32(sys.EACCES), err
}

func tryResizeRings(t *trial) (bool, error) {
	if t.used&(DeferTaskrun|NoSQArray) != DeferTaskrun|NoSQArray {
		return false, nil // It needs both.
	}
	switch errno := t.Resize(2 * len(t.cqes)); errno {
	case 0:
		return true, t.nop()
	case sys.EINVAL:
		return false, nil
	default:
		return false, errno
	}
}

func tryMultishotPoll(t *trial) (bool, error) {
	fd, errno := sys.Eventfd()
	if errno != 0 {
		return false, errno
	}
	defer sys.Close(fd)
	if _, errno := sys.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0}); errno != 0 {
		return false, errno
	}
	return t.multishot(SQE{Opcode: OpPollAdd, FD: int32(fd), Len: PollMulti, OpFlags: sys.EPOLLIN})
}

func tryBufferRing(t *trial) (bool, error) {
	b, err := t.NewBufRing(0, 2, 64)
	if errors.Is(err, sys.EINVAL) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	b.Close()
	return true, nil
}

func tryMultishotAccept(t *trial) (bool, error) {
	fd, done, err := awaited()
	if err != nil {
		return false, err
	}
	defer done()
	c, err := t.do(SQE{Opcode: OpAccept, FD: int32(fd), IOPrio: AcceptMultishot, OpFlags: sys.SOCK_CLOEXEC})
	has, err := verdict(c, err)
	if !has || err != nil {
		return false, err
	}
	sys.Close(int(c.Res))
	if c.Flags&CQEMore == 0 {
		return false, nil
	}
	return true, t.cancel(c.UserData)
}

// awaited returns a listening socket in whose queue a connection waits.
func awaited() (fd int, done func(), err error) {
	var open []int
	done = func() {
		for _, fd := range open {
			sys.Close(fd)
		}
	}
	defer func() {
		if err != nil {
			done()
		}
	}()
	fd, errno := sys.Socket(sys.AF_UNIX)
	if errno != 0 {
		return -1, nil, errno
	}
	open = append(open, fd)
	if errno := sys.BindUnix(fd, ""); errno != 0 { // The kernel finds an abstract name.
		return -1, nil, errno
	}
	if errno := sys.Listen(fd, 1); errno != 0 {
		return -1, nil, errno
	}
	name, errno := sys.UnixName(fd)
	if errno != 0 {
		return -1, nil, errno
	}
	client, errno := sys.Socket(sys.AF_UNIX)
	if errno != 0 {
		return -1, nil, errno
	}
	open = append(open, client)
	if errno := sys.ConnectUnix(client, name); errno != 0 {
		return -1, nil, errno
	}
	return fd, done, nil
}

// tryMultishotRecv needs a buffer ring, as the backend does: without one the answer is no.
func tryMultishotRecv(t *trial) (bool, error) {
	if has, err := tryBufferRing(t); !has || err != nil {
		return false, err
	}
	received, err := t.receive()
	if errors.Is(err, sys.EINVAL) {
		return false, nil
	}
	return received && err == nil, err
}

// receive does what the backend does for each connection: one multishot receive into a ring of buffers, on a socket pair,
// from the first byte to the end of the stream. It is false when the request did not live on.
func (t *trial) receive() (multishot bool, err error) {
	const hello = "hello"
	b, err := t.NewBufRing(0, 2, 64)
	if err != nil {
		return false, err
	}
	defer b.Close()
	pair, errno := sys.Socketpair()
	if errno != 0 {
		return false, fmt.Errorf("make a socket pair: %w", errno)
	}
	defer sys.Close(pair[0])
	defer func() {
		if pair[1] >= 0 {
			sys.Close(pair[1])
		}
	}()
	var request uint64
	for n := range 3 { // More rounds than buffers.
		if _, errno := sys.Write(pair[1], []byte(hello)); errno != 0 {
			return false, fmt.Errorf("write to a socket pair: %w", errno)
		}
		var c CQE
		if n == 0 {
			c, err = t.do(SQE{Opcode: OpRecv, FD: int32(pair[0]), IOPrio: RecvMultishot | RecvPollFirst, Flags: BufferSelect})
			request = c.UserData
		} else {
			c, err = t.next(request)
		}
		if err == nil && c.Res < 0 {
			err = sys.Errno(-c.Res)
		}
		if err != nil {
			return false, fmt.Errorf("receive into a ring of buffers: %w", err)
		}
		if c.Flags&CQEMore == 0 {
			return false, nil
		}
		id := uint16(c.Flags >> 16)
		if got := string(b.Take(id, int(c.Res))); c.Flags&CQEBuffer == 0 || got != hello {
			return false, fmt.Errorf("receive into a ring of buffers: %q came instead of %q", got, hello)
		}
		b.Return(id)
		b.Publish()
	}
	sys.Close(pair[1])
	pair[1] = -1
	c, err := t.next(request)
	if err == nil && (c.Res != 0 || c.Flags&CQEMore != 0) {
		err = fmt.Errorf("%+v came instead", c)
	}
	if err != nil {
		return false, fmt.Errorf("receive the end of a stream: %w", err)
	}
	return true, nil
}

func tryEpollWait(t *trial) (bool, error) {
	return t.awaitReady(func(epfd int, events []sys.EpollEvent) SQE {
		return SQE{Opcode: OpEpollWait, FD: int32(epfd), Addr: uint64(uintptr(unsafe.Pointer(&events[0]))), Len: uint32(len(events))}
	})
}

// awaitReady waits in the ring for an epoll set with one descriptor that is ready.
func (t *trial) awaitReady(request func(epfd int, events []sys.EpollEvent) SQE) (bool, error) {
	epfd, errno := sys.EpollCreate()
	if errno != 0 {
		return false, errno
	}
	defer sys.Close(epfd)
	fd, errno := sys.Eventfd()
	if errno != 0 {
		return false, errno
	}
	defer sys.Close(fd)
	if errno := sys.EpollCtl(epfd, sys.EpollAdd, fd, sys.EPOLLIN, 1); errno != 0 {
		return false, errno
	}
	if _, errno := sys.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0}); errno != 0 {
		return false, errno
	}
	// SAFETY: the kernel writes to the events as it takes the request, for the set is ready; they lie in the heap and live
	// as long as the ring, which is as long as the request.
	events := make([]sys.EpollEvent, 1)
	c, err := t.do(request(epfd, events))
	runtime.KeepAlive(events)
	return verdict(c, err)
}

// SelfTest goes the whole way that the backend goes, with a small ring on a thread of its own: set-up, enabling, a no-op,
// the wait on an epoll set, and a multishot receive into a ring of buffers. A sandbox may allow some of the calls and refuse
// others, which only this shows. It takes well under a millisecond, and a few seconds in the worst case; it leaves nothing
// behind. patience is for memory: see [Options].
//
// Features of masked are not used. Those of wanted are asked for on the way, and the ones that the kernel lacks are not used
// and returned.
func SelfTest(masked, wanted Feature, patience time.Duration) (missing Feature, err error) {
	err = onOwnThread(Options{Without: masked, Patience: patience}, func(t *trial) (err error) {
		if missing, err = t.missing(wanted &^ masked); err != nil {
			return err
		}
		return t.path(masked | missing)
	})
	if err != nil {
		return 0, fmt.Errorf("self-test of io_uring: %w", err)
	}
	return missing, nil
}

// path is what comes after the no-op.
func (t *trial) path(without Feature) error {
	ready, err := t.awaitReady(func(epfd int, events []sys.EpollEvent) SQE {
		if without&EpollWait == 0 {
			return SQE{Opcode: OpEpollWait, FD: int32(epfd), Addr: uint64(uintptr(unsafe.Pointer(&events[0]))), Len: uint32(len(events))}
		}
		return SQE{Opcode: OpPollAdd, FD: int32(epfd), OpFlags: sys.EPOLLIN}
	})
	if err == nil && !ready {
		err = sys.EINVAL
	}
	if err != nil {
		return fmt.Errorf("wait on an epoll set: %w", err)
	}
	if without&(BufferRing|MultishotRecv) != 0 {
		return nil
	}
	lasting, err := t.receive()
	if err == nil && !lasting {
		err = errors.New("a multishot receive ended after its first bytes")
	}
	return err
}
