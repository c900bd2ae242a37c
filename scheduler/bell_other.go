//go:build !linux

package scheduler

// channelBells: there are no futexes; workers sleep on channels.
const channelBells = true
