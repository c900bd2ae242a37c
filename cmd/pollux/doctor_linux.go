package main

import (
	"errors"
	"log/slog"
	"runtime"
	"strconv"

	"github.com/pollux-go/pollux"
	"github.com/pollux-go/pollux/internal/host"
	"github.com/pollux-go/pollux/internal/uring"
)

// examine looks at the machine, and tries the backends with the configuration of the environment.
func examine(lookup func(string) (string, bool)) (r report) {
	config, err := pollux.ConfigFromEnv(lookup)
	if err != nil {
		r.Config.Error = err.Error()
		config = pollux.Default()
	}
	// Nothing but the report is printed.
	config.Logger = slog.New(slog.DiscardHandler)
	r.Config.Backend, r.Config.Loops, r.Config.Features = string(config.Backend), config.Loops, config.UringFeatures

	r.Kernel.System = "Linux"
	r.Kernel.Release, r.Kernel.Machine = host.Kernel()
	r.Sandbox = sandboxReport{host.Seccomp(), host.NoNewPrivs(), host.UringDisabled()}
	r.Limits = limitsReport{
		Memlock:    limitOf(host.Memlock()),
		MayLock:    host.MayLockMemory(),
		MemlockUse: config.Loops * memlockUse(config),
		Nofile:     limitOf(host.Nofile()),
	}
	r.Limits.Cards = host.Cards()
	major, minor := host.Version()
	r.Limits.BusyPoll = major > 6 || major == 6 && minor >= 9
	r.Limits.Somaxconn, _ = strconv.Atoi(host.Somaxconn())
	r.CPU = cpuOf(host.Processors())
	r.Features = featuresOf(config)
	r.Backend = backendsOf(config)
	return r
}

func limitOf(l host.Limit) *limitReport {
	if !l.Known {
		return nil
	}
	r := &limitReport{Soft: -1, Hard: -1}
	if !l.SoftNone {
		r.Soft = int64(l.Soft)
	}
	if !l.HardNone {
		r.Hard = int64(l.Hard)
	}
	return r
}

// memlockUse is how much of RLIMIT_MEMLOCK one loop takes: the two queues, with their heads, and the ring of buffers, but
// not the buffers. Each is rounded up to pages.
func memlockUse(c pollux.Config) int {
	const (
		page, head                = 4096, 256
		submission, index         = 64, 4
		completion, perSubmission = 16, 8
		buffer                    = 16
	)
	pages := func(n int) int { return (n + page - 1) / page * page }
	return pages(c.RingEntries*submission) +
		pages(c.RingEntries*(index+perSubmission*completion)+head) +
		pages(c.RingBuffers*buffer)
}

func cpuOf(c host.CPU) cpuReport {
	affinity, quota := host.Affinity(), host.CPUQuota()
	siblings := c.Siblings
	if siblings == nil {
		siblings = []string{} // Not null in JSON.
	}
	return cpuReport{
		Model: c.Model, Hypervisor: c.Hypervisor, Online: c.Online, Isolated: c.Isolated, Packages: c.Packages, Cores: c.Cores,
		Siblings: siblings, Nodes: c.Nodes, CacheLine: c.CacheLine,
		Affinity: host.FormatList(affinity), Usable: len(affinity),
		Quota: quota.CPUs, QuotaSource: quota.Source, GOMAXPROCS: runtime.GOMAXPROCS(0),
	}
}

func featuresOf(c pollux.Config) []featureReport {
	masked, _ := uring.ParseMask(c.UringFeatures) // The configuration was checked.
	var list []featureReport
	for _, a := range uring.Answers() {
		f := featureReport{Name: a.Name, Answer: answerYes, Since: a.Since, Without: a.Without}
		switch {
		case masked&a.Feature != 0:
			f.Answer = answerMasked
		case errors.Is(a.Err, errors.ErrUnsupported):
			f.Answer = answerNo
		case a.Err != nil:
			f.Answer, f.Detail = answerUnknown, uring.Explain(a.Err).Error()
		}
		list = append(list, f)
	}
	return list
}

func backendsOf(c pollux.Config) (r backendReport) {
	for _, kind := range []pollux.Kind{pollux.KindEpoll, pollux.KindUring} {
		c := c
		c.Backend = kind
		if kind != pollux.KindUring {
			c.DirectDescriptors = 0 // Else it would be refused for them, and not for itself.
		}
		answer := backendAnswer{Name: string(kind), Works: true}
		if e, err := pollux.New(c); err != nil {
			answer.Works, answer.Error = false, err.Error()
		} else {
			e.Close()
		}
		r.Backend = append(r.Backend, answer)
	}
	c.Backend, c.DirectDescriptors = pollux.KindAuto, 0
	e, err := pollux.New(c)
	if err != nil {
		r.Reason = err.Error()
		return r
	}
	defer e.Close()
	r.Auto, r.Reason = e.Backend(), e.BackendReason()
	return r
}
