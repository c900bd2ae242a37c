package pollux

import "io"

// inbound is what has been read and not consumed: always one piece of memory, so that nothing has to be copied to be
// looked at.
//
// While a callback runs, view may lie in the loop's read buffer. What the callback leaves is moved to memory of the
// connection's own (keep) before the loop reads for another one, so an idle connection holds none, and one that always
// consumes everything never copies.
type inbound struct {
	view   []byte // unread; its capacity ends with the memory that may be appended to
	memory uint32 // size of the connection's own memory that view lies in; 0: it lies in the loop's
}

func (in *inbound) len() int { return len(in.view) }

// peek returns n bytes, or all for a negative n, with io.ErrShortBuffer if there are fewer. The capacity is cut, so that
// an append cannot reach the bytes behind.
func (in *inbound) peek(n int) ([]byte, error) {
	if n < 0 {
		n = len(in.view)
	}
	if n > len(in.view) {
		return in.view[:len(in.view):len(in.view)], io.ErrShortBuffer
	}
	return in.view[:n:n], nil
}

// discard consumes n bytes, which are there.
func (in *inbound) discard(n int) { in.view = in.view[n:] }

// smallMost is how many unread bytes are rather copied in front of the next read than read behind where they are.
func smallMost(buffer int) int { return buffer / 4 }

// space returns where the next read goes, so that its bytes follow the unread ones. scratch is the loop's read buffer.
func (in *inbound) space(scratch []byte) []byte {
	unread := len(in.view)
	if unread <= smallMost(len(scratch)) {
		// The rest of a frame: the next bytes complete it in the loop's buffer.
		copy(scratch, in.view)
		return scratch[unread:]
	}
	// A long frame arrives in pieces: it grows where it is, so that every byte is moved a bounded number of times.
	if cap(in.view)-unread < len(scratch)/2 {
		grown := make([]byte, unread, max(2*unread, unread+len(scratch)))
		copy(grown, in.view)
		in.view = grown
		in.memory = uint32(cap(grown))
	}
	return in.view[unread:cap(in.view)]
}

// filled says that n bytes were read into what space returned.
func (in *inbound) filled(scratch []byte, n int) {
	unread := len(in.view)
	if unread <= smallMost(len(scratch)) {
		in.view = scratch[:unread+n]
		in.memory = 0
		return
	}
	in.view = in.view[:unread+n]
}

// push adds bytes that lie in memory of the loop's. With nothing unread before them they are not copied.
func (in *inbound) push(scratch, b []byte) {
	unread := len(in.view)
	switch {
	case unread == 0:
		in.view, in.memory = b, 0
	case unread+len(b) <= len(scratch) && unread <= smallMost(len(scratch)):
		copy(scratch, in.view)
		copy(scratch[unread:], b)
		in.view, in.memory = scratch[:unread+len(b)], 0
	default:
		if in.memory == 0 || cap(in.view)-unread < len(b) {
			grown := make([]byte, unread, max(2*unread, unread+len(b)))
			copy(grown, in.view)
			in.view, in.memory = grown, uint32(cap(grown))
		}
		in.view = append(in.view, b...)
	}
}

// keep moves what is unread out of the loop's buffer, and out of memory that has become far too large for it.
func (in *inbound) keep() {
	if len(in.view) == 0 {
		*in = inbound{}
		return
	}
	if size := roundUp(len(in.view)); in.memory == 0 || int(in.memory) > 4*size {
		in.view = append(make([]byte, 0, size), in.view...)
		in.memory = uint32(cap(in.view))
	}
}

// roundUp rounds to a power of two, at least 64, so that the sizes of kept rests are few.
func roundUp(n int) int {
	r := 64
	for r < n {
		r *= 2
	}
	return r
}
