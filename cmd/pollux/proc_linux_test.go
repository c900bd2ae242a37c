package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The servers are tested as what they are: a built binary that is started on port 0, talked to, and ended by a signal.

// patience is how long anything may take before a test fails. It is generous: the machine may be busy.
const patience = 30 * time.Second

// binary is the path of the built command.
var binary string

func TestMain(m *testing.M) {
	flag.Parse()
	dir, err := os.MkdirTemp("", "pollux")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	binary = filepath.Join(dir, "pollux")
	args := []string{"build", "-buildvcs=false", "-o", binary}
	if raceEnabled {
		args = append(args, "-race")
	}
	build := exec.Command("go", append(args, ".")...)
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
		os.Exit(1)
	}
	status := m.Run()
	os.RemoveAll(dir)
	os.Exit(status)
}

// proc is a running server.
type proc struct {
	*exec.Cmd
	banner string
	addrs  []string // As in the banner: network://address.
	stderr lockedBuffer
	exited chan struct{} // Closed when the process has ended.
}

// option changes how a server is started.
type option func(*exec.Cmd)

func withEnv(vars ...string) option {
	return func(c *exec.Cmd) { c.Env = append(c.Env, vars...) }
}

func withFile(f *os.File) option {
	return func(c *exec.Cmd) { c.ExtraFiles = append(c.ExtraFiles, f) }
}

// start runs "pollux args..." and waits until it says where it listens.
func start(t *testing.T, args []string, options ...option) *proc {
	t.Helper()
	p := &proc{Cmd: exec.Command(binary, args...), exited: make(chan struct{})}
	p.Env = cleanEnv()
	for _, o := range options {
		o(p.Cmd)
	}
	p.Stderr = &p.stderr
	stdout, err := p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	lines := make(chan string, 1)
	go func() {
		r := bufio.NewReader(stdout)
		line, _ := r.ReadString('\n')
		lines <- line
		io.Copy(io.Discard, r)
		p.Wait()
		close(p.exited)
	}()
	t.Cleanup(func() {
		p.Process.Kill()
		<-p.exited
	})
	select {
	case p.banner = <-lines:
	case <-time.After(patience):
		t.Fatalf("pollux %s does not say that it listens", strings.Join(args, " "))
	}
	_, list, ok := strings.Cut(strings.TrimSpace(p.banner), " addr=")
	if !ok {
		<-p.exited
		t.Fatalf("pollux %s: %q on stdout, %q on stderr, %v", strings.Join(args, " "), p.banner, p.stderr.String(), p.ProcessState)
	}
	p.addrs = strings.Split(list, ",")
	return p
}

// hostPort is where the first address listens.
func (p *proc) hostPort() string {
	_, address, _ := strings.Cut(p.addrs[0], "://")
	return address
}

// dial connects to the first address.
func (p *proc) dial(t *testing.T) net.Conn {
	t.Helper()
	return dialAddr(t, p.addrs[0])
}

func dialAddr(t *testing.T, addr string) net.Conn {
	t.Helper()
	network, address, _ := strings.Cut(addr, "://")
	c, err := net.DialTimeout(network, address, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

// stop ends the server by SIGTERM and demands that it goes in peace.
func (p *proc) stop(t *testing.T) {
	t.Helper()
	p.signal(t, syscall.SIGTERM)
	p.ends(t)
	if s := p.ProcessState.ExitCode(); s != 0 {
		t.Errorf("exit status %d (%v) after SIGTERM; stderr: %s", s, p.ProcessState, p.stderr.String())
	}
	if s := p.stderr.String(); s != "" {
		t.Errorf("on stderr: %s", s)
	}
}

func (p *proc) signal(t *testing.T, s os.Signal) {
	t.Helper()
	if err := p.Process.Signal(s); err != nil {
		t.Fatalf("%v; stderr: %s", err, p.stderr.String())
	}
}

// ends waits for the end of the process.
func (p *proc) ends(t *testing.T) {
	t.Helper()
	select {
	case <-p.exited:
	case <-time.After(patience):
		p.Process.Signal(syscall.SIGQUIT) // The stacks say where it hangs.
		<-p.exited
		t.Fatalf("the server does not end: %s", p.stderr.String())
	}
}

// output runs "pollux args..." to its end.
func output(t *testing.T, args []string, env ...string) (stdout, stderr string, status int) {
	t.Helper()
	var out, errs bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c := exec.CommandContext(ctx, binary, args...)
	c.Env, c.Stdout, c.Stderr = append(cleanEnv(), env...), &out, &errs
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), c.ProcessState.ExitCode()
}

// cleanEnv is the environment without what configures pollux, except for the backend and its features: a run of the tests
// may choose them.
func cleanEnv() []string {
	var env []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "POLLUX_") || strings.HasPrefix(v, "POLLUX_BACKEND=") || strings.HasPrefix(v, "POLLUX_URING_FEATURES=") {
			env = append(env, v)
		}
	}
	return env
}

// lockedBuffer is a bytes.Buffer that can be read while a process writes to it.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// exchange sends request and demands exactly want, and that nothing is left.
func exchange(t *testing.T, c net.Conn, request, want string) {
	t.Helper()
	sent := make(chan error, 1)
	go func() {
		_, err := io.WriteString(c, request)
		sent <- err
	}()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("%.80q: got %.200q, %v; want %.200q", request, got[:n], err, want)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
}

// ended demands that the server has closed its side, and returns what it had to say before.
func ended(t *testing.T, c net.Conn) string {
	t.Helper()
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatalf("after %.200q: %v", b, err)
	}
	return string(b)
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
