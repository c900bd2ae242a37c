package poller

import "fmt"

// A Token names a registration: a slot of a [Table], and which of the slot's successive owners is meant. It travels
// through the kernel and back, so it is a number and never a pointer.
//
//	bits  0-23  slot        16,777,216 registrations a table
//	bits 24-59  generation  68,719,476,736 owners of one slot
//	bits 60-63  kind        0 here; a backend may use it between itself and the kernel (TokenBits)
//
// An event can only be late by the batch it is in, while a slot that changes its owner 100,000 times a second takes 8
// days to come back to a generation; so a stale token never matches.
type Token uint64

const (
	slotBits       = 24
	generationBits = 36

	slotsMax      = 1 << slotBits
	generationMax = 1<<generationBits - 1

	// TokenBits is how many of a token's low bits are in use.
	TokenBits = slotBits + generationBits
)

func makeToken(slot uint32, generation uint64) Token {
	return Token(generation<<slotBits | uint64(slot))
}

// Slot returns the index in the table.
func (t Token) Slot() uint32 { return uint32(t) & (slotsMax - 1) }

// Generation returns which owner of the slot is meant. It is never 0, so that the zero Token names nothing.
func (t Token) Generation() uint64 { return uint64(t) >> slotBits & generationMax }

// String returns "slot/generation".
func (t Token) String() string { return fmt.Sprintf("%d/%d", t.Slot(), t.Generation()) }

// nextGeneration follows g, and skips 0 where it wraps around.
func nextGeneration(g uint64) uint64 {
	if g >= generationMax {
		return 1
	}
	return g + 1
}
