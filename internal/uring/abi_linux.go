// Package uring is an io_uring in Go: its set-up, the two queues, a ring of provided buffers, and probes of what the
// kernel can do. Everything between two waits is Go and mapped memory; no cgo call stands there.
//
// It knows the kernel's structures and nothing of connections. Set-up, register, the parameters and the first opcodes are
// those of github.com/iceber/iouring-go/syscall; what is newer is declared here by hand, after
// include/uapi/linux/io_uring.h, with its size asserted.
package uring

import (
	"unsafe"

	iouring "github.com/iceber/iouring-go/syscall"
)

// SQE is the kernel's struct io_uring_sqe.
type SQE struct {
	Opcode   uint8
	Flags    uint8
	IOPrio   uint16
	FD       int32
	Off      uint64
	Addr     uint64
	Len      uint32
	OpFlags  uint32
	UserData uint64
	BufGroup uint16
	_        uint16 // personality
	FileSlot uint32
	Addr3    uint64 // a socket command's value
	_        uint64
}

// CQE is the kernel's struct io_uring_cqe.
type CQE struct {
	UserData uint64
	Res      int32
	Flags    uint32
}

// bufEntry is the kernel's struct io_uring_buf. The tail of the ring is the last 16 bits of entry 0.
type bufEntry struct {
	addr uint64
	len  uint32
	bid  uint16
	tail uint16
}

type bufRegister struct {
	ringAddr uint64
	entries  uint32
	group    uint16
	flags    uint16
	_        [3]uint64
}

type getEventsArg struct {
	sigmask     uint64
	sigmaskSize uint32
	minWaitUsec uint32
	ts          uint64
}

type resourceUpdate struct {
	offset uint32
	_      uint32
	data   uint64
}

// restriction allows an operation, a kind of registration or flags. what is the number or the flags.
type restriction struct {
	kind uint16
	what uint8
	_    uint8
	_    [3]uint32
}

type resourceRegister struct {
	count uint32
	flags uint32
	_     uint64
	data  uint64
	tags  uint64
}

type queryHeader struct {
	next   uint64
	data   uint64
	op     uint32
	size   uint32
	result int32
	_      [3]uint32
}

type queryOpcodes struct {
	requests  uint32
	registers uint32
	features  uint64
	setup     uint64
	enter     uint64
	sqe       uint64
	queries   uint32
	_         uint32
}

// The kernel's ABI fixes the sizes.
var (
	_ [64]byte  = [unsafe.Sizeof(SQE{})]byte{}
	_ [16]byte  = [unsafe.Sizeof(CQE{})]byte{}
	_ [16]byte  = [unsafe.Sizeof(bufEntry{})]byte{}
	_ [40]byte  = [unsafe.Sizeof(bufRegister{})]byte{}
	_ [24]byte  = [unsafe.Sizeof(getEventsArg{})]byte{}
	_ [16]byte  = [unsafe.Sizeof(resourceUpdate{})]byte{}
	_ [16]byte  = [unsafe.Sizeof(restriction{})]byte{}
	_ [32]byte  = [unsafe.Sizeof(resourceRegister{})]byte{}
	_ [40]byte  = [unsafe.Sizeof(queryHeader{})]byte{}
	_ [48]byte  = [unsafe.Sizeof(queryOpcodes{})]byte{}
	_ [120]byte = [unsafe.Sizeof(iouring.IOURingParams{})]byte{}

	_ [32]byte = [unsafe.Offsetof(SQE{}.UserData)]byte{}
	_ [40]byte = [unsafe.Offsetof(SQE{}.BufGroup)]byte{}
	_ [44]byte = [unsafe.Offsetof(SQE{}.FileSlot)]byte{}
	_ [48]byte = [unsafe.Offsetof(SQE{}.Addr3)]byte{}
	_ [14]byte = [unsafe.Offsetof(bufEntry{}.tail)]byte{}
	_ [16]byte = [unsafe.Offsetof(getEventsArg{}.ts)]byte{}
	_ [8]byte  = [unsafe.Offsetof(CQE{}.Res)]byte{}
	_ [12]byte = [unsafe.Offsetof(CQE{}.Flags)]byte{}
)

// Operations that pollux submits.
const (
	OpNop            = iouring.IORING_OP_NOP
	OpPollAdd        = iouring.IORING_OP_POLL_ADD
	OpAccept         = iouring.IORING_OP_ACCEPT
	OpAsyncCancel    = iouring.IORING_OP_ASYNC_CANCEL
	OpConnect        = iouring.IORING_OP_CONNECT
	OpClose          = iouring.IORING_OP_CLOSE
	OpRead           = iouring.IORING_OP_READ
	OpSend           = iouring.IORING_OP_SEND
	OpRecv           = iouring.IORING_OP_RECV
	OpUringCmd       = iouring.IORING_OP_URING_CMD
	OpFixedFDInstall = 54 // 6.8
	OpEpollWait      = 59 // 6.15
)

// Flags of a submission.
const (
	FixedFile    = iouring.IOSQE_FLAGS_FIXED_FILE
	BufferSelect = iouring.IOSQE_FLAGS_BUFFER_SELECT
	SkipSuccess  = 1 << 6 // 5.17

	PollMulti       = 1 << 0 // len of a poll
	RecvPollFirst   = 1 << 0 // ioprio of a receive or send
	RecvMultishot   = 1 << 1 // ioprio of a receive
	AcceptMultishot = 1 << 0 // ioprio of an accept

	// FileIndexAlloc has the kernel choose a slot of the fixed-file table.
	FileIndexAlloc = ^uint32(0)

	// Commands to a socket, in off; 6.7. The level and, 32 bits up, the option are in addr, the value's length in FileSlot
	// and its address in Addr3.
	SocketGetsockopt = 2
	SocketSetsockopt = 3
)

// FixedFilesMax is the largest table of files that the kernel allows for a ring (IORING_MAX_FIXED_FILES).
const FixedFilesMax = 1 << 20

// Flags of a completion.
const (
	CQEBuffer   = 1 << 0 // the upper 16 bits are the id of a buffer
	CQEMore     = 1 << 1 // the request lives on
	CQENonEmpty = 1 << 2 // the socket has more
)

const (
	setupCQSize       = iouring.IORING_SETUP_CQSIZE
	setupClamp        = iouring.IORING_SETUP_CLAMP
	setupDisabled     = iouring.IORING_SETUP_R_DISABLED
	setupSubmitAll    = iouring.IORING_SETUP_SUBMIT_ALL
	setupCoopTaskrun  = iouring.IORING_SETUP_COOP_TASKRUN
	setupTaskrunFlag  = iouring.IORING_SETUP_TASKRUN_FLAG
	setupSingleIssuer = 1 << 12
	setupDeferTaskrun = 1 << 13
	setupNoSQArray    = 1 << 16

	featSingleMmap   = iouring.IORING_FEAT_SINGLE_MMAP
	featNoDrop       = iouring.IORING_FEAT_NODROP
	featSubmitStable = iouring.IORING_FEAT_SUBMIT_STABLE
	featFastPoll     = iouring.IORING_FEAT_FAST_POLL
	featExtArg       = 1 << 8
	featNoIOWait     = 1 << 17

	enterGetEvents      = iouring.IORING_ENTER_FLAGS_GETEVENTS
	enterExtArg         = 1 << 3
	enterRegisteredRing = 1 << 4
	enterNoIOWait       = 1 << 7

	sqOverflow = iouring.IORING_SQ_CQ_OVERFLOW
	sqTaskrun  = 1 << 2

	registerRestrictions       = iouring.IORING_REGISTER_RESTRICTIONS
	registerEnable             = iouring.IORING_REGISTER_ENABLE_RINGS
	registerFiles              = 2
	unregisterFiles            = 3
	registerFiles2             = 13
	registerNAPI               = 27
	registerIOWQWorkers        = 19
	registerRingFDs            = 20
	unregisterRingFDs          = 21
	registerBufRing            = 22
	unregisterBufRing          = 23
	registerResize             = 33
	registerQuery              = 35
	registerSparse             = 1 << 0 // flags of registerFiles2
	restrictRegisterOp         = 0
	restrictSQEOp              = 1
	restrictSQEFlags           = 2
	offSQ                int64 = int64(iouring.IORING_OFF_SQ_RING)
	offSQEs              int64 = int64(iouring.IORING_OFF_SQES)
)
