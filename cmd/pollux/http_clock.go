package main

import (
	"net/http"
	"strconv"
	"sync/atomic"
	"time"
)

// clock keeps what changes once a second. It has no goroutine: whoever needs the time first in a new second renders
// it, so that an idle server sleeps. Several loops may do that at once; they render the same.
type clock struct{ second atomic.Pointer[second] }

// second is immutable once it is published.
type second struct {
	unix  int64
	date  string // The value of a Date field.
	hello string // The head of the most frequent answer, up to its Connection field.
}

// now returns the current second.
func (k *clock) now() *second {
	t := time.Now()
	if s := k.second.Load(); s != nil && s.unix == t.Unix() {
		return s
	}
	s := &second{unix: t.Unix(), date: t.UTC().Format(http.TimeFormat)}
	s.hello = "HTTP/1.1 200 OK\r\nContent-Type: " + contentType +
		"\r\nContent-Length: " + strconv.Itoa(len(hello)) +
		"\r\nDate: " + s.date + "\r\n"
	k.second.Store(s)
	return s
}
