//go:build !linux

package pollux

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/pollux-go/pollux/poller"
)

// newEpoll says that there is none here.
func newEpoll() (poller.Backend, error) {
	return nil, fmt.Errorf("pollux runs on Linux only, this is %s: %w", runtime.GOOS, errors.ErrUnsupported)
}

// newUring says that there is none here.
func newUring(Config) (poller.Backend, error) { return newEpoll() }

// checkUring leaves it to newUring to say that there is none.
func checkUring(Config, bool) error { return nil }
