package pollux

import (
	"fmt"
	"time"

	"github.com/pollux-go/pollux/internal/sys"
)

// Busy polling: a wait looks at the receive queues of the network card itself for a while before it sleeps, which saves the
// interrupt and the wake-up, and costs the CPU. It is the kernel's, and does nothing for sockets without a NAPI id: those of
// loopback, of unix sockets, and of cards whose drivers have no NAPI.

// busyPollMost is the longest time to poll.
const busyPollMost = 10 * time.Millisecond

// busyPoller is a backend whose waits can poll.
type busyPoller interface{ busyPoll(usecs uint32) sys.Errno }

// busyPollLoop has the waits of a loop poll, as far as the kernel can.
func (e *Engine) busyPollLoop(b any) {
	p, ok := b.(busyPoller)
	if e.config.BusyPoll == 0 || !ok {
		return
	}
	switch errno := p.busyPoll(uint32(e.config.BusyPoll / time.Microsecond)); errno {
	case 0:
	case sys.ENOTTY, sys.EINVAL:
		e.refused(fmt.Errorf("poll busily on %s: %w: it came with Linux 6.9", e.choice.kind, errno))
	default:
		e.refused(explain("poll busily on "+string(e.choice.kind), errno))
	}
}

// busyPollSocket has a TCP socket, and those that are accepted from it, ask for it: a receive that finds nothing looks at the
// card's queue once, and between looks the card's interrupt may stay off for longer (SO_PREFER_BUSY_POLL).
//
// It asks whether or not there is a NAPI id (SO_INCOMING_NAPI_ID): a listener never has one, a connection has one only once a
// packet has come, and it changes when the packets take another queue. The kernel looks at each receive, and does nothing where
// there is none, so that on loopback the two options cost a compare. See socket(7) and the kernel's
// Documentation/networking/napi.rst, "Busy polling"; the waits themselves need neither option.
func (e *Engine) busyPollSocket(fd int) {
	if e.config.BusyPoll == 0 {
		return
	}
	for _, option := range []struct {
		name          string
		number, value int
		needs         string
	}{
		{"SO_BUSY_POLL", sys.SO_BUSY_POLL, int(e.config.BusyPoll / time.Microsecond), "CAP_NET_ADMIN where it is more than net.core.busy_read"},
		{"SO_PREFER_BUSY_POLL", sys.SO_PREFER_BUSY_POLL, 1, "CAP_NET_ADMIN"},
	} {
		switch errno := sys.SetsockoptInt(fd, sys.SOL_SOCKET, option.number, option.value); errno {
		case 0:
			continue
		case sys.EPERM:
			e.refused(fmt.Errorf("poll a socket busily: set %s: %w: it needs %s", option.name, errno, option.needs))
		default:
			e.refused(fmt.Errorf("poll a socket busily: set %s: %w", option.name, errno))
		}
		return
	}
}
