//go:build !cgo || !linux

package cgo

import (
	"errors"
	"sync/atomic"
)

// Attends tells whether there are attendants. A thread of Go's needs a P, which it may have to wait for as its loop does.
const Attends = false

// An Attendant looks after a realtime thread. There is none without cgo.
type Attendant struct{}

// AttendantCounts is what an attendant has done.
type AttendantCounts struct{ Ticks, Demotions, Calls, Ushered uint64 }

// Attend fails.
func Attend(tid, cpu int, s Sched, name string) (*Attendant, error) {
	return nil, errors.ErrUnsupported
}

// Thread, Pulse, Counts and Close are never called.
func (a *Attendant) Thread() int                                  { return 0 }
func (a *Attendant) Pulse() (pulse *atomic.Uint64, asked *uint32) { return nil, nil }
func (a *Attendant) Counts() AttendantCounts                      { return AttendantCounts{} }
func (a *Attendant) Close()                                       {}
