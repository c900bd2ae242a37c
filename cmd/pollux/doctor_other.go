//go:build !linux

package main

import (
	"runtime"

	"github.com/pollux-go/pollux"
)

// examine says that pollux runs on Linux only.
func examine(func(string) (string, bool)) report {
	_, err := pollux.New(pollux.Default())
	return report{
		Kernel:  kernelReport{System: runtime.GOOS, Machine: runtime.GOARCH},
		CPU:     cpuReport{GOMAXPROCS: runtime.GOMAXPROCS(0)},
		Backend: backendReport{Reason: err.Error()},
	}
}
