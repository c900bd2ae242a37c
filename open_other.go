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
