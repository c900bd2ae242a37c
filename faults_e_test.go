//go:build linux

package pollux

import (
	"net"
	"testing"
	"time"

	"github.com/pollux-go/pollux/internal/testutil"
)

// TestE31ResetBehindData has bytes and a reset come together, before the loop looks, to a handler that never writes. A
// multishot receive delivers the bytes and never tells of the reset.
func TestE31ResetBehindData(t *testing.T) {
	eachBackend(t, func(t *testing.T, config Config) {
		testutil.CheckLeaks(t)
		config.Loops = 1
		blocked, goOn := make(chan bool), make(chan bool)
		s, a := bind(t, newEngine(t, config), "tcp", funcs{data: func(c *Conn) error {
			b, _ := c.Next(-1)
			if b[0] == '!' {
				blocked <- true
				<-goOn
			}
			return nil
		}})
		const n = 50
		blocker := dial(t, s.Addrs()[0])
		for i := range n {
			c := dial(t, s.Addrs()[0]).(*net.TCPConn)
			if _, err := c.Write([]byte("x")); err != nil { // It is accepted and received for by now.
				t.Fatal(err)
			}
			time.Sleep(time.Duration(i%3) * time.Millisecond)
			if _, err := blocker.Write([]byte("!")); err != nil {
				t.Fatal(err)
			}
			receive(t, "the handler", blocked)
			if _, err := c.Write([]byte("y")); err != nil {
				t.Fatal(err)
			}
			c.SetLinger(0)
			c.Close()
			time.Sleep(time.Millisecond)
			goOn <- true
		}
		blocker.Close()
		a.wait(t, n+1)
	})
}
