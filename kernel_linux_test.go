package pollux

import (
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/pollux-go/pollux/internal/host"
	"github.com/pollux-go/pollux/internal/testutil"
)

// TestKernelExpectation holds pollux against what is known of a kernel. POLLUX_TEST_EXPECT names the backend that auto takes
// there when it tries io_uring first; "make kernels" boots several and sets it. Who asks for io_uring by name gets it or is
// told why not, and whatever is taken serves.
func TestKernelExpectation(t *testing.T) {
	want := Kind(os.Getenv("POLLUX_TEST_EXPECT"))
	switch want {
	case "":
		t.Skip("POLLUX_TEST_EXPECT does not say what auto takes here")
	case KindEpoll, KindUring:
	default:
		t.Fatalf("POLLUX_TEST_EXPECT is %q; it must be epoll or io_uring", want)
	}
	testutil.CheckLeaks(t)
	release, _ := host.Kernel()
	config := Config{Loops: 2, Logger: slog.New(slog.DiscardHandler)}

	t.Run("auto", func(t *testing.T) {
		preferUring(t)
		e, err := New(config)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("auto takes %s: %s", e.Backend(), e.BackendReason())
		if e.Backend() != string(want) {
			t.Errorf("it should take %s", want)
		}
		if want == KindEpoll && !strings.Contains(e.BackendReason(), "backend io_uring: ") {
			t.Error("the reason does not tell what is wrong with io_uring")
		}
		checkEcho(t, e, 8)
	})
	for _, kind := range []Kind{KindEpoll, KindUring} {
		t.Run(string(kind), func(t *testing.T) {
			config.Backend = kind
			e, err := New(config)
			if err != nil {
				t.Logf("%s by name: %v", kind, err)
				if kind == want || kind == KindEpoll {
					t.Error("it should work")
				}
				if !strings.Contains(err.Error(), release) || !strings.Contains(err.Error(), "POLLUX_BACKEND=epoll") {
					t.Error("the error names neither the kernel nor a way out")
				}
				return
			}
			t.Logf("%s by name: works", kind)
			checkEcho(t, e, 8)
		})
	}
}
