package load

import (
	"bytes"
	"fmt"
	"math/rand/v2"
)

const (
	// patternPeriod is the length of the byte pattern that every stream repeats. A
	// prime: no message size divides it, so that a message lost, repeated or out of
	// place shows within a few bytes. 16 KiB stay in the first-level cache.
	patternPeriod = 16381

	// receiveSize is the most that one receive takes, in bytes.
	receiveSize = 64 << 10

	// sendSize is the most that one send is offered, in bytes.
	sendSize = 256 << 10

	// streamStride keeps the streams apart: connection i starts at i*streamStride in
	// the pattern. The period is prime, so the first patternPeriod connections all
	// start at different places.
	streamStride = 7919
)

// pattern repeats the period often enough that any piece of up to sendSize bytes,
// from any place within the period, is one slice.
var pattern = makePattern()

func makePattern() []byte {
	period := make([]byte, patternPeriod)
	r := rand.New(rand.NewPCG(0x706f6c6c, 0x7578))
	for i := range period {
		period[i] = byte(r.Uint32())
	}
	return bytes.Repeat(period, 2+sendSize/patternPeriod)
}

// streamStart is the place in the pattern where the stream of connection i begins.
func streamStart(i int) int { return i % patternPeriod * streamStride % patternPeriod }

// checkStream compares got with the pattern from at on and returns the place after
// it. received counts the bytes of the stream before got, for the error.
func checkStream(got []byte, at int, received uint64) (int, error) {
	want := pattern[at : at+len(got)]
	if !bytes.Equal(got, want) {
		for i := range got {
			if got[i] != want[i] {
				return at, fmt.Errorf("byte %d of the stream is %#02x, sent was %#02x", received+uint64(i), got[i], want[i])
			}
		}
	}
	return (at + len(got)) % patternPeriod, nil
}
