package testutil

import (
	"os"
	"time"
)

// Patience is how long a test waits for what must come: 20 seconds, or what POLLUX_TEST_PATIENCE says where everything is
// slow, as in an emulator. It is only there to end a test that hangs.
var Patience = patience()

func patience() time.Duration {
	if d, err := time.ParseDuration(os.Getenv("POLLUX_TEST_PATIENCE")); err == nil && d > 0 {
		return d
	}
	return 20 * time.Second
}
