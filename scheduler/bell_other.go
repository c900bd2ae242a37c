//go:build !linux

package scheduler

const noFutexes = true
