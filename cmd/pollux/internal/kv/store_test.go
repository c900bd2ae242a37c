package kv

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
)

func add(dst, value []byte) []byte { return append(dst, value...) }

func get(s *Store, key string) (string, bool) {
	v, ok := s.Get(nil, []byte(key), add)
	return string(v), ok
}

func mustSet(t *testing.T, s *Store, key, value string, when When) bool {
	t.Helper()
	set, err := s.Set([]byte(key), []byte(value), when)
	if err != nil {
		t.Fatalf("set %s: %v", key, err)
	}
	return set
}

func TestSetGetDelete(t *testing.T) {
	s := New(1 << 20)
	if _, ok := get(s, "k"); ok {
		t.Error("a key that was never set is there")
	}
	if mustSet(t, s, "k", "v", IfPresent) || !mustSet(t, s, "k", "v", IfAbsent) || mustSet(t, s, "k", "w", IfAbsent) {
		t.Error("a condition was not kept")
	}
	for _, v := range []string{"v", "", strings.Repeat("long", 1000), "short", strings.Repeat("x", 10)} {
		if !mustSet(t, s, "k", v, IfPresent) {
			t.Error("XX did not set a key that is there")
		}
		if got, ok := get(s, "k"); !ok || got != v {
			t.Errorf("got %q, want %q", got, v)
		}
	}
	if !s.Has([]byte("k")) || s.Len() != 1 || !s.Delete([]byte("k")) || s.Delete([]byte("k")) || s.Has([]byte("k")) || s.Len() != 0 {
		t.Error("delete")
	}
	if n := s.used.Load(); n != 0 {
		t.Errorf("an empty store counts %d bytes", n)
	}
}

// What the caller passes and what it gets are copies: both come from buffers that are used again.
func TestSetCopies(t *testing.T) {
	s := New(1 << 20)
	key, value := []byte("k"), []byte("v")
	if _, err := s.Set(key, value, Always); err != nil {
		t.Fatal(err)
	}
	key[0], value[0] = 'x', 'x'
	if got, ok := get(s, "k"); !ok || got != "v" {
		t.Errorf("got %q, %v", got, ok)
	}
}

func TestIncr(t *testing.T) {
	s := New(1 << 20)
	for want := int64(1); want < 120; want++ {
		if v, err := s.Incr([]byte("n"), 1); v != want || err != nil {
			t.Fatalf("%d, %v; want %d", v, err, want)
		}
	}
	if got, _ := get(s, "n"); got != "119" {
		t.Errorf("got %q", got)
	}
	for value, want := range map[string]error{"x": ErrNotInteger, "": ErrNotInteger, "1.5": ErrNotInteger, " 1": ErrNotInteger, "9223372036854775807": ErrOverflow} {
		mustSet(t, s, "n", value, Always)
		if _, err := s.Incr([]byte("n"), 1); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", value, err, want)
		}
		if got, _ := get(s, "n"); got != value {
			t.Errorf("a failed INCR changed %q to %q", value, got)
		}
	}
	mustSet(t, s, "n", "-9223372036854775808", Always)
	if _, err := s.Incr([]byte("n"), -1); !errors.Is(err, ErrOverflow) {
		t.Errorf("underflow: %v", err)
	}
}

func TestIncrIsAtomic(t *testing.T) {
	s := New(1 << 20)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 1000 {
				s.Incr([]byte("n"), 1)
				s.Set(fmt.Append(nil, "k", i%10), []byte("v"), Always)
				s.Delete(fmt.Append(nil, "k", i%7))
			}
		})
	}
	wg.Wait()
	if got, _ := get(s, "n"); got != "4000" {
		t.Errorf("got %s", got)
	}
}

func TestFullStoreRefuses(t *testing.T) {
	s := New(1000)
	big := bytes.Repeat([]byte("x"), 600)
	if _, err := s.Set([]byte("a"), big, Always); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Set([]byte("b"), big, Always); !errors.Is(err, ErrFull) {
		t.Errorf("a second big value: %v", err)
	}
	if _, err := s.Set([]byte("a"), []byte("small"), Always); err != nil {
		t.Errorf("a value that got smaller: %v", err)
	}
	if _, err := s.Set([]byte("b"), big, Always); err != nil {
		t.Errorf("after there was room again: %v", err)
	}
}

func TestHotPathDoesNotAllocate(t *testing.T) {
	s := New(1 << 20)
	key, value, buf := []byte("key"), []byte("value"), make([]byte, 0, 64)
	if n := testing.AllocsPerRun(100, func() {
		s.Set(key, value, Always)
		s.Get(buf, key, add)
		s.Has(key)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
