//go:build linux

package sys

import (
	"bytes"
	"errors"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func pair(t testing.TB) (near, far int) {
	t.Helper()
	fds, errno := Socketpair()
	if errno != 0 {
		t.Fatal(errno)
	}
	t.Cleanup(func() { Close(fds[0]); Close(fds[1]) })
	return fds[0], fds[1]
}

func check(t testing.TB, what string, errno Errno) {
	t.Helper()
	if errno != 0 {
		t.Fatalf("%s: %v", what, errno)
	}
}

func cloexec(t testing.TB, fd int) {
	t.Helper()
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("fd %d is not closed on exec: %#x, %v", fd, flags, err)
	}
}

func nonblock(t testing.TB, fd int) bool {
	t.Helper()
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		t.Fatal(err)
	}
	return flags&unix.O_NONBLOCK != 0
}

func TestBytes(t *testing.T) {
	for name, c := range map[string]struct {
		send func(int, []byte) (int, Errno)
		recv func(int, []byte) (int, Errno)
	}{
		"socket": {Send, Recv},
		"any":    {Write, Read},
		"vector": {func(fd int, p []byte) (int, Errno) { return Sendv(fd, [][]byte{p[:len(p)/2], nil, p[len(p)/2:]}) }, Recv},
	} {
		t.Run(name, func(t *testing.T) {
			near, far := pair(t)
			cloexec(t, near)
			p := make([]byte, 2*rawBytesMax)
			if _, errno := c.recv(near, p); errno != EAGAIN {
				t.Errorf("with nothing to read: %v", errno)
			}
			// On both sides of where the scheduler is told.
			for _, size := range []int{1, 100, rawBytesMax, rawBytesMax + 1} {
				want := bytes.Repeat([]byte{byte(size)}, size)
				if n, errno := c.send(far, want); n != size || errno != 0 {
					t.Fatalf("send of %d: %d, %v", size, n, errno)
				}
				n, errno := c.recv(near, p)
				for n < size && errno == 0 {
					var m int
					m, errno = c.recv(near, p[n:])
					n += m
				}
				if errno != 0 || !bytes.Equal(p[:n], want) {
					t.Fatalf("receive of %d: %d, %v", size, n, errno)
				}
			}
			if n, errno := c.send(far, nil); n != 0 || errno != 0 {
				t.Errorf("a send of nothing: %d, %v", n, errno)
			}
			total := 0
			for {
				n, errno := c.send(far, p)
				if errno == EAGAIN {
					break
				}
				check(t, "fill", errno)
				total += n
			}
			if total == 0 {
				t.Error("the first send of all was refused")
			}
			check(t, "close", Close(near))
			// EPIPE, or ECONNRESET as bytes were unread; and no SIGPIPE, which would end the process for write(2) only
			// on descriptors 1 and 2.
			if _, errno := c.send(far, p[:1]); errno != EPIPE && errno != ECONNRESET {
				t.Errorf("a send after the peer's end: %v", errno)
			}
		})
	}
}

func TestEndOfStream(t *testing.T) {
	near, far := pair(t)
	Send(far, []byte("a"))
	check(t, "shutdown", Shutdown(far, SHUT_WR))
	p := make([]byte, 8)
	for _, want := range []int{1, 0, 0} {
		if n, errno := Recv(near, p); n != want || errno != 0 {
			t.Fatalf("%d, %v, not %d", n, errno, want)
		}
	}
}

func TestSendvLimits(t *testing.T) {
	near, far := pair(t)
	p := make([]byte, 4096)
	if n, errno := Sendv(far, nil); n != 0 || errno != 0 {
		t.Errorf("of nothing: %d, %v", n, errno)
	}
	if n, errno := Sendv(far, make([][]byte, 10)); n != 0 || errno != 0 {
		t.Errorf("of empty slices: %d, %v", n, errno)
	}
	// More slices than one call takes, with empty ones, which do not count, among them.
	var bufs [][]byte
	for i := range 2 * IovecsMax {
		bufs = append(bufs, []byte{byte(i)}, nil)
	}
	if n, errno := Sendv(far, bufs); n != IovecsMax || errno != 0 {
		t.Fatalf("of %d slices: %d, %v", len(bufs), n, errno)
	}
	n, errno := Recv(near, p)
	if n != IovecsMax || errno != 0 {
		t.Fatal(n, errno)
	}
	for i, b := range p[:n] {
		if int(b) != i {
			t.Fatalf("byte %d is %d", i, b)
		}
	}
	// A socket that has room for some of it.
	big := make([]byte, 1<<20)
	n, errno = Sendv(far, [][]byte{big, big, big, big, big, big, big, big})
	if n <= 0 || n >= 8*len(big) || errno != 0 {
		t.Fatalf("a full socket took %d, %v", n, errno)
	}
	if _, errno := Sendv(far, [][]byte{big}); errno != EAGAIN {
		t.Errorf("a full socket says %v", errno)
	}
}

func TestDescriptors(t *testing.T) {
	near, _ := pair(t)
	d, errno := Dup(near)
	check(t, "dup", errno)
	cloexec(t, d)
	if d == near {
		t.Error("dup returned the same number")
	}
	check(t, "close", Close(d))
	if errno := Close(d); errno != EBADF {
		t.Errorf("a second close says %v", errno)
	}
	var p [2]int
	if err := unix.Pipe(p[:]); err != nil { //nolint // inherited and blocking on purpose
		t.Fatal(err)
	}
	defer Close(p[0])
	defer Close(p[1])
	for range 2 {
		check(t, "nonblock", SetNonblock(p[0]))
		if !nonblock(t, p[0]) {
			t.Error("it blocks")
		}
	}
	check(t, "cloexec", SetCloexec(p[0]))
	cloexec(t, p[0])
	if errno := SetNonblock(-1); errno != EBADF {
		t.Errorf("fd -1: %v", errno)
	}
}

func TestOptions(t *testing.T) {
	fd, errno := Socket(AF_INET)
	check(t, "socket", errno)
	defer Close(fd)
	cloexec(t, fd)
	if !nonblock(t, fd) {
		t.Error("a socket blocks")
	}
	check(t, "set", SetsockoptInt(fd, SOL_SOCKET, SO_REUSEADDR, 1))
	if v, errno := GetsockoptInt(fd, SOL_SOCKET, SO_REUSEADDR); v != 1 || errno != 0 {
		t.Errorf("%d, %v", v, errno)
	}
	if v, errno := GetsockoptInt(fd, SOL_SOCKET, SO_TYPE); v != SOCK_STREAM || errno != 0 {
		t.Errorf("%d, %v", v, errno)
	}
	for seconds, want := range map[int]unix.Linger{0: {Onoff: 1}, 7: {Onoff: 1, Linger: 7}, -1: {}} {
		check(t, "linger", SetLinger(fd, seconds))
		l, err := unix.GetsockoptLinger(fd, SOL_SOCKET, SO_LINGER)
		if err != nil || l.Onoff != want.Onoff || l.Onoff != 0 && l.Linger != want.Linger {
			t.Errorf("linger %d is %v, %v", seconds, l, err)
		}
	}
	if _, errno := GetsockoptInt(fd, SOL_SOCKET, 9999); errno != ENOPROTOOPT {
		t.Errorf("an option that is not: %v", errno)
	}
	if _, errno := Socket(9999); errno != EAFNOSUPPORT {
		t.Errorf("a family that is not: %v", errno)
	}
}

// connectTo waits for a connection to a listening socket, whatever its family.
func connectTo(t *testing.T, listener, fd int, errno Errno) (accepted int, from Sockaddr) {
	t.Helper()
	if errno != 0 && errno != EINPROGRESS {
		t.Fatal(errno)
	}
	for end := time.Now().Add(10 * time.Second); ; runtime.Gosched() {
		a, from, errno := Accept(listener)
		if errno == 0 {
			cloexec(t, a)
			if !nonblock(t, a) {
				t.Error("an accepted socket blocks")
			}
			return a, from
		}
		if errno != EAGAIN || time.Now().After(end) {
			t.Fatal(errno)
		}
	}
}

func TestInternetAddresses(t *testing.T) {
	for _, c := range []struct {
		name string
		at   Sockaddr
	}{
		{"v4", Sockaddr{Family: AF_INET, IP: [16]byte{127, 0, 0, 1}}},
		{"v6", Sockaddr{Family: AF_INET6, IP: [16]byte{15: 1}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, errno := Socket(int(c.at.Family))
			if errno == EAFNOSUPPORT {
				t.Skip("the system has no such family")
			}
			check(t, "socket", errno)
			defer Close(l)
			if errno := Bind(l, &c.at); errno == EADDRNOTAVAIL {
				t.Skip("the system has no such address")
			} else {
				check(t, "bind", errno)
			}
			check(t, "listen", Listen(l, 8))
			at, errno := Getsockname(l)
			check(t, "getsockname", errno)
			if at.Family != c.at.Family || at.IP != c.at.IP || at.Port == 0 {
				t.Fatalf("it listens at %v", at)
			}
			fd, errno := Socket(int(c.at.Family))
			check(t, "socket", errno)
			defer Close(fd)
			a, from := connectTo(t, l, fd, Connect(fd, &at))
			defer Close(a)
			own, errno := Getsockname(fd)
			check(t, "getsockname", errno)
			if from != own {
				t.Errorf("accepted from %v, which is at %v", from, own)
			}
			if peer, errno := Getpeername(fd); errno != 0 || peer != at {
				t.Errorf("the peer is %v, %v, not %v", peer, errno, at)
			}
			if peer, errno := Getpeername(a); errno != 0 || peer != own {
				t.Errorf("the peer is %v, %v, not %v", peer, errno, own)
			}
			if _, errno := Getpeername(l); errno != ENOTCONN {
				t.Errorf("the peer of a listener: %v", errno)
			}
			other, _ := Socket(int(c.at.Family))
			defer Close(other)
			if errno := Bind(other, &at); errno != EADDRINUSE {
				t.Errorf("an address twice: %v", errno)
			}
		})
	}
}

// TestAddressesInTheKernelsForm compares with what x/sys makes of the same bytes.
func TestAddressesInTheKernelsForm(t *testing.T) {
	a := Sockaddr{Family: AF_INET6, Port: 0x1234, Scope: 7, IP: [16]byte{0xfe, 0x80, 15: 9}}
	var raw rawAddr
	if n := a.encode(&raw); n != unix.SizeofSockaddrInet6 {
		t.Error(n)
	}
	if got := decode(&raw); got != a {
		t.Errorf("%v comes back as %v", a, got)
	}
	a = Sockaddr{Family: AF_INET, Port: 0xabcd, IP: [16]byte{1, 2, 3, 4}}
	raw = rawAddr{}
	if n := a.encode(&raw); n != unix.SizeofSockaddrInet4 {
		t.Error(n)
	}
	if got := decode(&raw); got != a {
		t.Errorf("%v comes back as %v", a, got)
	}
	if raw.Addr.Data[0] != -0x55 || raw.Addr.Data[1] != -0x33 { // 0xab, 0xcd
		t.Errorf("the port is not in network order: %v", raw.Addr.Data[:2])
	}
}

func TestUnixAddresses(t *testing.T) {
	dir := t.TempDir()
	long := filepath.Join("/tmp", strings.Repeat("x", 200))
	for _, c := range []struct {
		name string
		at   UnixAddr
	}{
		{"path", UnixAddr(filepath.Join(dir, "s"))},
		{"abstract", UnixAddr("@pollux-" + filepath.Base(dir) + dir)},
		{"abstract with zeroes", UnixAddr("@p\x00q\x00" + dir)},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, errno := Socket(AF_UNIX)
			check(t, "socket", errno)
			defer Close(l)
			check(t, "bind", BindUnix(l, c.at))
			check(t, "listen", Listen(l, 8))
			if name, errno := UnixName(l); name != c.at || errno != 0 {
				t.Errorf("it listens at %q, %v", name, errno)
			}
			fd, errno := Socket(AF_UNIX)
			check(t, "socket", errno)
			defer Close(fd)
			a, from := connectTo(t, l, fd, ConnectUnix(fd, c.at))
			defer Close(a)
			if from.Family != AF_UNIX {
				t.Errorf("accepted from %v", from)
			}
			if name, errno := UnixPeerName(fd); name != c.at || errno != 0 {
				t.Errorf("the peer is %q, %v", name, errno)
			}
			if name, errno := UnixPeerName(a); name != "" || errno != 0 {
				t.Errorf("a peer without a name is %q, %v", name, errno)
			}
			is, errno := IsSocket(string(c.at))
			if onDisk := c.name == "path"; is != onDisk || onDisk && errno != 0 {
				t.Errorf("its file is a socket: %v, %v", is, errno)
			}
		})
	}
	fd, errno := Socket(AF_UNIX)
	check(t, "socket", errno)
	defer Close(fd)
	if errno := BindUnix(fd, UnixAddr(long)); errno != EINVAL {
		t.Errorf("a long path: %v", errno)
	}
	if errno := ConnectUnix(fd, UnixAddr(long)); errno != EINVAL {
		t.Errorf("a long path: %v", errno)
	}
	// The longest that fits, and one more.
	room := len(unix.RawSockaddrUnix{}.Path)
	for n, fits := range map[int]bool{room - 1: true, room: false} {
		var raw rawAddr
		name := UnixAddr("/" + strings.Repeat("y", n-1))
		length, ok := name.encode(&raw)
		if ok != fits || fits && decodeUnix(&raw, length) != name {
			t.Errorf("a path of %d bytes: %v, %q", n, ok, decodeUnix(&raw, length))
		}
	}
}

func TestFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if _, errno := IsSocket(path); errno != ENOENT {
		t.Errorf("a file that is not: %v", errno)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if is, errno := IsSocket(path); is || errno != 0 {
		t.Errorf("a regular file: %v, %v", is, errno)
	}
	check(t, "chmod", Chmod(path, 0o640))
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o640 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	dev, ino, errno := SocketInode(path)
	check(t, "inode", errno)
	check(t, "unlink", Unlink(path))
	if errno := Unlink(path); errno != ENOENT {
		t.Errorf("unlinked twice: %v", errno)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if d, i, errno := SocketInode(path); errno != 0 || d != dev || i == ino && d != dev {
		t.Errorf("%d %d, %v", d, i, errno)
	}
	if _, _, errno := SocketInode(path + "x"); errno != ENOENT {
		t.Error(errno)
	}
	if errno := Chmod(path+"x", 0); errno != ENOENT {
		t.Error(errno)
	}
}

// waits are the ways to wait for events; each takes a timeout.
var waits = map[string]func(int, []EpollEvent, time.Duration) (int, Errno){
	"pwait2": func(epfd int, events []EpollEvent, d time.Duration) (int, Errno) {
		return EpollWait(epfd, events, d, nil)
	},
	"millis": func(epfd int, events []EpollEvent, d time.Duration) (int, Errno) {
		return EpollWaitMillis(epfd, events, d, nil)
	},
	"pwait2 hold": func(epfd int, events []EpollEvent, d time.Duration) (int, Errno) {
		return EpollWait(epfd, events, min(d, 50*time.Millisecond), new(Hold))
	},
	"millis hold": func(epfd int, events []EpollEvent, d time.Duration) (int, Errno) {
		return EpollWaitMillis(epfd, events, min(d, 50*time.Millisecond), new(Hold))
	},
	"poll": func(epfd int, events []EpollEvent, _ time.Duration) (int, Errno) { return EpollPoll(epfd, events) },
}

func TestEpoll(t *testing.T) {
	for name, wait := range waits {
		t.Run(name, func(t *testing.T) {
			epfd, errno := EpollCreate()
			check(t, "create", errno)
			defer Close(epfd)
			cloexec(t, epfd)
			near, far := pair(t)
			const data = 0xfedcba9876543210
			check(t, "add", EpollCtl(epfd, EpollAdd, near, EPOLLIN|EPOLLET, data))
			if errno := EpollCtl(epfd, EpollAdd, near, EPOLLIN, 0); errno != EEXIST {
				t.Errorf("added twice: %v", errno)
			}
			events := make([]EpollEvent, 4)
			if n, errno := wait(epfd, events, 0); n != 0 || errno != 0 {
				t.Errorf("with nothing there: %d, %v", n, errno)
			}
			Send(far, []byte("a"))
			if n, errno := wait(epfd, events, time.Minute); n != 1 || errno != 0 || EpollData(&events[0]) != data ||
				events[0].Events != EPOLLIN {
				t.Fatalf("%d, %v, %#x, %#x", n, errno, EpollData(&events[0]), events[0].Events)
			}
			if n, errno := wait(epfd, events, 0); n != 0 || errno != 0 {
				t.Errorf("the edge came twice: %d, %v", n, errno)
			}
			check(t, "remove", EpollCtl(epfd, EpollDel, near, 0, 0))
			if errno := EpollCtl(epfd, EpollDel, near, 0, 0); errno != ENOENT {
				t.Errorf("removed twice: %v", errno)
			}
			if _, errno := wait(-1, events, 0); errno != EBADF {
				t.Errorf("fd -1: %v", errno)
			}
		})
	}
}

// TestWaitsLastTheirTime checks that no wait ends before its timeout, and that the longest ones are waits at all.
func TestWaitsLastTheirTime(t *testing.T) {
	epfd, errno := EpollCreate()
	check(t, "create", errno)
	defer Close(epfd)
	events := make([]EpollEvent, 4)
	for _, name := range []string{"pwait2", "millis"} {
		wait := waits[name]
		for _, timeout := range []time.Duration{1, time.Microsecond, 1500 * time.Microsecond, 3 * time.Millisecond} {
			// A signal may end one early, not all.
			ok := false
			for range 20 {
				began := time.Now()
				n, errno := wait(epfd, events, timeout)
				if n != 0 || errno != 0 {
					t.Fatalf("%s: %d, %v", name, n, errno)
				}
				ok = ok || time.Since(began) >= timeout
			}
			if !ok {
				t.Errorf("%s: waits of %v end early", name, timeout)
			}
		}
		wakefd, errno := Eventfd()
		check(t, "eventfd", errno)
		cloexec(t, wakefd)
		if !nonblock(t, wakefd) {
			t.Error("an eventfd blocks")
		}
		check(t, "add", EpollCtl(epfd, EpollAdd, wakefd, EPOLLIN, 1))
		for _, timeout := range []time.Duration{-1, math.MinInt64, math.MaxInt64, math.MaxInt64 - 1, 1e9*time.Millisecond + 1} {
			var got atomic.Int64
			done := make(chan struct{})
			go func() {
				defer close(done)
				for n := 0; n == 0; {
					if n, errno = wait(epfd, events, timeout); errno != 0 {
						t.Errorf("%s: a wait of %v: %v", name, timeout, errno)
						return
					}
					got.Store(int64(n))
				}
			}()
			// Nothing to see for a while, and a wait that does not wait would spin: it must be the write that ends it.
			Write(wakefd, []byte{1, 0, 0, 0, 0, 0, 0, 0})
			select {
			case <-done:
			case <-time.After(10 * time.Second):
				t.Fatalf("%s: a wait of %v hangs", name, timeout)
			}
			if got.Load() != 1 {
				t.Errorf("%s: a wait of %v: %d", name, timeout, got.Load())
			}
			Read(wakefd, make([]byte, 8))
		}
		Close(wakefd)
	}
}

// TestSignalStorm sends SIGURG, the runtime's own, to a thread that waits: waits end early and empty, and nothing else.
func TestSignalStorm(t *testing.T) {
	for name, wait := range waits {
		if name == "poll" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			epfd, errno := EpollCreate()
			check(t, "create", errno)
			defer Close(epfd)
			near, far := pair(t)
			check(t, "add", EpollCtl(epfd, EpollAdd, near, EPOLLIN, 1))
			var thread, empty atomic.Int64
			done := make(chan Errno, 1)
			go func() {
				runtime.LockOSThread()
				defer runtime.UnlockOSThread()
				thread.Store(int64(Gettid()))
				events := make([]EpollEvent, 4)
				for {
					n, errno := wait(epfd, events, -1)
					if n > 0 || errno != 0 {
						done <- errno
						return
					}
					empty.Add(1)
				}
			}()
			for thread.Load() == 0 {
				runtime.Gosched()
			}
			for end := time.Now().Add(10 * time.Second); empty.Load() < 100; {
				if err := syscall.Tgkill(os.Getpid(), int(thread.Load()), syscall.SIGURG); err != nil {
					t.Fatal(err)
				}
				if time.Now().After(end) {
					t.Fatalf("the signals have interrupted %d waits", empty.Load())
				}
				runtime.Gosched()
			}
			Send(far, []byte("a"))
			select {
			case errno := <-done:
				check(t, "wait", errno)
			case <-time.After(10 * time.Second):
				t.Fatal("the event was lost")
			}
		})
	}
}

func TestOpNames(t *testing.T) {
	seen := map[string]bool{}
	for op := range Op(Ops) {
		name := op.String()
		if name == "" || name == "unknown" || seen[name] {
			t.Errorf("op %d is called %q", op, name)
		}
		seen[name] = true
	}
	if got := Op(Ops).String(); got != "unknown" {
		t.Errorf("an op that is not is called %q", got)
	}
}

// calls makes one call of each kind, on descriptors of its own, and says what it answered.
func calls(t *testing.T) map[Op][]func() Errno {
	near, far := pair(t)
	_ = far
	epfd, errno := EpollCreate()
	check(t, "create", errno)
	t.Cleanup(func() { Close(epfd) })
	path := filepath.Join(t.TempDir(), "f")
	made := func(fd int, errno Errno) Errno {
		if errno == 0 {
			Close(fd)
		}
		return errno
	}
	p := make([]byte, 8)
	events := make([]EpollEvent, 1)
	at := &Sockaddr{Family: AF_INET}
	second := func(_ any, errno Errno) Errno { return errno }
	return map[Op][]func() Errno{
		OpAccept:      {func() Errno { fd, _, errno := Accept(near); return made(fd, errno) }},
		OpBind:        {func() Errno { return Bind(near, at) }, func() Errno { return BindUnix(near, "@x") }},
		OpChmod:       {func() Errno { return Chmod(path, 0) }},
		OpConnect:     {func() Errno { return Connect(near, at) }, func() Errno { return ConnectUnix(near, "@x") }},
		OpEpollCreate: {func() Errno { return made(EpollCreate()) }},
		OpEpollCtl:    {func() Errno { return EpollCtl(epfd, EpollDel, near, 0, 0) }},
		OpEpollWait: {
			func() Errno { return second(EpollPoll(epfd, events)) },
			func() Errno { return second(EpollWait(epfd, events, 0, nil)) },
			func() Errno { return second(EpollWaitMillis(epfd, events, 0, nil)) },
		},
		OpEventfd: {func() Errno { return made(Eventfd()) }},
		OpFutex: {
			func() Errno { return FutexWait(new(uint32), 1, 0) },
			func() Errno { return second(FutexWake(new(uint32), 1)) },
		},
		OpMmap: {func() Errno {
			b, errno := MapMemory(4096)
			if errno == 0 {
				Unmap(b)
			}
			return errno
		}},
		// On what is no ring, and with what is no operation: the kernel refuses them.
		OpUringEnter:       {func() Errno { return second(UringEnter(near, 0, 0, 0, nil, 0, nil)) }},
		OpUringRegister:    {func() Errno { return UringRegister(near, 255, nil, 0) }},
		OpUringSetup:       {func() Errno { return made(UringSetup(1, new(UringParams))) }},
		OpFcntl:            {func() Errno { return SetNonblock(near) }, func() Errno { return SetCloexec(near) }, func() Errno { return made(Dup(near)) }},
		OpGetpeername:      {func() Errno { return second(Getpeername(near)) }, func() Errno { return second(UnixPeerName(near)) }},
		OpGetsockname:      {func() Errno { return second(Getsockname(near)) }, func() Errno { return second(UnixName(near)) }},
		OpGetsockopt:       {func() Errno { return second(GetsockoptInt(near, SOL_SOCKET, SO_TYPE)) }},
		OpIoctl:            {func() Errno { return second(Unacknowledged(near)) }, func() Errno { return EpollBusyPoll(epfd, 0) }},
		OpListen:           {func() Errno { return Listen(near, 1) }},
		OpLstat:            {func() Errno { return second(IsSocket(path)) }},
		OpClockGettime:     {func() Errno { return second(CPUTime(0)) }},
		OpGetrusage:        {func() Errno { return second(Waits()) }},
		OpOpen:             {func() Errno { return second(IsRunnable(Gettid())) }},
		OpRead:             {func() Errno { return second(Read(near, p)) }},
		OpRecv:             {func() Errno { return second(Recv(near, p)) }},
		OpSchedSetaffinity: {func() Errno { cpus, _ := Affinity(); return SetAffinity(0, cpus) }},
		OpSchedSetattr:     {func() Errno { s, _ := GetSched(0); return SetSched(0, s) }},
		OpSend:             {func() Errno { return second(Send(near, p)) }, func() Errno { return second(Sendv(near, [][]byte{p})) }},
		OpSetsockopt:       {func() Errno { return SetsockoptInt(near, SOL_SOCKET, SO_KEEPALIVE, 1) }, func() Errno { return SetLinger(near, -1) }},
		OpShutdown:         {func() Errno { return Shutdown(near, SHUT_RD) }},
		OpSocket:           {func() Errno { return made(Socket(AF_UNIX)) }},
		OpUnlink:           {func() Errno { return Unlink(path) }},
		OpWrite:            {func() Errno { return second(Write(near, p)) }},
		OpClose:            {func() Errno { fd, _ := Dup(near); return Close(fd) }},
	}
}

// TestFaults injects a failure, a delay and an interruption into every call.
func TestFaults(t *testing.T) {
	all := calls(t)
	for op := range Op(Ops) {
		if len(all[op]) == 0 {
			t.Errorf("no call of kind %v is tried", op)
		}
		for i, call := range all[op] {
			const injected = Errno(1234) // No kernel says so.
			asked, ran := 0, 0
			restore := Inject(func(o Op, fd int) Fault {
				if o != op {
					return Fault{}
				}
				asked++
				return Fault{Errno: injected, Before: func() { ran++ }}
			})
			errno := call()
			restore()
			if errno != injected || asked != 1 || ran != 1 {
				t.Errorf("%v, call %d: %v, asked %d times, ran %d times", op, i, errno, asked, ran)
			}
			// Nothing, twice: what the kernel says on its own must not change by being watched.
			asked = 0
			restore = Inject(func(o Op, fd int) Fault {
				if o == op {
					asked++
				}
				return Fault{}
			})
			errno = call()
			restore()
			if errno == injected || asked == 0 {
				t.Errorf("%v, call %d, watched: %v, asked %d times", op, i, errno, asked)
			}
			if op == OpUringEnter {
				continue // Only its caller knows what was submitted, and so is told of a signal.
			}
			// A signal: it is the package's business, and nobody else's.
			asked = 0
			restore = Inject(func(o Op, fd int) Fault {
				if o == op {
					if asked++; asked == 1 {
						return Fault{Errno: EINTR}
					}
				}
				return Fault{}
			})
			errno = call()
			restore()
			if errno == EINTR {
				t.Errorf("%v, call %d: EINTR leaves the package", op, i)
			}
			if once := op == OpClose || op == OpEpollWait && i > 0 || (op == OpFutex && i == 0) || op == OpRead && i == 1; asked != 2 && !once {
				t.Errorf("%v, call %d: after EINTR it was made %d times", op, i, asked)
			}
		}
	}
}

// TestInjectedCloseCloses: Linux releases the descriptor whatever close says, and so must a fault.
func TestInjectedCloseCloses(t *testing.T) {
	for _, errno := range []Errno{syscall.EIO, EINTR} {
		near, _ := pair(t)
		fd, _ := Dup(near)
		restore := Inject(func(op Op, _ int) Fault {
			if op == OpClose {
				return Fault{Errno: errno}
			}
			return Fault{}
		})
		got := Close(fd)
		restore()
		if want := errno; errno == EINTR && got != 0 || errno != EINTR && got != want {
			t.Errorf("a close that fails with %v says %v", errno, got)
		}
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); !errors.Is(err, EBADF) {
			t.Errorf("after %v the descriptor is open: %v", errno, err)
		}
	}
}

func TestInjectedShort(t *testing.T) {
	near, far := pair(t)
	restore := Inject(func(op Op, fd int) Fault { return Fault{Short: 3} })
	defer restore()
	p := make([]byte, 16)
	for name, send := range map[string]func() (int, Errno){
		"send":  func() (int, Errno) { return Send(far, []byte("abcdef")) },
		"write": func() (int, Errno) { return Write(far, []byte("abcdef")) },
		"sendv": func() (int, Errno) { return Sendv(far, [][]byte{[]byte("ab"), nil, []byte("cd"), []byte("ef")}) },
		"full":  func() (int, Errno) { return Sendv(far, [][]byte{[]byte("abc"), []byte("def")}) },
	} {
		if n, errno := send(); n != 3 || errno != 0 {
			t.Errorf("%s: %d, %v", name, n, errno)
		}
		if n, errno := Recv(near, p); string(p[:n]) != "abc" || errno != 0 {
			t.Errorf("%s: %q, %v", name, p[:n], errno)
		}
	}
	Send(far, []byte("ab"))
	Send(far, []byte("cd"))
	for _, want := range []string{"abc", "d"} {
		if n, errno := Read(near, p); string(p[:n]) != want || errno != 0 {
			t.Errorf("%q, %v, not %q", p[:n], errno, want)
		}
	}
}

func TestInjectionsDoNotNest(t *testing.T) {
	restore := Inject(func(Op, int) Fault { return Fault{} })
	defer restore()
	defer func() {
		if recover() == nil {
			t.Error("a second hook was installed")
		}
	}()
	Inject(func(Op, int) Fault { return Fault{} })
}

func TestGettid(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if got, want := Gettid(), unix.Gettid(); got != want || got == 0 {
		t.Errorf("%d, not %d", got, want)
	}
}

// TestWhatAThreadDoes looks at a thread that computes, sleeps, and waits for a CPU that another one has.
func TestWhatAThreadDoes(t *testing.T) {
	var tid atomic.Int64
	var computes atomic.Bool
	var waits [2]int64
	computes.Store(true)
	asleep, goOn, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		tid.Store(int64(Gettid()))
		for computes.Load() {
		}
		waits[0], _ = Waits()
		close(asleep)
		<-goOn
		waits[1], _ = Waits()
	}()
	for tid.Load() == 0 {
		runtime.Gosched()
	}
	id := int(tid.Load())
	time0, errno := CPUTime(id)
	check(t, "read the CPU time of another thread", errno)
	for end := time.Now().Add(10 * time.Second); ; {
		now, errno := CPUTime(id)
		check(t, "read it again", errno)
		if now-time0 > int64(time.Millisecond) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("it computes, and has had %v", time.Duration(now-time0))
		}
	}
	runnable, errno := IsRunnable(id)
	check(t, "look at a thread that computes", errno)
	if !runnable {
		t.Error("it computes, and is not runnable")
	}
	computes.Store(false)
	<-asleep
	for end := time.Now().Add(10 * time.Second); ; {
		runnable, errno := IsRunnable(id)
		check(t, "look at a thread that sleeps", errno)
		if !runnable {
			break
		}
		if time.Now().After(end) {
			t.Fatal("it sleeps, and is runnable")
		}
	}
	close(goOn)
	<-ended
	if waits[1] <= waits[0] {
		t.Errorf("it has slept, and waited %d times before that, %d after", waits[0], waits[1])
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	own, _ := CPUTime(0)
	if same, _ := CPUTime(Gettid()); same < own || same > own+int64(time.Second) {
		t.Errorf("its own CPU time is %d, by its number %d", own, same)
	}
	if _, errno := IsRunnable(1 << 22); errno != ENOENT {
		t.Errorf("a thread that is none: %v", errno)
	}
}

func TestCallsDoNotAllocate(t *testing.T) {
	near, far := pair(t)
	epfd, errno := EpollCreate()
	check(t, "create", errno)
	defer Close(epfd)
	events := make([]EpollEvent, 4)
	p := make([]byte, 8)
	vector := [][]byte{p[:1], p[1:2]}
	for name, f := range map[string]func(){
		"epoll": func() {
			EpollPoll(epfd, events)
			EpollWait(epfd, events, 1, nil)
			EpollCtl(epfd, EpollDel, near, 0, 0)
		},
		"bytes":     func() { Send(far, p[:1]); Recv(near, p); Sendv(far, vector); Recv(near, p) },
		"accept":    func() { Accept(near) },
		"getsocket": func() { GetsockoptInt(near, SOL_SOCKET, SO_TYPE); Getsockname(near) },
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// BenchmarkSeam compares calls that fail at once through the package with the same raw system calls. What is left
// between them is the seam, the retry and the result's conversion.
func BenchmarkSeam(b *testing.B) {
	near, _ := pair(b)
	p := make([]byte, 64)
	b.Run("call=recv/seam=yes", func(b *testing.B) {
		for b.Loop() {
			if _, errno := Recv(near, p); errno != EAGAIN {
				b.Fatal(errno)
			}
		}
	})
	b.Run("call=recv/seam=no", func(b *testing.B) {
		for b.Loop() {
			_, _, errno := syscall.RawSyscall6(unix.SYS_RECVFROM, uintptr(near), uintptr(base(p)), uintptr(len(p)), 0, 0, 0)
			if errno != EAGAIN {
				b.Fatal(errno)
			}
		}
	})
	// The cheapest call there is, so that the difference shows: fd -1 is refused first of all.
	b.Run("call=ebadf/seam=yes", func(b *testing.B) {
		for b.Loop() {
			if _, errno := Recv(-1, p); errno != EBADF {
				b.Fatal(errno)
			}
		}
	})
	b.Run("call=ebadf/seam=no", func(b *testing.B) {
		for b.Loop() {
			_, _, errno := syscall.RawSyscall6(unix.SYS_RECVFROM, ^uintptr(0), uintptr(base(p)), uintptr(len(p)), 0, 0, 0)
			if errno != EBADF {
				b.Fatal(errno)
			}
		}
	})
}
