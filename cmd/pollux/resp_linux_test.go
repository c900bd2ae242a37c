package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pollux-go/pollux/cmd/pollux/internal/kv"
	"github.com/pollux-go/pollux/cmd/pollux/internal/resp"
)

func startResp(t *testing.T, options ...option) *proc {
	t.Helper()
	return start(t, []string{"resp", "-addr", "tcp://127.0.0.1:0"}, options...)
}

// respCommand is args as a client sends them.
func respCommand(args ...string) string {
	b := resp.AppendArray(nil, len(args))
	for _, a := range args {
		b = resp.AppendBulkString(b, a)
	}
	return string(b)
}

func TestRespCommands(t *testing.T) {
	p := startResp(t)
	c := p.dial(t)
	for _, tc := range []struct{ command, want string }{
		{"PING", "+PONG\r\n"},
		{"ping hello", "$5\r\nhello\r\n"},
		{"PING a b", "-ERR wrong number of arguments for 'ping' command\r\n"},
		{"ECHO hello", "$5\r\nhello\r\n"},
		{"ECHO", "-ERR wrong number of arguments for 'echo' command\r\n"},
		{"GET k", "$-1\r\n"},
		{"SET k v", "+OK\r\n"},
		{"get k", "$1\r\nv\r\n"},
		{"GET", "-ERR wrong number of arguments for 'get' command\r\n"},
		{"SET k w NX", "$-1\r\n"},
		{"SET k w XX", "+OK\r\n"},
		{"SET l w xx", "$-1\r\n"},
		{"SET l w nx", "+OK\r\n"},
		{"SET l w nx xx", "-ERR syntax error\r\n"},
		{"SET l w EX 10", "-ERR SET option EX is not supported by this server\r\n"},
		{"SET l w wat", "-ERR syntax error\r\n"},
		{"GET k", "$1\r\nw\r\n"},
		{"EXISTS k l m k", ":3\r\n"},
		{"DBSIZE", ":2\r\n"},
		{"DEL k l m", ":2\r\n"},
		{"INCR n", ":1\r\n"},
		{"INCR n", ":2\r\n"},
		{"GET n", "$1\r\n2\r\n"},
		{"SET s text", "+OK\r\n"},
		{"INCR s", "-ERR value is not an integer or out of range\r\n"},
		{"SET s 9223372036854775807", "+OK\r\n"},
		{"INCR s", "-ERR increment or decrement would overflow\r\n"},
		{"COMMAND", "*0\r\n"},
		{"COMMAND DOCS", "*0\r\n"},
		{"COMMAND COUNT", ":0\r\n"},
		{"CONFIG GET save", "*2\r\n$4\r\nsave\r\n$0\r\n\r\n"},
		{"CONFIG GET *", "*4\r\n$4\r\nsave\r\n$0\r\n\r\n$10\r\nappendonly\r\n$2\r\nno\r\n"},
		{"CONFIG GET maxclients", "*0\r\n"},
		{"CONFIG SET save x", "-ERR unknown subcommand or wrong number of arguments for 'SET'. CONFIG is not supported by this server\r\n"},
		{"CLIENT SETNAME x", "+OK\r\n"},
		{"CLIENT KILL x", "-ERR unknown subcommand or wrong number of arguments for 'KILL'. CLIENT is not supported by this server\r\n"},
		{"SELECT 0", "+OK\r\n"},
		{"SELECT 1", "-ERR DB index is out of range\r\n"},
		{"FLY away", "-ERR unknown command 'FLY'\r\n"},
		{strings.Repeat("x", 100), "-ERR unknown command '" + strings.Repeat("x", 64) + "'\r\n"},
	} {
		exchange(t, c, tc.command+"\r\n", tc.want)                             // inline
		if !strings.HasPrefix(tc.command, "INCR n") && tc.want != "$-1\r\n" && // changed by having been there
			!strings.Contains(tc.command, "nx") && !strings.HasPrefix(tc.command, "DEL") && tc.command != "DBSIZE" {
			exchange(t, c, respCommand(strings.Fields(tc.command)...), tc.want)
		}
	}
	exchange(t, c, "QUIT\r\nPING\r\n", "+OK\r\n")
	if rest := ended(t, c); rest != "" {
		t.Errorf("after QUIT: %q", rest)
	}
	p.stop(t)
}

// A pipeline comes back in order, however big it is and however it is cut into packets.
func TestRespPipeline(t *testing.T) {
	p := startResp(t)
	c := p.dial(t)
	var request, want strings.Builder
	for i := range 20_000 {
		key, value := fmt.Sprint("key", i%100), strings.Repeat("v", i%50)
		request.WriteString(respCommand("SET", key, value) + respCommand("GET", key) + "INCR n\r\n")
		want.WriteString("+OK\r\n" + string(resp.AppendBulkString(nil, value)) + string(resp.AppendInt(nil, int64(i+1))))
	}
	exchange(t, c, request.String(), want.String())

	slow := p.dial(t)
	go func() {
		for i, r := range respCommand("ECHO", "byte by byte") {
			io.WriteString(slow, string(r))
			if i%5 == 0 {
				time.Sleep(time.Millisecond) // So that the pieces do not travel together.
			}
		}
	}()
	exchange(t, slow, "", "$12\r\nbyte by byte\r\n")
	p.stop(t)
}

// A client that asks for much more than it reads is not read from, so that the server's memory does not grow; when it
// reads, it gets all of it.
func TestRespSlowReader(t *testing.T) {
	p := startResp(t, withEnv("POLLUX_WRITE_LIMIT=65536"))
	c := p.dial(t)
	value := string(noise(100_000))
	exchange(t, c, respCommand("SET", "big", value), "+OK\r\n")

	const gets = 600 // 60 MB of replies for 15 KB of commands.
	if _, err := io.WriteString(c, strings.Repeat(respCommand("GET", "big"), gets)+"QUIT\r\n"); err != nil {
		t.Fatal(err)
	}
	other := p.dial(t)
	exchange(t, other, "PING\r\n", "+PONG\r\n")
	time.Sleep(200 * time.Millisecond) // So that the server really gets stuck; nothing else depends on it.
	if kb := p.peakKB(t); !raceEnabled && kb > 48<<10 {
		t.Errorf("the server has used %d KB for one slow client", kb)
	}
	r, want := bufio.NewReaderSize(c, 1<<20), string(resp.AppendBulkString(nil, value))
	got := make([]byte, len(want))
	for i := range gets {
		if _, err := io.ReadFull(r, got); err != nil || string(got) != want {
			t.Fatalf("reply %d: %v", i, err)
		}
	}
	if rest, err := io.ReadAll(r); string(rest) != "+OK\r\n" || err != nil {
		t.Errorf("at the end: %q, %v", rest, err)
	}
	p.stop(t)
}

// A client may end its side right behind its last command.
func TestRespHalfClose(t *testing.T) {
	p := startResp(t)
	c := p.dial(t).(*net.TCPConn)
	io.WriteString(c, strings.Repeat("PING\r\n", 1000)+"GET incomp")
	c.CloseWrite()
	if got := ended(t, c); got != strings.Repeat("+PONG\r\n", 1000) {
		t.Errorf("%d bytes", len(got))
	}
	p.stop(t)
}

// The error of a broken stream arrives although the client goes on sending: a close with unread input would reset it
// away.
func TestRespProtocolErrors(t *testing.T) {
	p := startResp(t)
	for input, want := range map[string]string{
		"PING\r\n*x\r\n":              "+PONG\r\n-ERR Protocol error: invalid multibulk length\r\n",
		"*1\r\n$-5\r\n":               "-ERR Protocol error: invalid bulk length\r\n",
		"*2\r\n$3\r\nGET\r\n+x\r\n":   "-ERR Protocol error: expected '$', got '+'\r\n",
		"*2\r\n$3\r\nGET\r\n$2000000": "",
		"*2\r\n$3\r\nGET\r\n$2000000\r\n" + strings.Repeat("x", 500_000): "-ERR Protocol error: invalid bulk length\r\n",
		strings.Repeat("x", 200_000):                                     "-ERR Protocol error: too big inline request\r\n",
		"set \"x\r\n":                                                    "-ERR Protocol error: unbalanced quotes in request\r\n",
	} {
		c := p.dial(t).(*net.TCPConn)
		go func() {
			io.WriteString(c, input)
			if want == "" {
				c.CloseWrite()
			}
		}()
		if got := ended(t, c); got != want {
			t.Errorf("%.40q: %q, want %q", input, got, want)
		}
	}
	p.stop(t)
}

// What a small read limit cannot hold is refused by an answer, not by a cut connection.
func TestRespReadLimit(t *testing.T) {
	p := startResp(t, withEnv("POLLUX_READ_LIMIT=8192"))
	c := p.dial(t)
	value := strings.Repeat("v", 8000)
	exchange(t, c, respCommand("SET", "k", value), "+OK\r\n")
	exchange(t, c, respCommand("SET", "k", strings.Repeat("v", 8192)), "-ERR Protocol error: invalid bulk length\r\n")
	ended(t, c)
	p.stop(t)
}

func TestRespMaxMemory(t *testing.T) {
	p := start(t, []string{"resp", "-addr", "tcp://127.0.0.1:0", "-maxmemory", "1000"})
	exchange(t, p.dial(t), respCommand("SET", "k", strings.Repeat("x", 2000))+"PING\r\n",
		"-OOM command not allowed when used memory > 'maxmemory'\r\n+PONG\r\n")
	p.stop(t)
}

// Nothing is allocated between the parser and the reply buffer.
func TestRespHotPathDoesNotAllocate(t *testing.T) {
	var (
		h   = &respHandler{store: kv.New(1 << 20)}
		s   respConn
		in  = []byte(respCommand("SET", "key", "value") + respCommand("GET", "key") + respCommand("INCR", "n") + respCommand("PING"))
		out = make([]byte, 0, 1024)
	)
	if n := testing.AllocsPerRun(200, func() {
		out = out[:0]
		for off := 0; off < len(in); {
			args, n, err := s.parser.Next(in[off:])
			if err != nil {
				t.Fatal(err)
			}
			off += n
			out = h.execute(&s, out, args)
		}
	}); n > 1 { // INCR stores a longer number now and then.
		t.Errorf("%v allocations for four commands", n)
	}
}

// peakKB is the largest size that the process ever had in memory.
func (p *proc) peakKB(t *testing.T) int {
	t.Helper()
	for line := range strings.Lines(readFile(t, fmt.Sprintf("/proc/%d/status", p.Process.Pid))) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
			if err != nil {
				t.Fatal(err)
			}
			return kb
		}
	}
	t.Fatal("no VmHWM")
	return 0
}
