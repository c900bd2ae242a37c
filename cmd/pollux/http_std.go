package main

import (
	"io"
	"net/http"
	"strconv"
	"time"
)

// newStdHTTP answers as [httpHandler] does, by net/http.
func newStdHTTP(idle time.Duration) *http.Server {
	return &http.Server{
		Handler:           http.HandlerFunc(stdAnswer),
		IdleTimeout:       idle,
		ReadHeaderTimeout: idle,
	}
}

func stdAnswer(w http.ResponseWriter, r *http.Request) {
	if _, err := io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, bodyMax)); err != nil {
		http.Error(w, "the request body is too large", http.StatusRequestEntityTooLarge)
		return
	}
	rt, size := routeOf([]byte(r.Method), []byte(r.URL.Path))
	header := w.Header()
	header.Set("Content-Type", contentType)
	switch rt {
	case routeHello:
		header.Set("Content-Length", strconv.Itoa(len(hello)))
		io.WriteString(w, hello)
	case routeSize:
		header.Set("Content-Length", strconv.FormatInt(size, 10))
		if r.Method == http.MethodHead {
			return
		}
		for size > 0 {
			n, err := w.Write(fill[:min(size, int64(len(fill)))])
			if err != nil {
				return // The client is gone.
			}
			size -= int64(n)
		}
	case routeMethod:
		header.Set("Allow", "GET, HEAD")
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
	default:
		http.NotFound(w, r)
	}
}
