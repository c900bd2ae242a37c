package progress

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestMap has two mappings of one file see the same counts.
func TestMap(t *testing.T) {
	path := filepath.Join(t.TempDir(), "counts")
	one, err := Map(path)
	if err != nil {
		t.Fatal(err)
	}
	one.Computed.Add(3)
	two, err := Map(path)
	if err != nil {
		t.Fatal(err)
	}
	two.Allocated.Add(5)
	if c, a := two.Computed.Load(), one.Allocated.Load(); c != 3 || a != 5 {
		t.Errorf("the counts are %d and %d, want 3 and 5", c, a)
	}
}

func TestMapSaysWhatIsWrong(t *testing.T) {
	path := filepath.Join(t.TempDir(), "missing", "counts")
	if _, err := Map(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v", err)
	}
}
