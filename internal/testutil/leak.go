// Package testutil is what the tests of several packages share: checks for leaks, faults in system calls, and streams
// that show every lost, doubled or foreign byte. Only tests import it.
package testutil

import (
	"fmt"
	"os"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// checked are the tests that CheckLeaks was called for.
var checked sync.Map

// leakPatience is how long what a test has started may take to end.
const leakPatience = 5 * time.Second

// CheckLeaks fails the test if, after its other cleanups, it has left behind a file descriptor, a goroutine or threads.
// It must be called first, and the test must not run in parallel with others. Another call for the same test does nothing: it
// would look before all cleanups are through, and take what still runs and does something else by then for a leak.
func CheckLeaks(t testing.TB) {
	t.Helper()
	if _, again := checked.LoadOrStore(t, nil); again {
		return
	}
	t.Cleanup(func() { checked.Delete(t) })
	startNetpoll()
	files, goroutines, threads := Files(), Goroutines(), Threads()
	t.Cleanup(func() {
		t.Helper()
		if t.Failed() {
			return // It had no chance to clean up.
		}
		var found string
		for end := time.Now().Add(leakPatience); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
			if found = leaked(files, goroutines, threads); found == "" {
				return
			}
		}
		t.Errorf("the test has left behind:\n%s", found)
	})
}

// startNetpoll has the runtime open the descriptors of its own poller, which stay open from its first use on.
var startNetpoll = sync.OnceFunc(func() {
	if r, w, err := os.Pipe(); err == nil {
		r.Close()
		w.Close()
	}
})

func leaked(files map[string]string, goroutines map[string]int, threads int) string {
	var all []string
	for fd, target := range Files() {
		if _, ok := files[fd]; !ok {
			all = append(all, fmt.Sprintf("fd %s: %s", fd, target))
		}
	}
	for stack, n := range Goroutines() {
		if n > goroutines[stack] {
			all = append(all, fmt.Sprintf("%d goroutines more than before at\n%s", n-goroutines[stack], stack))
		}
	}
	// The runtime keeps the threads it has made for blocked calls: only a test that leaks one each time shows here.
	if n := Threads(); n > threads+16+2*runtime.GOMAXPROCS(0) {
		all = append(all, fmt.Sprintf("%d threads, before there were %d", n, threads))
	}
	slices.Sort(all)
	return strings.Join(all, "\n")
}

// Files returns the process's open descriptors with what they are.
func Files() map[string]string {
	files := map[string]string{}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		panic(err)
	}
	for _, e := range entries {
		// The directory's own descriptor is gone by now, and so is not counted.
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			files[e.Name()] = target
		}
	}
	return files
}

// Threads returns how many threads the process has.
func Threads() int {
	entries, err := os.ReadDir("/proc/self/task")
	if err != nil {
		panic(err)
	}
	return len(entries)
}

// Goroutines returns how many goroutines there are, by stack, those of the runtime and of package testing left out.
func Goroutines() map[string]int {
	var b strings.Builder
	if err := pprof.Lookup("goroutine").WriteTo(&b, 1); err != nil {
		panic(err)
	}
	found := map[string]int{}
	for block := range strings.SplitSeq(b.String(), "\n\n") {
		head, stack, ok := strings.Cut(block, "\n")
		if strings.HasPrefix(head, "goroutine profile:") {
			head, stack, ok = strings.Cut(stack, "\n")
		}
		n := 0
		if _, err := fmt.Sscanf(head, "%d @", &n); err != nil || !ok {
			continue
		}
		if strings.Contains(stack, "testing.(*T).Run") || strings.Contains(stack, "testing.tRunner") ||
			strings.Contains(stack, "os/signal.") || strings.Contains(stack, "testing.runFuzz") ||
			strings.Contains(stack, "testing.(*F)") || strings.Contains(stack, "testutil.Goroutines") ||
			strings.Contains(stack, "testing.(*M).startAlarm") || strings.Contains(stack, "net/http.setRequestCancel") {
			continue
		}
		// Addresses differ from one goroutine to the next at the same place; names do not.
		var names []string
		for line := range strings.SplitSeq(stack, "\n") {
			if fields := strings.Fields(line); len(fields) >= 3 {
				names = append(names, fields[2])
			}
		}
		found[strings.Join(names, "\n")] += n
	}
	return found
}
