package pollux

import (
	"context"
	"net"
	"os"
	"sync"

	"github.com/pollux-go/pollux/poller"
)

// DefaultEngine returns the engine of the package-level functions. It is made on first use, configured by the POLLUX_*
// variables of the environment; one that is not valid is the error of every call.
func DefaultEngine() (*Engine, error) { return defaultEngine() }

var defaultEngine = sync.OnceValues(func() (*Engine, error) {
	config, err := ConfigFromEnv(os.LookupEnv)
	if err != nil {
		return nil, err
	}
	return New(config)
})

// ListenAndServe serves h on the default engine until ctx ends. See [Engine.ListenAndServe], and [Engine.Bind] for
// addresses.
func ListenAndServe(ctx context.Context, addr string, h Handler) error {
	e, err := DefaultEngine()
	if err != nil {
		return err
	}
	return e.ListenAndServe(ctx, addr, h)
}

// Listen is net.Listen on the default engine. See [Engine.Listen].
func Listen(network, address string) (net.Listener, error) {
	e, err := DefaultEngine()
	if err != nil {
		return nil, err
	}
	return e.Listen(network, address)
}

// Dial is net.Dial on the default engine. See [Engine.DialContext].
func Dial(network, address string) (net.Conn, error) {
	return DialContext(context.Background(), network, address)
}

// DialContext is Dial with a context. See [Engine.DialContext].
func DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	e, err := DefaultEngine()
	if err != nil {
		return nil, err
	}
	return e.DialContext(ctx, network, address)
}

// Open registers a file descriptor with the default engine. See [Engine.Open].
func Open(fd int) (*poller.Desc, error) {
	e, err := DefaultEngine()
	if err != nil {
		return nil, err
	}
	return e.Open(fd)
}
