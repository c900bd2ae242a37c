// Package resp reads and writes RESP2, the protocol that Redis clients speak, for the demonstration server of
// cmd/pollux.
//
// It is made for an event handler that sees its connection's bytes as one contiguous buffer: [Parser.Next] finds
// commands in that buffer and returns slices of it, and the caller discards what they took once it has executed them.
// Nothing is copied and nothing is allocated for a command that is not inline and quoted.
//
//	b, _ := c.Peek(-1)
//	off := 0
//	for {
//		args, n, err := parser.Next(b[off:])
//		if err != nil {
//			break // ErrIncomplete: wait for more bytes. Anything else: answer it and close.
//		}
//		off += n
//		out = execute(out, args) // args are valid until the Discard below.
//	}
//	c.Discard(off)
package resp

import (
	"bytes"
	"errors"

	"github.com/pollux-go/pollux/cmd/pollux/internal/decimal"
)

const (
	// ArgsMax is the largest number of arguments of one command, as in Redis.
	ArgsMax = 1024 * 1024
	// BulkMax is the protocol's own bound of one argument. [Limits.Command] is what really bounds it here.
	BulkMax = 512 << 20
	// InlineMax is the longest inline command, as in Redis.
	InlineMax = 64 << 10

	// countLineMax bounds a "*3\r\n" or "$5\r\n" line: a sign, the 19 digits of an int64 and the line end fit easily.
	countLineMax = 32
	// keepSpans is the capacity a parser keeps between commands, so that one huge command does not cost memory for
	// ever.
	keepSpans = 64
)

// ErrIncomplete says that the buffer ends before the command does: wait for more bytes, and call [Parser.Next] again
// with the same bytes in front.
var ErrIncomplete = errors.New("resp: incomplete command")

// ProtocolError is input that cannot be a command. Its text is what Redis sends for the same mistake; the stream has
// lost its framing after one, so that the connection must be closed once the error has been sent.
type ProtocolError string

// Error returns the text as it goes to the client, without the leading "-ERR ".
func (e ProtocolError) Error() string { return "Protocol error: " + string(e) }

// The protocol errors of a Parser, named so that finding one allocates nothing.
var (
	errMultibulkLength error = ProtocolError("invalid multibulk length")
	errBulkLength      error = ProtocolError("invalid bulk length")
	errBigMultibulk    error = ProtocolError("too big mbulk count string")
	errBigBulk         error = ProtocolError("too big bulk count string")
	errBigInline       error = ProtocolError("too big inline request")
	errQuotes          error = ProtocolError("unbalanced quotes in request")
	errBulkEnd         error = ProtocolError("expected CRLF after a bulk string")
)

// Parser finds commands in the bytes of one connection. It remembers how far it came in an incomplete command, so
// that bytes that arrive one by one are still looked at once. The zero Parser is ready for use, with [InlineMax] and
// [BulkMax] as its only limits. It is not safe for concurrent use.
type Parser struct {
	// CommandMax bounds one command with its framing, in bytes; 0 means no bound but the protocol's. A server sets it
	// to what its connections may buffer: a command that cannot ever be complete is refused by its first length that
	// says so.
	CommandMax int

	pos     int    // Where the parse stands, from the first byte of the command.
	args    int    // How many arguments the command has; meaningful in the bulk states.
	bulk    int    // Length of the argument that is being read, -1 while its "$n" line is.
	state   state  // Which kind of command is being read.
	spans   []span // The arguments found so far, as offsets: the buffer may move between two calls.
	out     [][]byte
	scratch []byte // Unquoted inline arguments.
}

type state uint8

const (
	atStart state = iota
	inInline
	inMultibulk
)

type span struct{ from, to int }

// Next finds the command that b begins with. It returns the arguments, which are slices of b (of the Parser's own
// memory for a quoted inline command) and stay valid until the next call or until b changes, and the number of bytes
// that the command took.
//
// An empty command (an empty line, "*0") returns n > 0 and no arguments: ignore it, as Redis does. The error is
// [ErrIncomplete] or a [ProtocolError]; n is 0 then, and after a ProtocolError the Parser must not be used again
// before [Parser.Reset].
func (p *Parser) Next(b []byte) (args [][]byte, n int, err error) {
	if p.state == atStart {
		if len(b) == 0 {
			return nil, 0, ErrIncomplete
		}
		if b[0] != '*' {
			p.state = inInline
		} else if args, n, err = p.begin(b); err != nil || n > 0 {
			return args, n, err
		}
	}
	if p.state == inInline {
		return p.inline(b)
	}
	return p.multibulk(b)
}

// Reset forgets an incomplete command, to use the Parser for another stream.
func (p *Parser) Reset() {
	p.pos, p.args, p.bulk, p.state = 0, 0, 0, atStart
	p.spans, p.out, p.scratch = p.spans[:0], p.out[:0], p.scratch[:0]
}

// begin reads the "*n" line. n > 0 says that the command ended with it.
func (p *Parser) begin(b []byte) (args [][]byte, n int, err error) {
	count, next, err := countLine(b, 0, errBigMultibulk, errMultibulkLength)
	if err != nil {
		return nil, 0, err
	}
	if count > ArgsMax {
		return nil, 0, errMultibulkLength
	}
	if count <= 0 {
		return nil, next, nil
	}
	// The shortest argument is "$0\r\n\r\n": a count that cannot fit is refused before its arguments are collected.
	if p.CommandMax > 0 && count > (p.CommandMax-next)/6 {
		return nil, 0, errMultibulkLength
	}
	p.state, p.pos, p.args, p.bulk = inMultibulk, next, count, -1
	return nil, 0, nil
}

// multibulk reads "$n\r\n<bytes>\r\n" until all arguments are there.
func (p *Parser) multibulk(b []byte) ([][]byte, int, error) {
	for len(p.spans) < p.args {
		if p.bulk < 0 {
			if p.pos >= len(b) {
				return nil, 0, ErrIncomplete
			}
			if b[p.pos] != '$' {
				return nil, 0, expectedBulk(b[p.pos])
			}
			size, next, err := countLine(b, p.pos, errBigBulk, errBulkLength)
			if err != nil {
				return nil, 0, err
			}
			if size < 0 || size > BulkMax || p.CommandMax > 0 && size > p.CommandMax-next-len("\r\n") {
				return nil, 0, errBulkLength
			}
			p.bulk, p.pos = size, next
		}
		// The two bytes of the line end are looked at one by one, so that the verdict does not depend on how the
		// input was split.
		end := p.pos + p.bulk
		if end < len(b) && b[end] != '\r' || end+1 < len(b) && b[end+1] != '\n' {
			return nil, 0, errBulkEnd
		}
		if end+2 > len(b) {
			return nil, 0, ErrIncomplete
		}
		p.spans = append(p.spans, span{p.pos, end})
		p.pos, p.bulk = end+2, -1
	}
	n := p.pos
	p.out = p.out[:0]
	for _, s := range p.spans {
		p.out = append(p.out, b[s.from:s.to:s.to])
	}
	return p.done(), n, nil
}

// done makes the Parser ready for the next command and returns the arguments of this one.
func (p *Parser) done() [][]byte {
	args := p.out
	p.pos, p.state = 0, atStart
	p.spans, p.out = p.spans[:0], p.out[:0]
	if cap(p.spans) > keepSpans {
		p.spans = nil
	}
	if cap(p.out) > keepSpans {
		p.out = nil
	}
	return args
}

// countLine reads the number of a "*n\r\n" or "$n\r\n" line that begins at from, and says where the line ends.
func countLine(b []byte, from int, tooLong, invalid error) (count, next int, err error) {
	line := b[from:]
	if len(line) > countLineMax {
		line = line[:countLineMax]
	}
	i := bytes.IndexByte(line, '\n')
	if i < 0 {
		if len(line) == countLineMax {
			return 0, 0, tooLong
		}
		return 0, 0, ErrIncomplete
	}
	if line[i-1] != '\r' { // i > 0: line[0] is '*' or '$'.
		return 0, 0, invalid
	}
	v, ok := decimal.Parse(line[1 : i-1])
	if !ok || v != int64(int(v)) {
		return 0, 0, invalid
	}
	return int(v), from + i + 1, nil
}

// expectedBulk is Redis' error for an argument that does not begin with '$'.
func expectedBulk(got byte) error {
	if got < ' ' || got > '~' {
		got = '?' // It would break the error line.
	}
	return ProtocolError("expected '$', got '" + string(rune(got)) + "'")
}
