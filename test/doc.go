// Package test holds pollux's net API against package net: its connections and listeners must do what those of std do,
// under golang.org/x/net/nettest, net/http, crypto/tls and net/rpc, and in what each method returns when something goes
// wrong. It is a module of its own, so that the root module needs nothing for it.
//
//	go test -race ./...                                          all of it, within a minute
//	go test -race -count=20 -timeout 20m -run TestNettest ./...  the contract of net.Conn, long
//	go test -race -count=50 -timeout 30m -run 'Deadline|Timeout' ./...
package test
