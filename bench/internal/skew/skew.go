// Package skew is what the client and the servers of the skew scenario agree on: which requests are slow.
package skew

import "encoding/binary"

// Least is the least size of a request that can be told to be slow.
const Least = 2

// share is how many of the 65,536 values of a request's first two bytes, which are random, make it slow: one in a hundred.
const share = 1 << 16 / 100

// Slow tells whether a request is a slow one.
func Slow(request []byte) bool { return binary.LittleEndian.Uint16(request) < share }
