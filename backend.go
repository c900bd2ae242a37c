package pollux

import (
	"errors"
	"fmt"
	"strings"

	"github.com/pollux-go/pollux/poller"
)

// A Kind names a backend, or lets pollux choose one.
type Kind string

// The kinds of backends.
const (
	KindAuto  Kind = "auto"     // the best one that works here
	KindEpoll Kind = "epoll"    // epoll(7), on every Linux
	KindUring Kind = "io_uring" // io_uring(7), from Linux 6.1 on
)

// UnmarshalText accepts the names of the kinds.
func (k *Kind) UnmarshalText(text []byte) error {
	switch kind := Kind(text); kind {
	case KindAuto, KindEpoll, KindUring:
		*k = kind
		return nil
	}
	return fmt.Errorf("%q is not a backend", text)
}

// autoOrder is the order in which auto tries the backends: the one that costs less comes first. docs/io_uring.md has the
// comparison.
var autoOrder = []Kind{KindUring, KindEpoll}

// candidate is a backend that can be chosen.
type candidate struct {
	// check tells whether the whole path works here, not only the set-up, with as little memory as possible. auto has higher
	// demands than somebody who asks for a backend by its name. nil: an open that succeeds says it all.
	check func(c Config, auto bool) error
	open  func(c Config) (poller.Backend, error)
}

var candidates = map[Kind]candidate{
	KindEpoll: {open: func(Config) (poller.Backend, error) { return newEpoll() }},
	KindUring: {check: checkUring, open: newUring},
}

// choice is how an engine finds its backend, and remembers why. A kind that was asked for by name is never replaced by
// another.
type choice struct {
	config  Config
	left    []Kind // that were not tried
	kind    Kind   // taken
	refused []error
}

// choose takes the first backend that works.
func choose(config Config) (*choice, error) {
	c := &choice{config: config, left: []Kind{config.Backend}}
	if c.auto() {
		c.left = autoOrder
	}
	return c, c.next(nil)
}

func (c *choice) auto() bool { return c.config.Backend == KindAuto }

// next takes the next backend that works, because the one taken has failed with an error, if there was one. The error
// tells why each was refused.
func (c *choice) next(failure error) error {
	c.refuse(c.kind, failure)
	for len(c.left) > 0 {
		kind := c.left[0]
		c.left = c.left[1:]
		err := c.try(kind)
		if err == nil {
			c.kind = kind
			return nil
		}
		c.refuse(kind, err)
	}
	return errors.Join(c.refused...)
}

func (c *choice) refuse(kind Kind, err error) {
	if err != nil {
		c.refused = append(c.refused, fmt.Errorf("backend %s: %w", kind, err))
	}
}

// try checks a backend, or opens and closes it. Better to know now than with the first connection.
func (c *choice) try(kind Kind) error {
	k, ok := candidates[kind]
	if !ok {
		return errors.New("pollux has none of that name")
	}
	if k.check != nil {
		return k.check(c.config, c.auto())
	}
	b, err := k.open(c.config)
	if err != nil {
		return err
	}
	return b.Close()
}

// open opens a backend of the kind that was taken. auto does not put up with one that has become smaller than it was to be,
// as an io_uring does where little memory may be locked: it would be slower than the next one.
func (c *choice) open() (poller.Backend, error) {
	b, err := candidates[c.kind].open(c.config)
	if err != nil || !c.auto() {
		return b, err
	}
	if r, ok := b.(interface{ reduced() error }); ok {
		if err := r.reduced(); err != nil {
			b.Close()
			return nil, err
		}
	}
	return b, nil
}

// reason says in one line why the backend was taken, and not another one.
func (c *choice) reason() string {
	if !c.auto() {
		return "it was asked for by name"
	}
	var why []string
	for _, err := range c.refused {
		why = append(why, strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	for _, kind := range c.left {
		why = append(why, fmt.Sprintf("backend %s was not tried: auto prefers %s", kind, c.kind))
	}
	return strings.Join(why, "; ")
}
