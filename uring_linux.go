package pollux

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/internal/tally"
	"github.com/pollux-go/pollux/internal/uring"
	"github.com/pollux-go/pollux/poller"
)

// uringBackend is the backend on io_uring(7). It accepts and receives by multishot requests into a ring of provided
// buffers; readiness of other descriptors it takes from an epoll set that the ring waits on, so that there is one wait
// for everything.
//
// The ring belongs to the thread that waits first (SINGLE_ISSUER, DEFER_TASKRUN). Add, Remove and Break reach the epoll
// set and may be called from any thread; everything else is the owner's.
type uringBackend struct {
	ring    *uring.Ring
	buffers *uring.BufRing
	ready   *epoll // readiness, and the wake-ups
	without uring.Feature
	enabled bool
	entries int // submissions and buffers that there was to be room for
	wanted  int

	// What EPOLL_WAIT writes into, in mapped memory, because it does so while nobody waits.
	readyMemory []byte
	readyEvents []sys.EpollEvent
	readyArmed  bool
	readyMore   bool // without EPOLL_WAIT: the set may hold events that were not fetched
	readyCount  int  // events in readyEvents that were not handed out
	grow        bool // completions did not fit

	late     []uring.SQE // submissions that the kernel does not take at the moment, in order
	failures int         // of enter for want of memory, in a row

	slots   []*uringPage // by slot of the token
	closing map[poller.Token]*uringClosing
	starved []poller.Token // receives that found no buffer
	sated   []poller.Token // those of them that had got some since they were armed
	backlog []poller.Event // what Stop has met of others

	leased int // buffers that completions have named and that were not given back

	direct directTable // see uring_direct_linux.go
	stats  uringCounts
}

// uringPage are the slots of so many tokens. They stay where they are when more come.
type uringPage [256]uringSlot

// all calls f for every slot.
func (u *uringBackend) all(f func(*uringSlot)) {
	for _, page := range u.slots {
		for i := range page {
			f(&page[i])
		}
	}
}

// uringSlot is what the kernel has been asked for one token. There is one for each connection, so it is small.
type uringSlot struct {
	token   poller.Token
	send    *byte // keeps what is sent alive while the kernel reads it
	fd      int32
	armed   uint16 // kinds under way, as bits
	cancel  bool   // a Cancel was asked for: do not arm again
	starved bool   // a receive has found no buffer
	fed     bool   // it has found some since it was armed
}

// uringClosing is a released descriptor that the kernel still uses.
type uringClosing struct {
	fd    int // -1: it is not ours to close
	armed uint16
	send  *byte
}

// uringCounts are those of UringStats that are not the ring's. The owner writes them, but for what is set before there is one.
type uringCounts struct {
	overflows, resizes, starved, stale tally.Counter
	rearms, acceptRearms, armed        tally.Counter
	ends                               [endReasons]tally.Counter
	taskruns, sends, epollEvents       tally.Counter
	cancels, cancelsENOENT             tally.Counter
	cancelsEALREADY, low               tally.Counter
	closing, free, freeLeast           atomic.Int64
	buffers                            int
	refusals                           uint32 // of buffers
	lacks                              string
	uses                               atomic.Pointer[string] // nil: it has no owner yet
}

// Why a multishot request has ended.
const (
	endEOF = iota
	endNoBuffers
	endReset
	endCanceled
	endOverflow
	endOther
	endReasons
)

// endOf says why a multishot request has ended with this result.
func endOf(kind int, result int32) int {
	switch {
	case result == 0 && kind == kindReceive:
		return endEOF
	case result >= 0:
		return endOverflow // It would have gone on: its completion did not fit.
	}
	switch sys.Errno(-result) {
	case sys.ENOBUFS:
		return endNoBuffers
	case sys.ECONNRESET:
		return endReset
	case sys.ECANCELED:
		return endCanceled
	}
	return endOther
}

func (u *uringBackend) uringStats() *UringStats {
	r, c := u.ring.Counts(), &u.stats
	s := &UringStats{
		Enters: r.Enters, EntersWithSubmit: r.EntersWithSubmit, SQEs: r.SQEs, CQEs: r.CQEs, CQEBatches: r.CQEBatches,
		Interrupts: r.Interrupts, TaskrunHits: c.taskruns.Load(), EpollEvents: c.epollEvents.Load(),
		Overflows: c.overflows.Load(), Resizes: c.resizes.Load(), Dropped: r.Dropped, Stale: c.stale.Load(),
		MultishotArmed: c.armed.Load(), Rearms: c.rearms.Load(), AcceptRearms: c.acceptRearms.Load(),
		MultishotEnded: MultishotEnds{
			EOF: c.ends[endEOF].Load(), NoBuffers: c.ends[endNoBuffers].Load(), Reset: c.ends[endReset].Load(),
			Canceled: c.ends[endCanceled].Load(), Overflow: c.ends[endOverflow].Load(), Other: c.ends[endOther].Load(),
		},
		Starved: c.starved.Load(), Buffers: c.buffers, BuffersFree: int(c.free.Load()), BuffersFreeMin: int(c.freeLeast.Load()), BuffersLow: c.low.Load(),
		Sends: c.sends.Load(), Cancels: c.cancels.Load(), CancelsENOENT: c.cancelsENOENT.Load(), CancelsEALREADY: c.cancelsEALREADY.Load(),
		Closing: int(c.closing.Load()), MemlockFailures: uint64(r.SetupRefusals + c.refusals), EnterENOMEM: r.NoMemory,
		SetupFlags: r.SetupFlags, Features: r.Features, Lacks: c.lacks,
	}
	if uses := c.uses.Load(); uses != nil {
		s.Uses = *uses
	}
	return s
}

// Kinds of requests, in the bits of user_data above the token.
const (
	kindAccept = 1 + iota
	kindReceive
	kindPoll
	kindHangUp
	kindReadable
	kindSend
	kindCancel
	kindReady
	kindNow // of the table of direct descriptors
)

func userData(kind int, t poller.Token) uint64 { return uint64(kind)<<poller.TokenBits | uint64(t) }

const (
	// uringGroup is the number of the ring of buffers.
	uringGroup = 0
	// uringBuffersMin is as small as the ring of buffers is made when memory is short.
	uringBuffersMin = 64

	// uringPatience is how long a ring waits for memory that rings closed before it will give back.
	uringPatience = 50 * time.Millisecond

	// enterPause is how long enter waits for memory, and enterFailuresMost how often in a row.
	enterPause        = time.Millisecond
	enterFailuresMost = 1000

	// uringProbed are the features that the backend asks for before it uses them. The other ones are found out as the ring
	// is set up.
	uringProbed = uring.EpollWait | uring.MultishotPoll | uring.MultishotAccept | uring.RegisteredRing | uring.SkipCQE |
		uring.Restrictions | uring.ResizeRings | uringReceives
	// uringReceives are those without which the backend gives readiness only.
	uringReceives = uring.MultishotRecv | uring.BufferRing
)

// uringCompletions is how many completions there is room for, for each submission: multishot requests make many. Tests have
// fewer.
var uringCompletions = 8

// checkUring tells whether the backend works here, by a test of the whole path on a small ring. auto has higher demands
// than somebody who asks for the backend by its name.
func checkUring(c Config, auto bool) error {
	masked, err := uring.ParseMask(c.UringFeatures)
	if err != nil {
		return err
	}
	wanted, patience := uringProbed, uringPatience
	if auto {
		wanted, patience = wanted|uring.DeferTaskrun, 0 // It has another backend, so it need not wait.
	}
	if c.DirectDescriptors > 0 {
		wanted |= uringDirect
	}
	missing, err := uring.SelfTest(masked, wanted, patience)
	if err != nil {
		return uring.Explain(err)
	}
	if c.DirectDescriptors > 0 {
		if err := checkTable(c.DirectDescriptors, masked|missing); err != nil {
			return err
		}
	}
	if lacking := (masked | missing) & (uring.DeferTaskrun | uringReceives); auto && lacking != 0 {
		return fmt.Errorf("auto does not take io_uring without %v, which the kernel lacks or which is masked off: %w",
			lacking, errors.ErrUnsupported)
	}
	return nil
}

// uringWithout returns the features that must not be used: they are masked off, or the kernel lacks them.
func uringWithout(c Config) (uring.Feature, error) {
	masked, err := uring.ParseMask(c.UringFeatures)
	if err != nil {
		return 0, err
	}
	probed := uringProbed
	if c.DirectDescriptors > 0 {
		probed |= uringDirect
	}
	missing, err := uring.Missing(probed &^ masked)
	return masked | missing, err
}

// newUring opens the backend. It is not a [poller.Completer] where the kernel cannot receive into a ring of buffers.
func newUring(c Config) (poller.Backend, error) {
	without, err := uringWithout(c)
	if err != nil {
		return nil, uring.Explain(err)
	}
	o := uring.Options{Entries: uint32(c.RingEntries), CQEntries: uint32(c.RingEntries * uringCompletions), Without: without, Patience: uringPatience}
	if c.Backend == KindAuto {
		o.Patience = 0
	}
	u, err := openUring(o, c.RingBuffers, c.RingBufferSize)
	if err != nil {
		return nil, uring.Explain(err)
	}
	if c.DirectDescriptors > 0 {
		if err := u.openTable(c.DirectDescriptors); err != nil {
			u.Close()
			return nil, err
		}
	}
	if u.buffers == nil {
		return uringReadiness{u, u}, nil
	}
	return u, nil
}

// busyPoll implements busyPoller. The ring's own epoll set is looked at through the ring.
func (u *uringBackend) busyPoll(usecs uint32) sys.Errno { return u.ring.BusyPoll(usecs) }

// reduced says that there was too little memory for what was asked for.
func (u *uringBackend) reduced() error {
	sq, _ := u.ring.Entries()
	if sq >= u.entries && u.buffers.Len() >= u.wanted {
		return nil
	}
	return uring.Explain(fmt.Errorf("there is memory for %d submissions and %d buffers instead of %d and %d: %w", sq, u.buffers.Len(), u.entries, u.wanted, sys.ENOMEM))
}

// uringReadiness is the backend without what makes it a [poller.Completer].
type uringReadiness struct {
	poller.Backend // ring, as far as every backend is like it
	ring           *uringBackend
}

func (u uringReadiness) busyPoll(usecs uint32) sys.Errno { return u.ring.busyPoll(usecs) }
func (u uringReadiness) uringStats() *UringStats         { return u.ring.uringStats() }

// Hold and Spin implement [poller.Holder].
func (u uringReadiness) Hold(h *sys.Hold)     { u.ring.Hold(h) }
func (u uringReadiness) Spin(d time.Duration) { u.ring.Spin(d) }

func openUring(o uring.Options, buffers, size int) (_ *uringBackend, err error) {
	u := &uringBackend{without: o.Without, entries: int(o.Entries), wanted: buffers, closing: map[poller.Token]*uringClosing{}}
	u.stats.lacks = o.Without.String()
	defer func() {
		if err != nil {
			u.Close()
		}
	}()
	b, err := newEpoll()
	if err != nil {
		return nil, err
	}
	u.ready = b.(*epoll)
	if u.ring, err = uring.Open(o); err != nil {
		return nil, err
	}
	poller.Own(u.ring.FD())
	if o.Without&uringReceives == 0 {
		u.buffers, err = u.ring.NewBufRing(uringGroup, buffers, size)
		for errors.Is(err, sys.ENOMEM) && buffers/2 >= uringBuffersMin {
			u.stats.refusals++
			buffers /= 2
			u.buffers, err = u.ring.NewBufRing(uringGroup, buffers, size)
		}
		if err != nil {
			return nil, err
		}
		u.stats.buffers = buffers
		u.stats.free.Store(int64(buffers))
		u.stats.freeLeast.Store(int64(buffers))
	}
	var errno sys.Errno
	if u.readyMemory, errno = sys.MapMemory(epollBatch * int(unsafe.Sizeof(sys.EpollEvent{}))); errno != 0 {
		return nil, fmt.Errorf("map memory for events: %w", errno)
	}
	// SAFETY: the mapping is page-aligned, as large as so many events, holds no pointers and lives until Close.
	u.readyEvents = unsafe.Slice((*sys.EpollEvent)(unsafe.Pointer(&u.readyMemory[0])), epollBatch)
	return u, nil
}

func (u *uringBackend) Name() string { return string(KindUring) }

func (u *uringBackend) Add(fd int, t poller.Token) error { return u.ready.Add(fd, t) }

func (u *uringBackend) Remove(fd int) error { return u.ready.Remove(fd) }

// Hold and Spin implement [poller.Holder].
func (u *uringBackend) Hold(h *sys.Hold)     { u.ring.Hold(h) }
func (u *uringBackend) Spin(d time.Duration) { u.ring.Spin(d) }

func (u *uringBackend) Break() error { return u.ready.Break() }

// Wait hands over what is complete. One io_uring_enter submits what has been asked for since the last one and waits.
func (u *uringBackend) Wait(events []poller.Event, timeout time.Duration) (n int, err error) {
	if u.ready.closed.Load() {
		return 0, poller.ErrClosed
	}
	if len(events) == 0 {
		return 0, nil
	}
	if !u.enabled {
		if err := u.enable(); err != nil {
			return 0, err
		}
	}
	if len(u.backlog) > 0 {
		n = copy(events, u.backlog)
		u.backlog = append(u.backlog[:0], u.backlog[n:]...)
		return n, nil
	}
	mayBlock := timeout != 0
	if u.buffers != nil {
		u.buffers.Publish() // First, so that those who have waited longest get them.
		if free := int64(u.buffers.Len() - u.leased); free != u.stats.free.Load() {
			u.stats.free.Store(free)
		}
	}
	u.submitLate()
	u.rearmStarved()
	u.armReady()
	wait := mayBlock && !u.ready.broken && u.readyCount == 0 && !u.readyMore && !u.ring.Ready() && len(u.late) == 0
	enter := wait || u.ring.Pending() > 0
	if !enter && u.ring.NeedsEnter() {
		enter = true
		if u.ring.HasTaskWork() {
			u.stats.taskruns.Add(1)
		}
	}
	if enter {
		if u.ring.Overflowed() {
			u.stats.overflows.Add(1)
			u.grow = u.without&uring.ResizeRings == 0
		}
		if errno := u.enter(wait, timeout); errno != 0 {
			if !u.ring.Owned() {
				return 0, fmt.Errorf("wait on io_uring: %w: another thread owns the ring", errno)
			}
			return 0, fmt.Errorf("wait on io_uring: %w", errno)
		}
	}
	n = u.reap(events)
	if u.grow && !u.ring.Overflowed() {
		u.resize()
	}
	if err := u.fetchReady(); err != nil && n == 0 {
		return 0, err
	}
	n += u.takeReady(events[n:])
	if mayBlock && u.ready.broken {
		u.ready.broken = false
		u.ready.waking.Store(false)
	}
	return n, nil
}

// resize doubles the room for completions, after it was too small. An overflow loses none, but each costs memory of the
// kernel's and a call, and ends every multishot request that it hits.
func (u *uringBackend) resize() {
	u.grow = false
	switch _, cq := u.ring.Entries(); u.ring.Resize(2 * cq) {
	case 0:
		u.stats.resizes.Add(1)
	case sys.EINVAL:
		u.without |= uring.ResizeRings // A ring without DEFER_TASKRUN cannot: asking costs a call each time.
	}
}

// enable makes the calling thread the ring's owner.
func (u *uringBackend) enable() error {
	if err := u.ring.Enable(u.without); err != nil {
		return err
	}
	u.enabled = true
	uses := u.ring.Used().String()
	u.stats.uses.Store(&uses)
	return nil
}

// enter submits and waits. Where the kernel has no memory it tries again later: it may have some then.
func (u *uringBackend) enter(wait bool, timeout time.Duration) sys.Errno {
	errno := u.ring.Enter(wait, timeout)
	if errno != sys.ENOMEM {
		u.failures = 0
		return errno
	}
	if u.failures++; u.failures > enterFailuresMost {
		return errno
	}
	time.Sleep(enterPause)
	return 0
}

// push submits with the next enter, after what was pushed before.
func (u *uringBackend) push(sqe *uring.SQE) {
	if len(u.late) == 0 {
		if e := u.entry(); e != nil {
			*e = *sqe
			return
		}
	}
	// Until completions are reaped, or the kernel has memory again. There are at most a few for each descriptor.
	u.late = append(u.late, *sqe)
}

// entry returns a free submission, after an enter if there is none; nil if that does not help.
func (u *uringBackend) entry() *uring.SQE {
	if sqe := u.ring.Next(); sqe != nil {
		return sqe
	}
	_ = u.ring.Enter(false, 0)
	return u.ring.Next()
}

// submitLate submits what the kernel did not take before.
func (u *uringBackend) submitLate() {
	n := 0
	for ; n < len(u.late); n++ {
		e := u.entry()
		if e == nil {
			break
		}
		*e = u.late[n]
	}
	u.late = append(u.late[:0], u.late[n:]...)
}

// at returns a slot that there is.
func (u *uringBackend) at(index int) *uringSlot {
	return &u.slots[index/len(uringPage{})][index%len(uringPage{})]
}

// slot returns the state of a token's slot, which becomes the token's if it was another one's.
func (u *uringBackend) slot(fd int, t poller.Token) *uringSlot {
	index := int(t.Slot())
	for index >= len(u.slots)*len(uringPage{}) {
		u.slots = append(u.slots, new(uringPage))
	}
	s := u.at(index)
	if s.token != t {
		*s = uringSlot{token: t, fd: int32(fd)}
	}
	return s
}

// find returns the state of a token that is still current, or nil.
func (u *uringBackend) find(t poller.Token) *uringSlot {
	if index := int(t.Slot()); index < len(u.slots)*len(uringPage{}) {
		if s := u.at(index); s.token == t {
			return s
		}
	}
	return nil
}

func (u *uringBackend) Accept(fd int, t poller.Token) error {
	sqe := uring.SQE{Opcode: uring.OpAccept, IOPrio: uring.AcceptMultishot, OpFlags: sys.SOCK_NONBLOCK | sys.SOCK_CLOEXEC}
	if u.without&uring.MultishotAccept != 0 {
		sqe.IOPrio = 0 // It ends with each connection, and is armed again.
	}
	return u.submit(fd, t, kindAccept, sqe)
}

func (u *uringBackend) Receive(fd int, t poller.Token) error {
	return u.submit(fd, t, kindReceive, uring.SQE{
		Opcode: uring.OpRecv, Flags: uring.BufferSelect, BufGroup: uringGroup,
		// An idle socket has nothing yet: the poll comes first, which sees bytes that are there already.
		IOPrio: uring.RecvMultishot | uring.RecvPollFirst,
	})
}

func (u *uringBackend) Send(fd int, t poller.Token, b []byte) error {
	// SAFETY: b lies in the heap, which does not move; the slot, or the entry in closing, keeps it alive until the kernel
	// has completed the request.
	sqe := uring.SQE{
		Opcode: uring.OpSend, Addr: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))), Len: uint32(len(b)),
		OpFlags: sys.MSG_WAITALL | sys.MSG_NOSIGNAL,
	}
	if fd >= directBit {
		sqe.OpFlags = sys.MSG_NOSIGNAL // It may be long: what the peer has taken is to be known meanwhile.
	}
	err := u.submit(fd, t, kindSend, sqe)
	if err == nil {
		u.find(t).send = unsafe.SliceData(b)
		u.stats.sends.Add(1)
	}
	return err
}

func (u *uringBackend) AwaitWritable(fd int, t poller.Token) error {
	return u.submit(fd, t, kindPoll, uring.SQE{Opcode: uring.OpPollAdd, OpFlags: sys.EPOLLOUT})
}

func (u *uringBackend) AwaitReadable(fd int, t poller.Token) error {
	return u.submit(fd, t, kindReadable, uring.SQE{Opcode: uring.OpPollAdd, OpFlags: sys.EPOLLIN})
}

func (u *uringBackend) AwaitHangUp(fd int, t poller.Token) error {
	// A mask of nothing: the kernel adds errors and hang-ups to every poll.
	return u.submit(fd, t, kindHangUp, uring.SQE{Opcode: uring.OpPollAdd})
}

func (u *uringBackend) submit(fd int, t poller.Token, kind int, sqe uring.SQE) error {
	s := u.slot(fd, t)
	if kind == kindAccept || kind == kindReceive {
		s.cancel = false // The others are no answer to a Cancel: it may have to be repeated.
	}
	if s.armed&(1<<kind) != 0 {
		return nil
	}
	sqe.FD = int32(fd)
	if fd >= directBit {
		sqe.FD = int32(fd - directBit)
		sqe.Flags |= uring.FixedFile
	}
	sqe.UserData = userData(kind, t)
	u.push(&sqe)
	s.armed |= 1 << kind
	if isMultishot(kind, &sqe) {
		u.stats.armed.Add(1)
	}
	return nil
}

// isMultishot tells whether the submission of that kind goes on until something ends it.
func isMultishot(kind int, sqe *uring.SQE) bool {
	return kind == kindReceive || kind == kindAccept && sqe.IOPrio&uring.AcceptMultishot != 0
}

func (u *uringBackend) Cancel(t poller.Token) {
	s := u.find(t)
	if s == nil {
		return
	}
	s.cancel = true
	if s.starved {
		s.starved = false
		u.canceled(t)
	}
	for _, kind := range [...]int{kindAccept, kindReceive} {
		if s.armed&(1<<kind) != 0 {
			u.cancel(kind, t)
		}
	}
}

// canceled makes the event that answers a Cancel, where the kernel has no request of which it would say so.
func (u *uringBackend) canceled(t poller.Token) {
	u.backlog = append(u.backlog, poller.Event{Token: t, Ready: poller.Received, Result: -int32(sys.ECANCELED)})
}

// cancel asks for the end of one request. Its own completion is of no interest: the request's says that it has ended.
func (u *uringBackend) cancel(kind int, t poller.Token) {
	e := uring.SQE{Opcode: uring.OpAsyncCancel, Addr: userData(kind, t), UserData: userData(kindCancel, t)}
	if u.without&uring.SkipCQE == 0 {
		e.Flags = uring.SkipSuccess
	}
	u.push(&e)
	u.stats.cancels.Add(1)
}

// canceledNot counts a cancel that has failed.
func (u *uringBackend) canceledNot(errno sys.Errno) {
	switch errno {
	case sys.ENOENT:
		u.stats.cancelsENOENT.Add(1)
	case sys.EALREADY:
		u.stats.cancelsEALREADY.Add(1)
	}
}

// cancelAgain repeats a cancel that has found nothing. The request may have been on its way from one place that the kernel
// looks for it to another: a receive that finds bytes as it is armed runs a moment later and is in no table until then.
// When it has ended instead, its completion comes before this one, or has made a cancel pointless that finds nothing again.
func (u *uringBackend) cancelAgain(t poller.Token) {
	if s := u.find(t); s != nil {
		for _, kind := range [...]int{kindAccept, kindReceive} {
			if s.cancel && s.armed&(1<<kind) != 0 {
				u.cancel(kind, t)
			}
		}
		return
	}
	if o := u.closing[t]; o != nil {
		u.cancelAll(t, o.armed)
	}
}

func (u *uringBackend) Stop(t poller.Token, f func(*poller.Event)) {
	s := u.find(t)
	if s == nil {
		return
	}
	u.Cancel(t)
	var events [16]poller.Event
	for i := 0; i < len(u.backlog); i++ {
		if ev := u.backlog[i]; ev.Token == t {
			u.backlog = append(u.backlog[:i], u.backlog[i+1:]...)
			i--
			f(&ev)
		}
	}
	for s.armed&(1<<kindReceive|1<<kindAccept) != 0 {
		u.submitLate()
		// A cancel runs as it is submitted, so one enter brings the end, unless the completions before it are many.
		if !u.ring.Ready() {
			if errno := u.enter(true, time.Second); errno != 0 {
				return
			}
		}
		for _, ev := range events[:u.reap(events[:])] {
			if ev.Token == t {
				f(&ev)
			} else {
				u.backlog = append(u.backlog, ev)
			}
		}
		u.buffers.Publish()
	}
}

func (u *uringBackend) Release(fd int, t poller.Token, reset bool) {
	if fd >= directBit {
		u.releaseDirect(fd, t, reset)
		return
	}
	s := u.find(t)
	if s == nil || s.armed == 0 {
		sys.Close(fd)
	} else {
		// A close alone would leave the requests running and the peer without its end of stream. A reset cannot come behind
		// that: it is left to the close, which follows the cancels.
		if !reset {
			sys.Shutdown(fd, sys.SHUT_RDWR)
		}
		u.letGo(s, fd)
	}
	if s != nil {
		*s = uringSlot{}
	}
}

func (u *uringBackend) Disarm(t poller.Token) {
	if s := u.find(t); s != nil {
		if s.armed != 0 {
			u.letGo(s, -1)
		}
		*s = uringSlot{}
	}
	u.forgetAccept(t)
}

// letGo cancels what a slot has under way, and remembers it until it has ended.
func (u *uringBackend) letGo(s *uringSlot, fd int) {
	u.closing[s.token] = &uringClosing{fd: fd, armed: s.armed, send: s.send}
	u.stats.closing.Store(int64(len(u.closing)))
	u.cancelAll(s.token, s.armed)
}

// cancelAll cancels the requests of the kinds that are armed.
func (u *uringBackend) cancelAll(t poller.Token, armed uint16) {
	for kind := kindAccept; kind <= kindSend; kind++ {
		if armed&(1<<kind) != 0 {
			u.cancel(kind, t)
		}
	}
}

func (u *uringBackend) Bytes(ev *poller.Event) []byte {
	return u.buffers.Take(ev.Ready.Buffer(), int(ev.Result))
}

func (u *uringBackend) BufferSize() int { return u.buffers.Size() }

func (u *uringBackend) Recycle(ev *poller.Event) {
	u.buffers.Return(ev.Ready.Buffer())
	u.leased--
}

// reap turns completions into events.
func (u *uringBackend) reap(events []poller.Event) int {
	n, batch := 0, 0
	for n < len(events) {
		got := u.ring.Reap(len(events)-n, func(c *uring.CQE) {
			if u.complete(c, &events[n]) {
				n++
			}
		})
		if got == 0 {
			break
		}
		batch += got
	}
	if batch > 0 {
		u.ring.NoteBatch(batch)
		if u.leased > 0 {
			u.noteLow()
		}
	}
	return n
}

// noteLow notes how few buffers a batch has left.
func (u *uringBackend) noteLow() {
	free, c := u.buffers.Len()-u.leased, &u.stats
	if free < u.buffers.Len()/4 {
		c.low.Add(1)
	}
	if int64(free) < c.freeLeast.Load() {
		c.freeLeast.Store(int64(free))
	}
}

// complete handles one completion. It is true when it has made an event of it.
func (u *uringBackend) complete(c *uring.CQE, ev *poller.Event) bool {
	kind := int(c.UserData >> poller.TokenBits)
	t := poller.Token(c.UserData & (1<<poller.TokenBits - 1))
	switch kind {
	case kindCancel:
		if c.Res < 0 {
			u.canceledNot(sys.Errno(-c.Res))
			u.cancelAgain(t)
		}
		return false
	case kindReady:
		u.readyArmed = c.Flags&uring.CQEMore != 0
		if c.Res > 0 {
			u.readyDone(c)
		}
		return false
	case kindNow:
		u.completeNow(c, t)
		return false
	}
	if c.Flags&uring.CQEBuffer != 0 {
		u.leased++
	}
	s := u.find(t)
	if s == nil {
		u.completeStale(c, kind, t)
		return false
	}
	if c.Flags&uring.CQEMore == 0 {
		s.armed &^= 1 << kind
		u.noteEnd(c, kind, t)
	}
	switch kind {
	case kindAccept:
		if result, ok := u.acceptedDirect(c, t); ok {
			*ev = poller.Event{Token: t, Ready: poller.Accepted, Result: result}
			break
		}
		unasked := c.Res == -int32(sys.ECANCELED) && !s.cancel
		if (c.Res >= 0 || unasked) && c.Flags&uring.CQEMore == 0 && !s.cancel {
			u.stats.rearms.Add(1)
			u.stats.acceptRearms.Add(1)
			_ = u.Accept(int(s.fd), t)
		}
		if unasked {
			return false
		}
		*ev = poller.Event{Token: t, Ready: poller.Accepted, Result: c.Res}
	case kindReceive:
		s.fed = s.fed || c.Res > 0
		if c.Res <= 0 {
			u.giveBack(c) // An end has no bytes. The kernel keeps the buffer then; should it not, it would be lost.
		}
		if c.Res > 0 && c.Flags&uring.CQEMore == 0 && !s.cancel {
			u.stats.rearms.Add(1)
			_ = u.Receive(int(s.fd), t)
		}
		if c.Res > 0 && c.Flags&uring.CQEMore == 0 && s.cancel {
			u.canceled(t) // These bytes were the request's last word.
		}
		if sys.Errno(-c.Res) == sys.ENOBUFS && c.Res < 0 {
			if s.cancel {
				c.Res = -int32(sys.ECANCELED)
			} else {
				// It is armed again when buffers have come back, and not before: it would fail at once.
				u.stats.starved.Add(1)
				s.starved = true
				if s.fed {
					u.sated = append(u.sated, t)
				} else {
					u.starved = append(u.starved, t)
				}
				return false
			}
		}
		ready := poller.Received
		if c.Flags&uring.CQENonEmpty == 0 {
			ready |= poller.Emptied
		}
		*ev = poller.Event{Token: t, Ready: ready.WithBuffer(uint16(c.Flags >> 16)), Result: c.Res}
	case kindPoll:
		*ev = poller.Event{Token: t, Ready: poller.Writable}
	case kindSend:
		s.send = nil
		*ev = poller.Event{Token: t, Ready: poller.Sent, Result: c.Res}
	case kindReadable:
		if c.Res < 0 {
			return false
		}
		*ev = poller.Event{Token: t, Ready: readyOf(uint32(c.Res))}
	case kindHangUp:
		if c.Res < 0 {
			return false
		}
		*ev = poller.Event{Token: t, Ready: readyOf(uint32(c.Res)) & (poller.HungUp | poller.Failed)}
	default:
		u.stats.stale.Add(1) // Nothing of ours.
		return false
	}
	return true
}

// noteEnd counts the end of a request, if it was a multishot one.
func (u *uringBackend) noteEnd(c *uring.CQE, kind int, t poller.Token) {
	switch kind {
	case kindReceive:
	case kindAccept:
		if u.without&uring.MultishotAccept != 0 || u.direct.accepts[t] != nil {
			return
		}
	default:
		return
	}
	u.stats.ends[endOf(kind, c.Res)].Add(1)
}

// giveBack returns the buffer of a completion that nobody is told of, if it has one.
func (u *uringBackend) giveBack(c *uring.CQE) {
	if c.Flags&uring.CQEBuffer != 0 {
		u.leased--
		id := uint16(c.Flags >> 16)
		u.buffers.Take(id, 0)
		u.buffers.Return(id)
	}
}

// completeStale handles a completion whose owner has left.
func (u *uringBackend) completeStale(c *uring.CQE, kind int, t poller.Token) {
	u.stats.stale.Add(1)
	u.giveBack(c)
	if c.Flags&uring.CQEMore == 0 {
		u.noteEnd(c, kind, t)
	}
	if kind == kindAccept {
		if result, ok := u.acceptedDirect(c, t); ok {
			if result >= 0 {
				u.closeDirect(int(result))
			}
			u.forgetAccept(t)
		} else if c.Res >= 0 {
			sys.Close(int(c.Res))
		}
	}
	if o := u.closing[t]; o != nil && c.Flags&uring.CQEMore == 0 {
		if o.armed &^= 1 << kind; o.armed == 0 {
			if o.fd >= 0 {
				sys.Close(o.fd)
			}
			delete(u.closing, t)
			u.stats.closing.Store(int64(len(u.closing)))
		}
	}
}

// rearmStarved arms receives again that have found no buffer, once a quarter of them is free. Those that have got nothing
// come first: a flood, which takes every buffer in one go, would be the first one again each time.
func (u *uringBackend) rearmStarved() {
	if len(u.starved)+len(u.sated) == 0 || u.buffers.Free() < u.buffers.Len()/4 {
		return
	}
	for _, list := range [...][]poller.Token{u.starved, u.sated} {
		for _, t := range list {
			if s := u.find(t); s != nil && s.starved {
				s.starved, s.fed = false, false
				_ = u.Receive(int(s.fd), t)
			}
		}
	}
	u.starved, u.sated = u.starved[:0], u.sated[:0]
}

// armReady has the ring wait on the epoll set.
func (u *uringBackend) armReady() {
	if u.readyArmed || u.readyCount > 0 {
		return
	}
	e := &uring.SQE{FD: int32(u.ready.epfd), UserData: userData(kindReady, 0)}
	if u.without&uring.EpollWait == 0 {
		e.Opcode = uring.OpEpollWait
		e.Addr = uint64(uintptr(unsafe.Pointer(&u.readyEvents[0])))
		e.Len = uint32(len(u.readyEvents))
	} else {
		e.Opcode = uring.OpPollAdd
		e.OpFlags = sys.EPOLLIN
		if u.without&uring.MultishotPoll == 0 {
			e.Len = uring.PollMulti
		}
	}
	u.push(e)
	u.readyArmed = true
}

// readyDone notes that the epoll set has events.
func (u *uringBackend) readyDone(c *uring.CQE) {
	if u.without&uring.EpollWait == 0 {
		u.readyCount = int(c.Res)
		return
	}
	u.readyMore = true
}

// fetchReady does what EPOLL_WAIT would have done. The poll tells that events have come, once: as long as a fetch has
// filled all the room there may be more, and what was fetched before must have been handed out.
func (u *uringBackend) fetchReady() error {
	if !u.readyMore || u.readyCount > 0 {
		return nil
	}
	n, errno := sys.EpollPoll(u.ready.epfd, u.readyEvents)
	if errno != 0 {
		return fmt.Errorf("wait on epoll: %w", errno)
	}
	u.readyCount = n
	u.readyMore = n == len(u.readyEvents)
	return nil
}

// takeReady hands over events of the epoll set.
func (u *uringBackend) takeReady(events []poller.Event) int {
	if u.readyCount == 0 || len(events) == 0 {
		return 0
	}
	raw := u.readyEvents[:u.readyCount]
	taken := min(len(raw), len(events))
	n, woken := translate(raw[:taken], events)
	u.stats.epollEvents.Add(uint64(taken))
	u.ready.broken = u.ready.broken || woken
	u.readyCount = copy(raw, raw[taken:])
	return n
}

func (u *uringBackend) Close() error {
	if u.ready != nil && u.ready.closed.Load() {
		return poller.ErrClosed
	}
	var err error
	quiet := true
	if u.ring != nil {
		// A request that does not end may write for as long as the kernel takes to end the ring. Its memory stays mapped
		// then, so that nothing else comes to lie there.
		if quiet = u.quiesce(); quiet && u.buffers != nil {
			u.buffers.Close()
		}
		u.closeTable(quiet)
		poller.Disown(u.ring.FD())
		u.ring.Close()
	}
	for _, o := range u.closing {
		if o.fd >= 0 {
			sys.Close(o.fd)
		}
	}
	if u.readyMemory != nil && quiet {
		sys.Unmap(u.readyMemory)
	}
	if u.ready != nil {
		err = u.ready.Close()
	}
	return err
}

// quiesce ends every request, so that the kernel writes nowhere when the memory is gone. It is false when one has not
// ended, or when that cannot be told, because the thread that owned the ring has ended.
func (u *uringBackend) quiesce() (quiet bool) {
	discard := func(events []poller.Event) {
		for i := range events {
			switch ev := &events[i]; {
			case ev.Ready&poller.Accepted != 0 && ev.Result >= directBit: // The table is closed as a whole.
			case ev.Ready&poller.Accepted != 0 && ev.Result >= 0:
				sys.Close(int(ev.Result))
			case ev.Ready&poller.Received != 0 && ev.Result > 0:
				u.Bytes(ev)
				u.Recycle(ev)
			}
		}
	}
	discard(u.backlog)
	u.backlog = nil
	if !u.enabled {
		return true
	}
	if !u.ring.Owned() {
		return false
	}
	// Each by its user_data: kernels before 5.19 do not know how to cancel whatever there is. What is in closing was canceled
	// as it came there.
	if u.readyArmed {
		u.cancel(kindReady, 0)
	}
	u.all(func(s *uringSlot) {
		s.cancel = true
		u.cancelAll(s.token, s.armed)
	})
	var events [64]poller.Event
	for end := time.Now().Add(time.Second); u.busy(); {
		u.submitLate()
		if time.Now().After(end) || u.enter(true, 10*time.Millisecond) != 0 {
			return false
		}
		discard(events[:u.reap(events[:])])
	}
	return true
}

// busy tells whether a request is under way.
func (u *uringBackend) busy() bool {
	if u.readyArmed || len(u.closing) > 0 {
		return true
	}
	armed := uint16(0)
	u.all(func(s *uringSlot) { armed |= s.armed })
	return armed != 0
}
