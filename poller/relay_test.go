package poller

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
)

// waiting makes n descriptors of a poller, on each of which a goroutine waits to read, and counts those that have been woken.
func waiting(t *testing.T, n int) (p *Poller, descs []*Desc, events []Event, woken *atomic.Int32, all *sync.WaitGroup) {
	t.Helper()
	p, woken, all = new(Poller), new(atomic.Int32), new(sync.WaitGroup)
	for range n {
		d := &Desc{poller: p}
		descs, events = append(descs, d), append(events, Event{Ready: Readable})
		all.Go(func() {
			if err := d.wait(&d.r, 0); err != nil {
				t.Error(err)
			}
			woken.Add(1)
		})
		for d.r.state.Load() != stateWaiting {
			runtime.Gosched()
		}
	}
	return p, descs, events, woken, all
}

// TestRelay has many woken, each by the one before: the loop itself wakes one.
func TestRelay(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	const n = 20
	for range 100 {
		p, descs, events, woken, all := waiting(t, n)
		descs = append(descs, nil) // One has left meanwhile.
		p.relay.begin(append(events, Event{Ready: Readable}), descs)
		// Nobody else has run, unless the runtime has just taken the P away.
		if left := p.relay.left.Load(); left != n-1 && woken.Load() == 0 {
			t.Fatalf("%d are left of %d, and nobody has run", left, n)
		}
		all.Wait()
		if left := p.relay.left.Load(); left != 0 || woken.Load() != n {
			t.Fatalf("%d are left, %d were woken of %d", left, woken.Load(), n)
		}
		for i, d := range descs {
			if d != nil {
				t.Fatalf("the loop still has descriptor %d", i)
			}
		}
		for _, e := range p.relay.pending {
			if e.desc != nil {
				t.Fatal("the relay keeps a descriptor")
			}
		}
	}
}

// TestRelayLatches hands over events for which nobody waits: they are latched, and stop nobody.
func TestRelayLatches(t *testing.T) {
	p, descs, events, woken, all := waiting(t, 3)
	idle := []*Desc{{poller: p}, {poller: p}}
	mixed := []*Desc{idle[0], descs[0], idle[1], descs[1], descs[2]}
	for range idle {
		events = append(events, Event{Ready: Readable})
	}
	p.relay.begin(events, mixed)
	all.Wait()
	if woken.Load() != 3 || p.relay.left.Load() != 0 {
		t.Errorf("%d were woken of 3, %d are left", woken.Load(), p.relay.left.Load())
	}
	for i, d := range idle {
		if d.r.state.Load() != stateReady {
			t.Errorf("the event of descriptor %d was not latched", i)
		}
	}
}

// TestRelayIsFinished: who was woken does not come to pass on before the loop has other events. It delivers the rest.
func TestRelayIsFinished(t *testing.T) {
	p, descs, events, woken, all := waiting(t, 5)
	slow := &Desc{poller: p} // Somebody waits there who does not run.
	slow.r.wake = make(chan struct{}, 1)
	slow.r.state.Store(stateWaiting)
	p.relay.begin(append([]Event{{Ready: Readable}}, events...), append([]*Desc{slow}, descs...))
	if left := p.relay.left.Load(); left != 5 || len(slow.r.wake) != 1 {
		t.Fatalf("%d are left of 5 behind the first one", left)
	}
	p.relay.finish()
	all.Wait()
	if woken.Load() != 5 || p.relay.left.Load() != 0 {
		t.Errorf("%d were woken of 5, %d are left", woken.Load(), p.relay.left.Load())
	}
}

// TestRelayKeepsWhatIsLeft begins with other events before those before are through.
func TestRelayKeepsWhatIsLeft(t *testing.T) {
	p, descs, events, woken, all := waiting(t, 4)
	slow := &Desc{poller: p} // Somebody waits there who does not run.
	slow.r.wake = make(chan struct{}, 1)
	slow.r.state.Store(stateWaiting)
	p.relay.begin([]Event{{Ready: Readable}, {Ready: Readable}, {Ready: Readable}}, []*Desc{slow, descs[0], descs[1]})
	p.relay.begin(events[2:], descs[2:])
	p.relay.finish()
	all.Wait()
	if woken.Load() != 4 || p.relay.left.Load() != 0 {
		t.Errorf("%d were woken of 4, %d are left", woken.Load(), p.relay.left.Load())
	}
}

// TestRelayRaces has the loop begin with the next events while those before are still passed on, with many Ps.
func TestRelayRaces(t *testing.T) {
	const n, rounds = 16, 2000
	p := new(Poller)
	var seen [n]atomic.Int64
	var all sync.WaitGroup
	descs := make([]*Desc, n)
	for i := range descs {
		d := &Desc{poller: p}
		descs[i] = d
		all.Go(func() {
			for seen[i].Load() < rounds {
				if err := d.wait(&d.r, 0); err != nil {
					t.Error(err)
					return
				}
				seen[i].Add(1)
			}
		})
	}
	events := make([]Event, n)
	for i := range events {
		events[i].Ready = Readable
	}
	batch := make([]*Desc, n)
	for done := false; !done; {
		copy(batch, descs)
		p.relay.finish()
		p.relay.begin(events, batch)
		done = true
		for i := range seen {
			done = done && seen[i].Load() >= rounds
		}
		runtime.Gosched()
	}
	all.Wait()
}
