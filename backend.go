package pollux

import (
	"errors"
	"fmt"

	"github.com/pollux-go/pollux/poller"
)

// A Kind names a backend, or lets pollux choose one.
type Kind string

// The kinds of backends.
const (
	KindAuto  Kind = "auto"  // the best one that works here
	KindEpoll Kind = "epoll" // epoll(7), on every Linux
)

// UnmarshalText accepts the names of the kinds.
func (k *Kind) UnmarshalText(text []byte) error {
	switch kind := Kind(text); kind {
	case KindAuto, KindEpoll:
		*k = kind
		return nil
	}
	return fmt.Errorf("%q is not a backend", text)
}

// candidates are the backends that auto tries, the best one first.
var candidates = []struct {
	kind Kind
	open func() (poller.Backend, error)
}{
	{KindEpoll, newEpoll},
}

// openBackend opens a backend of that kind. auto takes the first that works, and tells why each was refused if none
// does; a kind that was asked for by name is never replaced by another.
func openBackend(kind Kind) (poller.Backend, error) {
	var refused []error
	for _, c := range candidates {
		if kind != KindAuto && kind != c.kind {
			continue
		}
		b, err := c.open()
		if err == nil {
			return b, nil
		}
		refused = append(refused, fmt.Errorf("backend %s: %w", c.kind, err))
	}
	if len(refused) == 0 {
		return nil, fmt.Errorf("backend %q: pollux has none of that name", string(kind))
	}
	return nil, errors.Join(refused...)
}
