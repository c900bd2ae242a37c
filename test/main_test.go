//go:build linux

package test

import (
	"net"
	"os"
	"testing"
)

func TestMain(m *testing.M) {
	// The runtime opens the descriptors of its own poller when they are first needed, and keeps them: no leak of a test's.
	if ln, err := net.Listen("tcp", "127.0.0.1:0"); err == nil {
		ln.Close()
	}
	os.Exit(m.Run())
}
