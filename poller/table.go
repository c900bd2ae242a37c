package poller

import "errors"

// ErrTableFull is returned when a [Table] has no free slot.
var ErrTableFull = errors.New("poller: all 16,777,216 slots of the table are in use")

const chunkSlots = 1 << 8

// A Table maps tokens to values. It grows by chunks, which never move, and reuses the slot that was freed last. It is not safe for
// concurrent use: its owner is one goroutine, or holds a lock.
//
// A slot keeps its generation when it is free, so a token of an earlier owner finds nothing, for ever.
type Table[T any] struct {
	chunks [][]slot[T]
	free   uint32 // head of the list of free slots, plus 1; 0: none
	used   int
	first  uint64 // generation of a new slot; tests start near the wrap-around
}

type slot[T any] struct {
	generation uint64 // of the owner, or of the last one where free
	next       uint32 // in the list of free slots, plus 1
	live       bool
	value      T
}

// Len returns how many slots are in use.
func (t *Table[T]) Len() int { return t.used }

// Put stores v in a free slot and returns the token that finds it.
func (t *Table[T]) Put(v T) (Token, error) {
	if t.free == 0 && !t.grow() {
		return 0, ErrTableFull
	}
	index := t.free - 1
	s := &t.chunks[index/chunkSlots][index%chunkSlots]
	t.free = s.next
	s.generation = nextGeneration(s.generation)
	s.live = true
	s.value = v
	t.used++
	return makeToken(index, s.generation), nil
}

func (t *Table[T]) grow() bool {
	base := uint32(len(t.chunks) * chunkSlots)
	if base >= slotsMax {
		return false
	}
	chunk := make([]slot[T], chunkSlots)
	for i := range chunk {
		chunk[i].generation = t.first
		chunk[i].next = base + uint32(i) + 2
	}
	chunk[chunkSlots-1].next = t.free
	t.free = base + 1
	t.chunks = append(t.chunks, chunk)
	return true
}

// Get returns the value stored under tok. It is false for a token whose owner has left the slot, and for one that was
// never given out.
func (t *Table[T]) Get(tok Token) (v T, ok bool) {
	s := t.find(tok)
	if s == nil {
		return v, false
	}
	return s.value, true
}

func (t *Table[T]) find(tok Token) *slot[T] {
	index := tok.Slot()
	if int(index/chunkSlots) >= len(t.chunks) {
		return nil
	}
	s := &t.chunks[index/chunkSlots][index%chunkSlots]
	if !s.live || s.generation != tok.Generation() {
		return nil
	}
	return s
}

// Delete frees the slot of tok. It is false where Get would be.
func (t *Table[T]) Delete(tok Token) bool {
	s := t.find(tok)
	if s == nil {
		return false
	}
	var zero T
	s.value = zero // The table must not keep alive what has left it.
	s.live = false
	s.next = t.free
	t.free = tok.Slot() + 1
	t.used--
	return true
}

// All calls yield for every value in the table, until it returns false. The current value may be deleted meanwhile, and
// values that are put meanwhile may or may not be seen.
func (t *Table[T]) All(yield func(Token, T) bool) {
	for c := 0; c < len(t.chunks); c++ {
		for i := range t.chunks[c] {
			s := &t.chunks[c][i]
			if s.live && !yield(makeToken(uint32(c*chunkSlots+i), s.generation), s.value) {
				return
			}
		}
	}
}
