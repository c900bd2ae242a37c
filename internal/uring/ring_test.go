//go:build linux

package uring

import (
	"errors"
	"runtime"
	"testing"
	"time"

	"github.com/pollux-go/pollux/internal/sys"
)

// onThread runs f with a ring, on a thread of its own, which ends with it.
func onThread(t *testing.T, o Options, f func(*Ring)) {
	t.Helper()
	usable(t)
	missing, err := Missing(everything)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // Never unlocked: the thread ends, and with it what is registered with it.
		if err := r.Enable(o.Without | missing); err != nil {
			t.Error(err)
			return
		}
		f(r)
	}()
	<-done
	if errno := r.Close(); errno != 0 {
		t.Error(errno)
	}
}

func TestNop(t *testing.T) {
	for _, without := range []Feature{0, NoSQArray, DeferTaskrun, DeferTaskrun | CoopTaskrun, RegisteredRing | NoIOWait} {
		t.Run(without.String(), func(t *testing.T) {
			onThread(t, Options{Entries: 8, CQEntries: 16, Without: without}, func(r *Ring) {
				t.Log("step", r.Step(), "with", r.Used())
				for round := range 100 {
					for i := range 8 {
						sqe := r.Next()
						if sqe == nil {
							t.Errorf("round %d: no entry %d", round, i)
							return
						}
						sqe.Opcode = OpNop
						sqe.UserData = uint64(round*8 + i)
					}
					if r.Next() != nil {
						t.Error("a ninth entry in a queue of 8")
					}
					if errno := r.Enter(true, time.Minute); errno != 0 {
						t.Error(errno)
					}
					want := uint64(round * 8)
					r.Reap(16, func(c *CQE) {
						if c.UserData != want || c.Res != 0 {
							t.Errorf("completion %+v, want %d", *c, want)
						}
						want++
					})
					if want != uint64(round*8+8) {
						t.Errorf("round %d: completions up to %d", round, want)
					}
				}
			})
		})
	}
}

// A registration that outlives the ring keeps it, and the memory that it locks, until the thread ends, which the first
// thread of a process never does.
func TestCloseEndsRegistration(t *testing.T) {
	usable(t)
	missing, err := Missing(everything)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Open(Options{Entries: 8, CQEntries: 16})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err := r.Enable(missing); err != nil {
			t.Error(err)
			return
		}
		index, flags := r.enterFD, r.flags
		if _, errno := sys.UringEnter(index, 0, 0, flags, nil, 0, nil); errno != 0 {
			t.Errorf("enter before: %v", errno)
		}
		if errno := r.Close(); errno != 0 {
			t.Error(errno)
		}
		if flags&enterRegisteredRing != 0 {
			if _, errno := sys.UringEnter(index, 0, 0, flags, nil, 0, nil); errno != sys.EBADF {
				t.Errorf("enter after: %v, want %v", errno, sys.EBADF)
			}
		}
	}()
	<-done
}

func TestTimeout(t *testing.T) {
	onThread(t, Options{Entries: 8, CQEntries: 16}, func(r *Ring) {
		start := time.Now()
		if errno := r.Enter(true, 5*time.Millisecond); errno != 0 {
			t.Error(errno)
		}
		if d := time.Since(start); d < 5*time.Millisecond {
			t.Errorf("a wait of 5ms took %v", d)
		}
	})
}

// TestEnters has waits enter the kernel twice, once and not at all.
func TestEnters(t *testing.T) {
	for name, hold := range map[string]*sys.Hold{"cold": nil, "hot": new(sys.Hold)} {
		t.Run(name, func(t *testing.T) {
			onThread(t, Options{Entries: 8, CQEntries: 16}, func(r *Ring) {
				r.Hold(hold)
				r.Spin(time.Microsecond)
				pair, errno := sys.Socketpair()
				if errno != 0 {
					t.Error(errno)
					return
				}
				defer sys.Close(pair[0])
				defer sys.Close(pair[1])
				enter := func(what string, wait bool, calls uint64) {
					before := r.Enters()
					if errno := r.Enter(wait, time.Millisecond); errno != 0 {
						t.Error(what, errno)
					}
					if n := r.Enters() - before; n != calls {
						t.Errorf("%s: %d enters, want %d", what, n, calls)
					}
				}
				enter("nothing there", true, 1)
				sqe := r.Next()
				sqe.Opcode, sqe.FD = OpRecv, int32(pair[0])
				enter("submits and sleeps", true, 2)
				r.Next().Opcode = OpNop
				enter("does not wait", false, 1)
				enter("something there", true, 0)
			})
		})
	}
}

func TestMultishotReceive(t *testing.T) {
	if err := Probe(MultishotRecv); errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	onThread(t, Options{Entries: 8, CQEntries: 16}, func(r *Ring) {
		b, err := r.NewBufRing(3, 4, 256)
		if err != nil {
			t.Error(err)
			return
		}
		defer b.Close()
		pair, errno := sys.Socketpair()
		if errno != 0 {
			t.Error(errno)
			return
		}
		defer sys.Close(pair[0])
		sqe := r.Next()
		*sqe = SQE{Opcode: OpRecv, FD: int32(pair[0]), IOPrio: RecvMultishot | RecvPollFirst, Flags: BufferSelect, BufGroup: 3, UserData: 7}
		received := 0
		ended := false
		for i := range 100 {
			if i < 99 {
				sys.Send(pair[1], []byte("hello"))
			} else {
				sys.Close(pair[1])
			}
			for before := received; received == before && !ended; {
				if errno := r.Enter(true, time.Minute); errno != 0 {
					t.Error(errno)
					return
				}
				r.Reap(16, func(c *CQE) {
					if c.Flags&CQEMore == 0 {
						ended = true
						if c.Res != 0 {
							t.Errorf("ended with %d", c.Res)
						}
						return
					}
					id := uint16(c.Flags >> 16)
					if got := string(b.Take(id, int(c.Res))); got != "hello" {
						t.Errorf("received %q", got)
					}
					b.Return(id)
					received++
				})
				b.Publish()
			}
		}
		if received != 99 || !ended || b.Free() != b.Len() {
			t.Errorf("received %d pieces, ended: %v, %d buffers of %d are free", received, ended, b.Free(), b.Len())
		}
	})
}

func TestParseMask(t *testing.T) {
	got, err := ParseMask("-multishot_recv, -no_iowait")
	if err != nil || got != MultishotRecv|NoIOWait {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"multishot_recv", "-nonsense", ","} {
		if _, err := ParseMask(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

// A ring takes what pollux uses and nothing else.
func TestRestrictions(t *testing.T) {
	if err := Probe(Restrictions); err != nil {
		t.Skip(err)
	}
	without, err := Missing(^Feature(0))
	if err != nil {
		t.Fatal(err)
	}
	onThread(t, Options{Entries: 8, CQEntries: 16, Without: without}, func(r *Ring) {
		for _, sqe := range []SQE{
			{Opcode: OpRead, FD: 0},
			{Opcode: OpClose, FD: 0},
			{Opcode: OpNop, Flags: 1 << 4}, // IOSQE_ASYNC
		} {
			*r.Next() = sqe
			if errno := r.Enter(true, time.Minute); errno != 0 {
				t.Error(errno)
			}
			if n := r.Reap(1, func(c *CQE) {
				if c.Res != -int32(sys.EACCES) {
					t.Errorf("operation %d, flags %#x: the result is %d", sqe.Opcode, sqe.Flags, c.Res)
				}
			}); n != 1 {
				t.Errorf("%d completions", n)
			}
		}
		if errno := sys.UringRegister(r.FD(), registerFiles2, nil, 0); errno != sys.EACCES {
			t.Errorf("files are registered: %v", errno)
		}
	})
}

// A ring with the array that NO_SQARRAY leaves away is not resized, and goes on.
func TestResizeWithArray(t *testing.T) {
	onThread(t, Options{Entries: 8, CQEntries: 16, Without: NoSQArray}, func(r *Ring) {
		for round := range uint64(3) {
			if errno := r.Resize(64); errno != sys.EINVAL {
				t.Errorf("resize: %v", errno)
			}
			*r.Next() = SQE{Opcode: OpNop, UserData: round}
			if errno := r.Enter(true, time.Minute); errno != 0 {
				t.Error(errno)
			}
			if n := r.Reap(2, func(c *CQE) {
				if c.UserData != round {
					t.Errorf("completion %d instead of %d", c.UserData, round)
				}
			}); n != 1 {
				t.Errorf("%d completions", n)
			}
		}
	})
}

// The room for completions grows while some wait, and while submissions do.
func TestResize(t *testing.T) {
	if err := Probe(ResizeRings); err != nil {
		t.Skip(err)
	}
	onThread(t, Options{Entries: 8, CQEntries: 16}, func(r *Ring) {
		submitted, reaped := uint64(0), uint64(0)
		submit := func(n int) {
			for range n {
				*r.Next() = SQE{Opcode: OpNop, UserData: submitted}
				submitted++
			}
		}
		for round := range 6 {
			submit(8)
			if errno := r.Enter(false, 0); errno != 0 {
				t.Error(errno)
			}
			submit(3)
			if errno := r.Resize(32 << round); errno != 0 {
				t.Errorf("round %d: %v", round, errno)
				return
			}
			if sq, cq := r.Entries(); sq != 8 || cq != 32<<round {
				t.Errorf("round %d: %d and %d entries", round, sq, cq)
			}
			if errno := r.Enter(false, 0); errno != 0 {
				t.Error(errno)
			}
			r.Reap(7, func(c *CQE) {
				if c.UserData != reaped {
					t.Errorf("completion %d instead of %d", c.UserData, reaped)
				}
				reaped++
			})
		}
		r.Reap(1000, func(c *CQE) {
			if c.UserData != reaped {
				t.Errorf("completion %d instead of %d", c.UserData, reaped)
			}
			reaped++
		})
		if reaped != submitted {
			t.Errorf("%d completions of %d", reaped, submitted)
		}
	})
}

// A ring with a table takes what the table needs, restricted as it is; what has no place fails, and a close makes one.
func TestFiles(t *testing.T) {
	usable(t)
	if err := Probe(DirectFiles); err != nil {
		t.Skip(err)
	}
	without, err := Missing(FixedFDInstall | Restrictions | RegisteredRing | SkipCQE | BufferRing | ResizeRings | EpollWait)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Open(Options{Entries: 8, CQEntries: 16})
	if err != nil {
		t.Fatal(err)
	}
	if errno := r.RegisterFiles(1); errno != 0 {
		t.Fatal(errno)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err := r.Enable(without); err != nil {
			t.Error(err)
			return
		}
		do := func(sqe SQE) (res int32) {
			*r.Next() = sqe
			if errno := r.Enter(true, time.Minute); errno != 0 {
				t.Error(errno)
			}
			res = -1 << 31
			r.Reap(1, func(c *CQE) { res = c.Res })
			return res
		}
		accept := SQE{Opcode: OpAccept, FileSlot: FileIndexAlloc}
		for range 3 {
			fd, done, err := awaited()
			if err != nil {
				t.Error(err)
				return
			}
			accept.FD = int32(fd)
			if res := do(accept); res != 0 {
				t.Errorf("an accept into a table of one gives %d", res)
			}
			done()
			if fd, done, err = awaited(); err != nil {
				t.Error(err)
				return
			}
			accept.FD = int32(fd)
			if res := do(accept); res != -int32(sys.ENFILE) {
				t.Errorf("an accept into a full table gives %d", res)
			}
			done()
			if without&FixedFDInstall == 0 {
				ordinary := do(SQE{Opcode: OpFixedFDInstall, Flags: FixedFile})
				if ordinary < 0 {
					t.Errorf("an install gives %d", ordinary)
				}
				sys.Close(int(ordinary))
			}
			if res := do(SQE{Opcode: OpClose, FileSlot: 1}); res != 0 {
				t.Errorf("a close gives %d", res)
			}
		}
		if errno := r.UnregisterFiles(); errno != 0 {
			t.Error(errno)
		}
	}()
	<-done
	r.Close()

	soft, _, _ := sys.Rlimit(sys.RLIMIT_NOFILE)
	if r, err = Open(Options{Entries: 8, CQEntries: 16}); err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if errno := r.RegisterFiles(int(soft) + 1); soft < FixedFilesMax && errno != sys.EMFILE {
		t.Errorf("a table beyond RLIMIT_NOFILE gives %v", errno)
	}
}
