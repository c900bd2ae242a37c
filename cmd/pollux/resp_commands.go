package main

import (
	"fmt"

	"github.com/pollux-go/pollux/cmd/pollux/internal/kv"
	"github.com/pollux-go/pollux/cmd/pollux/internal/resp"
)

// quoteMax is how much of a client's text an error repeats.
const quoteMax = 64

// execute appends the reply of one command to out. args is not empty; its slices die with the batch.
func (h *respHandler) execute(s *respConn, out []byte, args [][]byte) []byte {
	var word [16]byte
	switch n := len(args); string(upper(&word, args[0])) { // Does not allocate.
	case "PING":
		switch n {
		case 1:
			return append(out, "+PONG\r\n"...)
		case 2:
			return resp.AppendBulk(out, args[1])
		}
	case "ECHO":
		if n == 2 {
			return resp.AppendBulk(out, args[1])
		}
	case "GET":
		if n == 2 {
			return h.get(out, args[1])
		}
	case "SET":
		if n >= 3 {
			return h.set(out, args)
		}
	case "INCR":
		if n == 2 {
			sum, err := h.store.Incr(args[1], 1)
			if err != nil {
				return resp.AppendError(out, err.Error())
			}
			return resp.AppendInt(out, sum)
		}
	case "DEL":
		if n >= 2 {
			return count(out, args[1:], h.store.Delete)
		}
	case "EXISTS":
		if n >= 2 {
			return count(out, args[1:], h.store.Has)
		}
	case "DBSIZE":
		if n == 1 {
			return resp.AppendInt(out, int64(h.store.Len()))
		}
	case "QUIT":
		s.quit = true
		return resp.AppendSimple(out, "OK")
	case "COMMAND":
		return commandInfo(out, args)
	case "CONFIG":
		if n >= 2 {
			return config(out, args)
		}
	case "CLIENT":
		if n >= 2 {
			return client(out, args)
		}
	case "SELECT":
		if n == 2 {
			return selectDB(out, args[1])
		}
	default:
		return resp.AppendError(out, fmt.Sprintf("ERR unknown command '%s'", quote(args[0])))
	}
	return resp.AppendError(out, fmt.Sprintf("ERR wrong number of arguments for '%s' command", quote(lower(args[0]))))
}

func (h *respHandler) get(out, key []byte) []byte {
	out, ok := h.store.Get(out, key, resp.AppendBulk)
	if !ok {
		return resp.AppendNull(out)
	}
	return out
}

// set is SET key value [NX|XX]. The options that would need expiry or the old value are refused by name.
func (h *respHandler) set(out []byte, args [][]byte) []byte {
	when := kv.Always
	for _, option := range args[3:] {
		var word [16]byte
		next := when
		switch string(upper(&word, option)) {
		case "NX":
			next = kv.IfAbsent
		case "XX":
			next = kv.IfPresent
		case "EX", "PX", "EXAT", "PXAT", "KEEPTTL", "GET":
			return resp.AppendError(out, fmt.Sprintf("ERR SET option %s is not supported by this server", upper(&word, option)))
		default:
			return resp.AppendError(out, "ERR syntax error")
		}
		if when != kv.Always && when != next {
			return resp.AppendError(out, "ERR syntax error")
		}
		when = next
	}
	set, err := h.store.Set(args[1], args[2], when)
	switch {
	case err != nil:
		return resp.AppendError(out, err.Error())
	case !set:
		return resp.AppendNull(out)
	}
	return append(out, "+OK\r\n"...)
}

// count replies with how many of the keys something is true for.
func count(out []byte, keys [][]byte, is func(key []byte) bool) []byte {
	var n int64
	for _, key := range keys {
		if is(key) {
			n++
		}
	}
	return resp.AppendInt(out, n)
}

// quote shortens a client's text for an error reply.
func quote(b []byte) []byte { return b[:min(len(b), quoteMax)] }

// lower returns a lower-case copy, for an error reply.
func lower(b []byte) []byte {
	out := append([]byte(nil), quote(b)...)
	for i, c := range out {
		if 'A' <= c && c <= 'Z' {
			out[i] = c | 0x20
		}
	}
	return out
}

// upper returns b in upper case, in into; nothing for a text that is too long to be any known word.
func upper(into *[16]byte, b []byte) []byte {
	if len(b) > len(into) {
		return nil
	}
	for i, c := range b {
		if 'a' <= c && c <= 'z' {
			c &^= 0x20
		}
		into[i] = c
	}
	return into[:len(b)]
}
