package server

import (
	"fmt"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Handover gives the work of a server to an ordinary goroutine, over a channel, and measures how long it takes from the
// send to the goroutine's next step.
type Handover struct {
	work chan handed
	done sync.WaitGroup
	hist *hdrhistogram.Histogram // of the goroutine, until done
}

type handed struct {
	at     time.Time
	answer func()
}

// handoverQueue is the room of the channel. The send must not block an event loop.
const handoverQueue = 64 << 10

// NewHandover starts the goroutine.
func NewHandover() *Handover {
	h := &Handover{work: make(chan handed, handoverQueue), hist: hdrhistogram.New(1, int64(time.Minute), 3)}
	h.done.Go(func() {
		for w := range h.work {
			_ = h.hist.RecordValue(max(1, int64(time.Since(w.at))))
			w.answer()
		}
	})
	return h
}

// Hand has the goroutine call answer.
func (h *Handover) Hand(answer func()) { h.work <- handed{time.Now(), answer} }

// Report ends the goroutine and prints what was measured, for the runner. Nobody hands anything over any more.
func (h *Handover) Report() {
	close(h.work)
	h.done.Wait()
	fmt.Printf("handover %d %d %d %d %d\n", h.hist.TotalCount(), h.hist.ValueAtQuantile(50), h.hist.ValueAtQuantile(99), h.hist.ValueAtQuantile(99.9), h.hist.Max())
}
