// Package progress is how the runner learns what the goroutines beside a server get done, without asking the server: both have
// one file mapped.
package progress

import (
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"unsafe"
)

// Counts is what was done since the server began.
type Counts struct {
	Computed  atomic.Uint64 // rounds of a goroutine that computes, of about a millisecond
	Allocated atomic.Uint64 // objects of one that allocates
}

// Map maps a file, which it makes as large as it must be. The memory stays mapped until the process ends.
func Map(path string) (*Counts, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size := int(unsafe.Sizeof(Counts{}))
	if err := f.Truncate(int64(size)); err != nil {
		return nil, err
	}
	memory, err := syscall.Mmap(int(f.Fd()), 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", path, err)
	}
	// SAFETY: the mapping begins at a page, is as large as Counts, and is never unmapped.
	return (*Counts)(unsafe.Pointer(unsafe.SliceData(memory))), nil
}
