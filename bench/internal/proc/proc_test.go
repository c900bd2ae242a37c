package proc

import (
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestParseCPUs(t *testing.T) {
	for _, test := range []struct {
		text string
		want []int
		ok   bool
	}{
		{"", nil, true},
		{"0", []int{0}, true},
		{"3,0-1, 1", []int{0, 1, 3}, true},
		{"a", nil, false},
		{"2-1", nil, false},
		{"-1", nil, false},
		{"0-99999", nil, false},
	} {
		got, err := ParseCPUs(test.text)
		if (err == nil) != test.ok || !slices.Equal(got, test.want) {
			t.Errorf("ParseCPUs(%q) = %v, %v; want %v", test.text, got, err, test.want)
		}
	}
}

func TestUsageGrowsByWhatIsBurned(t *testing.T) {
	before, err := ReadUsage(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	const burn = 50 * time.Millisecond
	for {
		after, err := ReadUsage(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		used := after.Sub(before)
		if used.Total < 0 || used.User < 0 || used.System < 0 {
			t.Fatalf("used %+v: time went backwards", used)
		}
		if parts := used.User + used.System; parts != 0 && parts != used.Total {
			t.Fatalf("the parts of %+v do not add up", used)
		}
		if used.Total > burn {
			return
		}
	}
}

func TestParseStat(t *testing.T) {
	u, err := parseStat([]byte("1 (a) b) c) S 1 1 1 0 -1 4194560 1 2 3 4 250 150 7 8 20 0 1 0 100"))
	if err != nil || u.User != 2500*time.Millisecond || u.System != 1500*time.Millisecond {
		t.Errorf("parseStat = %+v, %v; want 2.5 s and 1.5 s", u, err)
	}
	for _, bad := range []string{"", "1 (x", "1 (x) S 1 2", "1 (x) S 1 1 1 0 -1 0 1 2 3 4 x y 7 8"} {
		if _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("parseStat(%q): no error", bad)
		}
	}
}

func TestParseTimes(t *testing.T) {
	const text = "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 1 2 3 100 50 4 5 6 0 0\ncpu1 10 0 0 100 0 0 0 1 0 0\nintr 1 2 3 4 5 6 7 8 9\n"
	for _, test := range []struct {
		cpus []int
		want Times
	}{
		{[]int{0}, Times{21 * tick, 6 * tick}},
		{[]int{1}, Times{11 * tick, 1 * tick}},
		{nil, Times{32 * tick, 7 * tick}},
	} {
		if got := parseTimes(text, test.cpus); got != test.want {
			t.Errorf("parseTimes(%v) = %v, want %v", test.cpus, got, test.want)
		}
	}
}

func TestRSSAndDescriptors(t *testing.T) {
	rss, err := RSS(os.Getpid())
	if err != nil || rss < 1<<20 {
		t.Errorf("RSS = %d, %v; a Go program has more than 1 MiB", rss, err)
	}
	n, err := Descriptors(os.Getpid())
	if err != nil || n < 3 {
		t.Errorf("Descriptors = %d, %v; want 3 or more", n, err)
	}
}

func TestSwitchesCountSleeps(t *testing.T) {
	before, err := ReadSwitches(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread() // So that its thread still runs then.
	defer runtime.UnlockOSThread()
	const sleeps = 20
	for range sleeps {
		if err := unix.Nanosleep(&unix.Timespec{Nsec: 1000}, nil); err != nil && err != unix.EINTR {
			t.Fatal(err)
		}
	}
	after, err := ReadSwitches(os.Getpid())
	if n := after.Since(before); err != nil || n < sleeps {
		t.Errorf("%d sleeps, %v; want %d or more", n, err, sleeps)
	}
	if n, err := parseSwitches("Name:\tx\nnonvoluntary_ctxt_switches:\t3\nvoluntary_ctxt_switches:\t17\n"); n != 17 || err != nil {
		t.Errorf("parseSwitches = %d, %v; want 17", n, err)
	}
	for _, bad := range []string{"", "nonvoluntary_ctxt_switches:\t3\n", "voluntary_ctxt_switches:\tx\n"} {
		if _, err := parseSwitches(bad); err == nil {
			t.Errorf("parseSwitches(%q): no error", bad)
		}
	}
}

// A launched process is pinned, and nothing else in this one is.
func TestLauncherPins(t *testing.T) {
	if _, err := exec.LookPath("cat"); err != nil {
		t.Skip("no cat to launch")
	}
	before, err := AllowedCPUs()
	if err != nil {
		t.Fatal(err)
	}
	l, err := NewLauncher(before[:1], false)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	cmd := exec.Command("cat", "/proc/self/status")
	cmd.Stdout = &out
	if err := l.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	var list string
	for line := range strings.Lines(out.String()) {
		if v, ok := strings.CutPrefix(line, "Cpus_allowed_list:"); ok {
			list = strings.TrimSpace(v)
		}
	}
	got, err := ParseCPUs(list)
	if err != nil || !slices.Equal(got, before[:1]) {
		t.Errorf("the launched process may use CPU %q, want %v", list, before[:1])
	}
	after, err := AllowedCPUs()
	if err != nil || !slices.Equal(after, before) {
		t.Errorf("this process may use CPU %v, %v; before %v", after, err, before)
	}
}

// A plain process has no CAP_SYS_NICE, and the others keep theirs.
func TestLauncherPlain(t *testing.T) {
	if _, err := exec.LookPath("cat"); err != nil {
		t.Skip("no cat to launch")
	}
	has := map[bool]bool{}
	for _, plain := range []bool{true, false} {
		l, err := NewLauncher(nil, plain)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("cat", "/proc/self/status")
		var out strings.Builder
		cmd.Stdout = &out
		if err := l.Start(cmd); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(out.String()) {
			if v, ok := strings.CutPrefix(line, "CapEff:"); ok {
				caps, err := strconv.ParseUint(strings.TrimSpace(v), 16, 64)
				if err != nil {
					t.Fatal(err)
				}
				has[plain] = caps&(1<<unix.CAP_SYS_NICE) != 0
			}
		}
	}
	if has[true] {
		t.Error("a plain process has CAP_SYS_NICE")
	}
	if !has[false] {
		t.Skip("this process has no CAP_SYS_NICE to give")
	}
}

// Pinning to what is allowed already changes nothing, and visits every thread.
func TestPinToAll(t *testing.T) {
	before, err := AllowedCPUs()
	if err != nil {
		t.Fatal(err)
	}
	if err := Pin(before); err != nil {
		t.Fatal(err)
	}
	after, err := AllowedCPUs()
	if err != nil || !slices.Equal(after, before) {
		t.Errorf("this process may use CPU %v, %v; before %v", after, err, before)
	}
}
