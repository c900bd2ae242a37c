//go:build linux

package test

import (
	"bytes"
	"runtime"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/internal/uring"
)

// owner is who has a buffer.
type owner uint8

const (
	ownedByKernel     owner = iota
	ownedByLoop             // it came with a completion
	ownedByConnection       // it is kept for later
	returned                // and not published
)

// leases is the model of a ring of buffers, next to the real one: one connection whose bytes the kernel receives into it.
//
// Each buffer has one owner. The kernel takes only what was published, and says so when it finds nothing; what a buffer holds
// does not change until it is returned; every byte of the stream comes once, in order.
type leases struct {
	ring    *uring.Ring
	buffers *uring.BufRing
	socket  int
	peer    int

	owners   []owner
	contents [][]byte // what a buffer of the loop's or the connection's must hold
	views    [][]byte // where it is
	sent     []byte   // and not received
	next     byte
	armed    bool
	starved  bool
}

const (
	leaseBuffers = 8
	leaseSize    = 64
)

func newLeases(t *rapid.T) *leases {
	l := &leases{owners: make([]owner, leaseBuffers), contents: make([][]byte, leaseBuffers), views: make([][]byte, leaseBuffers)}
	var err error
	if l.ring, err = uring.Open(uring.Options{Entries: 8, CQEntries: 16}); err != nil {
		t.Fatal(err)
	}
	if err := l.ring.Enable(0); err != nil {
		t.Fatal(err)
	}
	if l.buffers, err = l.ring.NewBufRing(1, leaseBuffers, leaseSize); err != nil {
		t.Fatal(err)
	}
	pair, errno := sys.Socketpair()
	if errno != 0 {
		t.Fatal(errno)
	}
	l.socket, l.peer = pair[0], pair[1]
	return l
}

func (l *leases) close() {
	sys.Close(l.peer)
	l.ring.Enter(false, 0)
	sys.Close(l.socket)
	l.buffers.Close()
	l.ring.Close()
}

// pick draws a buffer that belongs to one of the owners.
func (l *leases) pick(t *rapid.T, owners ...owner) int {
	var ids []int
	for id, o := range l.owners {
		if slices.Contains(owners, o) {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		t.Skip("nobody has such a buffer")
	}
	return rapid.SampledFrom(ids).Draw(t, "id")
}

func (l *leases) count(o owner) (n int) {
	for _, other := range l.owners {
		if other == o {
			n++
		}
	}
	return n
}

// Arm has the kernel receive, if it does not.
func (l *leases) Arm(t *rapid.T) {
	if l.armed {
		t.Skip("armed")
	}
	sqe := l.ring.Next()
	if sqe == nil {
		t.Skip("the queue is full")
	}
	*sqe = uring.SQE{Opcode: uring.OpRecv, FD: int32(l.socket), IOPrio: uring.RecvMultishot | uring.RecvPollFirst, Flags: uring.BufferSelect, BufGroup: 1}
	l.armed, l.starved = true, false
}

// Send has the peer send.
func (l *leases) Send(t *rapid.T) {
	b := make([]byte, rapid.IntRange(1, 3*leaseSize).Draw(t, "bytes"))
	for i := range b {
		b[i] = l.next
		l.next++
	}
	n, errno := sys.Send(l.peer, b)
	if errno != 0 {
		n = 0
	}
	l.next -= byte(len(b) - n)
	l.sent = append(l.sent, b[:n]...)
}

// Receive takes what has come.
func (l *leases) Receive(t *rapid.T) {
	if errno := l.ring.Enter(true, time.Millisecond); errno != 0 {
		t.Fatal(errno)
	}
	l.ring.Reap(16, func(c *uring.CQE) {
		if c.Flags&uring.CQEMore == 0 {
			l.armed = false
		}
		if c.Res <= 0 {
			if sys.Errno(-c.Res) != sys.ENOBUFS {
				t.Fatalf("completion %+v", *c)
			}
			if n := l.count(ownedByKernel); n > 0 {
				t.Fatalf("the kernel has found no buffer, it has %d", n)
			}
			l.starved = true
			return
		}
		id := int(c.Flags >> 16)
		if c.Flags&uring.CQEBuffer == 0 || l.owners[id] != ownedByKernel {
			t.Fatalf("completion %+v names a buffer of owner %d", *c, l.owners[id])
		}
		l.views[id] = l.buffers.Take(uint16(id), int(c.Res))
		if len(l.sent) < int(c.Res) || !bytes.Equal(l.views[id], l.sent[:c.Res]) {
			t.Fatalf("buffer %d has %x, the stream goes on with %x", id, l.views[id], l.sent)
		}
		l.contents[id] = slices.Clone(l.views[id])
		l.owners[id] = ownedByLoop
		l.sent = l.sent[c.Res:]
	})
}

// Hold keeps a buffer beyond the turn.
func (l *leases) Hold(t *rapid.T) { l.owners[l.pick(t, ownedByLoop)] = ownedByConnection }

// Return gives a buffer back, in any order.
func (l *leases) Return(t *rapid.T) {
	id := l.pick(t, ownedByLoop, ownedByConnection)
	l.buffers.Return(uint16(id))
	l.owners[id], l.views[id] = returned, nil
}

// Publish makes what was returned the kernel's.
func (l *leases) Publish(*rapid.T) {
	l.buffers.Publish()
	for id, o := range l.owners {
		if o == returned {
			l.owners[id] = ownedByKernel
		}
	}
}

// Starve keeps everything that there is.
func (l *leases) Starve(t *rapid.T) {
	for id, o := range l.owners {
		if o == ownedByLoop {
			l.owners[id] = ownedByConnection
		}
	}
	l.Send(t)
	l.Receive(t)
}

// Check is what holds after each step.
func (l *leases) check(t *rapid.T) {
	if got, want := l.buffers.Free(), l.count(ownedByKernel)+l.count(returned); got != want {
		t.Fatalf("the ring counts %d free buffers, there are %d", got, want)
	}
	for id, o := range l.owners {
		if (o == ownedByLoop || o == ownedByConnection) && !bytes.Equal(l.views[id], l.contents[id]) {
			t.Fatalf("buffer %d has changed while it was leased: %x, it was %x", id, l.views[id], l.contents[id])
		}
	}
}

// TestBufferLeases drives a real ring of buffers by random steps, and compares it with the model.
func TestBufferLeases(t *testing.T) {
	if missing, err := uring.SelfTest(0, uring.MultishotRecv|uring.BufferRing, 0); err != nil || missing != 0 {
		t.Skipf("receives into a ring of buffers: missing %v, error %v", missing, err)
	}
	starved := 0
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // Never unlocked: it owns the rings.
		rapid.Check(t, func(t *rapid.T) {
			l := newLeases(t)
			defer l.close()
			t.Repeat(map[string]func(*rapid.T){
				"arm": l.Arm, "send": l.Send, "receive": l.Receive, "hold": l.Hold, "return": l.Return, "publish": l.Publish,
				"starve": l.Starve, "": l.check,
			})
			if l.starved {
				starved++
			}
			// Everything comes once there are buffers again.
			for end := time.Now().Add(5 * time.Second); len(l.sent) > 0; {
				if time.Now().After(end) {
					t.Fatalf("%d bytes have not come", len(l.sent))
				}
				for id, o := range l.owners {
					if o == ownedByLoop || o == ownedByConnection {
						l.buffers.Return(uint16(id))
						l.owners[id] = returned
					}
				}
				l.Publish(t)
				if !l.armed {
					l.Arm(t)
				}
				l.Receive(t)
				l.check(t)
			}
		})
	}()
	<-done
	if starved == 0 && !t.Failed() {
		t.Error("no run has ended with a starved receive")
	}
}
