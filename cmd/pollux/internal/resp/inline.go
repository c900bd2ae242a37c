package resp

import "bytes"

// inline reads a command that a person typed: words on a line, with quotes as in a shell. Its line may end in a bare
// '\n', as Redis allows, for the sake of telnet and nc.
func (p *Parser) inline(b []byte) ([][]byte, int, error) {
	lineMax := InlineMax
	if p.CommandMax > 0 && p.CommandMax < lineMax {
		lineMax = p.CommandMax
	}
	seen := b
	if len(seen) > lineMax {
		seen = seen[:lineMax]
	}
	i := bytes.IndexByte(seen[p.pos:], '\n')
	if i < 0 {
		if len(seen) == lineMax {
			return nil, 0, errBigInline
		}
		p.pos = len(seen)
		return nil, 0, ErrIncomplete
	}
	n := p.pos + i + 1
	line := b[:n-1]
	if len(line) > 0 && line[len(line)-1] == '\r' {
		line = line[:len(line)-1]
	}
	p.out = p.out[:0]
	if bytes.IndexByte(line, '"') < 0 && bytes.IndexByte(line, '\'') < 0 {
		p.words(line)
	} else if !p.quoted(line) {
		return nil, 0, errQuotes
	}
	return p.done(), n, nil
}

// words cuts a line without quotes, in place.
func (p *Parser) words(line []byte) {
	for from := 0; from < len(line); {
		if isSpace(line[from]) {
			from++
			continue
		}
		to := from + 1
		for to < len(line) && !isSpace(line[to]) {
			to++
		}
		p.out = append(p.out, line[from:to:to])
		from = to
	}
}

// quoted cuts a line with quotes into copies of its words. It reports whether the quotes are balanced.
//
// The scratch buffer gets its final size first: words never grow by being unquoted, so that no append moves the
// ones that were cut before.
func (p *Parser) quoted(line []byte) bool {
	if cap(p.scratch) < len(line) {
		p.scratch = make([]byte, 0, len(line))
	}
	buf := p.scratch[:0]
	for i := 0; i < len(line); {
		if isSpace(line[i]) {
			i++
			continue
		}
		from := len(buf)
		for i < len(line) && !isSpace(line[i]) {
			quote := line[i]
			if quote != '"' && quote != '\'' {
				buf = append(buf, quote)
				i++
				continue
			}
			var closed bool
			if buf, i, closed = unquote(buf, line, i+1, quote); !closed {
				return false
			}
			// A closing quote must end the word.
			if i < len(line) && !isSpace(line[i]) {
				return false
			}
		}
		p.out = append(p.out, buf[from:len(buf):len(buf)])
	}
	p.scratch = buf
	return true
}

// unquote appends what stands between quotes to buf. i is behind the opening quote; next is behind the closing one.
func unquote(buf, line []byte, i int, quote byte) (out []byte, next int, closed bool) {
	for i < len(line) {
		c := line[i]
		switch {
		case c == quote:
			return buf, i + 1, true
		case c == '\\' && quote == '\'' && i+1 < len(line) && line[i+1] == '\'':
			buf, i = append(buf, '\''), i+2
		case c == '\\' && quote == '"' && i+3 < len(line) && line[i+1] == 'x' && isHex(line[i+2]) && isHex(line[i+3]):
			buf, i = append(buf, unhex(line[i+2])<<4|unhex(line[i+3])), i+4
		case c == '\\' && quote == '"' && i+1 < len(line):
			buf, i = append(buf, unescape(line[i+1])), i+2
		default:
			buf, i = append(buf, c), i+1
		}
	}
	return buf, i, false
}

func unescape(c byte) byte {
	switch c {
	case 'n':
		return '\n'
	case 'r':
		return '\r'
	case 't':
		return '\t'
	case 'b':
		return '\b'
	case 'a':
		return '\a'
	}
	return c
}

func isSpace(c byte) bool { return c == ' ' || c >= '\t' && c <= '\r' || c == 0 }

func isHex(c byte) bool { return c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'f' }

func unhex(c byte) byte {
	if c <= '9' {
		return c - '0'
	}
	return c | 0x20 - 'a' + 10
}
