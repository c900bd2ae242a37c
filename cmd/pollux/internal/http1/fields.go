package http1

import "bytes"

// The errors of a Parser, made once so that a bad request allocates nothing.
var (
	errRequestLine = &StatusError{400, "malformed request line"}
	errLineEnd     = &StatusError{400, "a line does not end in CRLF"}
	errField       = &StatusError{400, "malformed header field"}
	errHost        = &StatusError{400, "a request needs one Host field"}
	errLength      = &StatusError{400, "bad Content-Length"}
	errBothLengths = &StatusError{400, "both Content-Length and Transfer-Encoding"}
	errOldEncoding = &StatusError{400, "Transfer-Encoding with HTTP/1.0"}
	errLongTarget  = &StatusError{414, "request line too long"}
	errExpect      = &StatusError{417, "unknown expectation"}
	errLongHead    = &StatusError{431, "request header fields too large"}
	errEncoding    = &StatusError{501, "Transfer-Encoding is not supported"}
	errVersion     = &StatusError{505, "only HTTP/1.x is supported"}
)

// lengthDigitsMax keeps a Content-Length within an int64.
const lengthDigitsMax = 18

// fields is what the header fields of one request say about its framing.
type fields struct {
	length    int64
	hosts     int
	hasLength bool
	encoded   bool // A Transfer-Encoding was there.
	close     bool
	keepAlive bool
	expect    bool
	refused   bool // An Expect that is not 100-continue was there.
}

// add reads one "Name: value" line.
func (f *fields) add(line []byte) error {
	colon := bytes.IndexByte(line, ':')
	if colon <= 0 {
		return errField
	}
	name, value := line[:colon], trim(line[colon+1:])
	for _, c := range name {
		if !isToken[c] { // So is a space before the colon, and one in front of a folded line.
			return errField
		}
	}
	for _, c := range value {
		if c < ' ' && c != '\t' || c == 0x7f {
			return errField
		}
	}
	// The length says which names are worth a comparison.
	switch len(name) {
	case len("host"):
		if equalFold(name, "host") {
			f.hosts++
		}
	case len("expect"):
		if equalFold(name, "expect") {
			f.expect = equalFold(value, "100-continue")
			f.refused = f.refused || !f.expect
		}
	case len("connection"):
		if equalFold(name, "connection") {
			f.connection(value)
		}
	case len("content-length"):
		if equalFold(name, "content-length") {
			return f.contentLength(value)
		}
	case len("transfer-encoding"):
		if equalFold(name, "transfer-encoding") {
			f.encoded = true
		}
	}
	return nil
}

// connection reads the comma separated options of a Connection field.
func (f *fields) connection(value []byte) {
	for len(value) > 0 {
		option := value
		if i := bytes.IndexByte(value, ','); i >= 0 {
			option, value = value[:i], value[i+1:]
		} else {
			value = nil
		}
		option = trim(option)
		f.close = f.close || equalFold(option, "close")
		f.keepAlive = f.keepAlive || equalFold(option, "keep-alive")
	}
}

// contentLength refuses a second one even when it is equal: a client has no reason to send it.
func (f *fields) contentLength(value []byte) error {
	if f.hasLength || len(value) == 0 || len(value) > lengthDigitsMax {
		return errLength
	}
	f.hasLength = true
	for _, c := range value {
		if !isDigit(c) {
			return errLength
		}
		f.length = f.length*10 + int64(c-'0')
	}
	return nil
}

// check judges the fields together, once all of them are there.
func (f *fields) check(minor int) error {
	switch {
	case f.encoded && f.hasLength:
		return errBothLengths
	case f.encoded && minor == 0:
		return errOldEncoding
	case f.hosts > 1 || f.hosts == 0 && minor > 0:
		return errHost
	case f.encoded:
		return errEncoding
	case f.refused:
		return errExpect
	}
	return nil
}

// trim cuts the optional white space around a value.
func trim(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == '\t') {
		b = b[:len(b)-1]
	}
	return b
}

// equalFold compares b with the lower-case ASCII word. A generic fold would also accept Kelvin signs and long s.
func equalFold(b []byte, word string) bool {
	if len(b) != len(word) {
		return false
	}
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		if c != word[i] {
			return false
		}
	}
	return true
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// isToken is RFC 9110's tchar: what methods and field names are made of.
var isToken = func() (t [256]bool) {
	for c := '0'; c <= '9'; c++ {
		t[c] = true
	}
	for c := 'a'; c <= 'z'; c++ {
		t[c], t[c-'a'+'A'] = true, true
	}
	for _, c := range "!#$%&'*+-.^_`|~" {
		t[c] = true
	}
	return t
}()
