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
