package uring

import (
	"errors"
	"fmt"
)

// UnsupportedError says that the kernel lacks a feature. It is an errors.ErrUnsupported.
type UnsupportedError struct {
	Name  string
	Since string // the version of Linux that it came with; distributions may have taken it to older ones
}

// Error names the feature and the version.
func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("io_uring's %s is not supported: it came with Linux %s", e.Name, e.Since)
}

// Is makes it equal to errors.ErrUnsupported.
func (e *UnsupportedError) Is(target error) bool { return target == errors.ErrUnsupported }

// undecidedError is the third answer of a probe.
type undecidedError struct {
	name string
	err  error
}

func (e *undecidedError) Error() string {
	return fmt.Sprintf("could not tell whether io_uring has %s: %v", e.name, e.err)
}

// Is looks at the cause, but never makes an errors.ErrUnsupported of it, which ENOSYS and EOPNOTSUPP are. That is why
// there is no Unwrap.
func (e *undecidedError) Is(target error) bool {
	return target != errors.ErrUnsupported && errors.Is(e.err, target)
}

// As looks for the cause.
func (e *undecidedError) As(target any) bool { return errors.As(e.err, target) }

// An Answer is what is known about one feature.
type Answer struct {
	Feature Feature
	Name    string
	Since   string // the version of Linux that it came with
	Without string // what pollux does without it
	Err     error  // nil: the kernel has it. An *UnsupportedError: it does not. Others: it could not be found out.
}

// Missing returns those of the features that the kernel lacks. The error says of one that this could not be found out.
func Missing(features Feature) (missing Feature, err error) {
	for _, n := range featureNames {
		if features&n.feature == 0 {
			continue
		}
		if err := Probe(n.feature); errors.Is(err, errors.ErrUnsupported) {
			missing |= n.feature
		} else if err != nil {
			return missing, err
		}
	}
	return missing, nil
}
