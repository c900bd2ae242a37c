package scheduler_test

import (
	"context"
	"fmt"
	"sync"

	"github.com/pollux-go/pollux/scheduler"
)

func Example() {
	names := []string{1: "read a", 2: "read b", 3: "write c"}
	var ran sync.WaitGroup
	d, err := scheduler.New(scheduler.Config{
		Run: func(_ int, item scheduler.Item) {
			defer ran.Done()
			fmt.Println("worker:", names[item])
		},
		Sources:  1,
		Capacity: 256,
		Workers:  4,
	})
	if err != nil {
		fmt.Println(err)
		return
	}

	// A loop, the owner of source 0, has three things to do. It does the first itself.
	ready := d.Source(0)
	ran.Add(2)
	for item := range names[1:] {
		ready.Push(scheduler.Item(item + 1))
	}
	if item, ok := ready.Pop(); ok {
		fmt.Println("loop:", names[item])
	}
	// The others are worth a wake.
	d.Wake()
	ran.Wait()

	left, err := d.Close(context.Background())
	fmt.Println(len(left), "left,", err)
	// Unordered output:
	// loop: read a
	// worker: read b
	// worker: write c
	// 0 left, <nil>
}
