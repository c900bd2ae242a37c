//go:build !linux

package uring

// Probe says no: io_uring is Linux's.
func Probe(f Feature) error {
	for _, n := range featureNames {
		if n.feature == f {
			return &UnsupportedError{n.name, n.since}
		}
	}
	return &UnsupportedError{f.String(), "5.1"}
}

// Answers says no to every feature.
func Answers() []Answer {
	answers := make([]Answer, len(featureNames))
	for i, n := range featureNames {
		answers[i] = Answer{n.feature, n.name, n.since, n.without, Probe(n.feature)}
	}
	return answers
}
