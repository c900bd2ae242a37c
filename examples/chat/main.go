// Chat sends each line that a client writes to all the others. It shows one connection's callback writing to many other
// connections, which run on loops of their own: Write never waits, and may be called from anywhere.
//
//	go run ./examples/chat -addr tcp://127.0.0.1:9002
//	nc 127.0.0.1 9002        in two terminals
//
// Who reads too slowly to keep up is thrown out, and slows nobody down.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/pollux-go/pollux"
)

// room is the handler of all connections, and what they share. Callbacks of different connections run at the same time,
// so it has a mutex.
type room struct {
	pollux.NopHandler

	mu      sync.Mutex // protects the fields below
	members map[*pollux.Conn]string
	joined  int
}

// OnOpen gives a new member a name.
func (r *room) OnOpen(c *pollux.Conn) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.joined++
	name := fmt.Sprintf("guest%d", r.joined)
	r.members[c] = name
	c.SetContext(name)
	r.tell(c, fmt.Sprintf("* %s has joined\n", name))
	_, err := fmt.Fprintf(c, "* you are %s, of %d\n", name, len(r.members))
	return err
}

// OnData takes the whole lines that have arrived. What is left of one stays buffered: its end comes with the next bytes,
// or never, and then the read limit ends the connection.
func (r *room) OnData(c *pollux.Conn) error {
	b, _ := c.Peek(-1)
	end := bytes.LastIndexByte(b, '\n') + 1
	if end == 0 {
		return nil
	}
	lines, err := c.Next(end)
	if err != nil {
		return err
	}
	name := c.Context().(string)
	var text bytes.Buffer
	for line := range bytes.Lines(lines) {
		fmt.Fprintf(&text, "%s: %s", name, line)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tell(c, text.String())
	return nil
}

// OnClose comes exactly once for each OnOpen, whatever ended the connection.
func (r *room) OnClose(c *pollux.Conn, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.members, c)
	farewell := fmt.Sprintf("* %s has left\n", c.Context())
	if err != nil {
		farewell = fmt.Sprintf("* %s has left: %v\n", c.Context(), err)
	}
	r.tell(c, farewell)
}

// tell writes text to everybody but one. mu is held.
//
// A Write that returns ErrWouldBlock has taken a part: the rest would have to follow before anything else. Here the slow
// reader goes instead, once it has got what was queued or has run out of the linger time.
func (r *room) tell(but *pollux.Conn, text string) {
	for c := range r.members {
		if c == but {
			continue
		}
		if _, err := c.Write([]byte(text)); errors.Is(err, pollux.ErrWouldBlock) {
			log.Printf("%s is too slow and has to go", r.members[c])
			delete(r.members, c)
			_ = c.Close() // OnClose follows, on its loop.
		}
	}
}

func main() {
	addr := flag.String("addr", "tcp://127.0.0.1:9002", "address to listen on")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *addr); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, addr string) error {
	engine, err := pollux.DefaultEngine()
	if err != nil {
		return err
	}
	service, err := engine.Bind(&room{members: map[*pollux.Conn]string{}}, addr)
	if err != nil {
		return err
	}
	fmt.Println("listening on", service.Addrs()[0])
	<-ctx.Done()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return service.Shutdown(ctx)
}
