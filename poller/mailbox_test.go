package poller

import (
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func drain(l *Letter) (n int) {
	for ; l != nil; l = l.next {
		l.Run()
		n++
	}
	return n
}

// TestMailboxExactlyOnceInOrder has many posters; the owner takes while they post. What is posted after the close is
// refused, and everything else runs once, each poster's in its order.
func TestMailboxExactlyOnceInOrder(t *testing.T) {
	const posters, each = 8, 5000
	var m Mailbox
	var next [posters]int // owner only: what the poster's next letter must be
	var accepted [posters]int
	var all sync.WaitGroup
	for p := range posters {
		all.Go(func() {
			for i := range each {
				post := m.post
				if p%2 == 0 {
					post = func(run func()) (bool, error) { return m.postAlways(&Letter{Run: run}) }
				}
				_, err := post(func() {
					if next[p] != i {
						t.Errorf("poster %d: letter %d came, %d was due", p, i, next[p])
					}
					next[p] = i + 1
				})
				if errors.Is(err, ErrClosed) {
					return
				}
				if err != nil {
					t.Error(err)
				}
				accepted[p]++
				if i%64 == 0 {
					runtime.Gosched()
				}
			}
		})
	}
	for taken := 0; taken < posters*each/2; {
		n := drain(m.take())
		taken += n
		if n == 0 {
			runtime.Gosched()
		}
	}
	drain(m.close())
	all.Wait()
	for p := range posters {
		if next[p] != accepted[p] {
			t.Errorf("poster %d: %d letters were accepted, %d have run", p, accepted[p], next[p])
		}
	}
	if n := m.length.Load(); n != 0 {
		t.Errorf("the empty box counts %d letters", n)
	}
}

func TestMailboxBound(t *testing.T) {
	var m Mailbox
	for range mailboxMost {
		if _, err := m.post(func() {}); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		if _, err := m.post(func() { t.Error("a refused letter has run") }); !errors.Is(err, ErrMailboxFull) {
			t.Fatalf("a full box says %v", err)
		}
	}
	if _, err := m.postAlways(&Letter{Run: func() {}}); err != nil {
		t.Fatal(err)
	}
	if n := drain(m.take()); n != mailboxMost+1 {
		t.Fatalf("%d letters were in the box", n)
	}
	if _, err := m.post(func() {}); err != nil {
		t.Fatalf("an emptied box says %v", err)
	}
	m.close()
	for _, post := range []func(func()) (bool, error){m.post, func(run func()) (bool, error) { return m.postAlways(&Letter{Run: run}) }} {
		if wake, err := post(func() {}); !errors.Is(err, ErrClosed) || wake {
			t.Fatalf("a closed box says %v, %v", wake, err)
		}
	}
	if l := m.close(); l != nil {
		t.Fatal("a closed box has letters")
	}
}

// TestMailboxWakes walks through the protocol step by step.
func TestMailboxWakes(t *testing.T) {
	var m Mailbox
	post := func() bool {
		t.Helper()
		wake, err := m.post(func() {})
		if err != nil {
			t.Fatal(err)
		}
		return wake
	}
	if post() {
		t.Fatal("an owner that is awake was to be woken")
	}
	if m.park() {
		t.Fatal("the owner may sleep on a letter")
	}
	if post() {
		t.Fatal("an owner that has not parked was to be woken")
	}
	drain(m.take())
	if !m.park() {
		t.Fatal("the owner may not sleep on an empty box")
	}
	if !post() || post() {
		t.Fatal("not exactly the first poster was to wake the sleeper")
	}
	m.unpark()
	drain(m.take())
	if !m.park() {
		t.Fatal("the owner may not sleep again")
	}
	m.unpark()
	if post() {
		t.Fatal("an owner that has woken by itself was to be woken")
	}
}

// TestMailboxNoLostWakeUp has an owner that sleeps whenever it may, on a semaphore that only claimed wakes raise. A lost
// wake-up hangs it.
func TestMailboxNoLostWakeUp(t *testing.T) {
	const posters, each = 4, 20_000
	var m Mailbox
	var wakes atomic.Int64
	sleep := make(chan struct{}, 1) // As a backend's Break: coalesced, never lost.
	var all sync.WaitGroup
	for range posters {
		all.Go(func() {
			for i := range each {
				wake, err := m.postAlways(&Letter{Run: func() {}})
				if err != nil {
					t.Error(err)
				}
				if wake {
					wakes.Add(1)
					select {
					case sleep <- struct{}{}:
					default:
					}
				}
				if i%16 == 0 {
					runtime.Gosched()
				}
			}
		})
	}
	parks, sleeps := 0, 0
	hung := time.NewTimer(20 * time.Second)
	defer hung.Stop()
	for got := 0; got < posters*each; {
		parks++
		if m.park() {
			sleeps++
			select {
			case <-sleep:
			case <-hung.C:
				t.Fatalf("the owner sleeps with %d of %d letters taken and %d in the box", got, posters*each, m.length.Load())
			}
		}
		m.unpark()
		got += drain(m.take())
	}
	all.Wait()
	// An owner that parks and finds a letter may have been claimed already.
	if n := wakes.Load(); n > int64(parks) {
		t.Errorf("%d wakes were claimed, the owner parked %d times", n, parks)
	}
	t.Logf("%d letters, %d parks, %d sleeps, %d wakes", posters*each, parks, sleeps, wakes.Load())
}

func BenchmarkMailbox(b *testing.B) {
	b.Run("posters=1", func(b *testing.B) {
		b.ReportAllocs()
		var m Mailbox
		run := func() {}
		for b.Loop() {
			if _, err := m.post(run); err != nil {
				drain(m.take())
			}
		}
	})
	b.Run("posters=P", func(b *testing.B) {
		b.ReportAllocs()
		var m Mailbox
		var owner sync.Mutex
		run := func() {}
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if _, err := m.post(run); err != nil {
					owner.Lock()
					m.take()
					owner.Unlock()
				}
			}
		})
	})
}

// TestMailboxRescue has a letter in the box that nobody has claimed the wake for.
func TestMailboxRescue(t *testing.T) {
	var m Mailbox
	if m.overlooked() {
		t.Error("an empty box is overlooked")
	}
	if !m.park() {
		t.Fatal("the owner of an empty box may not sleep")
	}
	m.posting.Add(1) // A poster, whose thread is taken away behind the swap.
	m.head.Store(&Letter{Run: func() {}})
	if m.overlooked() {
		t.Error("somebody is about to wake the owner, and it counts as overlooked")
	}
	m.posting.Add(-1)
	if !m.overlooked() {
		t.Error("nobody is going to wake the owner, and it does not count as overlooked")
	}
	if !m.rescue() || m.rescue() || m.overlooked() {
		t.Error("a rescue is not for one, or does not end it")
	}
	if m.claimWake() {
		t.Error("a poster is to wake who is being rescued")
	}
	if !m.unpark() || m.unpark() {
		t.Error("the owner is not told once that it was rescued")
	}
	if drain(m.take()) != 1 {
		t.Error("the letter is gone")
	}
	m.park()
	m.close()
	if m.overlooked() {
		t.Error("a closed box is overlooked")
	}
}
