// Package kv is the key-value store behind cmd/pollux's resp server: a map cut into shards, each with a mutex,
// because several event loops use it at once. It is memory only and has no expiry.
package kv

import (
	"errors"
	"hash/maphash"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/pollux-go/pollux/cmd/pollux/internal/decimal"
)

// shards is how many locks the keys are spread over: many more than event loops, so that two of them rarely meet.
const shards = 64

const _ uint = -(shards & (shards - 1)) // shards is a power of two: a mask picks one.

// entryBytes is what a key costs besides its own and its value's bytes (map slot, entry, allocator rounding), for the
// bound of the store.
const entryBytes = 96

// The errors of a Store. Their texts are Redis' own.
var (
	ErrNotInteger = errors.New("ERR value is not an integer or out of range")
	ErrOverflow   = errors.New("ERR increment or decrement would overflow")
	ErrFull       = errors.New("OOM command not allowed when used memory > 'maxmemory'")
)

// Store maps keys to values. All methods are safe for concurrent use; each is atomic for its key.
type Store struct {
	seed     maphash.Seed
	bytesMax int64
	used     atomic.Int64 // Approximate size; compared with bytesMax before anything grows.
	shards   [shards]shard
}

type shard struct {
	mu sync.Mutex
	m  map[string]*entry // guarded by mu
	_  [64 - 16]byte     // Two shards' locks do not share a cache line.
}

// entry is what a key points to, so that a SET of a key that is there allocates no key again.
type entry struct{ value []byte }

// New returns an empty Store that refuses to grow beyond about bytesMax bytes with [ErrFull].
func New(bytesMax int64) *Store {
	s := &Store{seed: maphash.MakeSeed(), bytesMax: bytesMax}
	for i := range s.shards {
		s.shards[i].m = make(map[string]*entry)
	}
	return s
}

// When says under which condition [Store.Set] sets.
type When uint8

// The conditions of Set.
const (
	Always    When = iota
	IfAbsent       // SET NX
	IfPresent      // SET XX
)

// Set copies value to key. It reports whether it did: false without an error says that the condition did not hold.
func (s *Store) Set(key, value []byte, when When) (bool, error) {
	sh := s.shard(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	e := sh.m[string(key)] // Does not allocate.
	if e == nil && when == IfPresent || e != nil && when == IfAbsent {
		return false, nil
	}
	if err := s.put(sh, e, key, value); err != nil {
		return false, err
	}
	return true, nil
}

// Get calls add(dst, value) for key's value and returns what it returned. The value is valid only inside add, which
// runs with the shard locked: it must be short and must not call the Store.
func (s *Store) Get(dst, key []byte, add func(dst, value []byte) []byte) ([]byte, bool) {
	sh := s.shard(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	e := sh.m[string(key)]
	if e == nil {
		return dst, false
	}
	return add(dst, e.value), true
}

// Incr adds delta to the integer at key, where no key is 0, and returns the sum.
func (s *Store) Incr(key []byte, delta int64) (int64, error) {
	sh := s.shard(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	e := sh.m[string(key)]
	var v int64
	if e != nil {
		var ok bool
		if v, ok = decimal.Parse(e.value); !ok {
			return 0, ErrNotInteger
		}
	}
	sum := v + delta
	if (sum > v) != (delta > 0) && delta != 0 {
		return 0, ErrOverflow
	}
	var digits [20]byte
	return sum, s.put(sh, e, key, strconv.AppendInt(digits[:0], sum, 10))
}

// Delete removes key and reports whether it was there.
func (s *Store) Delete(key []byte) bool {
	sh := s.shard(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	e := sh.m[string(key)]
	if e == nil {
		return false
	}
	delete(sh.m, string(key))
	s.used.Add(-int64(entryBytes + len(key) + cap(e.value)))
	return true
}

// Has reports whether key is there.
func (s *Store) Has(key []byte) bool {
	sh := s.shard(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return sh.m[string(key)] != nil
}

// Len returns how many keys there are, one shard after the other.
func (s *Store) Len() int {
	n := 0
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		n += len(sh.m)
		sh.mu.Unlock()
	}
	return n
}

// put stores a copy of value in e, which is key's entry in sh or nil. sh.mu is held.
//
// The value's memory is used again when it fits and is not mostly waste; used counts its capacity, so that the bound
// holds for what is really kept.
func (s *Store) put(sh *shard, e *entry, key, value []byte) error {
	old, grow := 0, entryBytes+len(key)
	if e != nil {
		old, grow = cap(e.value), 0
		if old >= len(value) && old <= 64+4*len(value) {
			e.value = append(e.value[:0], value...)
			return nil
		}
	}
	// Count first, look second: two shards that grow at once cannot both slip under the bound.
	change := int64(grow + len(value) - old)
	if used := s.used.Add(change); change > 0 && used > s.bytesMax {
		s.used.Add(-change)
		return ErrFull
	}
	fresh := make([]byte, len(value)) // Exactly len(value) of capacity, as it was counted.
	copy(fresh, value)
	if e == nil {
		sh.m[string(key)] = &entry{fresh}
	} else {
		e.value = fresh
	}
	return nil
}

func (s *Store) shard(key []byte) *shard {
	return &s.shards[maphash.Bytes(s.seed, key)&(shards-1)]
}
