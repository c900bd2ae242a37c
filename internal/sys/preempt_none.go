//go:build linux && !amd64 && !arm64

package sys

// preemptAsked would tell whether the runtime has asked the calling goroutine for its P.
//
//go:nosplit
func preemptAsked() bool { return false }
