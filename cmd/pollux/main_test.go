package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestHelp(t *testing.T) {
	for _, tc := range []struct {
		golden string
		args   []string
	}{
		{"help", nil}, {"help", []string{"-h"}}, {"help", []string{"--help"}}, {"help", []string{"help"}},
		{"echo", []string{"echo", "-h"}}, {"echo", []string{"help", "echo"}},
		{"resp", []string{"resp", "-h"}}, {"http", []string{"http", "--help"}}, {"env", []string{"env", "-h"}},
		{"doctor", []string{"doctor", "-h"}}, {"doctor", []string{"help", "doctor"}},
		{"version", []string{"version", "-h"}},
	} {
		var out, errs bytes.Buffer
		if s := run(tc.args, &out, &errs); s != exitOK || errs.Len() > 0 {
			t.Errorf("pollux %v: status %d, %q on stderr", tc.args, s, errs.String())
		}
		file := filepath.Join("testdata", tc.golden+".golden")
		if *update {
			if err := os.WriteFile(file, out.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if out.String() != string(want) {
			t.Errorf("pollux %v: the help differs from %s (go test -run TestHelp -update writes it):\n%s", tc.args, file, out.String())
		}
	}
}

func TestWrongCommandLine(t *testing.T) {
	for _, tc := range []struct {
		args []string
		want []string
	}{
		{[]string{"ehco"}, []string{`unknown command "ehco"`, "echo, resp, http, doctor, env, version"}},
		{[]string{"-x"}, []string{`unknown command "-x"`}},
		{[]string{"echo", "-x"}, []string{"flag provided but not defined: -x", `"pollux echo -h"`}},
		{[]string{"http", "8080"}, []string{`unexpected argument "8080"`}},
		{[]string{"resp", "-burn", "x"}, []string{"-burn"}},
		{[]string{"echo", "-burn", "-1"}, []string{"-burn"}},
		{[]string{"resp", "-maxmemory", "-1"}, []string{"-maxmemory"}},
		{[]string{"http", "-idle", "-1s"}, []string{"-idle"}},
	} {
		var out, errs bytes.Buffer
		if s := run(tc.args, &out, &errs); s != exitUsage || out.Len() > 0 {
			t.Errorf("pollux %v: status %d, %q on stdout", tc.args, s, out.String())
		}
		for _, w := range tc.want {
			if !strings.Contains(errs.String(), w) {
				t.Errorf("pollux %v: no %q in %q", tc.args, w, errs.String())
			}
		}
		if n := strings.Count(errs.String(), "\n"); n != 1 {
			t.Errorf("pollux %v: %d lines instead of one: %q", tc.args, n, errs.String())
		}
	}
}
