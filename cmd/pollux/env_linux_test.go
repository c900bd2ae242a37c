package main

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strings"
	"testing"

	"github.com/pollux-go/pollux"
)

func TestEnvTable(t *testing.T) {
	out, errs, status := output(t, []string{"env"}, "POLLUX_BACKEND=epoll", "POLLUX_READ_LIMIT=64KiB")
	if status != exitOK || errs != "" {
		t.Fatalf("status %d, %q", status, errs)
	}
	for _, want := range []string{
		`(?m)^VARIABLE +VALUE +FROM +DEFAULT +ALLOWED +MEANING$`,
		`(?m)^POLLUX_BACKEND +epoll +environment +auto +`,
		`(?m)^POLLUX_READ_LIMIT +64KiB +environment +\S+ +`,
		`(?m)^POLLUX_WRITE_LIMIT +\S+ +default +`,
	} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("no line matches %s in\n%s", want, out)
		}
	}
	none := func(string) (string, bool) { return "", false }
	vars, err := pollux.Variables(none)
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Count(out, "\n"); lines != len(vars)+1 {
		t.Errorf("%d lines for %d variables", lines, len(vars))
	}
}

func TestEnvJSON(t *testing.T) {
	out, errs, status := output(t, []string{"env", "-json"}, "POLLUX_WRITE_LIMIT=2MiB")
	if status != exitOK || errs != "" {
		t.Fatalf("status %d, %q", status, errs)
	}
	var list []struct {
		Name, Value, Default, Allowed, Help string
		FromEnv                             bool `json:"from_env"`
	}
	dec := json.NewDecoder(strings.NewReader(out))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&list); err != nil {
		t.Fatal(err)
	}
	found := false
	for _, v := range list {
		if v.Name == "" || v.Allowed == "" || v.Help == "" {
			t.Errorf("incomplete: %+v", v)
		}
		if v.Name == "POLLUX_WRITE_LIMIT" {
			found = v.FromEnv && v.Value == "2MiB"
		} else if v.FromEnv && v.Name != "POLLUX_BACKEND" && v.Name != "POLLUX_URING_FEATURES" {
			t.Errorf("%+v", v)
		}
	}
	if !found {
		t.Error("POLLUX_WRITE_LIMIT is not there as it was set")
	}
}

// A cell without a text must not shift the columns behind it.
func TestEnvTableEmptyCells(t *testing.T) {
	var out bytes.Buffer
	if err := envTable(&out, []pollux.Variable{{Name: "POLLUX_X", Help: "what it does"}}); err != nil {
		t.Fatal(err)
	}
	if want := "POLLUX_X  -      default  -        -        what it does\n"; !strings.HasSuffix(out.String(), want) {
		t.Errorf("%q", out.String())
	}
}
