package poller

import "testing"

func TestTokenFields(t *testing.T) {
	for _, slot := range []uint32{0, 1, 255, 256, slotsMax - 1} {
		for _, generation := range []uint64{1, 2, 1 << 20, generationMax - 1, generationMax} {
			tok := makeToken(slot, generation)
			if tok.Slot() != slot || tok.Generation() != generation {
				t.Errorf("%d/%d comes back as %v", slot, generation, tok)
			}
			if tok>>TokenBits != 0 {
				t.Errorf("%v uses the bits of the kind", tok)
			}
			if tok == 0 {
				t.Errorf("%d/%d is the zero token", slot, generation)
			}
		}
	}
	if got := makeToken(7, 9).String(); got != "7/9" {
		t.Errorf("a token prints as %q", got)
	}
}

func TestGenerationSkipsZero(t *testing.T) {
	for g, want := range map[uint64]uint64{0: 1, 1: 2, generationMax - 1: generationMax, generationMax: 1} {
		if got := nextGeneration(g); got != want {
			t.Errorf("after %d comes %d, not %d", g, got, want)
		}
	}
}

// FuzzToken packs a slot and a generation, and unpacks them.
func FuzzToken(f *testing.F) {
	f.Add(uint32(0), uint64(1))
	f.Add(uint32(slotsMax-1), uint64(generationMax))
	f.Fuzz(func(t *testing.T, slot uint32, generation uint64) {
		slot, generation = slot%slotsMax, generation&generationMax
		token := makeToken(slot, generation)
		if token.Slot() != slot || token.Generation() != generation {
			t.Errorf("slot %d, generation %d: the token is %v", slot, generation, token)
		}
		if token>>TokenBits != 0 {
			t.Errorf("%v uses the bits of a kind", token)
		}
		if next := nextGeneration(generation); next == 0 || next > generationMax || next == generation {
			t.Errorf("generation %d is followed by %d", generation, next)
		}
	})
}
