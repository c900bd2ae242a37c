package main

import (
	"fmt"

	"github.com/pollux-go/pollux/cmd/pollux/internal/decimal"
	"github.com/pollux-go/pollux/cmd/pollux/internal/resp"
)

// The commands in this file are what redis-cli, redis-benchmark and client libraries send when they connect. The
// answers are the harmless ones: nothing is configurable, there is one database, a client's name is of no interest.

// settings are the parameters that CONFIG GET knows: those that redis-benchmark asks for.
var settings = [][2]string{{"save", ""}, {"appendonly", "no"}}

// commandInfo is COMMAND. An empty list tells redis-cli to do without hints.
func commandInfo(out []byte, args [][]byte) []byte {
	var word [16]byte
	if len(args) > 1 && string(upper(&word, args[1])) == "COUNT" {
		return resp.AppendInt(out, 0)
	}
	return resp.AppendArray(out, 0)
}

// config is CONFIG GET parameter...
func config(out []byte, args [][]byte) []byte {
	var word [16]byte
	if string(upper(&word, args[1])) != "GET" || len(args) < 3 {
		return subcommand(out, "CONFIG", args[1])
	}
	var found [][2]string
	for _, s := range settings {
		for _, name := range args[2:] {
			if name := string(lower(name)); name == s[0] || name == "*" {
				found = append(found, s)
				break
			}
		}
	}
	out = resp.AppendArray(out, 2*len(found))
	for _, s := range found {
		out = resp.AppendBulkString(out, s[0])
		out = resp.AppendBulkString(out, s[1])
	}
	return out
}

// client is CLIENT SETNAME and SETINFO.
func client(out []byte, args [][]byte) []byte {
	var word [16]byte
	switch string(upper(&word, args[1])) {
	case "SETNAME", "SETINFO":
		return resp.AppendSimple(out, "OK")
	}
	return subcommand(out, "CLIENT", args[1])
}

// selectDB is SELECT of the only database.
func selectDB(out, index []byte) []byte {
	if v, ok := decimal.Parse(index); !ok {
		return resp.AppendError(out, "ERR value is not an integer or out of range")
	} else if v != 0 {
		return resp.AppendError(out, "ERR DB index is out of range")
	}
	return resp.AppendSimple(out, "OK")
}

func subcommand(out []byte, command string, name []byte) []byte {
	return resp.AppendError(out, fmt.Sprintf("ERR unknown subcommand or wrong number of arguments for '%s'. %s is not supported by this server", quote(name), command))
}
