package uring

import (
	"runtime"
	"unsafe"

	"github.com/pollux-go/pollux/internal/sys"
)

// A ring may have a table of files of its own. A request names an entry by its index, with FixedFile; the process needs no
// descriptor for it, and RLIMIT_NOFILE does not count it. What the kernel checks as the table is made is that it has no
// more entries than RLIMIT_NOFILE allows files (EMFILE), for each ring by itself, and no more than [FixedFilesMax].

// RegisterFiles gives the ring an empty table of n files. It comes before Enable, after which a ring takes only what it was
// known to need.
func (r *Ring) RegisterFiles(n int) sys.Errno {
	reg := &resourceRegister{count: uint32(n), flags: registerSparse}
	errno := sys.UringRegister(r.fd, registerFiles2, unsafe.Pointer(reg), uint32(unsafe.Sizeof(*reg)))
	r.files = r.files || errno == 0
	return errno
}

// UnregisterFiles closes every file of the table and the table itself.
func (r *Ring) UnregisterFiles() sys.Errno { return sys.UringRegister(r.fd, unregisterFiles, nil, 0) }

// SocketOption is the request that reads (get) or sets a socket's option, whose value lies in value.
//
// SAFETY: the kernel uses value as it takes the request, so the caller keeps it alive until an Enter.
func SocketOption(get bool, level, option int, value unsafe.Pointer, size uintptr) SQE {
	sqe := SQE{
		Opcode: OpUringCmd, Off: SocketSetsockopt, Addr: uint64(uint32(level)) | uint64(uint32(option))<<32,
		FileSlot: uint32(size), Addr3: uint64(uintptr(value)),
	}
	if get {
		sqe.Off = SocketGetsockopt
	}
	return sqe
}

// withFiles runs f while the ring has a table.
func (t *trial) withFiles(fds []int32, f func() (bool, error)) (bool, error) {
	var errno sys.Errno
	if fds == nil {
		errno = t.RegisterFiles(2)
	} else {
		errno = sys.UringRegister(t.fd, registerFiles, unsafe.Pointer(&fds[0]), uint32(len(fds)))
	}
	if errno == sys.EINVAL {
		return false, nil
	}
	if errno != 0 {
		return false, errno
	}
	defer t.UnregisterFiles()
	return f()
}

// tryDirectFiles accepts into a place of the table that the kernel chooses, and receives from it.
func tryDirectFiles(t *trial) (bool, error) {
	fd, done, err := awaited()
	if err != nil {
		return false, err
	}
	defer done()
	return t.withFiles(nil, func() (bool, error) {
		c, err := t.do(SQE{Opcode: OpAccept, FD: int32(fd), OpFlags: sys.SOCK_NONBLOCK, FileSlot: FileIndexAlloc})
		has, err := verdict(c, err)
		if !has || err != nil {
			return false, err
		}
		// SAFETY: b lies in the heap; the receive ends as it is submitted, for it may not wait.
		b := make([]byte, 1)
		c, err = t.do(SQE{
			Opcode: OpRecv, FD: c.Res, Flags: FixedFile, Addr: uint64(uintptr(unsafe.Pointer(&b[0]))), Len: 1,
			OpFlags: sys.MSG_DONTWAIT,
		})
		runtime.KeepAlive(b)
		if err == nil && c.Res == -int32(sys.EAGAIN) {
			return true, nil
		}
		return verdict(c, err)
	})
}

// tryFixedFDInstall makes a descriptor of a file of the table.
func tryFixedFDInstall(t *trial) (bool, error) {
	pair, errno := sys.Socketpair()
	if errno != 0 {
		return false, errno
	}
	defer sys.Close(pair[0])
	defer sys.Close(pair[1])
	return t.withFiles([]int32{int32(pair[0])}, func() (bool, error) {
		c, err := t.do(SQE{Opcode: OpFixedFDInstall, Flags: FixedFile})
		has, err := verdict(c, err)
		if has {
			sys.Close(int(c.Res))
		}
		return has, err
	})
}

// tryDirectClose closes a file of the table while a request waits on another one, and looks whether the peer is told.
// Before 6.13 the kernel lets files go in the order of all requests that began before: one idle connection would keep every
// later one open.
func tryDirectClose(t *trial) (bool, error) {
	var busy, closed [2]int
	for _, pair := range []*[2]int{&busy, &closed} {
		p, errno := sys.Socketpair()
		if errno != 0 {
			return false, errno
		}
		*pair = p
		defer sys.Close(p[1])
		defer func() {
			if pair[0] >= 0 {
				sys.Close(pair[0])
			}
		}()
	}
	return t.withFiles([]int32{int32(busy[0]), int32(closed[0])}, func() (has bool, err error) {
		for _, pair := range []*[2]int{&busy, &closed} {
			sys.Close(pair[0])
			pair[0] = -1
		}
		waiting, err := t.submit(SQE{Opcode: OpPollAdd, Flags: FixedFile, OpFlags: sys.EPOLLIN})
		if err != nil {
			return false, err
		}
		// A reset is asked for as the backend does: it must be understood as well.
		option := &[2]int32{}
		sqe := SocketOption(false, sys.SOL_SOCKET, sys.SO_LINGER, unsafe.Pointer(option), unsafe.Sizeof(*option))
		sqe.FD, sqe.Flags = 1, FixedFile
		c, err := t.do(sqe)
		runtime.KeepAlive(option)
		if c.Res == -int32(sys.ENOTSUP) {
			c.Res = -int32(sys.EINVAL)
		}
		if has, err = verdict(c, err); has {
			if c, err = t.do(SQE{Opcode: OpClose, FileSlot: 2}); err == nil && c.Res < 0 {
				err = sys.Errno(-c.Res)
			}
			var b [1]byte
			_, errno := sys.Recv(closed[1], b[:])
			has = err == nil && errno == 0
			if err == nil && errno != 0 && errno != sys.EAGAIN {
				err = errno
			}
		}
		if e := t.cancel(waiting); err == nil {
			err = e
		}
		return has, err
	})
}
