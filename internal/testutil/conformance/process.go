//go:build linux

package conformance

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/pollux-go/pollux/internal/sys"
	"github.com/pollux-go/pollux/internal/testutil"
	"github.com/pollux-go/pollux/poller"
)

func breaks(e *env) {
	b := e.backend()
	events := make([]poller.Event, 8)
	wait := func(timeout time.Duration) time.Duration {
		e.Helper()
		began := time.Now()
		n, err := b.Wait(events, timeout)
		if n != 0 || err != nil {
			e.Fatalf("%d, %v", n, err)
		}
		return time.Since(began)
	}
	// Many breaks before a wait are one.
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 100 {
				if err := b.Break(); err != nil {
					e.Error(err)
				}
			}
		})
	}
	all.Wait()
	wait(-1)
	// A signal may end a wait early, so one of these must last its time, not each.
	lasted := false
	for range 20 {
		lasted = lasted || wait(10*time.Millisecond) >= 10*time.Millisecond
	}
	if !lasted {
		e.Error("one break has ended 20 waits")
	}
	// None is lost, wherever in a wait it hits: each number must be seen before the next is given.
	const rounds = 2000
	var given, seen atomic.Int64
	breaker := e.run(func() error {
		for i := range int64(rounds) {
			given.Store(i + 1)
			if err := b.Break(); err != nil {
				return err
			}
			for seen.Load() != i+1 {
				runtime.Gosched()
			}
		}
		return nil
	})
	waiter := e.run(func() error {
		for seen.Load() < rounds {
			if n, err := b.Wait(events, -1); n != 0 || err != nil {
				return fmt.Errorf("%d, %w", n, err)
			}
			seen.Store(given.Load())
		}
		return nil
	})
	_, err := waiter.wait()
	e.noError(err)
	_, err = breaker.wait()
	e.noError(err)
}

func breakSurvivesPoll(e *env) {
	b := e.backend()
	fd, s := e.pair(b)
	defer sys.Close(fd)
	e.noError(b.Add(fd, token1))
	events := make([]poller.Event, 8)
	poll := func() int {
		e.Helper()
		n, err := b.Wait(events, 0)
		e.noError(err)
		return n
	}
	for poll() > 0 {
	}
	mustReturn := func() int {
		e.Helper()
		t := e.start(func() (int, error) { return b.Wait(events, -1) })
		n, err := t.wait()
		e.noError(err)
		return n
	}
	for range 3 {
		e.noError(b.Break())
		for range 3 {
			if n := poll(); n != 0 {
				e.Fatalf("a break is %d events", n)
			}
		}
		mustReturn()
	}
	// Another break that is coalesced with the one a poll has met.
	e.noError(b.Break())
	poll()
	e.noError(b.Break())
	mustReturn()
	// Events come with it.
	e.noError(b.Break())
	poll()
	s.send(e, "a")
	for events[0] = (poller.Event{}); events[0].Token != token1; {
		mustReturn() // The stream may be slower than the break.
	}
	// It works again afterwards.
	e.noError(b.Break())
	mustReturn()
}

// token1 is a token of a registration that no table has given out.
const token1 = poller.Token(1<<24 | 1)

func signals(e *env) {
	b := e.backend()
	fd, s := e.pair(b)
	defer sys.Close(fd)
	e.noError(b.Add(fd, token1))
	// SIGURG is the runtime's own: it comes to any thread at any time.
	var thread atomic.Int64
	interrupted := 0
	waiter := e.start(func() (int, error) {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		thread.Store(int64(sys.Gettid()))
		events := make([]poller.Event, 8)
		for i := range 1 << 30 {
			timeout := time.Duration(-1)
			if i%2 == 1 {
				timeout = time.Hour
			}
			n, err := b.Wait(events, timeout)
			if err != nil {
				return 0, err
			}
			if n == 0 {
				interrupted++
			}
			for _, ev := range events[:n] {
				if ev.Ready&poller.Readable != 0 {
					return n, nil
				}
			}
		}
		return 0, nil
	})
	for thread.Load() == 0 {
		runtime.Gosched()
	}
	for range 500 {
		e.noError(syscall.Tgkill(os.Getpid(), int(thread.Load()), syscall.SIGURG))
		runtime.Gosched()
	}
	if waiter.ended() {
		e.Fatalf("the wait has ended with %d, %v", waiter.n, waiter.err)
	}
	s.send(e, "a")
	_, err := waiter.wait()
	e.noError(err)
	e.Logf("%d waits were interrupted", interrupted)

	// Every call of the poller's that can be interrupted, once.
	r := e.rig()
	for _, op := range []sys.Op{sys.OpRecv, sys.OpSend, sys.OpRead, sys.OpWrite, sys.OpEpollWait, sys.OpClose, sys.OpAccept} {
		d, s := e.desc(r)
		fault := testutil.Nth{Op: op, Fault: sys.Fault{Errno: sys.EINTR}}
		restore := e.inject(fault.Hook)
		if n, err := d.Write([]byte("ab")); n != 2 || err != nil {
			e.Fatalf("write with %v interrupted: %d, %v", op, n, err)
		}
		reader := e.start(func() (int, error) { return d.Read(make([]byte, 2)) })
		e.parked(inWait, 1, reader)
		s.send(e, "a")
		if n, err := reader.wait(); n != 1 || err != nil {
			e.Fatalf("read with %v interrupted: %d, %v", op, n, err)
		}
		e.noError(d.Close())
		restore()
	}
}

// raw is a stream without the net package, of which there can be many.
type raw struct{ near, far int }

func (e *env) raws(b poller.Backend, n int) []raw {
	e.Helper()
	all := make([]raw, n)
	for i := range all {
		fds, errno := sys.Socketpair()
		if errno != 0 {
			e.Fatal(errno)
		}
		all[i] = raw{fds[0], fds[1]}
		e.Cleanup(func() { sys.Close(fds[1]) })
	}
	return all
}

func (e *env) poke(b poller.Backend, r raw) {
	e.Helper()
	if n, errno := sys.Send(r.far, []byte("x")); n != 1 || errno != 0 {
		e.Fatalf("%d, %v", n, errno)
	}
	if e.target.Kick != nil {
		e.target.Kick(b, r.near)
	}
}

func moreThanABatch(e *env) {
	const many = 300 // more than one Wait returns
	b := e.backend()
	all := e.raws(b, many)
	for i, s := range all {
		defer sys.Close(s.near)
		e.noError(b.Add(s.near, token1+poller.Token(i)))
		e.poke(b, s)
	}
	events := make([]poller.Event, 1024)
	seen := map[poller.Token]int{}
	for len(seen) < many {
		n, err := b.Wait(events, patience)
		e.noError(err)
		if n == 0 {
			e.Fatalf("%d of %d descriptors have shown", len(seen), many)
		}
		for _, ev := range events[:n] {
			seen[ev.Token]++
		}
	}
	// Some are ready again and again; the others must show all the same, in batches much smaller than the crowd.
	const batch, noisy = 8, 6
	for _, s := range all {
		e.poke(b, s)
	}
	clear(seen)
	for turn := 0; len(seen) < many; turn++ {
		if turn > many {
			e.Fatalf("%d of %d descriptors have shown in %d turns", len(seen), many, turn)
		}
		for _, s := range all[:noisy] {
			e.poke(b, s)
		}
		n, err := b.Wait(events[:batch], patience)
		e.noError(err)
		for _, ev := range events[:n] {
			seen[ev.Token]++
		}
	}

	// The same through a poller, whose loop finds more than a batch at once.
	r := e.rig()
	all = e.raws(r.spy.Backend, many)
	descs := make([]*poller.Desc, many)
	readers := make([]*task, many)
	for i, s := range all {
		d, err := r.OpenStream(s.near, false)
		e.noError(err)
		defer d.Close()
		descs[i] = d
		readers[i] = e.start(func() (int, error) { return d.Read(make([]byte, 1)) })
	}
	e.parked(inWait, many, readers...)
	gate := make(chan struct{})
	r.spy.mu.Lock()
	r.spy.after = func([]poller.Event) { <-gate }
	r.spy.mu.Unlock()
	for _, s := range all {
		e.poke(r.spy.Backend, s)
	}
	close(gate)
	for i, t := range readers {
		if n, err := t.wait(); n != 1 || err != nil {
			e.Fatalf("reader %d: %d, %v", i, n, err)
		}
	}
}

func countReturns(e *env) {
	r := e.rig()
	before := r.Len()
	for range 3 {
		var descs []*poller.Desc
		var readers []*task
		for range 20 {
			d, _ := e.desc(r)
			descs = append(descs, d)
			readers = append(readers, e.start(func() (int, error) { return d.Read(make([]byte, 1)) }))
		}
		e.parked(inWait, 20, readers...)
		if got := r.Len() - before; got != 20 {
			e.Errorf("%d descriptors are open, not 20", got)
		}
		for i, d := range descs {
			e.noError(d.Close())
			_, err := readers[i].wait()
			e.wantError(err, poller.ErrClosed)
		}
	}
	_, err := r.Open(1 << 29)
	if err == nil {
		e.Error("a number that is no descriptor can be opened")
	}
	e.settle(r)
	if got := r.Len(); got != before {
		e.Errorf("%d descriptors are left, not %d", got, before)
	}
	e.parked(inWait, 0)
}

func cloexec(e *env) {
	before := testutil.Files()
	r := e.rig()
	d, _ := e.desc(r)
	_ = d
	ours := map[string]bool{}
	for fd, what := range testutil.Files() {
		if before[fd] == what {
			continue
		}
		info, err := os.ReadFile("/proc/self/fdinfo/" + fd)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		e.noError(err)
		var flags int
		for line := range strings.SplitSeq(string(info), "\n") {
			if v, ok := strings.CutPrefix(line, "flags:"); ok {
				_, err := fmt.Sscanf(strings.TrimSpace(v), "%o", &flags)
				e.noError(err)
			}
		}
		if flags&syscall.O_CLOEXEC == 0 {
			e.Errorf("fd %s, %s, is not closed on exec", fd, what)
		}
		ours[what] = true
	}
	if len(ours) == 0 {
		e.Fatal("nothing was opened")
	}
	ls, err := exec.LookPath("ls")
	if err != nil {
		e.Skip("there is no ls to run as a child")
	}
	out, err := exec.Command(ls, "-l", "/proc/self/fd/").CombinedOutput()
	e.noError(err)
	for what := range ours {
		if strings.Contains(string(out), what) {
			e.Errorf("a child has %s:\n%s", what, out)
		}
	}
}

func notPollable(e *env) {
	r := e.rig()
	before := r.Len()
	file, err := os.Create(filepath.Join(e.TempDir(), "regular"))
	e.noError(err)
	defer file.Close()
	dir, err := os.Open(e.TempDir())
	e.noError(err)
	defer dir.Close()
	for _, f := range []*os.File{file, dir} {
		_, err := r.Open(int(f.Fd()))
		e.wantError(err, poller.ErrNotPollable)
		e.wantError(err, fs.ErrPermission) // EPERM, which the text should name as well
		if !strings.Contains(err.Error(), "cannot be polled") {
			e.Errorf("the error explains nothing: %v", err)
		}
		if _, err := f.Stat(); err != nil {
			e.Errorf("it does not belong to the caller any more: %v", err)
		}
	}
	for _, fd := range []int{-1, 1 << 29} {
		if _, err := r.Open(fd); err == nil {
			e.Errorf("fd %d can be opened", fd)
		}
	}
	fd, _ := e.pair(r.spy.Backend)
	d := e.open(r, fd)
	if _, err := r.Open(fd); err == nil {
		e.Error("a descriptor can be opened twice")
	}
	if b, ok := r.spy.Backend.(poller.Pollable); ok {
		if !poller.IsPollDescriptor(b.PollFD()) {
			e.Error("the backend's descriptor is not known as such")
		}
		_, err := r.Open(b.PollFD())
		e.wantError(err, poller.ErrOwnDescriptor)
	}
	e.noError(d.Close())
	if got := r.Len(); got != before {
		e.Errorf("%d descriptors are left, not %d", got, before)
	}
}

func shutdownWakes(e *env) {
	r := e.rig()
	const each = 10
	var tasks []*task
	var descs []*poller.Desc
	for range each {
		d, _ := e.desc(r)
		e.fill(d)
		e.settle(r)
		e.noError(d.Reset(poller.ModeRead | poller.ModeWrite))
		descs = append(descs, d)
		tasks = append(tasks,
			e.start(func() (int, error) { return d.Read(make([]byte, 1)) }),
			e.start(func() (int, error) { return d.Write([]byte("x")) }))
		e.noError(d.SetDeadline(r.clock.Time().Add(time.Hour)))
	}
	e.parked(inWait, 2*each, tasks...)
	e.noError(r.Close())
	for _, t := range tasks {
		_, err := t.wait()
		e.wantError(err, poller.ErrClosed)
	}
	if n := r.clock.Armed(); n != 0 {
		e.Errorf("%d timers are left", n)
	}
	e.wantError(r.Close(), poller.ErrClosed)
	fd, _ := e.pair(r.spy.Backend)
	_, err := r.OpenStream(fd, false)
	e.wantError(err, poller.ErrClosed)
	sys.Close(fd)
	// The descriptors are their users' to close, and their numbers are theirs until then.
	for _, d := range descs {
		if !isOpen(d.Fd()) {
			e.Error("the shutdown has closed a descriptor")
		}
		e.noError(d.Close())
	}
	if n := r.Len(); n != 1 { // the sentinel
		e.Errorf("%d descriptors are left", n)
	}
	// The backend itself refuses everything from now on.
	b := r.spy.Backend
	e.wantError(b.Add(r.sentinel.Fd(), token1), poller.ErrClosed)
	e.wantError(b.Remove(r.sentinel.Fd()), poller.ErrClosed)
	e.wantError(b.Break(), poller.ErrClosed)
	e.wantError(b.Break(), poller.ErrClosed)
	_, err = b.Wait(make([]poller.Event, 1), 0)
	e.wantError(err, poller.ErrClosed)
	_, err = b.Wait(make([]poller.Event, 1), -1)
	e.wantError(err, poller.ErrClosed)
	e.wantError(b.Close(), poller.ErrClosed)
}

func busyProcess(e *env) {
	r := e.rig()
	d, s := e.desc(r)
	var over atomic.Bool
	var all sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		all.Go(func() {
			for i := 0; !over.Load(); i++ {
			}
		})
	}
	defer all.Wait()
	defer over.Store(true)
	// This shows that readiness reaches a goroutine at all while nobody else gives up a processor. By how much it beats
	// sysmon's 10 ms is for the benchmarks to say.
	var worst time.Duration
	for range 5 {
		reader := e.start(func() (int, error) { return d.Read(make([]byte, 1)) })
		began := time.Now()
		s.send(e, "a")
		if n, err := reader.wait(); n != 1 || err != nil {
			e.Fatalf("%d, %v", n, err)
		}
		worst = max(worst, time.Since(began))
	}
	e.Logf("at worst %v", worst)
}

func collector(e *env) {
	r := e.rig()
	const many = 50
	all := e.raws(r.spy.Backend, many)
	readers := make([]*task, many)
	for i, s := range all {
		readers[i] = e.start(func() (int, error) {
			// Nobody but the poller and this stack, which moves, knows the Desc.
			d, err := r.OpenStream(s.near, false)
			if err != nil {
				return 0, err
			}
			defer d.Close()
			deepen(1 << 10)
			return d.Read(make([]byte, 1))
		})
	}
	e.parked(inWait, many, readers...)
	for range 3 {
		runtime.GC()
	}
	for _, s := range all {
		e.poke(r.spy.Backend, s)
	}
	runtime.GC()
	for i, t := range readers {
		if n, err := t.wait(); n != 1 || err != nil {
			e.Fatalf("reader %d: %d, %v", i, n, err)
		}
	}
}

// deepen makes the stack grow, and so move.
func deepen(n int) byte {
	var page [64]byte
	if n > 0 {
		page[n%len(page)] = deepen(n - 1)
	}
	return page[n%len(page)] + 1
}

// sameTrace compares what each step makes a backend say with what epoll says of it.
func sameTrace(e *env) {
	b := e.backend()
	fd, s := e.pair(b)
	open := true
	defer func() {
		if open {
			sys.Close(fd)
		}
	}()
	const inOut = poller.Readable | poller.Writable
	full := 0
	for i, step := range []struct {
		what string
		do   func()
		want poller.Ready
	}{
		{"add", func() { e.noError(b.Add(fd, token1)) }, poller.Writable},
		{"the peer writes", func() { s.send(e, "a") }, inOut},
		{"the peer writes again", func() { s.send(e, "b") }, inOut},
		{"read", func() {
			if n, errno := sys.Recv(fd, make([]byte, 8)); n != 2 || errno != 0 {
				e.Fatalf("%d, %v", n, errno)
			}
		}, 0},
		{"write until it is full", func() {
			for chunk := make([]byte, 64<<10); ; {
				n, errno := sys.Send(fd, chunk)
				if errno == sys.EAGAIN {
					return
				}
				if errno != 0 {
					e.Fatal(errno)
				}
				full += n
			}
		}, 0},
		{"the peer writes to the full", func() { s.send(e, "c") }, poller.Readable},
		{"the peer reads", func() {
			for left := full; left > 0; {
				n, err := s.Read(make([]byte, min(left, 1<<20)))
				e.noError(err)
				left -= n
			}
		}, inOut},
		{"the peer ends its half", func() { e.noError(s.CloseWrite()) }, inOut | poller.PeerClosed},
		{"the other half is ended", func() { sys.Shutdown(fd, sys.SHUT_WR); s.kick() }, inOut | poller.PeerClosed | poller.HungUp},
		{"remove", func() { e.noError(b.Remove(fd)) }, 0},
		{"the peer goes", func() { e.noError(s.Close()) }, 0},
		{"add what has ended", func() { e.noError(b.Add(fd, token1)) }, inOut | poller.PeerClosed | poller.HungUp},
		{"close", func() { e.noError(b.Remove(fd)); sys.Close(fd); open = false }, 0},
	} {
		step.do()
		var got poller.Ready
		events := make([]poller.Event, 8)
		for polls := 0; got&step.want != step.want || polls == 0; polls++ {
			timeout := patience
			if step.want == 0 {
				timeout = 0
			}
			n, err := b.Wait(events, timeout)
			e.noError(err)
			if n == 0 && timeout != 0 {
				break
			}
			for _, ev := range events[:n] {
				if ev.Token != token1 {
					e.Errorf("step %d, %s: an event of %v", i, step.what, ev.Token)
				}
				got |= ev.Ready
			}
		}
		if got != step.want {
			e.Errorf("step %d, %s: %06b, not %06b", i, step.what, got, step.want)
		}
	}
}

func completionRaces(e *env) {
	e.Skip("the backend reports readiness: no operation of its own is in flight in the kernel (io_uring's completions)")
}
