//go:build linux

package test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

var (
	past  = time.Unix(1, 0)
	never time.Time
)

func isTimeout(err error) bool {
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout() && errors.Is(err, os.ErrDeadlineExceeded)
}

// expectEOF checks for a bare io.EOF, which callers compare with ==.
func expectEOF(t testing.TB, err error) {
	t.Helper()
	if err != io.EOF {
		t.Errorf("got %v, want a bare io.EOF", err)
	}
}

func expectTimeout(t testing.TB, err error) {
	t.Helper()
	if !isTimeout(err) {
		t.Errorf("got %v, want an os.ErrDeadlineExceeded that is a net.Error with Timeout()", err)
	}
}

func expectClosed(t testing.TB, err error) {
	t.Helper()
	if !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v, want net.ErrClosed", err)
	}
}

func expectErrno(t testing.TB, err error, errno ...syscall.Errno) {
	t.Helper()
	for _, e := range errno {
		if errors.Is(err, e) {
			return
		}
	}
	t.Errorf("got %v, want one of %v", err, errno)
}

func expectNil(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Errorf("got %v, want nil", err)
	}
}

// sentinels are the errors that callers compare with.
var sentinels = []struct {
	name string
	err  error
}{
	{"io.EOF", io.EOF},
	{"net.ErrClosed", net.ErrClosed},
	{"os.ErrDeadlineExceeded", os.ErrDeadlineExceeded},
	{"os.ErrNotExist", os.ErrNotExist},
	{"os.ErrExist", os.ErrExist},
	{"os.ErrPermission", os.ErrPermission},
	{"context.Canceled", context.Canceled},
	{"context.DeadlineExceeded", context.DeadlineExceeded},
}

// A trace is what one stack did in a test: a line a step, with nothing in it that differs from run to run.
type trace struct {
	t     testing.TB
	mu    sync.Mutex // protects the fields below
	lines []string
	names []string // of what varies, old and new in turn
}

// name has text written as name from here on: an address, a path.
func (tr *trace) name(text, name string) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if text != "" {
		tr.names = append(tr.names, text, name)
	}
}

// conn names the addresses of a connection.
func (tr *trace) conn(c net.Conn) {
	for _, a := range []struct {
		addr net.Addr
		name string
	}{{c.LocalAddr(), "<local>"}, {c.RemoteAddr(), "<remote>"}} {
		if text := a.addr.String(); text != "@" { // That is how every unix socket without a name is called.
			tr.name(text, a.name)
		}
	}
}

// see adds a step. It says everything about the result that a caller can decide on.
func (tr *trace) see(what string, result any, err error) {
	line := fmt.Sprintf("%s: %v, %s", what, result, describe(err))
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.lines = append(tr.lines, strings.NewReplacer(tr.names...).Replace(line))
}

// describe renders an error as callers see it: its text, its type, the fields of a *net.OpError, and what it is.
func describe(err error) string {
	if err == nil {
		return "nil"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%T %q", err, err)
	if op, ok := errors.AsType[*net.OpError](err); ok {
		fmt.Fprintf(&b, " op=%s net=%s source=%v addr=%v", op.Op, op.Net, op.Source, op.Addr)
	}
	if ne, ok := errors.AsType[net.Error](err); ok {
		//lint:ignore SA1019 Temporary is deprecated, and accept loops ask for it.
		fmt.Fprintf(&b, " timeout=%t temporary=%t", ne.Timeout(), ne.Temporary())
	}
	for _, s := range sentinels {
		if errors.Is(err, s.err) {
			fmt.Fprintf(&b, " is=%s", s.name)
		}
	}
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		fmt.Fprintf(&b, " errno=%d", int(errno))
	}
	if se, ok := errors.AsType[*os.SyscallError](err); ok {
		fmt.Fprintf(&b, " syscall=%s", se.Syscall)
	}
	return b.String()
}

// parity runs body on package net and on pollux and compares what the two saw, step by step. What body checks itself
// concerns both alike.
func parity(t *testing.T, body func(t *testing.T, s stack, tr *trace)) {
	t.Helper()
	var traces [2][]string
	for i := range traces {
		s := std
		if i == 1 {
			s.name = "pollux"
		}
		t.Run(s.name, func(t *testing.T) {
			if i == 1 {
				s = ours(t)
			}
			tr := &trace{t: t}
			body(t, s, tr)
			traces[i] = tr.lines
		})
	}
	if t.Failed() {
		return
	}
	if !slices.Equal(traces[0], traces[1]) {
		t.Error(difference(traces[0], traces[1]))
	}
}

func difference(want, got []string) string {
	var b strings.Builder
	for i := range max(len(want), len(got)) {
		w, g := "nothing", "nothing"
		if i < len(want) {
			w = want[i]
		}
		if i < len(got) {
			g = got[i]
		}
		if w != g {
			fmt.Fprintf(&b, "\nstd:    %s\npollux: %s", w, g)
		}
	}
	return b.String()
}

// parityNetworks is parity for connections of each network.
func parityNetworks(t *testing.T, body func(t *testing.T, s stack, network string, tr *trace)) {
	t.Helper()
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			parity(t, func(t *testing.T, s stack, tr *trace) { body(t, s, network, tr) })
		})
	}
}

// asTimeout makes one error of all timeouts, for traces that must not show which it was.
func asTimeout(err error) error {
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		return errTimeout
	}
	return err
}

var errTimeout = errors.New("timeout")

type patternError struct{ at uint64 }

func (e *patternError) Error() string { return fmt.Sprintf("byte %d of the stream is wrong", e.at) }
