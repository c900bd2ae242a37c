package fake

import (
	"sync"
	"time"

	"github.com/pollux-go/pollux/poller"
)

// A Clock stands still until [Clock.Advance] moves it. Its methods may be called from any goroutine.
type Clock struct {
	mu     sync.Mutex // protects the fields below
	now    int64
	timers map[*clockTimer]struct{} // those that are set
	order  int                      // grows with each Set: who was set first fires first
	sets   int
	fired  int
}

type clockTimer struct {
	clock *Clock
	f     func()
	at    int64
	order int
}

// start is not 0, so that there is a past; epoch is the wall clock's time at instant 0.
const start = int64(time.Hour)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// NewClock makes a clock.
func NewClock() *Clock { return &Clock{now: start, timers: map[*clockTimer]struct{}{}} }

// Now implements [poller.Clock].
func (c *Clock) Now() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Instant implements [poller.Clock].
func (c *Clock) Instant(t time.Time) int64 { return int64(t.Sub(epoch)) }

// Time returns the clock's time, to make deadlines from.
func (c *Clock) Time() time.Time { return epoch.Add(time.Duration(c.Now())) }

// AfterFunc implements [poller.Clock]. f runs on the goroutine that calls Advance.
func (c *Clock) AfterFunc(f func()) poller.ClockTimer { return &clockTimer{clock: c, f: f} }

// Set implements [poller.ClockTimer]. A timer set for now fires with the next Advance, even one by 0.
func (t *clockTimer) Set(d time.Duration) {
	c := t.clock
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sets++
	c.order++
	t.order = c.order
	if t.at = c.now + int64(d); t.at < c.now && d > 0 {
		t.at = int64(^uint64(0) >> 1)
	}
	c.timers[t] = struct{}{}
}

// Stop implements [poller.ClockTimer].
func (t *clockTimer) Stop() {
	t.clock.mu.Lock()
	defer t.clock.mu.Unlock()
	delete(t.clock.timers, t)
}

// Advance moves the clock, firing each timer at its instant, in order. It returns when all of them have run.
func (c *Clock) Advance(d time.Duration) {
	c.mu.Lock()
	end := c.now + int64(d)
	for {
		t := c.earliest()
		if t == nil || t.at > end {
			break
		}
		delete(c.timers, t)
		c.now = max(c.now, t.at)
		c.fired++
		c.mu.Unlock()
		t.f()
		c.mu.Lock()
	}
	c.now = end
	c.mu.Unlock()
}

func (c *Clock) earliest() (first *clockTimer) {
	for t := range c.timers {
		if first == nil || t.at < first.at || t.at == first.at && t.order < first.order {
			first = t
		}
	}
	return first
}

// Armed returns how many timers are set.
func (c *Clock) Armed() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.timers)
}

// Sets returns how often a timer was set.
func (c *Clock) Sets() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sets
}

// Fired returns how often a timer has fired.
func (c *Clock) Fired() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fired
}
