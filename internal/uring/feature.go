package uring

import (
	"fmt"
	"strings"
)

// A Feature is something that a ring may or may not have. Features can be joined.
type Feature uint32

// The features that pollux uses where it finds them.
const (
	CoopTaskrun     Feature = 1 << iota // 5.19
	DeferTaskrun                        // 6.1
	NoSQArray                           // 6.6
	RegisteredRing                      // 5.18
	NoIOWait                            // 6.15
	MultishotAccept                     // 5.19
	MultishotRecv                       // 6.0
	BufferRing                          // 5.19
	EpollWait                           // 6.15
	SkipCQE                             // 5.17
	ExtArg                              // 5.11
	MultishotPoll                       // 5.13
	Restrictions                        // 5.10
	ResizeRings                         // 6.13
	DirectFiles                         // 5.19
	FixedFDInstall                      // 6.8
	DirectClose                         // 6.13
)

var featureNames = []struct {
	feature Feature
	name    string
	since   string
	without string // what pollux does without it
}{
	{Restrictions, "restrictions", "5.10", "a ring takes every operation, not only those that pollux uses"},
	{ExtArg, "ext_arg", "5.11", "io_uring is not used: waits would have no timeouts"},
	{MultishotPoll, "multishot_poll", "5.13", "where epoll_wait is missing too, a poll of the epoll set for each wait"},
	{SkipCQE, "skip_cqe", "5.17", "a completion for each cancel"},
	{RegisteredRing, "registered_ring", "5.18", "each enter looks the ring's descriptor up"},
	{CoopTaskrun, "coop_taskrun", "5.19", "where defer_taskrun is missing too, completions interrupt the loop's thread"},
	{MultishotAccept, "multishot_accept", "5.19", "a request for each connection that is accepted"},
	{BufferRing, "buffer_ring", "5.19", "receives by readiness"},
	{DirectFiles, "direct_files", "5.19", "no direct descriptors"},
	{MultishotRecv, "multishot_recv", "6.0", "receives by readiness"},
	{DeferTaskrun, "defer_taskrun", "6.1", "completions run at the kernel's choice; auto takes epoll"},
	{NoSQArray, "no_sqarray", "6.6", "one more indirection a submission"},
	{FixedFDInstall, "fixed_fd_install", "6.8", "on direct descriptors no CloseWrite and no Detach, and a close resets the peer where bytes are unread"},
	{ResizeRings, "resize_rings", "6.13", "a queue of completions that was too small stays so, and costs a call each time"},
	{DirectClose, "direct_close", "6.13", "no direct descriptors: a closed one would live until older requests of others have ended"},
	{NoIOWait, "no_iowait", "6.15", "a sleeping loop counts as iowait"},
	{EpollWait, "epoll_wait", "6.15", "a multishot poll on the epoll set, and one more call a batch"},
}

// String returns the names, separated by commas.
func (f Feature) String() string {
	var names []string
	for _, n := range featureNames {
		if f&n.feature != 0 {
			names = append(names, n.name)
		}
	}
	return strings.Join(names, ",")
}

// ParseMask parses a list as "-multishot_recv,-buffer_ring": features not to use.
func ParseMask(s string) (mask Feature, err error) {
	if s == "" {
		return 0, nil
	}
next:
	for item := range strings.SplitSeq(s, ",") {
		name, ok := strings.CutPrefix(strings.TrimSpace(item), "-")
		if !ok {
			return 0, fmt.Errorf("%q does not begin with -: only features to leave out can be named", item)
		}
		for _, n := range featureNames {
			if n.name == name {
				mask |= n.feature
				continue next
			}
		}
		return 0, fmt.Errorf("%q is not a feature: there are %s", name, ^Feature(0))
	}
	return mask, nil
}
