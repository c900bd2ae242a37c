// Package http1 reads HTTP/1.x request heads for the demonstration server of cmd/pollux.
//
// It is made for an event handler that sees its connection's bytes as one contiguous buffer: [Parser.Next] reads a
// request line and its header fields from the front of that buffer, remembers how far it came when they are
// incomplete, and allocates nothing. It understands only the fields that decide where a request ends and whether the
// connection lives on; about those it is strict, because two parties that frame one stream differently are what
// request smuggling lives on:
//
//   - lines end in CRLF, and a CR or LF anywhere else is an error;
//   - no space before a colon, no folded lines, no control characters;
//   - at most one Content-Length, digits only; exactly one Host with HTTP/1.1;
//   - Content-Length together with Transfer-Encoding is an error, as is Transfer-Encoding with HTTP/1.0;
//   - Transfer-Encoding alone is refused with 501.
package http1

import (
	"bytes"
	"errors"
)

// HeadMax is the default bound of a request head, in bytes, with its line ends.
const HeadMax = 8 << 10

// ErrIncomplete says that the buffer ends before the request head does: wait for more bytes, and call [Parser.Next]
// again with the same bytes in front.
var ErrIncomplete = errors.New("http1: incomplete request head")

// StatusError is a request that must be answered with an error status, after which the connection must be closed:
// where the next request would begin is not known.
type StatusError struct {
	Code   int
	Reason string // What is wrong, for the response's body.
}

// Error returns the reason.
func (e *StatusError) Error() string { return "http1: " + e.Reason }

// Request is a parsed head. Its slices point into the buffer that was given to [Parser.Next] and are valid as long as
// that is.
type Request struct {
	Method        []byte
	Target        []byte // As sent: origin-form ("/a?b"), absolute-form ("http://host/a"), authority-form or "*".
	ContentLength int64  // Bytes of body that follow the head; 0 without one.
	Minor         int    // The y of HTTP/1.y.
	Close         bool   // The connection ends with this request's response.
	Continue      bool   // The client waits for "100 Continue" before it sends the body.
}

// Path returns the target's path without its query, and "" for a target that has none.
func (r *Request) Path() []byte {
	t := r.Target
	if len(t) > 0 && t[0] != '/' {
		i := bytes.Index(t, []byte("://"))
		if i < 0 {
			return nil
		}
		t = t[i+3:]
		if i = bytes.IndexByte(t, '/'); i < 0 {
			return nil
		}
		t = t[i:]
	}
	if i := bytes.IndexByte(t, '?'); i >= 0 {
		t = t[:i]
	}
	return t
}

// Parser finds request heads in the bytes of one connection. The zero Parser is ready for use. It is not safe for
// concurrent use.
type Parser struct {
	// HeadMax bounds a request head; 0 means the package's HeadMax.
	HeadMax int

	line     int  // Offset of the line that is being read.
	scanned  int  // Offset up to which no line end was found.
	started  bool // The request line is behind us.
	method   span // Offsets, because the buffer may move between two calls.
	target   span
	fields   fields
	minor    int
	finished bool
}

type span struct{ from, to int }

// Next reads the request head that b begins with into r and returns its length. The error is [ErrIncomplete] or a
// [*StatusError], with n = 0; after a StatusError the Parser must not be used again before [Parser.Reset].
func (p *Parser) Next(b []byte, r *Request) (n int, err error) {
	headMax := p.HeadMax
	if headMax == 0 {
		headMax = HeadMax
	}
	seen := b
	if len(seen) > headMax {
		seen = seen[:headMax]
	}
	for !p.finished {
		i := bytes.IndexByte(seen[p.scanned:], '\n')
		if i < 0 {
			p.scanned = len(seen)
			if len(seen) < headMax {
				return 0, ErrIncomplete
			}
			if !p.started {
				return 0, errLongTarget
			}
			return 0, errLongHead
		}
		end := p.scanned + i
		if end == p.line || seen[end-1] != '\r' {
			return 0, errLineEnd
		}
		if err := p.take(seen[p.line : end-1]); err != nil {
			return 0, err
		}
		p.line, p.scanned = end+1, end+1
	}
	if err := p.fields.check(p.minor); err != nil {
		return 0, err
	}
	*r = Request{
		Method:        b[p.method.from:p.method.to],
		Target:        b[p.target.from:p.target.to],
		ContentLength: p.fields.length,
		Minor:         p.minor,
		Close:         p.fields.close || p.minor == 0 && !p.fields.keepAlive,
		Continue:      p.fields.expect && p.minor > 0 && p.fields.length > 0,
	}
	n = p.line
	p.Reset()
	return n, nil
}

// Reset forgets an incomplete head, to use the Parser for another stream.
func (p *Parser) Reset() { *p = Parser{HeadMax: p.HeadMax} }

// take reads one line, without its end.
func (p *Parser) take(line []byte) error {
	switch {
	case len(line) > 0 && p.started:
		return p.fields.add(line)
	case len(line) > 0:
		p.started = true
		return p.request(line)
	case p.started:
		p.finished = true
	default:
		// An empty line before the request line: old clients send one after a body (RFC 9112, 2.2). HeadMax bounds
		// how many.
	}
	return nil
}

// request reads "GET /path HTTP/1.1".
func (p *Parser) request(line []byte) error {
	i := bytes.IndexByte(line, ' ')
	j := bytes.LastIndexByte(line, ' ')
	if i <= 0 || j <= i+1 {
		return errRequestLine
	}
	method, target, version := line[:i], line[i+1:j], line[j+1:]
	for _, c := range method {
		if !isToken[c] {
			return errRequestLine
		}
	}
	for _, c := range target {
		if c <= ' ' || c >= 0x7f {
			return errRequestLine
		}
	}
	if len(version) != len("HTTP/1.1") || string(version[:5]) != "HTTP/" || !isDigit(version[5]) || version[6] != '.' || !isDigit(version[7]) {
		return errRequestLine
	}
	if version[5] != '1' {
		return errVersion
	}
	p.minor = int(version[7] - '0')
	p.method = span{p.line, p.line + i}
	p.target = span{p.line + i + 1, p.line + j}
	return nil
}
