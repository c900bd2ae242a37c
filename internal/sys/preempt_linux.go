//go:build amd64 || arm64

package sys

// preemptAsked tells whether the runtime has asked the calling goroutine for its P, to stop the world for instance: the goroutine is
// preempted when it next calls a function that can grow its stack. The runtime asks by a stack guard above the stack, which is where
// each such function begins to look (preemptone and newstack in runtime/proc.go and runtime/stack.go).
//
//go:noescape
func preemptAsked() bool
