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

// busyPollSocket has a TCP socket, and those that are accepted from it, ask for it.
func (e *Engine) busyPollSocket(fd int) {
	if e.config.BusyPoll == 0 {
		return
	}
	usecs := int(e.config.BusyPoll / time.Microsecond)
	for _, option := range [][2]int{{sys.SO_BUSY_POLL, usecs}, {sys.SO_PREFER_BUSY_POLL, 1}} {
		switch errno := sys.SetsockoptInt(fd, sys.SOL_SOCKET, option[0], option[1]); errno {
		case 0:
		case sys.EPERM:
			e.refused(fmt.Errorf("poll a socket busily: %w: to raise it above net.core.busy_read needs CAP_NET_ADMIN", errno))
			return
		default:
			e.refused(fmt.Errorf("poll a socket busily: %w", errno))
			return
		}
	}
}
