//go:build 386 || arm || mips || mipsle

package sys

// Linux on 32 bits has other structures for the same calls, epoll_pwait2 for one, and nobody has run this there. What does not
// build is better than what waits for the wrong time.
var _ = polluxNeeds64Bits
