package main

import (
	"net/http"
	"strconv"

	"github.com/pollux-go/pollux/cmd/pollux/internal/http1"
)

// answer is a request reduced to what its answer depends on: it must outlive the buffer that the request was in.
type answer struct {
	route   route
	size    int64 // For routeSize.
	head    bool  // The method was HEAD: no body.
	close   bool  // The connection ends with this answer.
	ancient bool  // HTTP/1.0: staying open must be said.
}

// accept takes a request whose head is complete: its body comes next, then its answer is due.
func (h *httpHandler) accept(s *httpConn, out []byte, r *http1.Request) []byte {
	if r.ContentLength > bodyMax {
		return h.refuse(s, out, &http1.StatusError{Code: http.StatusRequestEntityTooLarge, Reason: "the request body is too large"})
	}
	rt, size := routeOf(r.Method, r.Path())
	s.answer = answer{route: rt, size: size, head: string(r.Method) == http.MethodHead, close: r.Close, ancient: r.Minor == 0}
	s.due, s.skip = true, r.ContentLength
	if r.Continue {
		out = append(out, "HTTP/1.1 100 Continue\r\n\r\n"...)
	}
	return out
}

// reply appends the answer that is due; of a big one only the head, and [httpHandler.body] does the rest.
func (h *httpHandler) reply(s *httpConn, out []byte) []byte {
	a := s.answer
	s.due, s.last = false, a.close
	switch a.route {
	case routeHello:
		out = append(out, h.clock.now().hello...)
		out = appendConnection(out, a)
		if !a.head {
			out = append(out, hello...)
		}
	case routeSize:
		out = append(out, "HTTP/1.1 200 OK\r\n"...)
		out = h.appendFields(out, a.size)
		out = appendConnection(out, a)
		if !a.head {
			s.size, s.left = a.size, a.size
		}
	case routeMethod:
		out = append(out, "HTTP/1.1 405 Method Not Allowed\r\nAllow: GET, HEAD\r\n"...)
		out = h.appendText(out, a, "method not allowed\n")
	default:
		out = append(out, "HTTP/1.1 404 Not Found\r\n"...)
		out = h.appendText(out, a, "not found\n")
	}
	return out
}

// refuse appends an error answer, behind which the connection ends.
func (h *httpHandler) refuse(s *httpConn, out []byte, e *http1.StatusError) []byte {
	s.due, s.last = false, true
	out = append(out, "HTTP/1.1 "...)
	out = strconv.AppendInt(out, int64(e.Code), 10)
	out = append(out, ' ')
	out = append(out, http.StatusText(e.Code)...)
	out = append(out, "\r\n"...)
	return h.appendText(out, answer{close: true}, e.Reason+"\n")
}

// appendText appends everything of a short answer behind its status line.
func (h *httpHandler) appendText(out []byte, a answer, text string) []byte {
	out = h.appendFields(out, int64(len(text)))
	out = appendConnection(out, a)
	if !a.head {
		out = append(out, text...)
	}
	return out
}

// appendFields appends the header fields that all answers have.
func (h *httpHandler) appendFields(out []byte, length int64) []byte {
	out = append(out, "Content-Type: "+contentType+"\r\nContent-Length: "...)
	out = strconv.AppendInt(out, length, 10)
	out = append(out, "\r\nDate: "...)
	out = append(out, h.clock.now().date...)
	return append(out, "\r\n"...)
}

// appendConnection appends the Connection field, if the answer needs one, and the end of the head.
func appendConnection(out []byte, a answer) []byte {
	switch {
	case a.close:
		out = append(out, "Connection: close\r\n"...)
	case a.ancient:
		out = append(out, "Connection: keep-alive\r\n"...)
	}
	return append(out, "\r\n"...)
}
