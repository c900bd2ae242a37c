package pollux

import "sync"

// teller writes to an engine's log for the watchdog, which must not wait: the logger's handler is the user's, and may block, or close
// the engine, whose loops end only when the watchdog lets them go.
//
// A goroutine writes the lines in their order, and runs while there are some. Nobody waits for it, so that a line may be written when
// the engine has closed already. If the handler blocks, linesMost lines wait, and others are dropped.
type teller struct {
	mu    sync.Mutex // protects the fields below
	lines []func()
	runs  bool
}

const linesMost = 64

// tell has a line written, by a function that does only that.
func (t *teller) tell(line func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.lines) == linesMost {
		return
	}
	t.lines = append(t.lines, line)
	if !t.runs {
		t.runs = true
		go t.run()
	}
}

func (t *teller) run() {
	defer t.end()
	for line := t.next(); line != nil; line = t.next() {
		line()
	}
}

// next returns the next line, or nil.
func (t *teller) next() (line func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.lines) > 0 {
		line, t.lines = t.lines[0], t.lines[1:]
	}
	return line
}

// end ends the goroutine. Another one goes on if lines have come meanwhile, or the handler has ended this one by runtime.Goexit.
func (t *teller) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.runs = len(t.lines) > 0; t.runs {
		go t.run()
	}
}
