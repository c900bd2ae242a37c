package resp

import "strconv"

// The Append functions add one reply to dst and return it, as strconv's do. None of them looks at the
// connection: all replies of a batch of commands go into one buffer, and that into one Write.

// AppendSimple adds "+s". The string must not contain a line end.
func AppendSimple(dst []byte, s string) []byte {
	dst = append(dst, '+')
	dst = append(dst, s...)
	return append(dst, "\r\n"...)
}

// AppendError adds "-s", where s begins with a code as "ERR". Control characters become spaces, because text from the
// client may be in s and a line end would end the reply.
func AppendError(dst []byte, s string) []byte {
	dst = append(dst, '-')
	for i := range len(s) {
		c := s[i]
		if c < ' ' || c == 0x7f {
			c = ' '
		}
		dst = append(dst, c)
	}
	return append(dst, "\r\n"...)
}

// AppendInt adds ":v".
func AppendInt(dst []byte, v int64) []byte {
	return appendCount(dst, ':', v)
}

// AppendBulk adds b with its length.
func AppendBulk(dst, b []byte) []byte {
	dst = appendCount(dst, '$', int64(len(b)))
	dst = append(dst, b...)
	return append(dst, "\r\n"...)
}

// AppendBulkString is [AppendBulk] for a string.
func AppendBulkString(dst []byte, s string) []byte {
	dst = appendCount(dst, '$', int64(len(s)))
	dst = append(dst, s...)
	return append(dst, "\r\n"...)
}

// AppendNull adds the null bulk string: no such key.
func AppendNull(dst []byte) []byte { return append(dst, "$-1\r\n"...) }

// AppendArray adds the head of an array; its n elements follow as replies of their own.
func AppendArray(dst []byte, n int) []byte {
	return appendCount(dst, '*', int64(n))
}

func appendCount(dst []byte, kind byte, v int64) []byte {
	dst = append(dst, kind)
	dst = strconv.AppendInt(dst, v, 10)
	return append(dst, "\r\n"...)
}
