package main

import (
	"context"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// The tests in this file point the tools at the servers that people will point at them, for about a second each. They
// say that it works, not how fast.

// tool runs an installed program, and skips the test without it.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	if testing.Short() {
		t.Skip("runs a load generator")
	}
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed", name)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestRedisBenchmark(t *testing.T) {
	for _, pipeline := range []string{"1", "16"} {
		t.Run("P="+pipeline, func(t *testing.T) {
			p := startResp(t)
			host, port, _ := strings.Cut(p.hostPort(), ":")
			out := tool(t, "redis-benchmark", "-h", host, "-p", port, "-t", "ping,set,get,incr", "-n", "10000", "-P", pipeline, "-q")
			for _, test := range []string{"PING_INLINE", "PING_MBULK", "SET", "GET", "INCR"} {
				if !regexp.MustCompile(test + `: [1-9][\d.]* requests per second`).MatchString(out) {
					t.Errorf("no result for %s in\n%s", test, out)
				}
			}
			for _, bad := range []string{"rror", "WARN", "ERR"} {
				if strings.Contains(out, bad) {
					t.Errorf("%q in\n%s", bad, out)
				}
			}
			p.stop(t)
		})
	}
}

func TestRedisCLI(t *testing.T) {
	p := startResp(t)
	host, port, _ := strings.Cut(p.hostPort(), ":")
	for _, tc := range []struct {
		args string
		want string
	}{
		{"ping", "PONG\n"}, {"set k v", "OK\n"}, {"get k", "v\n"}, {"incr n", "1\n"}, {"del k n", "2\n"}, {"get k", "\n"},
	} {
		if out := tool(t, "redis-cli", append([]string{"-h", host, "-p", port}, strings.Fields(tc.args)...)...); out != tc.want {
			t.Errorf("%s: %q, want %q", tc.args, out, tc.want)
		}
	}
	p.stop(t)
}

func TestWrk(t *testing.T) {
	eachHTTP(t, func(t *testing.T, p *proc) {
		for _, path := range []string{"/", "/size/100000"} {
			out := tool(t, "wrk", "-t", "1", "-c", "16", "-d", "1s", "http://"+p.hostPort()+path)
			m := regexp.MustCompile(`(?m)^\s*(\d+) requests in`).FindStringSubmatch(out)
			if m == nil || m[1] == "0" || strings.Contains(out, "Socket errors") || strings.Contains(out, "Non-2xx") {
				t.Errorf("%s:\n%s", path, out)
			}
		}
	})
}

// Two URLs go over one connection, and the second one's answer is whole.
func TestCurl(t *testing.T) {
	eachHTTP(t, func(t *testing.T, p *proc) {
		url := "http://" + p.hostPort()
		out := tool(t, "curl", "-sS", "-w", "connects=%{num_connects} status=%{http_code} size=%{size_download}\n", url+"/", "-o", "/dev/null", url+"/size/5000000", "-o", "/dev/null")
		if want := "connects=1 status=200 size=13\nconnects=0 status=200 size=5000000\n"; out != want {
			t.Errorf("%q, want %q", out, want)
		}
		// A body over 1 MB makes curl ask with Expect: 100-continue.
		out = tool(t, "curl", "-sS", "-w", "%{http_code}", "-o", "/dev/null", "--data-binary", "@"+binary, url+"/")
		if out != strconv.Itoa(405) {
			t.Errorf("POST: %q", out)
		}
	})
}
