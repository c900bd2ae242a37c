package pollux

import (
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/internal/uring"
	"github.com/pollux-go/pollux/poller"
)

// directTable is the ring's table of direct descriptors. It belongs to the ring's owner.
//
// A place is taken from when an accept is asked for until the close is. The kernel chooses places itself, and takes the
// entries of a batch in order, so a place that was closed before is free for an accept behind it.
type directTable struct {
	size    int
	free    atomic.Int64 // changed by the owner, read by anybody
	accepts map[poller.Token]*directAccept

	serial uint64 // of the request whose answer is waited for; 0: none
	last   uint64
	result int32
	value  *int32 // what a socket command writes to, in the heap, so that it stays in place
}

// directAccept is what an accept needs as long as its listener is there.
type directAccept struct {
	memory []byte // where the kernel writes the peer's address: mapped, because it does so while nobody waits
	armed  bool
}

// uringDirect are the features that direct descriptors use, uringDirectNeeded those that they need.
const (
	uringDirect       = uringDirectNeeded | uring.FixedFDInstall
	uringDirectNeeded = uring.DirectFiles | uring.DirectClose | uring.MultishotRecv | uring.BufferRing
)

// checkTable tells whether there can be a table of n direct descriptors.
func checkTable(n int, lacking uring.Feature) error {
	if lacking &= uringDirectNeeded; lacking != 0 {
		return fmt.Errorf("direct descriptors need io_uring's %v, which the kernel lacks or which is masked off (Linux 6.13 has all "+
			"they need): %w", lacking, errors.ErrUnsupported)
	}
	soft, _, errno := sys.Rlimit(sys.RLIMIT_NOFILE)
	if errno == 0 && uint64(n) > soft {
		return tableTooLarge(n, soft)
	}
	return nil
}

func tableTooLarge(n int, limit uint64) error {
	return fmt.Errorf("DirectDescriptors is %d: the kernel allows a ring a table of RLIMIT_NOFILE entries, which is %d here: raise it "+
		"(ulimit -n), or spread the connections over more loops (POLLUX_LOOPS): %w", n, limit, sys.EMFILE)
}

// openTable makes the table.
func (u *uringBackend) openTable(n int) error {
	if err := checkTable(n, u.without); err != nil {
		return err
	}
	switch errno := u.ring.RegisterFiles(n); errno {
	case 0:
	case sys.EMFILE:
		soft, _, _ := sys.Rlimit(sys.RLIMIT_NOFILE)
		return tableTooLarge(n, soft)
	default:
		return fmt.Errorf("register a table of %d direct descriptors: %w", n, errno)
	}
	u.direct.size = n
	u.direct.free.Store(int64(n))
	u.direct.accepts = map[poller.Token]*directAccept{}
	u.direct.value = new(int32)
	return nil
}

// closeTable closes every file of the table. What was asked for before goes out first: a reset, for instance. quiet says
// that no request is under way.
func (u *uringBackend) closeTable(quiet bool) {
	if u.direct.size == 0 {
		return
	}
	if u.enabled && u.ring.Owned() {
		u.submitLate()
		_ = u.ring.Enter(false, 0)
	}
	u.ring.UnregisterFiles()
	for _, a := range u.direct.accepts {
		if quiet {
			sys.Unmap(a.memory)
		}
	}
	u.direct.accepts, u.direct.size = nil, 0
}

func (u *uringBackend) room() int { return int(u.direct.free.Load()) }

// acceptMemory is one page, which is what a mapping takes at least: an address, and from acceptLength on its length.
const (
	acceptMemory = 4096
	acceptLength = 128
)

func (u *uringBackend) acceptDirect(fd int, t poller.Token) error {
	d := &u.direct
	a := d.accepts[t]
	if a == nil {
		memory, errno := sys.MapMemory(acceptMemory)
		if errno != 0 {
			return fmt.Errorf("map memory for an address: %w", errno)
		}
		a = &directAccept{memory: memory}
		d.accepts[t] = a
	}
	if a.armed {
		return nil
	}
	if d.free.Load() == 0 {
		return sys.ENFILE
	}
	clear(a.memory[:acceptLength])
	// SAFETY: the mapping is page-aligned and lives until the request has ended, see forgetAccept.
	length := (*uint32)(unsafe.Pointer(&a.memory[acceptLength]))
	*length = acceptLength
	err := u.submit(fd, t, kindAccept, uring.SQE{
		Opcode: uring.OpAccept, FileSlot: uring.FileIndexAlloc, OpFlags: sys.SOCK_NONBLOCK,
		Addr: uint64(uintptr(unsafe.Pointer(&a.memory[0]))), Off: uint64(uintptr(unsafe.Pointer(length))),
	})
	if err == nil {
		a.armed = true
		d.free.Add(-1)
	}
	return err
}

// acceptedDirect handles the end of an accept into the table. ok is false where it was another kind of accept.
func (u *uringBackend) acceptedDirect(c *uring.CQE, t poller.Token) (result int32, ok bool) {
	a := u.direct.accepts[t]
	if a == nil {
		return 0, false
	}
	a.armed = false
	if c.Res < 0 {
		u.direct.free.Add(1)
		return c.Res, true
	}
	return c.Res | directBit, true
}

func (u *uringBackend) peer(t poller.Token) sys.Sockaddr {
	if a := u.direct.accepts[t]; a != nil {
		return sys.DecodeSockaddr(a.memory[:acceptLength])
	}
	return sys.Sockaddr{}
}

// forgetAccept gives back what the accepts of a listener needed, once none is under way.
func (u *uringBackend) forgetAccept(t poller.Token) {
	if a := u.direct.accepts[t]; a != nil && !a.armed {
		sys.Unmap(a.memory)
		delete(u.direct.accepts, t)
	}
}

// releaseDirect is Release. The close needs not wait for what is under way: that has its own hold on the file, and the peer
// is told when the last request ends, which the cancels see to in the same enter.
func (u *uringBackend) releaseDirect(fd int, t poller.Token, reset bool) {
	if reset {
		u.resets(fd)
	}
	if s := u.find(t); s != nil {
		if s.armed != 0 {
			u.letGo(s, -1)
		}
		*s = uringSlot{}
	}
	u.closeDirect(fd)
}

func (u *uringBackend) closeDirect(fd int) {
	u.push(&uring.SQE{Opcode: uring.OpClose, FileSlot: uint32(fd-directBit) + 1, Flags: u.quietly(), UserData: userData(kindNow, 0)})
	u.direct.free.Add(1)
}

// quietly is the flag for requests of whose success nobody wants to hear.
func (u *uringBackend) quietly() uint8 {
	if u.without&uring.SkipCQE != 0 {
		return 0
	}
	return uring.SkipSuccess
}

// lingerReset is the struct linger by which a close resets the connection.
var lingerReset = &[2]int32{1, 0}

func (u *uringBackend) resets(fd int) {
	sqe := uring.SocketOption(false, sys.SOL_SOCKET, sys.SO_LINGER, unsafe.Pointer(lingerReset), unsafe.Sizeof(*lingerReset))
	sqe.FD, sqe.Flags, sqe.UserData = int32(fd-directBit), uring.FixedFile|u.quietly(), userData(kindNow, 0)
	u.push(&sqe)
}

func (u *uringBackend) sentNow(t poller.Token) (result int32, ok bool) {
	// A send that the socket has room for ends as it is submitted.
	u.submitLate()
	if errno := u.enter(false, 0); errno != 0 {
		return 0, false
	}
	var events [16]poller.Event
	for u.ring.Ready() {
		u.backlog = append(u.backlog, events[:u.reap(events[:])]...)
	}
	for i, ev := range u.backlog {
		if ev.Token == t && ev.Ready&poller.Sent != 0 {
			u.backlog = append(u.backlog[:i], u.backlog[i+1:]...)
			return ev.Result, true
		}
	}
	return 0, false
}

func (u *uringBackend) receiveNow(fd int, b []byte) (int, sys.Errno) {
	// SAFETY: b lies in the heap, which does not move; the request ends as it is submitted, for it may not wait.
	result, errno := u.now(uring.SQE{
		Opcode: uring.OpRecv, FD: int32(fd - directBit), Flags: uring.FixedFile,
		Addr: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))), Len: uint32(len(b)), OpFlags: sys.MSG_DONTWAIT,
	})
	runtime.KeepAlive(b)
	return max(int(result), 0), errno
}

func (u *uringBackend) errorNow(fd int) sys.Errno {
	*u.direct.value = 0
	sqe := uring.SocketOption(true, sys.SOL_SOCKET, sys.SO_ERROR, unsafe.Pointer(u.direct.value), unsafe.Sizeof(*u.direct.value))
	sqe.FD, sqe.Flags = int32(fd-directBit), uring.FixedFile
	if _, errno := u.now(sqe); errno != 0 {
		return 0
	}
	return sys.Errno(*u.direct.value)
}

func (u *uringBackend) installs() bool { return u.without&uring.FixedFDInstall == 0 }

func (u *uringBackend) install(fd int) (int, error) {
	if !u.installs() {
		return -1, errNoInstall
	}
	ordinary, errno := u.now(uring.SQE{Opcode: uring.OpFixedFDInstall, FD: int32(fd - directBit), Flags: uring.FixedFile})
	if errno != 0 {
		return -1, explain("make an ordinary descriptor of a direct one", errno)
	}
	return int(ordinary), nil
}

// nowMost is how often the kernel is asked for the answer of a request that it gives at once.
const nowMost = 1 << 10

// now submits a request that ends as it is submitted, and returns its result. Events that come with it are kept for Wait.
func (u *uringBackend) now(sqe uring.SQE) (int32, sys.Errno) {
	d := &u.direct
	d.last++
	d.serial = d.last & (1<<poller.TokenBits - 1)
	sqe.UserData = userData(kindNow, poller.Token(d.serial))
	u.push(&sqe)
	var events [16]poller.Event
	for tries := range nowMost {
		// Only where something is in the way, as too many completions, is there a second time.
		u.submitLate()
		if errno := u.enter(tries > 0, time.Millisecond); errno != 0 {
			d.serial = 0
			return -1, errno
		}
		for d.serial != 0 && u.ring.Ready() {
			u.backlog = append(u.backlog, events[:u.reap(events[:])]...)
		}
		if d.serial == 0 {
			if d.result < 0 {
				return -1, sys.Errno(-d.result)
			}
			return d.result, 0
		}
		u.buffers.Publish()
	}
	d.serial = 0
	return -1, sys.EBUSY
}

// completeNow notes the answer that is waited for. Others are of no interest: a close fails only for a place that is empty.
func (u *uringBackend) completeNow(c *uring.CQE, t poller.Token) {
	if d := &u.direct; d.serial != 0 && uint64(t) == d.serial {
		d.serial, d.result = 0, c.Res
	}
}
