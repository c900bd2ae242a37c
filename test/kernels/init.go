//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// What init prints between the output of the commands. A line of a command never begins so.
const (
	markBegin = "@@ begin "
	markEnd   = "@@ end "
	markDone  = "@@ done"
)

// Where init finds its work, and where it reports: the first serial port is the kernel's, whose lines would come in
// between.
const (
	listPath   = "/tests.txt"
	reportPath = "/dev/ttyS1"
)

// rlimitMemlock is RLIMIT_MEMLOCK, which package syscall has no name for.
const rlimitMemlock = 8

// grace is what a command gets after its limit, which a test uses to say where it hangs.
const grace = 20 * time.Second

// runInit is the first process of a machine: it makes the machine usable, runs the list, and switches the machine off.
// What goes wrong is said on the report, and on the console as long as there is none.
func runInit() {
	var report io.Writer = os.Stdout
	err := prepare()
	if err == nil {
		var port *os.File
		if port, err = openReport(); err == nil {
			report = port
			err = runTests(report)
		}
	}
	if err != nil {
		fmt.Fprintf(report, "init: %v\n", err)
	} else {
		fmt.Fprintln(report, markDone)
	}
	syscall.Sync()
	syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
	// Should it return, the end of the first process makes the kernel panic, which ends the machine too.
}

func prepare() error {
	for _, m := range []struct{ kind, dir string }{
		{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/tmp"}, {"cgroup2", "/sys/fs/cgroup"},
	} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := syscall.Mount(m.kind, m.dir, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	os.Setenv("PATH", "/bin")
	os.Setenv("HOME", "/tmp")
	for _, l := range []struct {
		resource int
		most     uint64
	}{
		{syscall.RLIMIT_NOFILE, 1 << 16}, {rlimitMemlock, 8 << 20},
	} {
		if err := syscall.Setrlimit(l.resource, &syscall.Rlimit{Cur: l.most, Max: l.most}); err != nil {
			return fmt.Errorf("set limit %d: %w", l.resource, err)
		}
	}
	if err := loopbackUp(); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	return nil
}

func loopbackUp() error {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	var request struct {
		name  [syscall.IFNAMSIZ]byte
		flags uint16
		_     [22]byte
	}
	copy(request.name[:], "lo")
	request.flags = syscall.IFF_UP | syscall.IFF_RUNNING
	return ioctl(fd, syscall.SIOCSIFFLAGS, unsafe.Pointer(&request))
}

func ioctl(fd int, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// openReport opens the serial port so that it passes on what is written as it is.
func openReport() (*os.File, error) {
	f, err := os.OpenFile(reportPath, os.O_WRONLY|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	var settings syscall.Termios
	if err := ioctl(int(f.Fd()), syscall.TCGETS, unsafe.Pointer(&settings)); err != nil {
		return nil, fmt.Errorf("get the settings of %s: %w", reportPath, err)
	}
	settings.Oflag &^= syscall.OPOST
	if err := ioctl(int(f.Fd()), syscall.TCSETS, unsafe.Pointer(&settings)); err != nil {
		return nil, fmt.Errorf("set up %s: %w", reportPath, err)
	}
	return f, nil
}

// item is a line of the list.
type item struct {
	name  string
	uring bool // only where io_uring works by name
	limit time.Duration
	args  []string // variables, the command and its arguments
}

// command returns the command with its arguments, and what the environment has before it.
func (it item) command() (env, args []string) {
	n := 0
	for n < len(it.args)-1 && strings.Contains(it.args[n], "=") {
		n++
	}
	return it.args[:n], it.args[n:]
}

// isTest tells whether the command is a test binary.
func (it item) isTest() bool {
	_, args := it.command()
	return strings.HasSuffix(args[0], ".test")
}

// parseList reads the list: a line has a name, where it runs, a limit in seconds and a command, separated by blanks. Empty
// lines and those that begin with # are passed over.
func parseList(r io.Reader) (list []item, err error) {
	s := bufio.NewScanner(r)
	for s.Scan() {
		line := strings.TrimSpace(s.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		fields := strings.Fields(line)
		if len(fields) < 4 || fields[1] != "all" && fields[1] != "io_uring" {
			return nil, fmt.Errorf("%q is not a name, all or io_uring, a limit and a command", line)
		}
		seconds, err := strconv.Atoi(fields[2])
		if err != nil {
			return nil, fmt.Errorf("the limit of %q: %w", line, err)
		}
		list = append(list, item{fields[0], fields[1] == "io_uring", time.Duration(seconds) * time.Second, fields[3:]})
	}
	return list, s.Err()
}

func readList(path string) ([]item, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseList(f)
}

func runTests(report io.Writer) error {
	list, err := readList(listPath)
	if err != nil {
		return err
	}
	for _, it := range list {
		if it.uring && os.Getenv("POLLUX_KERNEL_URING") != "works" {
			continue
		}
		fmt.Fprintf(report, "%s%s\n", markBegin, it.name)
		start := time.Now()
		status := run(it, report)
		fmt.Fprintf(report, "\n%s%s %s %.0f\n", markEnd, it.name, status, time.Since(start).Seconds())
	}
	return nil
}

// run runs one command. What it answers is a word: ok, or what went wrong.
func run(it item, report io.Writer) string {
	env, args := it.command()
	if it.isTest() {
		args = append(args, "-test.v", "-test.timeout="+it.limit.String())
	}
	ctx, cancel := context.WithTimeout(context.Background(), it.limit+grace)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	// Through a pipe: a serial port would have the command wait for each line.
	reader, writer, err := os.Pipe()
	if err != nil {
		fmt.Fprintln(report, err)
		return "not-started"
	}
	cmd.Stdout, cmd.Stderr = writer, writer
	cmd.Dir = "/tmp"
	cmd.Env = append(os.Environ(), env...)
	// A group of its own, so that what the command has started ends with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		io.Copy(report, reader)
	}()
	err = cmd.Run()
	if cmd.Process != nil {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	writer.Close()
	select {
	case <-copied:
	case <-time.After(grace): // Somebody who has left the group holds the pipe.
	}
	reader.Close()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return "ok"
	case ctx.Err() != nil:
		return "killed-after-" + (it.limit + grace).String()
	case errors.As(err, &exit):
		return strings.ReplaceAll(exit.String(), " ", "-")
	default:
		fmt.Fprintln(report, err)
		return "not-started"
	}
}
