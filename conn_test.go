package pollux

import (
	"testing"
	"unsafe"
)

// A connection has the size of three lines of cache, which is a size class of the allocator: so it begins with a line, and
// ten thousand idle ones cost no more than is promised.
func TestConnSize(t *testing.T) {
	if unsafe.Sizeof(uintptr(0)) != 8 {
		t.Skip("sizes are those of 64-bit systems")
	}
	if got := unsafe.Sizeof(Conn{}); got != 192 {
		t.Errorf("a Conn has %d bytes, want 192", got)
	}
}
