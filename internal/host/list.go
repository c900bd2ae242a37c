package host

import (
	"fmt"
	"strconv"
	"strings"
)

// ParseList parses a list of CPUs as the kernel prints it: 0-3,8.
func ParseList(s string) (cpus []int) {
	for part := range strings.SplitSeq(s, ",") {
		first, last, isRange := strings.Cut(part, "-")
		from, err := strconv.Atoi(first)
		if err != nil {
			continue
		}
		to := from
		if isRange {
			if to, err = strconv.Atoi(last); err != nil {
				continue
			}
		}
		for cpu := from; cpu <= to && cpu-from < 1<<16; cpu++ {
			cpus = append(cpus, cpu)
		}
	}
	return cpus
}

// FormatList is the reverse of [ParseList], for numbers in ascending order.
func FormatList(cpus []int) string {
	var parts []string
	for i := 0; i < len(cpus); {
		j := i
		for j+1 < len(cpus) && cpus[j+1] == cpus[j]+1 {
			j++
		}
		if i == j {
			parts = append(parts, strconv.Itoa(cpus[i]))
		} else {
			parts = append(parts, fmt.Sprintf("%d-%d", cpus[i], cpus[j]))
		}
		i = j + 1
	}
	return strings.Join(parts, ",")
}
