package poller_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/pollux-go/pollux/internal/testutil"
	"github.com/pollux-go/pollux/poller"
)

// wakes is a backend without descriptors, which several threads can wait on.
type wakes struct {
	turns
	written chan struct{}
	waking  atomic.Bool
	broken  bool
	late    func() // is called by who is about to sleep
}

func (b *wakes) Break() error {
	if b.waking.CompareAndSwap(false, true) {
		b.Rouse()
	}
	return nil
}

func (b *wakes) Rouse() { b.written <- struct{}{} }

func (b *wakes) Wait(_ []poller.Event, timeout time.Duration) (int, error) {
	if timeout != 0 {
		if !b.broken {
			<-b.written
		}
		b.broken = false
		b.waking.Store(false)
		return 0, nil
	}
	select {
	case <-b.written:
		b.broken = true
	default:
	}
	return 0, nil
}

func (b *wakes) WaitShared([]poller.Event, time.Duration) (int, bool, error) {
	b.late()
	<-b.written
	return 0, true, nil
}

func (b *wakes) Answer() { b.waking.Store(false) }

func (b *wakes) AnswerLate() {
	if b.broken {
		b.broken = false
		b.waking.Store(false)
	}
}

type sharedSink struct{ sink }

func (*sharedSink) Relieve(int) (bool, time.Duration) { return false, time.Millisecond }
func (*sharedSink) Relieved([]poller.Event)           {}
func (*sharedSink) Stray([]poller.Event)              {}

// TestShareAnswersLateBreaks stops a loop whose threads are about to sleep, in the moment at which a Break is under way that a look
// for events has met before. The Break of Stop goes with that one; the loop must not sleep then.
func TestShareAnswersLateBreaks(t *testing.T) {
	testutil.CheckLeaks(t)
	b := &wakes{written: make(chan struct{}, 10)}
	l := poller.NewLoop(b, &sharedSink{})
	b.late = l.Stop
	_ = l.PostAlways(func() {
		l.Share(true)
		_ = l.PostAlways(func() {}) // So that the next wait is a look.
	})
	ended := make(chan error)
	go func() { ended <- l.Run() }()
	select {
	case err := <-ended:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the loop sleeps, and was stopped")
	}
}
