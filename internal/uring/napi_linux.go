package uring

import (
	"unsafe"

	"github.com/pollux-go/pollux/internal/sys"
)

// napi is struct io_uring_napi of the kernel's include/uapi/linux/io_uring.h. Its zeros mean, from 6.13 on: register, and find the
// queues by the sockets that are waited on.
type napi struct {
	usecs  uint32
	prefer uint8
	_      [3]uint8
	_      [2]uint32
}

const _ = -uint(unsafe.Sizeof(napi{}) - 16)

// BusyPoll has waits look at the queues of the network cards that the ring's sockets receive from, for usecs microseconds, before
// they sleep. Since Linux 6.9, EINVAL before. It comes before Enable.
func (r *Ring) BusyPoll(usecs uint32) sys.Errno {
	return sys.UringRegister(r.fd, registerNAPI, unsafe.Pointer(&napi{usecs: usecs, prefer: 1}), 1)
}
