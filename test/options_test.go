//go:build linux

package test

import (
	"net"
	"reflect"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/pollux-go/pollux"
)

// TestSocketOptions checks the options of sockets against those that package net sets, and what the setters do.
func TestSocketOptions(t *testing.T) {
	const keepCount = 6 // TCP_KEEPCNT
	options := []struct {
		name          string
		level, option int
	}{
		{"TCP_NODELAY", syscall.IPPROTO_TCP, syscall.TCP_NODELAY},
		{"SO_KEEPALIVE", syscall.SOL_SOCKET, syscall.SO_KEEPALIVE},
		{"TCP_KEEPIDLE", syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE},
		{"TCP_KEEPINTVL", syscall.IPPROTO_TCP, syscall.TCP_KEEPINTVL},
		{"TCP_KEEPCNT", syscall.IPPROTO_TCP, keepCount},
		{"SO_REUSEADDR", syscall.SOL_SOCKET, syscall.SO_REUSEADDR},
		{"SO_LINGER", syscall.SOL_SOCKET, syscall.SO_LINGER},
		{"SO_RCVBUF", syscall.SOL_SOCKET, syscall.SO_RCVBUF},
		{"SO_SNDBUF", syscall.SOL_SOCKET, syscall.SO_SNDBUF},
		{"SO_TYPE", syscall.SOL_SOCKET, syscall.SO_TYPE},
		{"SO_DOMAIN", syscall.SOL_SOCKET, syscall.SO_DOMAIN},
	}
	see := func(t *testing.T, tr *trace, what string, c any) {
		t.Helper()
		raw, err := c.(syscall.Conn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		err = raw.Control(func(fd uintptr) {
			for _, o := range options {
				value, err := syscall.GetsockoptInt(int(fd), o.level, o.option)
				tr.see(what+" "+o.name, value, err)
			}
			flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, fd, syscall.F_GETFD, 0)
			tr.see(what+" F_GETFD", flags, errnoError(errno))
			flags, _, errno = syscall.Syscall(syscall.SYS_FCNTL, fd, syscall.F_GETFL, 0)
			tr.see(what+" F_GETFL", flags, errnoError(errno))
		})
		expectNil(t, err)
	}
	for _, network := range []string{"tcp4", "tcp6", "unix"} {
		t.Run(network, func(t *testing.T) {
			parity(t, func(t *testing.T, s stack, tr *trace) {
				ln := s.mustListen(t, network)
				c := s.mustDial(t, ln)
				conn, err := ln.Accept()
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				see(t, tr, "dialed", c)
				see(t, tr, "accepted", conn)
				k, ok := c.(interface {
					SetNoDelay(bool) error
					SetKeepAlive(bool) error
					SetKeepAlivePeriod(time.Duration) error
					SetLinger(int) error
				})
				h := c.(halfCloser)
				tr.see("SetReadBuffer", 0, h.SetReadBuffer(16<<10))
				tr.see("SetWriteBuffer", 0, h.SetWriteBuffer(32<<10))
				if ok && network != "unix" {
					tr.see("SetNoDelay", 0, k.SetNoDelay(false))
					tr.see("SetKeepAlivePeriod", 0, k.SetKeepAlivePeriod(2500*time.Millisecond))
					tr.see("SetLinger", 0, k.SetLinger(3))
					see(t, tr, "set", c)
					tr.see("SetNoDelay", 0, k.SetNoDelay(true))
					tr.see("SetKeepAlive", 0, k.SetKeepAlive(false))
					tr.see("SetLinger", 0, k.SetLinger(-1))
				}
				see(t, tr, "set again", c)
			})
		})
	}
}

func errnoError(errno syscall.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}

// TestMethods pins what connections and listeners of package net have and ours have not, so that a type assertion which
// used to succeed and does not any more is known here first.
func TestMethods(t *testing.T) {
	s := ours(t)
	c, _ := pair(t, s, std, "tcp")
	ln := s.mustListen(t, "tcp")
	for _, it := range []struct {
		std, ours reflect.Type
		missing   []string
	}{
		{reflect.TypeFor[*net.TCPConn](), reflect.TypeOf(c), []string{"File", "MultipathTCP", "ReadFrom", "SetKeepAliveConfig", "WriteTo"}},
		{reflect.TypeFor[*net.UnixConn](), reflect.TypeFor[*pollux.NetConn](), []string{
			"File", "ReadFrom", "ReadFromUnix", "ReadMsgUnix", "WriteMsgUnix", "WriteTo", "WriteToUnix",
		}},
		{reflect.TypeFor[*net.TCPListener](), reflect.TypeOf(ln), []string{"AcceptTCP", "File"}},
		{reflect.TypeFor[*net.UnixListener](), reflect.TypeOf(ln), []string{"AcceptUnix", "File", "SetUnlinkOnClose"}},
	} {
		var missing []string
		for m := range it.std.Methods() {
			if _, ok := it.ours.MethodByName(m.Name); !ok {
				missing = append(missing, m.Name)
			}
		}
		if !slices.Equal(missing, it.missing) {
			t.Errorf("a %v has not, unlike a %v: %v; this list says %v", it.ours, it.std, missing, it.missing)
		}
	}
}
