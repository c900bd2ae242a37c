package main

import (
	"fmt"
	"math"

	"github.com/pollux-go/pollux"
)

// What services with many connections want at the least.
const (
	somaxconnWanted = 4096
	nofileWanted    = 65536
)

// advise says what to change to do better, the most important thing first. It knows nothing but the report.
func advise(r report) []advice {
	list := []advice{} // Not null in JSON.
	environment := func(set, format string, args ...any) {
		list = append(list, advice{set, "environment", fmt.Sprintf(format, args...)})
	}
	system := func(set, format string, args ...any) {
		list = append(list, advice{set, "system", fmt.Sprintf(format, args...)})
	}
	uringWorks := r.Backend.works(pollux.KindUring)

	if r.Config.Error != "" {
		environment("pollux env", "the environment is not valid: it lists what is allowed")
	}
	switch {
	case r.Sandbox.UringDisabled == "1" || r.Sandbox.UringDisabled == "2":
		if !uringWorks {
			system("sysctl -w kernel.io_uring_disabled=0", "io_uring is switched off")
		}
	case !uringWorks && r.Sandbox.Seccomp == "filter":
		system("docker run --security-opt seccomp=FILE", "a profile that allows io_uring_setup, io_uring_enter and io_uring_register; in Kubernetes: securityContext.seccompProfile")
	}
	if !uringWorks && r.Config.Backend == string(pollux.KindUring) {
		environment("POLLUX_BACKEND=auto", "io_uring was asked for and does not work here")
	}
	if uringWorks && r.Backend.Auto != string(pollux.KindUring) && r.Config.Backend != string(pollux.KindUring) && !r.lacksWanted() {
		environment("POLLUX_BACKEND=io_uring", "it works here: measure your service on both")
	}
	if r.Config.Features != "" {
		environment("POLLUX_URING_FEATURES=", "features of io_uring are masked off")
	}

	if m := r.Limits.Memlock; uringWorks && m != nil && m.Soft >= 0 && !r.Limits.MayLock && int64(r.Limits.MemlockUse) > m.Soft {
		system(fmt.Sprintf("ulimit -l %d", 2*r.Limits.MemlockUse>>10), "the rings of %d loops may not fit into RLIMIT_MEMLOCK, and become smaller (LimitMEMLOCK= of systemd)", r.Config.Loops)
		environment("POLLUX_RING_ENTRIES=256", "else smaller rings fit")
	}
	if q := int(math.Ceil(r.CPU.Quota)); q > 0 && r.Config.Loops > q {
		environment(fmt.Sprintf("POLLUX_LOOPS=%d", q), "the control group gives %.2f CPUs' time: more loops are throttled together", r.CPU.Quota)
	} else if r.CPU.Usable > 0 && r.Config.Loops > r.CPU.Usable {
		environment(fmt.Sprintf("POLLUX_LOOPS=%d", r.CPU.Usable), "there are more loops than CPUs to run on")
	}
	if n := r.Limits.Nofile; n != nil && n.Hard >= 0 && n.Hard < nofileWanted {
		system("ulimit -Hn 1048576", "each connection is an open file, of which %d are allowed (LimitNOFILE= of systemd)", n.Hard)
	}
	if n := r.Limits.Somaxconn; n > 0 && n < somaxconnWanted {
		system(fmt.Sprintf("sysctl -w net.core.somaxconn=%d", somaxconnWanted), "of connections that come at once, those beyond %d are dropped", n)
	}
	return list
}

// lacksWanted tells whether io_uring works without something that it is fast by.
func (r report) lacksWanted() bool {
	for _, f := range r.Features {
		switch f.Name {
		case "defer_taskrun", "multishot_recv", "buffer_ring":
			if f.Answer != answerYes {
				return true
			}
		}
	}
	return false
}
