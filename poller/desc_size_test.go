package poller

import (
	"testing"
	"unsafe"
)

// What an operation touches is one line of cache, and a Desc begins with a line.
func TestDescLayout(t *testing.T) {
	if unsafe.Sizeof(uintptr(0)) != 8 {
		t.Skip("sizes are those of 64-bit systems")
	}
	var d Desc
	if got := unsafe.Sizeof(d); got != 192 {
		t.Errorf("a Desc has %d bytes, want 192", got)
	}
	if got := unsafe.Offsetof(d.w) + unsafe.Sizeof(d.w); got != 64 {
		t.Errorf("what an operation touches ends at byte %d, want 64", got)
	}
}
