package scheduler

import (
	"fmt"
	"runtime"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

// BenchmarkWake measures from the push of a loop to the start of the item on a worker that sleeps, by both kinds of
// bells, with and without goroutines beside that compute. The loop is what an event loop is when it is hot: locked to its
// thread, and between two pushes in a raw system call, so that it keeps its P; GOMAXPROCS has one more for it.
func BenchmarkWake(b *testing.B) {
	for _, busy := range []int{0, 1, 2} {
		for _, park := range []string{"futex", "channel"} {
			b.Run(fmt.Sprintf("park=%s/busy=%d", park, busy), func(b *testing.B) { benchmarkWake(b, park == "channel", busy) })
		}
	}
}

func benchmarkWake(b *testing.B, channels bool, busy int) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(runtime.NumCPU() + 1 + busy))
	var stop atomic.Bool
	defer stop.Store(true)
	for range busy {
		go func() {
			for !stop.Load() {
			}
		}()
	}
	var pushed, took atomic.Int64 // since base, in nanoseconds; took is 0 until the item runs
	base := time.Now()
	d := startOn(b, Config{
		Run:     func(int, Item) { took.Store(int64(time.Since(base)) - pushed.Load()) },
		Sources: 1, Workers: 1,
	}, channels)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	pause := func(d time.Duration) {
		ts := syscall.NsecToTimespec(int64(d))
		// SAFETY: ts is on this stack, which a raw system call cannot move.
		_, _, _ = syscall.RawSyscall(syscall.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&ts)), 0, 0)
	}
	s := d.Source(0)
	var all []int64
	for b.Loop() {
		took.Store(0)
		pushed.Store(int64(time.Since(base)))
		s.Push(1)
		d.Wake()
		for took.Load() == 0 {
			pause(20 * time.Microsecond)
		}
		all = append(all, took.Load())
		pause(50 * time.Microsecond) // The worker falls asleep.
	}
	slices.Sort(all)
	b.ReportMetric(float64(all[len(all)/2]), "p50-ns")
	b.ReportMetric(float64(all[len(all)*99/100]), "p99-ns")
	b.ReportMetric(0, "ns/op") // It would count the pauses.
}
