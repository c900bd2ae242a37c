package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"text/tabwriter"

	"github.com/pollux-go/pollux"
)

// runEnv is "pollux env".
func runEnv(args []string, out, errs io.Writer) int {
	var (
		asJSON bool
		fs     = newFlagSet("env", "Print the POLLUX_* configuration: for each variable the value in force, where it\ncomes from, its default, what is allowed, and what it does.", `	pollux env
	POLLUX_LOOPS=2 pollux env
	pollux env -json | jq -r '.[] | select(.from_env) | .name'
`)
	)
	fs.BoolVar(&asJSON, "json", false, "print a JSON array instead of a table")
	if status, ok := parse(fs, args, out, errs); !ok {
		return status
	}
	vars, err := pollux.Variables(os.LookupEnv)
	if err != nil {
		fmt.Fprintf(errs, "pollux env: %v\n", err)
		return exitUsage
	}
	write := envTable
	if asJSON {
		write = envJSON
	}
	if err := write(out, vars); err != nil {
		fmt.Fprintf(errs, "pollux env: %v\n", err)
		return exitFailed
	}
	return exitOK
}

// envTable prints a line of facts and a line of help for each variable.
func envTable(w io.Writer, vars []pollux.Variable) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "VARIABLE\tVALUE\tFROM\tDEFAULT\tALLOWED\tMEANING")
	for _, v := range vars {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\n", v.Name, orDash(v.Value), source(v), orDash(v.Default), orDash(v.Allowed), v.Help)
	}
	return tw.Flush()
}

// envJSON prints the same for programs.
func envJSON(w io.Writer, vars []pollux.Variable) error {
	type variable struct {
		Name    string `json:"name"`
		Value   string `json:"value"`
		FromEnv bool   `json:"from_env"`
		Default string `json:"default"`
		Allowed string `json:"allowed"`
		Help    string `json:"help"`
	}
	list := make([]variable, len(vars))
	for i, v := range vars {
		list[i] = variable{v.Name, v.Value, v.FromEnv, v.Default, v.Allowed, v.Help}
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(list)
}

func source(v pollux.Variable) string {
	if v.FromEnv {
		return "environment"
	}
	return "default"
}

// orDash keeps a column visible that has nothing in it.
func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
