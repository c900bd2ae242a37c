package poller

import (
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// These follow what internal/poll/fd_mutex_test.go of Go checks of its twin.

func TestFDMutexLocks(t *testing.T) {
	var m fdMutex
	must := func(ok bool, what string) {
		t.Helper()
		if !ok {
			t.Fatal(what)
		}
	}
	must(m.incref(), "no reference")
	must(!m.decref(), "the last reference of what is open")
	for _, read := range []bool{true, false} {
		must(m.lock(read), "no lock")
		ok, held := m.tryLock(read)
		must(!ok && held, "a lock twice")
		must(!m.unlock(read), "the last reference of what is open")
		ok, held = m.tryLock(read)
		must(ok && !held, "no lock by trying")
		must(!m.unlock(read), "the last reference of what is open")
	}
	must(m.lock(true), "no read lock")
	must(m.lock(false), "no write lock beside a read lock")
	must(!m.unlock(true), "the last reference of what is open")
	must(!m.unlock(false), "the last reference of what is open")
	if got := m.state.Load(); got != 0 {
		t.Fatalf("the state is %#x in the end", got)
	}
}

func TestFDMutexClose(t *testing.T) {
	for name, last := range map[string]func(*fdMutex) (get, put func() bool){
		"reference": func(m *fdMutex) (func() bool, func() bool) { return m.incref, m.decref },
		"read lock": func(m *fdMutex) (func() bool, func() bool) {
			return func() bool { return m.lock(true) }, func() bool { return m.unlock(true) }
		},
		"write lock": func(m *fdMutex) (func() bool, func() bool) {
			return func() bool { return m.lock(false) }, func() bool { return m.unlock(false) }
		},
	} {
		var m fdMutex
		get, put := last(&m)
		if !get() {
			t.Fatal(name)
		}
		if !m.close() {
			t.Fatalf("%s: it cannot be closed", name)
		}
		ok, held := m.tryLock(true)
		if m.close() || m.incref() || m.lock(true) || m.lock(false) || ok || held {
			t.Fatalf("%s: it can be used after the close", name)
		}
		if m.decref() {
			t.Fatalf("%s: the close's own reference was the last", name)
		}
		if !put() {
			t.Fatalf("%s: the last user was not the last", name)
		}
	}
}

func TestFDMutexCloseUnblocks(t *testing.T) {
	const waiters = 8
	var m fdMutex
	m.lock(true)
	m.lock(false)
	locked := make(chan bool, 2*waiters)
	for range waiters {
		for _, read := range []bool{true, false} {
			go func() { locked <- m.lock(read) }()
		}
	}
	const all = waiters*mutexRWait | waiters*mutexWWait
	for m.state.Load()&(mutexRMask|mutexWMask) != all {
		runtime.Gosched()
	}
	select {
	case <-locked:
		t.Fatal("a waiter has passed a lock")
	default:
	}
	m.close()
	for range 2 * waiters {
		select {
		case ok := <-locked:
			if ok {
				t.Fatal("a waiter got the lock of what is closed")
			}
		case <-time.After(10 * time.Second):
			t.Fatal("the close has left a waiter")
		}
	}
	if m.decref() || m.unlock(true) || !m.unlock(false) {
		t.Fatal("not exactly the last one was the last")
	}
}

func TestFDMutexUnlockWakesOne(t *testing.T) {
	const waiters = 5
	var m fdMutex
	m.lock(true)
	got := make(chan struct{})
	for range waiters {
		go func() { m.lock(true); got <- struct{}{} }()
	}
	for m.state.Load()&mutexRMask != waiters*mutexRWait {
		runtime.Gosched()
	}
	for i := range waiters {
		m.unlock(true)
		<-got
		if left := m.state.Load() & mutexRMask / mutexRWait; left != uint64(waiters-1-i) {
			t.Fatalf("%d wait after unlock %d", left, i)
		}
	}
	m.unlock(true)
	if got := m.state.Load(); got != 0 {
		t.Fatalf("the state is %#x in the end", got)
	}
}

func TestFDMutexPanics(t *testing.T) {
	full := func(bits uint64) *fdMutex {
		m := new(fdMutex)
		m.state.Store(bits)
		return m
	}
	for name, c := range map[string]struct {
		says string
		f    func()
	}{
		"decref too often":         {"below 0", func() { new(fdMutex).decref() }},
		"unlock for reading":       {"not locked", func() { new(fdMutex).unlock(true) }},
		"unlock for writing":       {"not locked", func() { new(fdMutex).unlock(false) }},
		"unlock the other":         {"not locked", func() { m := new(fdMutex); m.lock(true); m.unlock(false) }},
		"too many references":      {"more than", func() { full(mutexRefMask).incref() }},
		"too many to close":        {"more than", func() { full(mutexRefMask).close() }},
		"too many to lock":         {"more than", func() { full(mutexRefMask).lock(true) }},
		"too many to try":          {"more than", func() { full(mutexRefMask).tryLock(false) }},
		"too many read waiters":    {"more than", func() { full(mutexRLock | mutexRef | mutexRMask).lock(true) }},
		"too many writers waiting": {"more than", func() { full(mutexWLock | mutexRef | mutexWMask).lock(false) }},
	} {
		func() {
			defer func() {
				if v, _ := recover().(string); !strings.Contains(v, c.says) {
					t.Errorf("%s: the panic says %q", name, v)
				}
			}()
			c.f()
		}()
	}
}

// TestFDMutexStress counts who is inside: never two in one direction, and exactly one is told to destroy.
func TestFDMutexStress(t *testing.T) {
	const rounds, workers, each = 20, 8, 300
	for range rounds {
		var m fdMutex
		var inside [2]atomic.Int32
		var counted [2]int // under the direction's lock
		var last, closes atomic.Int32
		var all sync.WaitGroup
		for w := range workers {
			all.Go(func() {
				random := rand.New(rand.NewPCG(uint64(w), 1))
				for i := range each {
					switch random.IntN(3) {
					case 0:
						if !m.incref() {
							return
						}
						if m.decref() {
							last.Add(1)
						}
					default:
						direction := random.IntN(2)
						if !m.lock(direction == 1) {
							return
						}
						if inside[direction].Add(1) != 1 {
							t.Error("two hold one lock")
						}
						counted[direction]++
						if random.IntN(8) == 0 {
							runtime.Gosched()
						}
						inside[direction].Add(-1)
						if m.unlock(direction == 1) {
							last.Add(1)
						}
					}
					if i == each/2 && w < 2 && m.close() {
						closes.Add(1)
						if m.decref() {
							last.Add(1)
						}
					}
				}
			})
		}
		all.Wait()
		if last.Load() != 1 || closes.Load() != 1 {
			t.Fatalf("%d closes, %d were the last", closes.Load(), last.Load())
		}
		if got := m.state.Load(); got != mutexClosed {
			t.Fatalf("the state is %#x in the end", got)
		}
	}
}

func BenchmarkFDMutex(b *testing.B) {
	b.Run("op=lock", func(b *testing.B) {
		b.ReportAllocs()
		var m fdMutex
		for b.Loop() {
			m.lock(true)
			m.unlock(true)
		}
	})
	b.Run("op=incref", func(b *testing.B) {
		b.ReportAllocs()
		var m fdMutex
		for b.Loop() {
			m.incref()
			m.decref()
		}
	})
}
