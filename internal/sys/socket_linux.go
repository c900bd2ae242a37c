package sys

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Families, options and levels that callers name.
const (
	AF_INET  = unix.AF_INET
	AF_INET6 = unix.AF_INET6
	AF_UNIX  = unix.AF_UNIX

	SHUT_RD   = unix.SHUT_RD
	SHUT_WR   = unix.SHUT_WR
	SHUT_RDWR = unix.SHUT_RDWR

	SOL_SOCKET          = unix.SOL_SOCKET
	SO_REUSEADDR        = unix.SO_REUSEADDR
	SO_KEEPALIVE        = unix.SO_KEEPALIVE
	SO_BUSY_POLL        = unix.SO_BUSY_POLL
	SO_PREFER_BUSY_POLL = unix.SO_PREFER_BUSY_POLL
	SO_ERROR            = unix.SO_ERROR
	SO_TYPE             = unix.SO_TYPE
	SO_DOMAIN           = unix.SO_DOMAIN
	SO_ACCEPTCON        = unix.SO_ACCEPTCONN
	SO_LINGER           = unix.SO_LINGER
	SO_RCVBUF           = unix.SO_RCVBUF
	SO_SNDBUF           = unix.SO_SNDBUF

	IPPROTO_TCP   = unix.IPPROTO_TCP
	TCP_NODELAY   = unix.TCP_NODELAY
	TCP_KEEPIDLE  = unix.TCP_KEEPIDLE
	TCP_KEEPINTVL = unix.TCP_KEEPINTVL
	TCP_KEEPCNT   = unix.TCP_KEEPCNT

	IPPROTO_IPV6 = unix.IPPROTO_IPV6
	IPV6_V6ONLY  = unix.IPV6_V6ONLY

	SOCK_STREAM  = unix.SOCK_STREAM
	MSG_WAITALL  = unix.MSG_WAITALL
	MSG_NOSIGNAL = unix.MSG_NOSIGNAL
	MSG_DONTWAIT = unix.MSG_DONTWAIT

	SOCK_NONBLOCK = unix.SOCK_NONBLOCK
	SOCK_CLOEXEC  = unix.SOCK_CLOEXEC
)

// rawAddr is room for the largest address that we use, in the kernel's form.
type rawAddr = unix.RawSockaddrAny

// encode writes a into raw and returns its length.
func (a *Sockaddr) encode(raw *rawAddr) uint32 {
	// SAFETY: a RawSockaddrAny is as large and as aligned as every other kind of address.
	if a.Family == AF_INET {
		in := (*unix.RawSockaddrInet4)(unsafe.Pointer(raw))
		in.Family = AF_INET
		in.Port = swap16(a.Port)
		copy(in.Addr[:], a.IP[:4])
		return unix.SizeofSockaddrInet4
	}
	in := (*unix.RawSockaddrInet6)(unsafe.Pointer(raw))
	in.Family = AF_INET6
	in.Port = swap16(a.Port)
	in.Scope_id = a.Scope
	in.Addr = a.IP
	return unix.SizeofSockaddrInet6
}

// decode reads an Internet address out of raw; other families give only the family.
func decode(raw *rawAddr) (a Sockaddr) {
	a.Family = raw.Addr.Family
	// SAFETY: the kernel filled raw with an address of that family.
	switch a.Family {
	case AF_INET:
		in := (*unix.RawSockaddrInet4)(unsafe.Pointer(raw))
		a.Port = swap16(in.Port)
		copy(a.IP[:4], in.Addr[:])
	case AF_INET6:
		in := (*unix.RawSockaddrInet6)(unsafe.Pointer(raw))
		a.Port = swap16(in.Port)
		a.Scope = in.Scope_id
		a.IP = in.Addr
	}
	return a
}

// hostIsLittle tells whether ports have to be turned round.
var hostIsLittle = func() bool { x := uint16(1); return *(*byte)(unsafe.Pointer(&x)) == 1 }()

func swap16(v uint16) uint16 {
	if hostIsLittle {
		return v<<8 | v>>8
	}
	return v
}

// encode writes the path or abstract name into raw. ok is false where it does not fit.
func (a UnixAddr) encode(raw *rawAddr) (length uint32, ok bool) {
	// SAFETY: see Sockaddr.encode.
	un := (*unix.RawSockaddrUnix)(unsafe.Pointer(raw))
	if len(a) >= len(un.Path) {
		return 0, false
	}
	un.Family = AF_UNIX
	for i := range len(a) {
		un.Path[i] = int8(a[i])
	}
	length = 2 + uint32(len(a))
	if len(a) > 0 && a[0] == '@' {
		un.Path[0] = 0 // An abstract name is counted; a path ends with a zero.
	} else if len(a) > 0 {
		length++
	}
	return length, true
}

func decodeUnix(raw *rawAddr, length uint32) UnixAddr {
	// SAFETY: see decode.
	un := (*unix.RawSockaddrUnix)(unsafe.Pointer(raw))
	n := min(max(int(length)-2, 0), len(un.Path))
	name := make([]byte, 0, n)
	for i := range n {
		b := byte(un.Path[i])
		if i == 0 && b == 0 {
			b = '@'
		} else if b == 0 && len(name) > 0 && name[0] != '@' {
			break
		}
		name = append(name, b)
	}
	return UnixAddr(name)
}

// Socket makes a stream socket of the family, in non-blocking mode and closed on exec.
func Socket(family int) (int, Errno) {
	if h := hook.Load(); h != nil {
		if errno := fault(h, OpSocket, -1); errno != 0 {
			return -1, errno
		}
	}
	fd, _, errno := syscall.RawSyscall(unix.SYS_SOCKET, uintptr(family),
		unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), 0
}

// Bind gives the socket an Internet address.
func Bind(fd int, a *Sockaddr) Errno {
	var raw rawAddr
	return named(unix.SYS_BIND, OpBind, fd, &raw, a.encode(&raw))
}

// BindUnix gives the socket a path or an abstract name. A name that is too long gives EINVAL.
func BindUnix(fd int, a UnixAddr) Errno {
	var raw rawAddr
	length, ok := a.encode(&raw)
	if !ok {
		return EINVAL
	}
	return named(unix.SYS_BIND, OpBind, fd, &raw, length)
}

// Connect starts to connect the socket to an Internet address; EINPROGRESS is the usual answer.
func Connect(fd int, a *Sockaddr) Errno {
	var raw rawAddr
	return named(unix.SYS_CONNECT, OpConnect, fd, &raw, a.encode(&raw))
}

// ConnectUnix connects the socket to a path or an abstract name. EAGAIN says that the listener's queue is full.
func ConnectUnix(fd int, a UnixAddr) Errno {
	var raw rawAddr
	length, ok := a.encode(&raw)
	if !ok {
		return EINVAL
	}
	return named(unix.SYS_CONNECT, OpConnect, fd, &raw, length)
}

// named runs a call that takes an address. An interrupted connect goes on in the kernel, so it counts as in progress.
func named(trap uintptr, op Op, fd int, raw *rawAddr, length uint32) Errno {
	if h := hook.Load(); h != nil {
		if errno := fault(h, op, fd); errno != 0 {
			return errno
		}
	}
	// SAFETY: raw is alive and in place for the call.
	_, _, errno := syscall.Syscall(trap, uintptr(fd), uintptr(unsafe.Pointer(raw)), uintptr(length))
	if errno == EINTR && op == OpConnect {
		return EINPROGRESS
	}
	return errno
}

// Listen makes the socket accept connections, with room for so many that wait.
func Listen(fd, backlog int) Errno {
	if h := hook.Load(); h != nil {
		if errno := fault(h, OpListen, fd); errno != 0 {
			return errno
		}
	}
	_, _, errno := syscall.Syscall(unix.SYS_LISTEN, uintptr(fd), uintptr(backlog), 0)
	return errno
}

// Accept takes a connection from a listening socket in non-blocking mode, by accept4(2): the new descriptor does not
// block and is closed on exec.
func Accept(fd int) (int, Sockaddr, Errno) {
	if h := hook.Load(); h != nil {
		if errno := fault(h, OpAccept, fd); errno != 0 {
			return -1, Sockaddr{}, errno
		}
	}
	var raw rawAddr
	for {
		length := uint32(unix.SizeofSockaddrAny)
		// SAFETY: raw and length are on this stack, which a raw system call cannot move.
		nfd, _, errno := syscall.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(&raw)),
			uintptr(unsafe.Pointer(&length)), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
		if errno == 0 {
			return int(nfd), decode(&raw), 0
		}
		if errno != EINTR {
			return -1, Sockaddr{}, errno
		}
	}
}

// Getsockname returns the local address of a socket. For AF_UNIX only the family is set: see [UnixName].
func Getsockname(fd int) (Sockaddr, Errno) {
	var raw rawAddr
	_, errno := name(unix.SYS_GETSOCKNAME, OpGetsockname, fd, &raw)
	return decode(&raw), errno
}

// Getpeername returns the address of the socket's peer. For AF_UNIX only the family is set: see [UnixPeerName].
func Getpeername(fd int) (Sockaddr, Errno) {
	var raw rawAddr
	_, errno := name(unix.SYS_GETPEERNAME, OpGetpeername, fd, &raw)
	return decode(&raw), errno
}

// UnixName returns the path or abstract name of an AF_UNIX socket.
func UnixName(fd int) (UnixAddr, Errno) {
	var raw rawAddr
	length, errno := name(unix.SYS_GETSOCKNAME, OpGetsockname, fd, &raw)
	return decodeUnix(&raw, length), errno
}

// UnixPeerName returns the path or abstract name of the peer of an AF_UNIX socket.
func UnixPeerName(fd int) (UnixAddr, Errno) {
	var raw rawAddr
	length, errno := name(unix.SYS_GETPEERNAME, OpGetpeername, fd, &raw)
	return decodeUnix(&raw, length), errno
}

func name(trap uintptr, op Op, fd int, raw *rawAddr) (uint32, Errno) {
	if h := hook.Load(); h != nil {
		if errno := fault(h, op, fd); errno != 0 {
			return 0, errno
		}
	}
	length := uint32(unix.SizeofSockaddrAny)
	// SAFETY: raw and length are alive and in place for the call.
	_, _, errno := syscall.RawSyscall(trap, uintptr(fd), uintptr(unsafe.Pointer(raw)), uintptr(unsafe.Pointer(&length)))
	return length, errno
}

// SetsockoptInt sets an option whose value is a C int.
func SetsockoptInt(fd, level, option, value int) Errno {
	v := int32(value)
	return setsockopt(fd, level, option, unsafe.Pointer(&v), unsafe.Sizeof(v))
}

// SetLinger sets SO_LINGER: with seconds 0 a close resets the connection, below 0 it is off.
func SetLinger(fd, seconds int) Errno {
	l := unix.Linger{}
	if seconds >= 0 {
		l = unix.Linger{Onoff: 1, Linger: int32(seconds)}
	}
	return setsockopt(fd, SOL_SOCKET, SO_LINGER, unsafe.Pointer(&l), unsafe.Sizeof(l))
}

func setsockopt(fd, level, option int, value unsafe.Pointer, size uintptr) Errno {
	if h := hook.Load(); h != nil {
		if errno := fault(h, OpSetsockopt, fd); errno != 0 {
			return errno
		}
	}
	// SAFETY: value points to the caller's variable, which is alive and in place for the call.
	_, _, errno := syscall.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option),
		uintptr(value), size, 0)
	return errno
}

// GetsockoptInt reads an option whose value is a C int.
func GetsockoptInt(fd, level, option int) (int, Errno) {
	if h := hook.Load(); h != nil {
		if errno := fault(h, OpGetsockopt, fd); errno != 0 {
			return 0, errno
		}
	}
	var v int32
	size := uint32(unsafe.Sizeof(v))
	// SAFETY: v and size are on this stack, which a raw system call cannot move.
	_, _, errno := syscall.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option),
		uintptr(unsafe.Pointer(&v)), uintptr(unsafe.Pointer(&size)), 0)
	return int(v), errno
}

// Unacknowledged returns how many bytes a TCP socket has sent, or is to send, that the peer's kernel has not acknowledged. Its
// end of stream counts as one (SIOCOUTQ, tcp(7)).
func Unacknowledged(fd int) (int, Errno) {
	if h := hook.Load(); h != nil {
		if errno := fault(h, OpIoctl, fd); errno != 0 {
			return 0, errno
		}
	}
	var v int32
	// SAFETY: v is on this stack, which a raw system call cannot move.
	_, _, errno := syscall.RawSyscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCOUTQ, uintptr(unsafe.Pointer(&v)))
	return int(v), errno
}

// Shutdown ends one or both directions of a connection.
func Shutdown(fd, how int) Errno {
	if h := hook.Load(); h != nil {
		if errno := fault(h, OpShutdown, fd); errno != 0 {
			return errno
		}
	}
	_, _, errno := syscall.Syscall(unix.SYS_SHUTDOWN, uintptr(fd), uintptr(how), 0)
	return errno
}

// Socketpair makes two connected AF_UNIX stream sockets, in non-blocking mode and closed on exec.
func Socketpair() (fds [2]int, errno Errno) {
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fds, err.(Errno)
	}
	return p, 0
}

// DecodeSockaddr reads an address that the kernel has written to b, which must have room for any. It is aligned as the
// kernel's struct sockaddr_storage.
func DecodeSockaddr(b []byte) Sockaddr {
	_ = b[unix.SizeofSockaddrAny-1]
	// SAFETY: b is that large, and alive during the call.
	return decode((*rawAddr)(unsafe.Pointer(&b[0])))
}
