package pollux

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/pollux-go/pollux/internal/testutil"
)

// TestCloseKeepsOtherErrors has a Close hear of several errors: that connections were closed by force is what it was asked for.
func TestCloseKeepsOtherErrors(t *testing.T) {
	forced := fmt.Errorf("closed by force: %w", errClosedNow)
	for _, test := range []struct {
		err  error
		want []error
	}{
		{nil, nil},
		{io.EOF, []error{io.EOF}},
		{forced, nil},
		{errors.Join(forced, nil, forced), nil},
		{errors.Join(forced, io.EOF), []error{io.EOF}},
		{errors.Join(io.EOF, errors.Join(forced, os.ErrClosed), forced), []error{io.EOF, os.ErrClosed}},
	} {
		got := except(test.err, errClosedNow)
		if (got == nil) != (test.want == nil) || errors.Is(got, errClosedNow) {
			t.Errorf("of %v %v is left", test.err, got)
		}
		for _, want := range test.want {
			if !errors.Is(got, want) {
				t.Errorf("of %v %v is left, without %v", test.err, got, want)
			}
		}
	}
}

// TestCloseTellsOfAHandler closes an engine with a handler that does not return, which takes the time that handlers have.
func TestCloseTellsOfAHandler(t *testing.T) {
	if os.Getenv("POLLUX_TEST_LONG") == "" {
		t.Skip("it takes ten seconds: make soak runs it")
	}
	testutil.CheckLeaks(t)
	release, inside := make(chan struct{}), make(chan struct{})
	e := newEngine(t, Config{Loops: 1, Dispatch: DispatchInline})
	s, _ := bind(t, e, "tcp", funcs{data: func(*Conn) error { close(inside); <-release; return nil }})
	c := dial(t, s.Addrs()[0])
	defer c.Close()
	io.WriteString(c, "x")
	receive(t, "the handler", inside)
	if err := e.Close(); err == nil || !strings.Contains(err.Error(), "an event loop does not end") || errors.Is(err, errClosedNow) {
		t.Errorf("%v: it does not say that the loop does not end", err)
	}
	close(release)
	eventually(t, "the loop's end", func() bool {
		select {
		case <-e.loops[0].done:
			return true
		default:
			return false
		}
	})
}
