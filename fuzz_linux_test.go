package pollux

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/internal/testutil"
	"github.com/pollux-go/pollux/internal/uring"
	"github.com/pollux-go/pollux/poller"
)

// FuzzUserData packs kinds and tokens for the kernel, and unpacks them.
func FuzzUserData(f *testing.F) {
	f.Add(uint8(kindAccept), uint64(0))
	f.Add(uint8(kindReady), uint64(1)<<poller.TokenBits-1)
	f.Add(uint8(15), uint64(1)<<24|5)
	f.Fuzz(func(t *testing.T, kind uint8, bits uint64) {
		kind &= 15
		token := poller.Token(bits & (1<<poller.TokenBits - 1))
		data := userData(int(kind), token)
		if k := int(data >> poller.TokenBits); k != int(kind) {
			t.Errorf("kind %d of %v comes back as %d", kind, token, k)
		}
		if got := poller.Token(data & (1<<poller.TokenBits - 1)); got != token || got.Slot() != token.Slot() || got.Generation() != token.Generation() {
			t.Errorf("token %v with kind %d comes back as %v", token, kind, got)
		}
	})
}

// FuzzCompletions hands any completions, in any order, to a backend that has asked for others. No descriptor is closed but
// those that it was given to close, each once; every buffer comes back; what nobody has asked for is counted. The kernel is
// left out: enter and close do not reach it.
func FuzzCompletions(f *testing.F) {
	f.Add([]byte{4, 0, 0, 0, 0, 0, 0, 0, 2, 7, 3, 0, 6, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0})
	f.Add([]byte{4, 1, 2, 0, 0, 0, 5, 1, 0, 0, 0, 0, 0, 1, 6, 2, 0, 0, 0, 1, 2, 0, 0, 0, 7, 0, 0, 0, 0, 0})
	f.Add([]byte{4, 0, 1, 0, 0, 0, 0, 0, 1, 8, 1, 0, 6, 0, 1, 0, 0, 0, 0, 8, 1, 8, 0, 0})
	f.Add([]byte{4, 0, 2, 0, 0, 0, 6, 0, 2, 0, 0, 0, 0, 0, 5, 7, 0, 1}) // A send that ends after its owner.
	f.Add([]byte{4, 0, 0, 0, 0, 0, 0, 0, 2, 5, 1, 0})                   // An end with a buffer.
	f.Add(slices.Repeat([]byte{4, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 8, 0, 0, 0, 0, 0}, 20))
	f.Add(slices.Repeat([]byte{4, 3, 4, 0, 0, 0, 4, 3, 3, 0, 0, 0, 0, 3, 9, 4, 1, 1, 6, 3, 0, 0, 0, 0}, 20))

	if err := checkUring(Default(), true); err != nil {
		f.Skipf("io_uring with the features of Linux 6.1: %v", err)
	}
	base := openTiny(f, Config{Backend: KindUring, RingEntries: 8, RingBuffers: 4, RingBufferSize: 256})
	f.Cleanup(func() { base.Close() })
	results := []int32{-int32(sys.ECANCELED), -int32(sys.ENOBUFS), -int32(unix.ENOENT), -int32(sys.ECONNRESET), -int32(sys.EMFILE),
		0, 1, 100, 256, -1 << 31}

	f.Fuzz(func(t *testing.T, script []byte) {
		u := &uringBackend{ring: base.ring, buffers: base.buffers, ready: base.ready, closing: map[poller.Token]*uringClosing{}}
		nextFD := 1 << 20 // No descriptor that there is.
		newFD := func() int { nextFD++; return nextFD }
		toClose, closed := map[int]bool{}, map[int]bool{}
		testutil.InjectFaults(t, func(op sys.Op, fd int) sys.Fault {
			switch op {
			case sys.OpClose:
				if !toClose[fd] || closed[fd] {
					t.Errorf("descriptor %d is closed; it was to be: %v, it was already: %v", fd, toClose[fd], closed[fd])
				}
				closed[fd] = true
				return sys.Fault{Errno: sys.EBADF}
			case sys.OpShutdown, sys.OpSetsockopt:
				return sys.Fault{Errno: sys.EBADF}
			case sys.OpUringEnter:
				return sys.Fault{Errno: sys.EBUSY}
			}
			return sys.Fault{}
		})
		var table poller.Table[int] // of descriptors
		var tokens, old []poller.Token
		for range 6 {
			token, _ := table.Put(newFD())
			tokens = append(tokens, token)
		}
		free := []uint16{0, 1, 2, 3}
		var held []poller.Event
		complete := func(c uring.CQE) {
			kind, token := int(c.UserData>>poller.TokenBits), poller.Token(c.UserData&(1<<poller.TokenBits-1))
			stale, live := u.stats.stale.Load(), u.find(token) != nil
			if kind == kindAccept && c.Res >= 0 && !live {
				toClose[int(c.Res)] = true
			}
			var ev poller.Event
			made := u.complete(&c, &ev)
			named := c.Flags&uring.CQEBuffer != 0
			switch {
			case made && ev.Ready&poller.Received != 0 && ev.Result > 0:
				if b := u.Bytes(&ev); len(b) != int(ev.Result) {
					t.Errorf("%d bytes of %d", len(b), ev.Result)
				}
				held = append(held, ev)
				named = false
			case made && (ev.Token != token || !live):
				t.Errorf("completion %+v makes the event %+v", c, ev)
			}
			if named { // It has gone back at once.
				free = append(free, uint16(c.Flags>>16))
			}
			if !made && u.stats.stale.Load() == stale && (!live || kind == 0 || kind > kindNow) && kind != kindCancel && kind != kindReady && kind != kindNow {
				t.Errorf("completion %+v is nobody's, and is not counted", c)
			}
		}
		for ; len(script) >= 6; script = script[6:] {
			which := int(script[1]) % len(tokens)
			token := tokens[which]
			fd, _ := table.Get(token)
			switch script[0] % 10 {
			case 0, 1, 2, 3:
				kind := int(script[2]) % 16
				switch {
				case script[5]%8 == 1 && len(old) > 0:
					token = old[int(script[1])%len(old)]
				case script[5]%8 == 2:
					token = poller.Token(uint64(script[1])<<40 | uint64(script[3])<<3) // Of a slot that there may be or not.
				}
				c := uring.CQE{UserData: userData(kind, token), Res: results[int(script[3])%len(results)], Flags: uint32(script[4]) & (uring.CQEMore | uring.CQENonEmpty)}
				switch kind {
				case kindAccept:
					if c.Res >= 0 {
						c.Res = int32(newFD())
					}
				case kindReceive:
					if script[4]&uring.CQEBuffer != 0 || c.Res > 0 {
						if len(free) == 0 {
							continue // The kernel has none to name.
						}
						i := int(script[5]) % len(free)
						c.Flags |= uring.CQEBuffer | uint32(free[i])<<16
						free = slices.Delete(free, i, i+1)
					}
				case kindReady:
					continue // Its result is a number of events that lie in memory.
				}
				complete(c)
			case 4:
				switch script[2] % 5 {
				case 0:
					_ = u.Receive(fd, token)
				case 1:
					_ = u.Accept(fd, token)
				case 2:
					_ = u.Send(fd, token, []byte("x"))
				case 3:
					_ = u.AwaitWritable(fd, token)
				case 4:
					_ = u.AwaitHangUp(fd, token)
				}
			case 5:
				u.Cancel(token)
			case 6, 9:
				if script[2]%4 == 0 {
					u.Disarm(token)
				} else {
					toClose[fd] = true
					u.Release(fd, token, script[2]%2 == 0)
				}
				table.Delete(token)
				old = append(old, token)
				tokens[which], _ = table.Put(newFD())
			case 7:
				if len(held) > 0 {
					i := int(script[1]) % len(held)
					u.Recycle(&held[i])
					free = append(free, held[i].Ready.Buffer())
					held = slices.Delete(held, i, i+1)
				}
			case 8:
				u.rearmStarved()
			}
			if u.buffers.Free() != len(free) {
				t.Fatalf("the backend counts %d free buffers, there are %d", u.buffers.Free(), len(free))
			}
		}
		// Everything that is under way ends.
		for token, o := range u.closing {
			for kind := kindAccept; kind <= kindSend; kind++ {
				if o.armed&(1<<kind) != 0 {
					complete(uring.CQE{UserData: userData(kind, token), Res: -int32(sys.ECANCELED)})
				}
			}
		}
		if len(u.closing) > 0 {
			t.Errorf("%d descriptors are still being closed", len(u.closing))
		}
		for fd := range toClose {
			if !closed[fd] {
				t.Errorf("descriptor %d was never closed", fd)
			}
		}
		for i := range held {
			u.Recycle(&held[i])
		}
	})
}
