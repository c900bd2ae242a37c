package poller

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// TestTimersAgainstASlice does random steps on the heap and on a sorted slice.
func TestTimersAgainstASlice(t *testing.T) {
	for seed := range uint64(20) {
		random := rand.New(rand.NewPCG(seed, 1))
		var heap timers
		var model []timer
		var now int64
		for i := range 3000 {
			switch random.IntN(5) {
			case 0, 1, 2:
				tm := timer{at: now + random.Int64N(50) - 5, token: Token(i + 1)}
				heap.add(tm.at, tm.token)
				at, _ := slices.BinarySearchFunc(model, tm.at+1, func(m timer, at int64) int { return int(m.at - at) })
				model = slices.Insert(model, at, tm)
			case 3:
				now += random.Int64N(20)
			default:
				tok, ok := heap.pop(now)
				due := len(model) > 0 && model[0].at <= now
				if ok != due {
					t.Fatalf("seed %d: a timer popped: %v, one is due: %v", seed, ok, due)
				}
				if !ok {
					continue
				}
				// Those of one instant may come in any order.
				at := slices.IndexFunc(model, func(m timer) bool { return m.token == tok })
				if at < 0 {
					t.Fatalf("seed %d: timer %d popped twice", seed, tok)
				}
				if model[at].at != model[0].at {
					t.Fatalf("seed %d: the timer of %d came before that of %d", seed, model[at].at, model[0].at)
				}
				model = slices.Delete(model, at, at+1)
			}
			next, ok := heap.next()
			if ok != (len(model) > 0) || ok && next != model[0].at {
				t.Fatalf("seed %d: next is %d, %v; there are %v", seed, next, ok, model)
			}
		}
	}
}

func TestTimersGiveMemoryBack(t *testing.T) {
	var heap timers
	const many = 1 << 14
	for i := range many {
		heap.add(int64(many-i), Token(i))
	}
	for i := range many {
		tok, ok := heap.pop(many)
		if !ok || int(tok) != many-1-i {
			t.Fatalf("pop %d: %d, %v", i, tok, ok)
		}
	}
	if got := cap(heap.heap); got > 1024 {
		t.Errorf("an empty heap keeps room for %d", got)
	}
	if _, ok := heap.pop(many); ok {
		t.Error("an empty heap has a timer")
	}
}
