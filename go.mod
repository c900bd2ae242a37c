module github.com/pollux-go/pollux

go 1.26.0

require (
	github.com/caarlos0/env/v11 v11.4.2
	golang.org/x/sys v0.49.0
)

require github.com/iceber/iouring-go v0.0.0-20230403020409-002cfd2e2a90 // indirect
