package poller

// timers is a binary heap of instants. It is not safe for concurrent use. There is no cancel: a timer that is no longer
// wanted fires, and whoever gets it finds by its token or its own state that nothing is due. So owners keep at most one
// timer each in the heap and move it when it fires, which bounds the heap by the number of owners.
type timers struct {
	heap []timer
}

type timer struct {
	at    int64 // an instant
	token Token
}

// add schedules token for the instant at.
func (t *timers) add(at int64, token Token) {
	t.heap = append(t.heap, timer{at, token})
	i := len(t.heap) - 1
	for i > 0 {
		parent := (i - 1) / 2
		if t.heap[parent].at <= t.heap[i].at {
			break
		}
		t.heap[parent], t.heap[i] = t.heap[i], t.heap[parent]
		i = parent
	}
}

// next returns the earliest instant; ok is false when nothing is scheduled.
func (t *timers) next() (at int64, ok bool) {
	if len(t.heap) == 0 {
		return 0, false
	}
	return t.heap[0].at, true
}

// pop takes the earliest timer out if it is due.
func (t *timers) pop(now int64) (Token, bool) {
	if len(t.heap) == 0 || t.heap[0].at > now {
		return 0, false
	}
	token := t.heap[0].token
	last := len(t.heap) - 1
	t.heap[0] = t.heap[last]
	t.heap = t.heap[:last]
	for i := 0; ; {
		child := 2*i + 1
		if child >= last {
			break
		}
		if right := child + 1; right < last && t.heap[right].at < t.heap[child].at {
			child = right
		}
		if t.heap[i].at <= t.heap[child].at {
			break
		}
		t.heap[i], t.heap[child] = t.heap[child], t.heap[i]
		i = child
	}
	if cap(t.heap) > 1024 && last < cap(t.heap)/4 {
		t.heap = append(make([]timer, 0, cap(t.heap)/2), t.heap...) // A burst must not keep its memory.
	}
	return token, true
}
