package test

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/pollux-go/pollux/scheduler"
)

// An operation on a queue, and its answer. The models below are queues as a list, on which operations happen one at a
// time.
type (
	operation struct {
		kind  string // "push", "pop", "steal"
		item  scheduler.Item
		limit int // of a steal
	}
	answer struct {
		ok    bool
		items []scheduler.Item
	}
)

// listModel is a bounded queue, first in first out. A steal takes from one to half of the items, rounded up: the half of
// what there was when the thief looked, while the owner may have pushed since. It finds nothing only when there is
// nothing.
func listModel(capacity int) porcupine.Model {
	type list = []scheduler.Item
	return porcupine.Model{
		Init: func() any { return list(nil) },
		Step: func(state, input, output any) (bool, any) {
			l, op, got := state.(list), input.(operation), output.(answer)
			switch op.kind {
			case "push":
				if got.ok {
					return len(l) < capacity, append(slices.Clip(l), op.item)
				}
				return len(l) == capacity, l
			case "pop":
				if !got.ok {
					return len(l) == 0, l
				}
				return len(l) > 0 && l[0] == got.items[0], l[min(1, len(l)):]
			default:
				n := len(got.items)
				if n == 0 {
					return len(l) == 0, l
				}
				if n > min(len(l)-len(l)/2, op.limit) || !slices.Equal(l[:n], got.items) {
					return false, l
				}
				return true, l[n:]
			}
		},
		Equal:             func(a, b any) bool { return slices.Equal(a.(list), b.(list)) },
		DescribeOperation: func(in, out any) string { return fmt.Sprintf("%+v: %+v", in, out) },
	}
}

// recorder notes when each operation began and ended.
type recorder struct {
	start time.Time
	mu    sync.Mutex
	all   []porcupine.Operation
}

func (r *recorder) client(id int, do func(record func(op operation, run func() answer))) {
	var own []porcupine.Operation
	do(func(op operation, run func() answer) {
		called := time.Since(r.start)
		got := run()
		own = append(own, porcupine.Operation{ClientId: id, Input: op, Call: int64(called), Output: got, Return: int64(time.Since(r.start))})
	})
	r.mu.Lock()
	r.all = append(r.all, own...)
	r.mu.Unlock()
}

func linearOperations() int {
	if os.Getenv("POLLUX_TEST_LONG") == "1" {
		return 1e5
	}
	return 1e4
}

// checkLinear makes histories of a few hundred operations, as many as are needed, because the check takes exponential
// time in the worst case.
func checkLinear(t *testing.T, capacity int, history func(r *recorder)) {
	t.Helper()
	for total := 0; total < linearOperations(); {
		r := &recorder{start: time.Now()}
		history(r)
		total += len(r.all)
		switch result, info := porcupine.CheckOperationsVerbose(listModel(capacity), r.all, 20*time.Second); result {
		case porcupine.Illegal:
			file, err := os.CreateTemp("", "pollux-history-*.html")
			if err == nil {
				defer file.Close()
				err = porcupine.Visualize(listModel(capacity), info, file)
			}
			t.Fatalf("a history of %d operations has no order in which a queue answers like that; see %v, %v", len(r.all), file.Name(), err)
		case porcupine.Unknown:
			t.Fatalf("a history of %d operations could not be checked in time", len(r.all))
		}
	}
}

func TestQueueLinearizable(t *testing.T) {
	for _, capacity := range []int{2, 4, 16} {
		t.Run(fmt.Sprintf("capacity=%d", capacity), func(t *testing.T) {
			checkLinear(t, capacity, func(r *recorder) {
				q := scheduler.NewQueue(capacity)
				var all sync.WaitGroup
				ready := make(chan struct{})
				all.Go(func() {
					r.client(0, func(record func(operation, func() answer)) {
						<-ready
						for i := range 150 {
							if item := scheduler.Item(i + 1); i%5 != 4 {
								record(operation{kind: "push", item: item}, func() answer { return answer{ok: q.Push(item)} })
							} else {
								record(operation{kind: "pop"}, func() answer { item, ok := q.Pop(); return answer{ok, []scheduler.Item{item}} })
							}
							if i%9 == 0 {
								runtime.Gosched()
							}
						}
					})
				})
				for thief := range 3 {
					all.Go(func() {
						r.client(thief+1, func(record func(operation, func() answer)) {
							own, dst := scheduler.NewQueue(4), make([]scheduler.Item, 3)
							<-ready
							for range 60 {
								if thief == 0 {
									record(operation{kind: "steal", limit: 3}, func() answer {
										return answer{items: slices.Clone(dst[:q.StealTo(dst)])}
									})
								} else {
									record(operation{kind: "steal", limit: 5}, func() answer {
										first, n := q.Steal(own)
										if n == 0 {
											return answer{}
										}
										got := []scheduler.Item{first}
										for item, ok := own.Pop(); ok; item, ok = own.Pop() {
											got = append(got, item)
										}
										return answer{items: got}
									})
								}
								runtime.Gosched()
							}
						})
					})
				}
				close(ready)
				all.Wait()
			})
		})
	}
}

func TestInjectorLinearizable(t *testing.T) {
	for _, capacity := range []int{2, 4, 16} {
		t.Run(fmt.Sprintf("capacity=%d", capacity), func(t *testing.T) {
			checkLinear(t, capacity, func(r *recorder) {
				j := scheduler.NewInjector(capacity)
				var all sync.WaitGroup
				ready := make(chan struct{})
				for id := range 4 {
					all.Go(func() {
						r.client(id, func(record func(operation, func() answer)) {
							<-ready
							for i := range 60 {
								item := scheduler.Item(id*1000 + i + 1)
								if id < 2 {
									record(operation{kind: "push", item: item}, func() answer { return answer{ok: j.Push(item)} })
								} else {
									record(operation{kind: "pop"}, func() answer { item, ok := j.Pop(); return answer{ok, []scheduler.Item{item}} })
								}
								if i%7 == 0 {
									runtime.Gosched()
								}
							}
						})
					})
				}
				close(ready)
				all.Wait()
			})
		})
	}
}

// TestModelSeesFaults checks that the check can fail: an item taken twice, out of order, and a lie about an empty queue.
func TestModelSeesFaults(t *testing.T) {
	push := func(at int64, item scheduler.Item) porcupine.Operation {
		return porcupine.Operation{Input: operation{kind: "push", item: item}, Call: at, Output: answer{ok: true}, Return: at + 1}
	}
	pop := func(at int64, ok bool, item scheduler.Item) porcupine.Operation {
		return porcupine.Operation{ClientId: 1, Input: operation{kind: "pop"}, Call: at, Output: answer{ok, []scheduler.Item{item}}, Return: at + 1}
	}
	for name, c := range map[string]struct {
		want bool
		ops  []porcupine.Operation
	}{
		"right":     {true, []porcupine.Operation{push(0, 1), push(2, 2), pop(4, true, 1), pop(6, true, 2), pop(8, false, 0)}},
		"doubled":   {false, []porcupine.Operation{push(0, 1), push(2, 2), pop(4, true, 1), pop(6, true, 1)}},
		"disorder":  {false, []porcupine.Operation{push(0, 1), push(2, 2), pop(4, true, 2)}},
		"not empty": {false, []porcupine.Operation{push(0, 1), pop(2, false, 0)}},
		"too many":  {false, []porcupine.Operation{push(0, 1), push(2, 2), push(4, 3)}},
	} {
		if got := porcupine.CheckOperations(listModel(2), c.ops); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
