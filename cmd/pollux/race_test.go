//go:build race

package main

const raceEnabled = true // The binary under test is built as the tests are.
