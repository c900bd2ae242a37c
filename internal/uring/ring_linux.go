package uring

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/pollux-go/pollux/cgo"
	"github.com/pollux-go/pollux/internal/invariants"
	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/internal/tally"
)

// Options say how a ring is made.
type Options struct {
	Entries   uint32  // of the submission queue; rounded up to a power of two
	CQEntries uint32  // of the completion queue
	Without   Feature // features that are not used even where the kernel has them

	// Patience is how long to wait for memory before a smaller ring is made, and four times as long before there is none at
	// all. The kernel gives the memory of a ring that was closed back in the background, about 15 ms later, or more.
	Patience time.Duration
}

// Ring is an io_uring. It may be made on any thread; the one that calls Enable owns it from then on, and every other method
// belongs to that thread, but for Close after the thread has left it for good.
//
// Nothing that the kernel writes lies in Go's heap: queues and buffers are mapped memory.
type Ring struct {
	fd      int
	enterFD int    // fd, or its index among the thread's registered rings
	owner   int    // id of the thread that has enabled it
	flags   uint32 // that every enter gets
	step    string // of the ladder
	params  sys.UringParams
	used    Feature

	files bool // it has a table of them

	queues, entries []byte // mappings

	sqes    []SQE
	sqHead  *uint32 // the kernel's
	sqTail  *uint32 // ours
	sqFlags *uint32
	sqMask  uint32
	tail    uint32 // ours, not published yet

	cqes   []CQE
	cqHead *uint32 // ours
	cqTail *uint32 // the kernel's
	cqMask uint32
	head   uint32

	arg *getEventsArg // in the heap, so that it stays in place during a call
	ts  *cgo.Timespec

	counts counts
	hold   *sys.Hold // nil: a wait gives its P up
	spin   time.Duration
}

// counts are Counts as the ring keeps them. The owner writes them, but for what is set before there is one.
type counts struct {
	enters, submitting, sqes       tally.Counter
	batches                        tally.Sizes
	interrupts, dropped            tally.Counter
	noMemory                       tally.Counter
	setupFlags, features, refusals uint32
}

// Counts is what a ring has done since it was made, and what it was made with.
type Counts struct {
	Enters           uint64 // system calls
	EntersWithSubmit uint64 // of these, those that have submitted something
	SQEs             uint64 // submitted
	CQEs             uint64 // reaped
	CQEBatches       [tally.SizesLen]uint64
	Interrupts       uint64 // enters that a signal has ended: EINTR
	Dropped          uint64 // enters that have told of lost completions: EBADR
	NoMemory         uint64 // enters that the kernel had no memory for: ENOMEM

	SetupRefusals uint32 // ENOMEM where rings and their buffers are made: see RLIMIT_MEMLOCK
	SetupFlags    uint32 // IORING_SETUP_*
	Features      uint32 // IORING_FEAT_*, of the kernel
}

// Counts may be called by anybody. The numbers are of one moment each, not all of the same.
func (r *Ring) Counts() Counts {
	c := &r.counts
	return Counts{
		Enters: c.enters.Load(), EntersWithSubmit: c.submitting.Load(), SQEs: c.sqes.Load(),
		CQEs: c.batches.Sum(), CQEBatches: c.batches.Classes(),
		Interrupts: c.interrupts.Load(), Dropped: c.dropped.Load(), NoMemory: c.noMemory.Load(),
		SetupRefusals: c.refusals, SetupFlags: c.setupFlags, Features: c.features,
	}
}

// NoteBatch counts what the owner has reaped in one go.
func (r *Ring) NoteBatch(n int) { r.counts.batches.Note(n) }

// entriesMin is as small as a ring is made when memory is short.
const entriesMin = 64

// patienceStep is how often memory is asked for again.
const patienceStep = 5 * time.Millisecond

// step is one rung of the ladder of set-ups, the best one first.
type step struct {
	name  string
	flags uint32
	needs Feature
}

var ladder = []step{
	{"A (6.6)", setupDisabled | setupClamp | setupCQSize | setupSubmitAll | setupSingleIssuer | setupDeferTaskrun | setupTaskrunFlag | setupNoSQArray, DeferTaskrun | NoSQArray},
	{"B (6.1)", setupDisabled | setupClamp | setupCQSize | setupSubmitAll | setupSingleIssuer | setupDeferTaskrun | setupTaskrunFlag, DeferTaskrun},
	{"C (5.19)", setupDisabled | setupClamp | setupCQSize | setupSubmitAll | setupCoopTaskrun | setupTaskrunFlag, CoopTaskrun},
	{"D (5.11)", setupDisabled | setupClamp | setupCQSize, 0},
}

// featuresNeeded are those that a ring is of no use without.
const featuresNeeded = featExtArg | featNoDrop | featFastPoll | featSubmitStable | featSingleMmap

// Open makes a ring, on the best rung of the ladder that the kernel accepts. Where memory is short, it tries smaller ones
// down to 64 entries. The error wraps the kernel's error number.
func Open(o Options) (*Ring, error) {
	if o.Without&ExtArg != 0 {
		return nil, fmt.Errorf("set up an io_uring: %v is masked off, and needed: %w", ExtArg, errors.ErrUnsupported)
	}
	var err error
	refusals := uint32(0)
	for _, s := range ladder {
		if s.needs&o.Without != 0 {
			continue
		}
		r, errno := openPatiently(s, o, o.Patience, &refusals)
		for errno == sys.ENOMEM && o.Entries/2 >= entriesMin {
			o.Entries, o.CQEntries = o.Entries/2, o.CQEntries/2
			r, errno = open(s, o, &refusals)
		}
		if errno == sys.ENOMEM {
			r, errno = openPatiently(s, o, 4*o.Patience, &refusals) // It is this one or none.
		}
		switch errno {
		case 0:
			r.counts.refusals = refusals
			return r, nil
		case sys.EINVAL:
			err = fmt.Errorf("set up an io_uring, step %s: %w", s.name, errno)
		default:
			return nil, fmt.Errorf("set up an io_uring, step %s: %w", s.name, errno)
		}
	}
	if err == nil {
		err = fmt.Errorf("set up an io_uring: every step is masked off: %w", errors.ErrUnsupported)
	}
	return nil, err
}

func openPatiently(s step, o Options, patience time.Duration, refusals *uint32) (r *Ring, errno sys.Errno) {
	for r, errno = open(s, o, refusals); errno == sys.ENOMEM && patience > 0; patience -= patienceStep {
		time.Sleep(patienceStep)
		r, errno = open(s, o, refusals)
	}
	return r, errno
}

// open counts an ENOMEM among the refusals.
func open(s step, o Options, refusals *uint32) (_ *Ring, errno sys.Errno) {
	defer func() {
		if errno == sys.ENOMEM {
			*refusals++
		}
	}()
	r := &Ring{step: s.name, used: s.needs, arg: new(getEventsArg), ts: new(cgo.Timespec)}
	r.params.Flags = s.flags
	r.params.CQEntries = o.CQEntries
	if r.fd, errno = sys.UringSetup(o.Entries, &r.params); errno != 0 {
		return nil, errno
	}
	r.enterFD = r.fd
	defer func() {
		if errno != 0 {
			r.Close()
		}
	}()
	if r.params.Features&featuresNeeded != featuresNeeded {
		return nil, sys.EINVAL
	}
	if errno := r.mmap(); errno != 0 {
		return nil, errno
	}
	r.counts.setupFlags, r.counts.features = r.params.Flags, r.params.Features
	return r, 0
}

func (r *Ring) mmap() (errno sys.Errno) {
	p := &r.params
	sqSize := int(p.SQOffset.Array) + int(p.SQEntries)*4
	cqSize := int(p.CQOffset.Cqes) + int(p.CQEntries)*int(unsafe.Sizeof(CQE{}))
	if r.queues, errno = sys.MapRing(r.fd, offSQ, max(sqSize, cqSize)); errno != 0 {
		return errno
	}
	if r.entries, errno = sys.MapRing(r.fd, offSQEs, int(p.SQEntries)*int(unsafe.Sizeof(SQE{}))); errno != 0 {
		sys.Unmap(r.queues)
		r.queues = nil
		return errno
	}
	// SAFETY: the kernel has told these offsets into mappings that live as long as the ring; it aligns them.
	at := func(offset uint32) *uint32 { return (*uint32)(unsafe.Pointer(&r.queues[offset])) }
	r.sqHead, r.sqTail, r.sqFlags = at(p.SQOffset.Head), at(p.SQOffset.Tail), at(p.SQOffset.Flags)
	r.cqHead, r.cqTail = at(p.CQOffset.Head), at(p.CQOffset.Tail)
	r.sqMask, r.cqMask = *at(p.SQOffset.RingMask), *at(p.CQOffset.RingMask)
	r.sqes = unsafe.Slice((*SQE)(unsafe.Pointer(&r.entries[0])), p.SQEntries)
	r.cqes = unsafe.Slice((*CQE)(unsafe.Pointer(&r.queues[p.CQOffset.Cqes])), p.CQEntries)
	if p.Flags&setupNoSQArray == 0 {
		// The indirection is of no use to us: entry i is at place i, for ever.
		array := unsafe.Slice(at(p.SQOffset.Array), p.SQEntries)
		for i := range array {
			array[i] = uint32(i)
		}
	}
	r.tail = atomic.LoadUint32(r.sqTail)
	r.head = atomic.LoadUint32(r.cqHead)
	return 0
}

// What a ring takes once it is enabled: somebody who gets hold of it can do nothing else with it.
var (
	allowedOps = []struct {
		op    uint8
		since Feature // the kernel refuses to be told of operations that it does not know
	}{
		{OpNop, 0}, {OpPollAdd, 0}, {OpAccept, 0}, {OpAsyncCancel, 0}, {OpSend, 0}, {OpRecv, 0}, {OpEpollWait, EpollWait},
	}
	allowedRegisters = []struct {
		op    uint8
		since Feature
	}{
		{registerEnable, 0}, {registerIOWQWorkers, SkipCQE}, {registerRingFDs, RegisteredRing}, {unregisterRingFDs, RegisteredRing},
		{registerBufRing, BufferRing}, {unregisterBufRing, BufferRing}, {registerResize, ResizeRings},
	}
)

const allowedFlags = BufferSelect | SkipSuccess

// What a ring with a table of files takes besides.
var (
	allowedFileOps = []struct {
		op    uint8
		since Feature
	}{
		{OpClose, 0}, {OpUringCmd, 0}, {OpFixedFDInstall, FixedFDInstall},
	}
	allowedFileRegisters = []uint8{unregisterFiles}
)

// restrict has the ring take what pollux uses, and nothing else, from Enable on.
func (r *Ring) restrict(without Feature) sys.Errno {
	all := []restriction{{kind: restrictSQEFlags, what: allowedFlags}}
	for _, a := range allowedOps {
		if a.since&without == 0 {
			all = append(all, restriction{kind: restrictSQEOp, what: a.op})
		}
	}
	for _, a := range allowedRegisters {
		if a.since&without == 0 {
			all = append(all, restriction{kind: restrictRegisterOp, what: a.op})
		}
	}
	if r.files {
		all[0].what |= FixedFile
		for _, a := range allowedFileOps {
			if a.since&without == 0 {
				all = append(all, restriction{kind: restrictSQEOp, what: a.op})
			}
		}
		for _, op := range allowedFileRegisters {
			all = append(all, restriction{kind: restrictRegisterOp, what: op})
		}
	}
	return sys.UringRegister(r.fd, registerRestrictions, unsafe.Pointer(&all[0]), uint32(len(all)))
}

// Enable starts the ring and makes the calling thread its owner. What belongs to a thread alone, as its registered ring,
// is set up here. without are features that are masked off, or that the kernel lacks.
func (r *Ring) Enable(without Feature) error {
	if without&Restrictions == 0 {
		if errno := r.restrict(without); errno != 0 {
			return fmt.Errorf("restrict the io_uring to the operations in use: %w", errno)
		}
		r.used |= Restrictions
	}
	if errno := sys.UringRegister(r.fd, registerEnable, nil, 0); errno != 0 {
		return fmt.Errorf("enable the io_uring: %w", errno)
	}
	r.owner = sys.Gettid()
	if without&RegisteredRing == 0 {
		// Saves the look-up of the descriptor in a table that all threads share.
		update := &resourceUpdate{offset: ^uint32(0), data: uint64(r.fd)}
		if sys.UringRegister(r.fd, registerRingFDs, unsafe.Pointer(update), 1) == 0 {
			r.enterFD = int(update.offset)
			r.flags |= enterRegisteredRing
			r.used |= RegisteredRing
		}
	}
	if without&NoIOWait == 0 && r.params.Features&featNoIOWait != 0 {
		r.flags |= enterNoIOWait
		r.used |= NoIOWait
	}
	// Nothing that we submit may need a kernel worker; should something, it must not make hundreds.
	workers := &[2]uint32{1, 1}
	_ = sys.UringRegister(r.fd, registerIOWQWorkers, unsafe.Pointer(workers), 2)
	return nil
}

// cqMost is how many completions a ring may have room for.
const cqMost = 65536

// Resize makes room for more completions, up to 65,536, since 6.13. The queues move: nothing of them may be held. It fails
// with EOVERFLOW while completions wait outside of the queue, and with EINVAL for a ring that has the array of indexes which
// NO_SQARRAY leaves away: the kernel moves the array too, and does not tell where to (io_register_resize_rings, 6.18).
func (r *Ring) Resize(cq int) sys.Errno {
	if r.used&NoSQArray == 0 {
		return sys.EINVAL
	}
	atomic.StoreUint32(r.sqTail, r.tail) // The kernel takes what is pending along.
	p := &sys.UringParams{SQEntries: r.params.SQEntries, CQEntries: uint32(min(cq, cqMost)), Flags: setupCQSize | setupClamp}
	if errno := sys.UringRegister(r.fd, registerResize, unsafe.Pointer(p), 1); errno != 0 {
		return errno
	}
	queues, entries := r.queues, r.entries
	p.Features = r.params.Features
	r.params = *p
	errno := r.mmap()
	sys.Unmap(queues)
	sys.Unmap(entries)
	return errno
}

// Owned tells whether the calling thread owns the ring.
func (r *Ring) Owned() bool { return r.owner == sys.Gettid() }

// FD returns the ring's descriptor.
func (r *Ring) FD() int { return r.fd }

// Step returns which rung of the ladder the ring is on.
func (r *Ring) Step() string { return r.step }

// Used returns which features the ring uses.
func (r *Ring) Used() Feature { return r.used }

// Entries returns the sizes of the two queues.
func (r *Ring) Entries() (sq, cq int) { return len(r.sqes), len(r.cqes) }

// Hold says how an Enter that waits keeps its P; nil: it does not. The timeouts must be some milliseconds at most then.
func (r *Ring) Hold(h *sys.Hold) { r.hold = h }

// Spin says for how long an Enter that waits looks at the ring before it sleeps.
func (r *Ring) Spin(d time.Duration) { r.spin = d }

// Enters returns how many io_uring_enter calls have been made and are over.
func (r *Ring) Enters() uint64 { return r.counts.enters.Load() }

// Next returns a zeroed entry, which goes out with the next Enter; nil when the queue is full, so that an Enter must come
// first.
func (r *Ring) Next() *SQE {
	if r.tail-atomic.LoadUint32(r.sqHead) > r.sqMask {
		return nil
	}
	sqe := &r.sqes[r.tail&r.sqMask]
	*sqe = SQE{}
	r.tail++
	return sqe
}

// Pending returns how many entries wait for an Enter.
func (r *Ring) Pending() uint32 { return r.tail - atomic.LoadUint32(r.sqHead) }

// Enter submits what is pending and has the kernel post what is complete. With wait it sleeps until there is a
// completion, for at most the timeout; for ever if that is below 0. A signal, the timeout and a full queue of completions
// end it early and are no errors.
func (r *Ring) Enter(wait bool, timeout time.Duration) sys.Errno {
	if invariants.Enabled && r.owner != 0 && !r.Owned() {
		return sys.EEXIST // What the kernel says; but it would enter a ring of the thread's that is registered under the same number.
	}
	// Publish the entries: the kernel reads them after it has read the tail.
	atomic.StoreUint32(r.sqTail, r.tail)
	flags := r.flags | enterGetEvents
	count := uint32(0)
	arg, size, ts := unsafe.Pointer(nil), uintptr(0), (*cgo.Timespec)(nil)
	if wait {
		count = 1
		if timeout >= 0 {
			ts = r.ts
			ts.Set(timeout)
			*r.arg = getEventsArg{ts: uint64(uintptr(unsafe.Pointer(ts)))}
			flags |= enterExtArg
			// SAFETY: both lie in the heap, which does not move, and r keeps them alive.
			arg, size = unsafe.Pointer(r.arg), unsafe.Sizeof(*r.arg)
		}
	}
	calls, pending := uint32(1), r.Pending()
	var errno sys.Errno
	switch {
	case !wait || r.spin == 0:
		_, errno = sys.UringEnter(r.enterFD, pending, count, flags, arg, size, r.hold)
	case r.hold != nil:
		calls, errno = cgo.RingPolls(r.enterFD, pending, flags, arg, size, ts, r.cqTail, r.head, r.sqFlags, r.spin, r.hold)
	default:
		calls, errno = cgo.RingWait(r.enterFD, pending, flags, arg, size, ts, r.cqTail, r.head, r.sqFlags, r.spin)
	}
	r.counts.enters.Add(uint64(calls))
	if pending != 0 {
		if took := pending - r.Pending(); took != 0 {
			r.counts.submitting.Add(1)
			r.counts.sqes.Add(uint64(took))
		}
	}
	switch errno {
	case 0, sys.ETIME, sys.EAGAIN, sys.EBUSY:
		// EBUSY and EAGAIN: completions must be taken first, which the caller does next. What was not submitted stays.
		return 0
	case sys.EINTR:
		r.counts.interrupts.Add(1)
		return 0
	case sys.EBADR:
		r.counts.dropped.Add(1)
	case sys.ENOMEM:
		r.counts.noMemory.Add(1)
	}
	return errno
}

// Reap calls f for up to most completions, in the order of their arrival, and gives their places back. The CQE is valid
// during the call.
func (r *Ring) Reap(most int, f func(*CQE)) (n int) {
	// The kernel has published everything before the tail.
	tail := atomic.LoadUint32(r.cqTail)
	for r.head != tail && n < most {
		f(&r.cqes[r.head&r.cqMask])
		r.head++
		n++
	}
	if n > 0 {
		// Give the places back: from here on the kernel may write to them.
		atomic.StoreUint32(r.cqHead, r.head)
	}
	return n
}

// Ready tells whether there are completions to reap.
func (r *Ring) Ready() bool { return atomic.LoadUint32(r.cqTail) != r.head }

// NeedsEnter tells whether completions wait that only an Enter makes visible: deferred work, or an overflow.
func (r *Ring) NeedsEnter() bool { return atomic.LoadUint32(r.sqFlags)&(sqTaskrun|sqOverflow) != 0 }

// HasTaskWork tells whether deferred work waits, of which an Enter makes completions.
func (r *Ring) HasTaskWork() bool { return atomic.LoadUint32(r.sqFlags)&sqTaskrun != 0 }

// Overflowed tells whether completions wait because the queue was full.
func (r *Ring) Overflowed() bool { return atomic.LoadUint32(r.sqFlags)&sqOverflow != 0 }

// Close releases the ring. Requests must have ended, or what they write into must outlive the process: the kernel ends a
// ring in the background.
func (r *Ring) Close() sys.Errno {
	if r.entries != nil {
		sys.Unmap(r.entries)
	}
	if r.queues != nil {
		sys.Unmap(r.queues)
	}
	r.entries, r.queues = nil, nil
	if r.enterFD != r.fd && r.owner == sys.Gettid() {
		// The registration holds the ring and all its memory until the thread ends. Go's first thread never does, even when
		// the goroutine that was locked to it has ended.
		update := &resourceUpdate{offset: uint32(r.enterFD)}
		_ = sys.UringRegister(r.fd, unregisterRingFDs, unsafe.Pointer(update), 1)
	}
	return sys.Close(r.fd)
}
