package main

import "github.com/pollux-go/pollux/cmd/pollux/internal/decimal"

const (
	hello       = "Hello, World!"
	contentType = "text/plain; charset=utf-8"

	// sizeMax bounds /size/N, and bodyMax a request body that is read only to be thrown away.
	sizeMax = 64 << 20
	bodyMax = 64 << 20
)

// fill is what the bodies of /size/N are made of, over and over: one piece of memory for all of them.
var fill = func() []byte {
	b := make([]byte, 64<<10)
	for i := range b {
		b[i] = 'a' + byte(i%26)
		if i%64 == 63 {
			b[i] = '\n'
		}
	}
	return b
}()

// route is what a request asks for.
type route uint8

const (
	routeNone route = iota
	routeHello
	routeSize
	routeMethod // Neither GET nor HEAD.
)

// routeOf finds the route of a request, and its size if it is [routeSize].
func routeOf(method, path []byte) (route, int64) {
	if string(method) != "GET" && string(method) != "HEAD" {
		return routeMethod, 0
	}
	const prefix = "/size/"
	switch {
	case string(path) == "/":
		return routeHello, 0
	case len(path) > len(prefix) && string(path[:len(prefix)]) == prefix:
		if n, ok := decimal.Parse(path[len(prefix):]); ok && 0 <= n && n <= sizeMax {
			return routeSize, n
		}
	}
	return routeNone, 0
}
