//go:build !linux

package sys

import (
	"syscall"
	"time"
)

// Error numbers that callers decide on.
const (
	EACCES        = syscall.EACCES
	EADDRINUSE    = syscall.EADDRINUSE
	EADDRNOTAVAIL = syscall.EADDRNOTAVAIL
	EAFNOSUPPORT  = syscall.EAFNOSUPPORT
	EAGAIN        = syscall.EAGAIN
	EALREADY      = syscall.EALREADY
	EBADF         = syscall.EBADF
	ECANCELED     = syscall.ECANCELED
	ECONNABORTED  = syscall.ECONNABORTED
	ECONNREFUSED  = syscall.ECONNREFUSED
	ECONNRESET    = syscall.ECONNRESET
	EEXIST        = syscall.EEXIST
	EINPROGRESS   = syscall.EINPROGRESS
	EINTR         = syscall.EINTR
	EINVAL        = syscall.EINVAL
	EISCONN       = syscall.EISCONN
	EMFILE        = syscall.EMFILE
	ENFILE        = syscall.ENFILE
	ENOBUFS       = syscall.ENOBUFS
	ENODEV        = syscall.ENODEV
	ENOENT        = syscall.ENOENT
	ENOMEM        = syscall.ENOMEM
	ENOPROTOOPT   = syscall.ENOPROTOOPT
	ENOSPC        = syscall.ENOSPC
	ENOSYS        = syscall.ENOSYS
	ENOTCONN      = syscall.ENOTCONN
	ENOTSOCK      = syscall.ENOTSOCK
	ENOTTY        = syscall.ENOTTY
	ENOTSUP       = syscall.ENOTSUP
	EPERM         = syscall.EPERM
	ESRCH         = syscall.ESRCH
	EPIPE         = syscall.EPIPE
	EPROTO        = syscall.EPROTO
	ETIMEDOUT     = syscall.ETIMEDOUT
)

// Numbers of Linux, so that what uses them compiles.
const (
	EPOLLIN             = 0x1
	EPOLLPRI            = 0x2
	EPOLLOUT            = 0x4
	EPOLLERR            = 0x8
	EPOLLHUP            = 0x10
	EPOLLRDHUP          = 0x2000
	EPOLLET             = 0x80000000
	EpollAdd            = 0x1
	EpollDel            = 0x2
	AF_INET             = 0x2
	AF_INET6            = 0xa
	AF_UNIX             = 0x1
	SHUT_RD             = 0x0
	SHUT_WR             = 0x1
	SHUT_RDWR           = 0x2
	SOL_SOCKET          = 0x1
	SO_REUSEADDR        = 0x2
	SO_KEEPALIVE        = 0x9
	SO_BUSY_POLL        = 0x2e
	SO_PREFER_BUSY_POLL = 0x45
	SO_ERROR            = 0x4
	SO_TYPE             = 0x3
	SO_DOMAIN           = 0x27
	SO_ACCEPTCON        = 0x1e
	SO_LINGER           = 0xd
	SO_RCVBUF           = 0x8
	SO_SNDBUF           = 0x7
	IPPROTO_TCP         = 0x6
	TCP_NODELAY         = 0x1
	TCP_KEEPIDLE        = 0x4
	TCP_KEEPINTVL       = 0x5
	TCP_KEEPCNT         = 0x6
	IPPROTO_IPV6        = 0x29
	IPV6_V6ONLY         = 0x1a
	SOCK_STREAM         = 0x1
	IovecsMax           = 0x40
)

// EpollEvent stands for the kernel's structure.
type EpollEvent struct {
	Events uint32
	Fd     int32
	Pad    int32
}

// Recv answers ENOSYS.
func Recv(int, []byte) (int, Errno) { return 0, ENOSYS }

// Send answers ENOSYS.
func Send(int, []byte) (int, Errno) { return 0, ENOSYS }

// Sendv answers ENOSYS.
func Sendv(int, [][]byte) (int, Errno) { return 0, ENOSYS }

// Read answers ENOSYS.
func Read(int, []byte) (int, Errno) { return 0, ENOSYS }

// Write answers ENOSYS.
func Write(int, []byte) (int, Errno) { return 0, ENOSYS }

// Close answers ENOSYS.
func Close(int) Errno { return ENOSYS }

// SetNonblock answers ENOSYS.
func SetNonblock(int) Errno { return ENOSYS }

// Dup answers ENOSYS.
func Dup(int) (int, Errno) { return -1, ENOSYS }

// SetCloexec answers ENOSYS.
func SetCloexec(int) Errno { return ENOSYS }

// EpollCreate answers ENOSYS.
func EpollCreate() (int, Errno) { return -1, ENOSYS }

// EpollCtl answers ENOSYS.
func EpollCtl(int, int, int, uint32, uint64) Errno { return ENOSYS }

func EpollData(*EpollEvent) uint64 { return 0 }

// EpollPoll answers ENOSYS.
func EpollPoll(int, []EpollEvent) (int, Errno) { return 0, ENOSYS }

// EpollWait answers ENOSYS.
func EpollWait(int, []EpollEvent, time.Duration, bool) (int, Errno) { return 0, ENOSYS }

// EpollWaitMillis answers ENOSYS.
func EpollWaitMillis(int, []EpollEvent, time.Duration, bool) (int, Errno) { return 0, ENOSYS }

// EpollBusyPoll answers ENOSYS.
func EpollBusyPoll(int, uint32) Errno { return ENOSYS }

// Eventfd answers ENOSYS.
func Eventfd() (int, Errno) { return -1, ENOSYS }

// Ask does nothing.
func (*Hold) Ask() {}

// FutexWait answers ENOSYS.
func FutexWait(*uint32, uint32, time.Duration) Errno { return ENOSYS }

// FutexWake answers ENOSYS.
func FutexWake(*uint32, int) (int, Errno) { return 0, ENOSYS }

// Socket answers ENOSYS.
func Socket(int) (int, Errno) { return -1, ENOSYS }

// Bind answers ENOSYS.
func Bind(int, *Sockaddr) Errno { return ENOSYS }

// BindUnix answers ENOSYS.
func BindUnix(int, UnixAddr) Errno { return ENOSYS }

// Connect answers ENOSYS.
func Connect(int, *Sockaddr) Errno { return ENOSYS }

// ConnectUnix answers ENOSYS.
func ConnectUnix(int, UnixAddr) Errno { return ENOSYS }

// Listen answers ENOSYS.
func Listen(int, int) Errno { return ENOSYS }

// Accept answers ENOSYS.
func Accept(int) (int, Sockaddr, Errno) { return -1, Sockaddr{}, ENOSYS }

// Getsockname answers ENOSYS.
func Getsockname(int) (Sockaddr, Errno) { return Sockaddr{}, ENOSYS }

// Getpeername answers ENOSYS.
func Getpeername(int) (Sockaddr, Errno) { return Sockaddr{}, ENOSYS }

// UnixName answers ENOSYS.
func UnixName(int) (UnixAddr, Errno) { return "", ENOSYS }

// UnixPeerName answers ENOSYS.
func UnixPeerName(int) (UnixAddr, Errno) { return "", ENOSYS }

// SetsockoptInt answers ENOSYS.
func SetsockoptInt(int, int, int, int) Errno { return ENOSYS }

// SetLinger answers ENOSYS.
func SetLinger(int, int) Errno { return ENOSYS }

// GetsockoptInt answers ENOSYS.
func GetsockoptInt(int, int, int) (int, Errno) { return 0, ENOSYS }

// Unacknowledged answers ENOSYS.
func Unacknowledged(int) (int, Errno) { return 0, ENOSYS }

// Shutdown answers ENOSYS.
func Shutdown(int, int) Errno { return ENOSYS }

// Socketpair answers ENOSYS.
func Socketpair() ([2]int, Errno) { return [2]int{}, ENOSYS }

// IsSocket answers ENOSYS.
func IsSocket(string) (bool, Errno) { return false, ENOSYS }

// Unlink answers ENOSYS.
func Unlink(string) Errno { return ENOSYS }

// Chmod answers ENOSYS.
func Chmod(string, uint32) Errno { return ENOSYS }

// SocketInode answers ENOSYS.
func SocketInode(string) (uint64, uint64, Errno) { return 0, 0, ENOSYS }

// Gettid returns 0: threads have no number here.
func Gettid() int { return 0 }

// CPU answers -1.
func CPU() int { return -1 }

// CPUTime answers ENOSYS.
func CPUTime(int) (int64, Errno) { return 0, ENOSYS }

// Waits answers ENOSYS.
func Waits() (int64, Errno) { return 0, ENOSYS }

// IsRunnable answers ENOSYS.
func IsRunnable(int) (bool, Errno) { return false, ENOSYS }

// GetSched answers ENOSYS.
func GetSched(int) (Sched, Errno) { return Sched{}, ENOSYS }

// SetSched answers ENOSYS.
func SetSched(int, Sched) Errno { return ENOSYS }

// SliceOf answers ENOSYS.
func SliceOf(int) (time.Duration, Errno) { return 0, ENOSYS }

// SetSlice answers ENOSYS.
func SetSlice(int, time.Duration) Errno { return ENOSYS }

// Affinity answers ENOSYS.
func Affinity() ([]int, Errno) { return nil, ENOSYS }

// AffinityOf answers ENOSYS.
func AffinityOf(int) ([]int, Errno) { return nil, ENOSYS }

// SetAffinity answers ENOSYS.
func SetAffinity(int, []int) Errno { return ENOSYS }

// SetThreadName answers ENOSYS.
func SetThreadName(string) Errno { return ENOSYS }

// SetTimerSlack answers ENOSYS.
func SetTimerSlack(int) Errno { return ENOSYS }

// CPUsMax is how many CPUs a mask has room for.
const CPUsMax = 1024

// IsFirstThread answers no.
func IsFirstThread() bool { return false }
