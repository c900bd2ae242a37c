package host

import (
	"strconv"
	"strings"
)

// ParseVersion returns the first two numbers of a version, as 6 and 18 of 6.18.44-generic; 0 for what is not there.
func ParseVersion(s string) (major, minor int) {
	first, rest, _ := strings.Cut(s, ".")
	major, _ = strconv.Atoi(first)
	end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(rest)
	}
	minor, _ = strconv.Atoi(rest[:end])
	return major, minor
}
