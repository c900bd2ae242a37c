package cgo

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pollux-go/pollux/internal/sys"
)

// Bounds of what the kernel takes as a slice (sched_setattr since 6.12).
const (
	sliceMin = 100 * time.Microsecond
	sliceMax = 100 * time.Millisecond
)

// priorityMax is the highest of SCHED_FIFO but one: that is the attendant's.
const priorityMax = 98

// ParseSched reads other, slice:DURATION, nice:N or fifo:N.
func ParseSched(text string) (Sched, error) {
	kind, value, has := strings.Cut(text, ":")
	number := func(least, most int) (int, error) {
		n, err := strconv.Atoi(value)
		if err != nil || n < least || n > most {
			return 0, fmt.Errorf("%q is not a number from %d to %d", value, least, most)
		}
		return n, nil
	}
	switch {
	case text == "other":
		return Sched{}, nil
	case kind == "slice" && has:
		d, err := time.ParseDuration(value)
		if err != nil || d < sliceMin || d > sliceMax {
			return Sched{}, fmt.Errorf("%q is not a duration from %v to %v", value, sliceMin, sliceMax)
		}
		return Sched{sys.Sched{Slice: d}, true}, nil
	case kind == "nice" && has:
		n, err := number(-20, 19)
		return Sched{sys.Sched{Nice: n}, err == nil}, err
	case kind == "fifo" && has:
		n, err := number(1, priorityMax)
		return Sched{sys.Sched{FIFO: true, Priority: n}, err == nil}, err
	}
	return Sched{}, errors.New("it must be other, slice:100us, nice:-10 or fifo:10, for instance")
}

// ParseCPUs reads a list of CPUs as the kernel prints it, 0-3,8, and returns it in its order.
func ParseCPUs(text string) ([]int, error) {
	var cpus []int
	for part := range strings.SplitSeq(text, ",") {
		first, last, isRange := strings.Cut(strings.TrimSpace(part), "-")
		from, err := strconv.Atoi(first)
		to := from
		if err == nil && isRange {
			to, err = strconv.Atoi(last)
		}
		if err != nil || from < 0 || to < from || to >= sys.CPUsMax {
			return nil, fmt.Errorf("%q is not a CPU or a range of CPUs from 0 to %d", part, sys.CPUsMax-1)
		}
		for cpu := from; cpu <= to; cpu++ {
			if slices.Contains(cpus, cpu) {
				return nil, fmt.Errorf("CPU %d is there twice", cpu)
			}
			cpus = append(cpus, cpu)
		}
	}
	return cpus, nil
}
