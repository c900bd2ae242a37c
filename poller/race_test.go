//go:build race

package poller_test

// raceEnabled: the race detector makes the order of the runtime's queues random.
const raceEnabled = true
