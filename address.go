package pollux

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/pollux-go/pollux/internal/sys"
)

// schemes are what an address may begin with.
const schemes = "tcp://, tcp4://, tcp6://, unix://, fd:// or systemd://"

// address is a parsed address of the event API.
type address struct {
	network string // tcp, tcp4, tcp6, unix, fd or systemd
	rest    string
}

func (a address) String() string { return a.network + "://" + a.rest }

// parseAddress splits "tcp://host:port" and the like.
func parseAddress(s string) (address, error) {
	network, rest, ok := strings.Cut(s, "://")
	if !ok {
		return address{}, fmt.Errorf("address %q has no scheme: it must begin with %s", s, schemes)
	}
	a := address{network, rest}
	switch network {
	case "tcp", "tcp4", "tcp6":
		host, port, err := net.SplitHostPort(rest)
		if err != nil {
			return a, fmt.Errorf("address %q: %w: it must be %s://host:port", s, err, network)
		}
		if strings.ContainsAny(host, "/?#") || strings.ContainsAny(port, "/?#") {
			return a, fmt.Errorf("address %q: it must be %s://host:port, with nothing behind", s, network)
		}
		if n, err := strconv.Atoi(port); err == nil && (n < 0 || n > 65535) {
			return a, fmt.Errorf("address %q: port %d is not from 0 to 65535", s, n)
		}
	case "unix":
		if err := checkUnixPath(rest); err != nil {
			return a, fmt.Errorf("address %q: %w", s, err)
		}
	case "fd":
		if n, err := strconv.ParseUint(rest, 10, 31); err != nil || n > 1<<30 {
			return a, fmt.Errorf("address %q: %q is not a file descriptor's number", s, rest)
		}
	case "systemd":
	default:
		return a, fmt.Errorf("address %q has the unknown scheme %q: it must begin with %s", s, network, schemes)
	}
	return a, nil
}

// unixPathMax is what fits into a struct sockaddr_un with its terminator.
const unixPathMax = 107

func checkUnixPath(path string) error {
	switch {
	case path == "" || path == "@":
		return errors.New("the path of a unix socket must not be empty")
	case strings.IndexByte(path, 0) >= 0:
		return errors.New("the path of a unix socket must not contain a zero byte")
	case len(path) > unixPathMax:
		return fmt.Errorf("the path of a unix socket must not be longer than %d bytes, it has %d", unixPathMax, len(path))
	}
	return nil
}

// parseAddresses parses a list that is separated by commas.
func parseAddresses(lists ...string) ([]address, error) {
	var all []address
	for _, list := range lists {
		for s := range strings.SplitSeq(list, ",") {
			a, err := parseAddress(strings.TrimSpace(s))
			if err != nil {
				return nil, err
			}
			all = append(all, a)
		}
	}
	if len(all) == 0 {
		return nil, errors.New("no address to listen on")
	}
	return all, nil
}

// inherited returns the descriptors that systemd passes to the process, those called name if it is not empty. See
// sd_listen_fds(3).
func inherited(name string) ([]int, error) {
	if pid := os.Getenv("LISTEN_PID"); pid != strconv.Itoa(os.Getpid()) {
		return nil, fmt.Errorf("systemd passes no sockets to this process: LISTEN_PID is %q, the process is %d", pid, os.Getpid())
	}
	n, err := strconv.ParseUint(os.Getenv("LISTEN_FDS"), 10, 16)
	if err != nil || n == 0 {
		return nil, fmt.Errorf("systemd passes no sockets to this process: LISTEN_FDS is %q", os.Getenv("LISTEN_FDS"))
	}
	names := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	var fds []int
	for i := range int(n) {
		if name == "" || i < len(names) && names[i] == name {
			fds = append(fds, 3+i)
		}
	}
	if len(fds) == 0 {
		return nil, fmt.Errorf("systemd passes no socket called %q: LISTEN_FDNAMES is %q", name, os.Getenv("LISTEN_FDNAMES"))
	}
	return fds, nil
}

// endpoint is a resolved address of a socket.
type endpoint struct {
	unix sys.UnixAddr
	inet sys.Sockaddr // with the family 0, it is unix
}

func (p endpoint) addr() net.Addr {
	if p.inet.Family == 0 {
		return unixAddr(p.unix)
	}
	return tcpAddr(p.inet)
}

// resolve finds the addresses that a network and an address of the net API name, in the order in which they are to be
// tried.
func resolve(ctx context.Context, network, addr string) ([]endpoint, error) {
	switch network {
	case "unix":
		if err := checkUnixPath(addr); err != nil {
			return nil, &net.AddrError{Err: err.Error(), Addr: addr}
		}
		return []endpoint{{unix: sys.UnixAddr(addr)}}, nil
	case "tcp", "tcp4", "tcp6":
	default:
		return nil, net.UnknownNetworkError(network)
	}
	if addr == "" {
		return wildcard(network, 0), nil
	}
	host, service, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	port, err := net.DefaultResolver.LookupPort(ctx, network, service)
	if err != nil {
		return nil, err
	}
	if host == "" {
		return wildcard(network, port), nil
	}
	family := "ip" + strings.TrimPrefix(network, "tcp")
	ips, err := net.DefaultResolver.LookupNetIP(ctx, family, host)
	if err != nil {
		return nil, err
	}
	var points []endpoint
	for _, ip := range ips {
		sa := sys.Sockaddr{Port: uint16(port)}
		switch {
		case ip.Is4() || ip.Is4In6():
			v4 := ip.Unmap().As4()
			sa.Family = sys.AF_INET
			copy(sa.IP[:], v4[:])
		default:
			sa.Family = sys.AF_INET6
			sa.IP = ip.As16()
			sa.Scope = scope(ip.Zone())
		}
		if network == "tcp4" && sa.Family != sys.AF_INET || network == "tcp6" && sa.Family != sys.AF_INET6 {
			continue
		}
		points = append(points, endpoint{inet: sa})
	}
	if len(points) == 0 {
		return nil, &net.AddrError{Err: "no suitable address found", Addr: host}
	}
	return points, nil
}

// wildcard returns the addresses that stand for every address of the host: IPv6 first, which serves both.
func wildcard(network string, port int) []endpoint {
	v6 := endpoint{inet: sys.Sockaddr{Family: sys.AF_INET6, Port: uint16(port)}}
	v4 := endpoint{inet: sys.Sockaddr{Family: sys.AF_INET, Port: uint16(port)}}
	switch network {
	case "tcp4":
		return []endpoint{v4}
	case "tcp6":
		return []endpoint{v6}
	}
	return []endpoint{v6, v4}
}

// scope returns the index of an IPv6 zone.
func scope(zone string) uint32 {
	if zone == "" {
		return 0
	}
	if nic, err := net.InterfaceByName(zone); err == nil {
		return uint32(nic.Index)
	}
	n, _ := strconv.ParseUint(zone, 10, 32)
	return uint32(n)
}

func tcpAddr(a sys.Sockaddr) *net.TCPAddr {
	if a.Family == sys.AF_INET {
		return &net.TCPAddr{IP: net.IPv4(a.IP[0], a.IP[1], a.IP[2], a.IP[3]).To4(), Port: int(a.Port)}
	}
	t := &net.TCPAddr{IP: append(net.IP(nil), a.IP[:]...), Port: int(a.Port)}
	if a.Scope != 0 {
		t.Zone = strconv.FormatUint(uint64(a.Scope), 10)
		if nic, err := net.InterfaceByIndex(int(a.Scope)); err == nil {
			t.Zone = nic.Name
		}
	}
	return t
}

// unixAddr is the address of a unix socket. One without a name, as most clients', is "@", as package net has it and
// servers compare with.
func unixAddr(name sys.UnixAddr) *net.UnixAddr {
	if name == "" {
		name = "@"
	}
	return &net.UnixAddr{Name: string(name), Net: "unix"}
}

// localAddr returns the address of a socket, or nil if it has none that we know.
func localAddr(fd int) net.Addr {
	a, errno := sys.Getsockname(fd)
	if errno != 0 {
		return nil
	}
	return named(a, func() (sys.UnixAddr, sys.Errno) { return sys.UnixName(fd) })
}

// remoteAddr returns the address of a socket's peer, or nil.
func remoteAddr(fd int) net.Addr {
	a, errno := sys.Getpeername(fd)
	if errno != 0 {
		return nil
	}
	return named(a, func() (sys.UnixAddr, sys.Errno) { return sys.UnixPeerName(fd) })
}

func named(a sys.Sockaddr, unixName func() (sys.UnixAddr, sys.Errno)) net.Addr {
	switch a.Family {
	case sys.AF_INET, sys.AF_INET6:
		return tcpAddr(a)
	case sys.AF_UNIX:
		if name, errno := unixName(); errno == 0 {
			return unixAddr(name)
		}
	}
	return nil
}
