package testutil

import (
	"sync/atomic"
	"testing"

	"github.com/pollux-go/pollux/internal/sys"
)

// InjectFaults makes h decide about every system call of the project until the test ends.
func InjectFaults(t testing.TB, h sys.Hook) {
	t.Helper()
	t.Cleanup(sys.Inject(h))
}

// A Nth makes the n-th call of one kind fail, counted from 0 since it was made.
type Nth struct {
	Op    sys.Op
	N     int64
	Fault sys.Fault

	calls atomic.Int64
}

// Hook is the sys.Hook.
func (f *Nth) Hook(op sys.Op, _ int) sys.Fault {
	if op == f.Op && f.calls.Add(1)-1 == f.N {
		return f.Fault
	}
	return sys.Fault{}
}

// Hit tells whether the n-th call has happened.
func (f *Nth) Hit() bool { return f.calls.Load() > f.N }
