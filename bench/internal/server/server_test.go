package server

import (
	"testing"
	"time"
)

func TestServeCost(t *testing.T) {
	was := load
	defer func() { load = was }()
	const requests = 3
	load = Options{Cost: 2 * time.Millisecond, Size: 64}
	begin := time.Now()
	Serve(make([]byte, requests*load.Size+load.Size-1)) // The last one has not come entirely.
	if took := time.Since(begin); took < requests*load.Cost {
		t.Errorf("%d requests that cost %v each took %v", requests, load.Cost, took)
	}
}
