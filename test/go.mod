module github.com/pollux-go/pollux/test

go 1.26.0

replace github.com/pollux-go/pollux => ../

require (
	github.com/anishathalye/porcupine v1.0.3
	github.com/pollux-go/pollux v0.0.0-00010101000000-000000000000
	golang.org/x/net v0.62.0
	pgregory.net/rapid v1.2.0
)

require (
	github.com/caarlos0/env/v11 v11.4.2 // indirect
	github.com/iceber/iouring-go v0.0.0-20230403020409-002cfd2e2a90 // indirect
	golang.org/x/sys v0.49.0 // indirect
)
