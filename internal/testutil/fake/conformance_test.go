//go:build linux

package fake_test

import (
	"testing"

	"github.com/pollux-go/pollux/internal/testutil/conformance"
	"github.com/pollux-go/pollux/internal/testutil/fake"
	"github.com/pollux-go/pollux/poller"
)

func TestConformance(t *testing.T) {
	conformance.Run(t, []conformance.Target{{
		Name:     "fake",
		Open:     func() (poller.Backend, error) { return fake.New(), nil },
		Kick:     func(b poller.Backend, fd int) { b.(*fake.Backend).Kick(fd) },
		Networks: []string{"unix"},
	}})
}
