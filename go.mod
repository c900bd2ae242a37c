module github.com/pollux-go/pollux

go 1.26.0

require (
	github.com/caarlos0/env/v11 v11.4.2
	golang.org/x/sys v0.49.0
)
