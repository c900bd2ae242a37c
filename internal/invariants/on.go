//go:build race || invariants

package invariants

// Enabled tells whether costly checks run.
const Enabled = true
