// Package invariants switches costly checks of what must always hold. They are on in builds with the race detector
// and with the tag "invariants"; the code they check is the same in every build.
package invariants

// Broken reports a bug of pollux: a fact that the code relies on does not hold.
func Broken(fact string) { panic("pollux: invariant broken: " + fact) }
