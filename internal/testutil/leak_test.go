package testutil

import "testing"

// cleanups counts what a test has to clean up.
type cleanups struct {
	testing.TB
	n int
}

func (*cleanups) Helper()          {}
func (c *cleanups) Cleanup(func()) { c.n++ }

// TestCheckLeaksOnce calls it again for one test, and for another one.
func TestCheckLeaksOnce(t *testing.T) {
	one, other := &cleanups{TB: t}, &cleanups{TB: t}
	defer checked.Delete(one)
	defer checked.Delete(other)
	CheckLeaks(one)
	before := one.n
	CheckLeaks(one)
	CheckLeaks(other)
	if before == 0 || one.n != before || other.n != before {
		t.Errorf("%d cleanups after the first call, %d after the second, %d of another test", before, one.n, other.n)
	}
}
