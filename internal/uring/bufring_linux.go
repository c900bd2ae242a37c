package uring

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"github.com/pollux-go/pollux/internal/invariants"
	"github.com/pollux-go/pollux/internal/sys"
)

// BufRing is a ring of buffers that the kernel takes from as bytes arrive (since 5.19), so that an idle connection holds
// none. It belongs to the owner of its Ring.
//
// Ownership: a buffer belongs to the kernel from Return on, and to whoever got its id with a completion until then. All
// of them lie in one mapping.
type BufRing struct {
	ring    *Ring
	group   uint16
	size    int
	memory  []byte // entries of the ring, then the buffers
	entries []bufEntry
	buffers []byte
	tail    uint16 // ours, not published yet
	shown   uint16 // published
	free    int    // that the kernel has
	leased  []bool // with invariants: by id, whether it is ours
}

// poison is what returned buffers are filled with in builds that look for mistakes.
const poison = 0xdd

// NewBufRing makes a ring of count buffers, a power of two up to 32768, of size bytes each, and gives them to the kernel.
func (r *Ring) NewBufRing(group uint16, count, size int) (*BufRing, error) {
	if count <= 0 || count > 32768 || count&(count-1) != 0 {
		return nil, fmt.Errorf("buffer ring of %d entries: it must be a power of two up to 32768", count)
	}
	heads := count * int(unsafe.Sizeof(bufEntry{}))
	heads = (heads + 4095) &^ 4095
	memory, errno := sys.MapMemory(heads + count*size)
	if errno != 0 {
		return nil, fmt.Errorf("map %d buffers of %d bytes: %w", count, size, errno)
	}
	b := &BufRing{ring: r, group: group, size: size, memory: memory, buffers: memory[heads:]}
	// SAFETY: the mapping is page-aligned and large enough, and lives until Close.
	b.entries = unsafe.Slice((*bufEntry)(unsafe.Pointer(&memory[0])), count)
	reg := &bufRegister{ringAddr: uint64(uintptr(unsafe.Pointer(&memory[0]))), entries: uint32(count), group: group}
	if errno := sys.UringRegister(r.fd, registerBufRing, unsafe.Pointer(reg), 1); errno != 0 {
		sys.Unmap(memory)
		return nil, fmt.Errorf("register a ring of %d buffers: %w", count, errno)
	}
	if invariants.Enabled {
		b.leased = make([]bool, count)
		for i := range b.leased {
			b.leased[i] = true
		}
	}
	for i := range count {
		b.Return(uint16(i))
	}
	b.Publish()
	return b, nil
}

// Group returns the number that receives name the ring by.
func (b *BufRing) Group() uint16 { return b.group }

// Size returns how much a buffer holds.
func (b *BufRing) Size() int { return b.size }

// Len returns how many buffers there are, and Free how many of them the kernel has.
func (b *BufRing) Len() int { return len(b.entries) }

// Free returns how many buffers the kernel has.
func (b *BufRing) Free() int { return b.free }

// Take returns the first n bytes of a buffer that a completion has named, which is the caller's until Return.
func (b *BufRing) Take(id uint16, n int) []byte {
	if invariants.Enabled {
		if b.leased[id] {
			invariants.Broken("the kernel has used a buffer that was not its own")
		}
		b.leased[id] = true
	}
	b.free--
	at := int(id) * b.size
	return b.buffers[at : at+n : at+n]
}

// Return gives a buffer back to the kernel, with the next Publish.
func (b *BufRing) Return(id uint16) {
	if invariants.Enabled {
		if !b.leased[id] {
			invariants.Broken("a buffer was returned twice")
		}
		b.leased[id] = false
		at := int(id) * b.size
		for i := range b.buffers[at : at+b.size] {
			b.buffers[at+i] = poison
		}
	}
	e := &b.entries[int(b.tail)&(len(b.entries)-1)]
	// SAFETY: the address is in the mapping.
	e.addr = uint64(uintptr(unsafe.Pointer(&b.buffers[int(id)*b.size])))
	e.len = uint32(b.size)
	e.bid = id
	b.tail++
	b.free++
}

// Publish makes the returned buffers the kernel's.
func (b *BufRing) Publish() {
	if b.tail == b.shown {
		return
	}
	b.shown = b.tail
	// The tail is 16 bits, which Go has no atomic store for: they are stored together with the 16 bits before them, the id
	// of entry 0, which only this thread ever writes. It publishes the entries to the kernel, which loads the tail first.
	//
	// SAFETY: offset 12 of entry 0 is aligned for 32 bits; the order of the halves is that of amd64 and arm64.
	word := (*uint32)(unsafe.Pointer(&b.entries[0].bid))
	atomic.StoreUint32(word, uint32(b.entries[0].bid)|uint32(b.tail)<<16)
}

// Close takes the buffers back. No receive may use them any more.
func (b *BufRing) Close() {
	reg := &bufRegister{group: b.group}
	_ = sys.UringRegister(b.ring.fd, unregisterBufRing, unsafe.Pointer(reg), 1)
	sys.Unmap(b.memory)
	b.memory, b.buffers, b.entries = nil, nil, nil
}
