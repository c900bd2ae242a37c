package load

import (
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// connectLimit is how long one connection may take to be established.
const connectLimit = 5 * time.Second

// connsPerSource is how many connections share a source address. The range of
// local ports has 28,000 at its default.
const connsPerSource = 8192

// resolve reads host:port without asking a name server: a benchmark has no use
// for one.
func resolve(addr string) (netip.AddrPort, error) {
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return ap, fmt.Errorf("server address %q: %w", addr, err)
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), nil
}

func sockaddr(ap netip.AddrPort) unix.Sockaddr {
	if ap.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(ap.Port()), Addr: ap.Addr().As16()}
}

// connect returns a connected, non-blocking socket with TCP_NODELAY. i is the
// number of the connection and chooses its source address.
func connect(ap netip.AddrPort, i int) (int, error) {
	family := unix.AF_INET
	if ap.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("make a socket: %w", err)
	}
	if err := establish(fd, ap, i); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func establish(fd int, ap netip.AddrPort, i int) error {
	if source := i / connsPerSource; source > 0 && ap.Addr().Is4() && ap.Addr().IsLoopback() {
		// The port is chosen by connect, when the peer is known: any free pair will do.
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
			return fmt.Errorf("set IP_BIND_ADDRESS_NO_PORT: %w", err)
		}
		local := netip.AddrFrom4([4]byte{127, 0, byte(source >> 8), byte(source) + 1})
		if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(local, 0))); err != nil {
			return fmt.Errorf("bind to %v: %w", local, err)
		}
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return fmt.Errorf("set TCP_NODELAY: %w", err)
	}
	err := unix.Connect(fd, sockaddr(ap))
	if err == nil {
		return nil
	}
	if err != unix.EINPROGRESS && err != unix.EINTR {
		return fmt.Errorf("connect: %w", err)
	}
	limit := time.Now().Add(connectLimit)
	for {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		n, err := unix.Poll(p, 100)
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("wait for the connection: %w", err)
		}
		if n > 0 {
			break
		}
		if time.Now().After(limit) {
			return fmt.Errorf("connect: no answer for %v", connectLimit)
		}
	}
	errno, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return fmt.Errorf("read SO_ERROR: %w", err)
	}
	if errno != 0 {
		return fmt.Errorf("connect: %w", unix.Errno(errno))
	}
	return nil
}

// send is send(2) without telling Go's scheduler: the socket is non-blocking and
// the thread has nothing else to do.
func send(fd int, b []byte) (int, unix.Errno) {
	// SAFETY: b is not empty, and stays referenced and unmoved for the call.
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MSG_NOSIGNAL, 0, 0)
	return int(n), errno
}

// receive is recv(2), as send is.
func receive(fd int, b []byte) (int, unix.Errno) {
	// SAFETY: as in send.
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), 0, 0, 0)
	return int(n), errno
}

// noPwait2 is set once the kernel has turned out to have no epoll_pwait2 (before 5.11).
var noPwait2 atomic.Bool

// epollWait waits for events for at most timeout, to the nanosecond where the
// kernel can. No event, for whatever reason, is 0 and no error.
func epollWait(epfd int, events []unix.EpollEvent, timeout time.Duration) (int, error) {
	var (
		n     uintptr
		errno unix.Errno
	)
	// SAFETY, for each call: events is not empty, and stays referenced and unmoved
	// for the call; the kernel writes at most len(events) of them. So does ts.
	switch {
	case timeout <= 0:
		// Not raw, though it does not block: a goroutine that never enters a system call is asked to yield every 10 ms, and
		// comes back by way of another thread, which may take milliseconds. From one in a call only the P is taken, and
		// there are others.
		n, _, errno = unix.Syscall6(unix.SYS_EPOLL_PWAIT, uintptr(epfd), uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), 0, 0, 0)
	case noPwait2.Load():
		// Rounded down: the rest of the time is spent in calls that do not wait.
		n, _, errno = unix.Syscall6(unix.SYS_EPOLL_PWAIT, uintptr(epfd), uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), uintptr(timeout.Milliseconds()), 0, 0)
	default:
		ts := unix.NsecToTimespec(int64(timeout))
		n, _, errno = unix.Syscall6(unix.SYS_EPOLL_PWAIT2, uintptr(epfd), uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), uintptr(unsafe.Pointer(&ts)), 0, 0)
	}
	switch errno {
	case 0:
		return int(n), nil
	case unix.EINTR:
		return 0, nil
	case unix.ENOSYS:
		noPwait2.Store(true)
		return 0, nil
	default:
		return 0, errno
	}
}
