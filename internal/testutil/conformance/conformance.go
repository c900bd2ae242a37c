//go:build linux

// Package conformance is the one suite that every backend must pass: what Go's netpoller promises to package net, as 40
// semantics, on [poller.Backend] and on [poller.Desc]. Only tests import it.
//
// Streams are real sockets, whatever the backend. A subtest never sleeps to let something happen: it holds race windows
// open by faults in internal/sys or by a [spy] between the backend and its poller, and it moves the deadlines' clock by
// hand. Deadlines of real time only make it fail.
package conformance

import (
	"os"
	"testing"

	"github.com/pollux-go/pollux/internal/testutil"
	"github.com/pollux-go/pollux/poller"
)

// A Target is a backend to try.
type Target struct {
	Name string
	Open func() (poller.Backend, error)

	// Kick tells a backend that does not watch the kernel that the real descriptor fd has changed. It is nil for those
	// that do.
	Kick func(b poller.Backend, fd int)

	// Networks are the kinds of streams to try, "unix" and "tcp". A backend that is kicked cannot have "tcp", where a
	// write returns before the peer has the bytes.
	Networks []string
}

// Run tries every semantic on every target.
func Run(t *testing.T, targets []Target) {
	// The runtime opens its own poller with the first pipe; that is no leak of the subtest that happens to make it.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	w.Close()
	for _, target := range targets {
		for _, network := range target.Networks {
			t.Run(target.Name+"/"+network, func(t *testing.T) {
				for _, s := range semantics {
					t.Run(s.name, func(t *testing.T) {
						testutil.CheckLeaks(t)
						s.run(&env{T: t, target: target, network: network})
					})
				}
			})
		}
	}
}

// semantics are numbered as in the list that the design is held against. The names begin with the number.
var semantics = []struct {
	name string
	run  func(*env)
}{
	{"01_LatchedEdgeReturnsAtOnce", latchedEdge},
	{"02_EdgeBetweenEAGAINAndParkIsNotLost", edgeBeforePark},
	{"03_EdgesCoalesce", edgesCoalesce},
	{"04_ResetDropsAStaleLatch", resetDropsLatch},
	{"05_DirectionsWaitIndependently", directionsIndependent},
	{"06_SecondWaiterIsSerialised", secondWaiter},
	{"07_HangUpsWakeBoth", hangUps},
	{"08_SpuriousWakeWaitsAgain", spuriousWake},
	{"09_ZeroLengthRead", zeroLengthRead},

	{"10_PastDeadlineWakesNow", pastDeadlineWakes},
	{"11_PastDeadlineFailsWithDataReady", pastDeadlineWithData},
	{"12_DeadlineMovedLaterKeepsWaiting", deadlineMovedLater},
	{"13_ClearedDeadlineRevives", clearedDeadline},
	{"14_DeadlinesOfDirectionsAreSeparate", deadlinesSeparate},
	{"15_SetDeadlineIsBothAndCanBeSplit", deadlineSplit},
	{"16_DeadlineAfterClose", deadlineAfterClose},
	{"17_TimeoutError", timeoutError},
	{"18_PartialWriteCount", partialWrite},
	{"19_OverflowingDeadline", overflowingDeadline},
	{"20_StaleTimerNeverFires", staleTimer},
	{"21_Storm", storm},

	{"22_CloseUnblocksEverybody", closeUnblocks},
	{"23_SecondClose", secondClose},
	{"24_CloseWaitsForTheLastUser", closeWaits},
	{"25_EventForReusedSlotIsDropped", staleEvent},
	{"26_ErrorOfTheOldDoesNotMarkTheNew", staleError},
	{"27_CloseInsideACallback", closeInCallback},
	{"28_NoCallbackAfterClose", noCallbackAfterClose},

	{"29_BreaksCoalesceAndNoneIsLost", breaks},
	{"30_PollDoesNotSwallowABreak", breakSurvivesPoll},
	{"31_Signals", signals},
	{"32_MoreThanABatchStarvesNobody", moreThanABatch},
	{"33_CountReturnsToZero", countReturns},
	{"34_Cloexec", cloexec},
	{"35_NotPollable", notPollable},
	{"36_ShutdownWakesAll", shutdownWakes},
	{"37_ReadyWhileEveryPIsBusy", busyProcess},
	{"38_TokensOutliveTheCollector", collector},
	{"39_SameTrace", sameTrace},
	{"40_CompletionRaces", completionRaces},

	// Not of the list: what a Desc does beyond it, to save system calls.
	{"ShortReadsLoseNoEdge", shortReads},
}
