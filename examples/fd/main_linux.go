// Fd waits for a file descriptor that is no socket: an inotify instance, which tells what happens in a directory. Pipes,
// eventfds, timerfds, tun devices and serial lines go the same way: open it, give it to pollux.Open, and Read, Write and
// the waits block the goroutine alone, with deadlines, until a Close ends them.
//
//	go run ./examples/fd -dir /tmp
//	touch /tmp/something
//
// It ends by SIGINT or SIGTERM.
package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/pollux-go/pollux"
	"github.com/pollux-go/pollux/poller"
)

func main() {
	dir := flag.String("dir", ".", "directory to watch")
	quiet := flag.Duration("quiet", time.Minute, "say so when nothing has happened for so long")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *dir, *quiet); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, dir string, quiet time.Duration) error {
	fd, err := syscall.InotifyInit1(syscall.IN_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("inotify_init1", err)
	}
	if _, err := syscall.InotifyAddWatch(fd, dir, syscall.IN_CREATE|syscall.IN_DELETE|syscall.IN_CLOSE_WRITE); err != nil {
		syscall.Close(fd)
		return fmt.Errorf("watch %s: %w", dir, os.NewSyscallError("inotify_add_watch", err))
	}
	d, err := pollux.Open(fd) // The Desc owns fd from here on.
	if err != nil {
		syscall.Close(fd)
		return err
	}
	// A Close from outside ends a Read that waits.
	context.AfterFunc(ctx, func() { _ = d.Close() })
	fmt.Println("watching", dir)

	events := make([]byte, 64<<10)
	for {
		if err := d.SetReadDeadline(time.Now().Add(quiet)); err != nil && !errors.Is(err, poller.ErrClosed) {
			return err
		}
		n, err := d.Read(events)
		switch {
		case errors.Is(err, poller.ErrTimeout):
			fmt.Println("all quiet for", quiet)
		case errors.Is(err, poller.ErrClosed):
			return nil
		case err != nil:
			return err
		default:
			report(events[:n])
		}
	}
}

// report prints events: a struct inotify_event each, followed by a name that is padded with zeros. See inotify(7).
func report(events []byte) {
	for len(events) >= syscall.SizeofInotifyEvent {
		mask := binary.NativeEndian.Uint32(events[4:])
		end := syscall.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(events[12:]))
		name, _, _ := bytes.Cut(events[syscall.SizeofInotifyEvent:end], []byte{0})
		switch {
		case mask&syscall.IN_CREATE != 0:
			fmt.Printf("created %s\n", name)
		case mask&syscall.IN_CLOSE_WRITE != 0:
			fmt.Printf("written %s\n", name)
		case mask&syscall.IN_DELETE != 0:
			fmt.Printf("deleted %s\n", name)
		}
		events = events[end:]
	}
}
