package poller

import (
	"errors"
	"math/rand/v2"
	"testing"
)

// TestTableAgainstAMap does random steps on a table and on a map, starting where generations wrap around.
func TestTableAgainstAMap(t *testing.T) {
	table := Table[int]{first: generationMax - 3}
	model := map[Token]int{}
	var live, dead []Token
	random := rand.New(rand.NewPCG(1, 2))
	for i := range 20_000 {
		switch {
		case len(live) == 0 || len(live) < 600 && random.IntN(2) == 0:
			tok, err := table.Put(i)
			if err != nil {
				t.Fatal(err)
			}
			if tok == 0 || tok.Generation() == 0 {
				t.Fatalf("token %v names nothing", tok)
			}
			if _, ok := model[tok]; ok {
				t.Fatalf("token %v was given out twice", tok)
			}
			model[tok] = i
			live = append(live, tok)
		default:
			at := random.IntN(len(live))
			tok := live[at]
			live[at] = live[len(live)-1]
			live = live[:len(live)-1]
			if !table.Delete(tok) {
				t.Fatalf("%v cannot be deleted", tok)
			}
			delete(model, tok)
			dead = append(dead, tok)
		}
		if table.Len() != len(model) {
			t.Fatalf("the table has %d values, the map %d", table.Len(), len(model))
		}
		if n := len(dead); n > 0 {
			tok := dead[random.IntN(n)]
			if v, ok := table.Get(tok); ok {
				t.Fatalf("stale %v finds %d", tok, v)
			}
			if table.Delete(tok) {
				t.Fatalf("stale %v deletes its successor", tok)
			}
		}
	}
	for tok, want := range model {
		if got, ok := table.Get(tok); !ok || got != want {
			t.Fatalf("%v finds %d, %v, not %d", tok, got, ok, want)
		}
	}
	seen := map[Token]int{}
	for tok, v := range table.All {
		seen[tok] = v
	}
	if len(seen) != len(model) {
		t.Fatalf("All has %d values, the map %d", len(seen), len(model))
	}
}

// TestStaleTokenAcrossWrapAround uses one slot again and again, beginning three generations before the wrap-around: no
// token of an earlier owner finds a later one.
func TestStaleTokenAcrossWrapAround(t *testing.T) {
	table := Table[int]{first: generationMax - 3}
	var all []Token
	for i := range 1000 {
		tok, err := table.Put(i)
		if err != nil {
			t.Fatal(err)
		}
		if tok.Slot() != 0 {
			t.Fatalf("owner %d has slot %d", i, tok.Slot())
		}
		for _, old := range all {
			if v, ok := table.Get(old); ok {
				t.Fatalf("%v of an earlier owner finds owner %d", old, v)
			}
		}
		all = append(all, tok)
		table.Delete(tok)
	}
	if g := all[2].Generation(); g != generationMax {
		t.Fatalf("the third owner has generation %d", g)
	}
	if g := all[3].Generation(); g != 1 {
		t.Fatalf("the fourth owner has generation %d", g)
	}
}

func TestTableNeverMovesItsChunks(t *testing.T) {
	var table Table[[8]int]
	tok, _ := table.Put([8]int{1})
	before := table.find(tok)
	for range 10 * chunkSlots {
		if _, err := table.Put([8]int{}); err != nil {
			t.Fatal(err)
		}
	}
	if table.find(tok) != before {
		t.Fatal("the slot has moved")
	}
}

func TestTableReusesTheLastFreed(t *testing.T) {
	var table Table[int]
	var tokens []Token
	for i := range 3 * chunkSlots {
		tok, _ := table.Put(i)
		tokens = append(tokens, tok)
	}
	for i := range tokens {
		if int(tokens[i].Slot()) != i {
			t.Fatalf("value %d is in slot %d", i, tokens[i].Slot())
		}
	}
	table.Delete(tokens[5])
	table.Delete(tokens[700])
	for _, want := range []uint32{700, 5, 3 * chunkSlots} {
		if tok, _ := table.Put(0); tok.Slot() != want {
			t.Fatalf("slot %d was used, not %d", tok.Slot(), want)
		}
	}
}

func TestTableFull(t *testing.T) {
	// All chunks but the last are left out: nothing in them is looked at.
	table := Table[byte]{chunks: make([][]slot[byte], slotsMax/chunkSlots-1)}
	for range chunkSlots {
		if _, err := table.Put(0); err != nil {
			t.Fatal(err)
		}
	}
	tok, err := table.Put(0)
	if !errors.Is(err, ErrTableFull) || tok != 0 {
		t.Fatalf("a full table gives %v, %v", tok, err)
	}
	last := makeToken(slotsMax-1, 1)
	if !table.Delete(last) {
		t.Fatalf("%v is not in the table", last)
	}
	if tok, err = table.Put(0); err != nil || tok.Slot() != slotsMax-1 || tok.Generation() != 2 {
		t.Fatalf("after one was freed: %v, %v", tok, err)
	}
}

func TestTableForeignTokens(t *testing.T) {
	var table Table[string]
	for _, tok := range []Token{0, makeToken(0, 1), makeToken(slotsMax-1, generationMax), ^Token(0)} {
		if _, ok := table.Get(tok); ok {
			t.Errorf("%v finds something in an empty table", tok)
		}
		if table.Delete(tok) {
			t.Errorf("%v deletes something in an empty table", tok)
		}
	}
}

func TestTableLetsGo(t *testing.T) {
	var table Table[*int]
	tok, _ := table.Put(new(int))
	s := table.find(tok)
	table.Delete(tok)
	if s.value != nil {
		t.Fatal("the table keeps what has left it")
	}
}

func TestTableAllWithDeletes(t *testing.T) {
	var table Table[int]
	for i := range 2*chunkSlots + 10 {
		table.Put(i)
	}
	n := 0
	for tok := range table.All {
		table.Delete(tok)
		n++
	}
	if n != 2*chunkSlots+10 || table.Len() != 0 {
		t.Fatalf("%d were seen, %d are left", n, table.Len())
	}
	table.Put(1)
	table.Put(2)
	n = 0
	for range table.All {
		n++
		break
	}
	if n != 1 {
		t.Fatalf("All went on after a break")
	}
}

func BenchmarkTable(b *testing.B) {
	var table Table[*int]
	var tokens [1000]Token
	for i := range tokens {
		tokens[i], _ = table.Put(new(int))
	}
	b.Run("op=Get", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if _, ok := table.Get(tokens[i%len(tokens)]); !ok {
				b.Fatal("lost")
			}
		}
	})
	b.Run("op=PutDelete", func(b *testing.B) {
		b.ReportAllocs()
		v := new(int)
		for b.Loop() {
			tok, _ := table.Put(v)
			table.Delete(tok)
		}
	})
}
