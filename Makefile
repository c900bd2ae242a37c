# pollux: the commands of a developer. `make help` lists them.
#
# A fresh machine needs Go, gcc and make. Modules are fetched by Go; tools are pinned in tools/go.mod, outside of the
# module that users import.

GO         ?= go
MODULES    := . bench test metrics/prometheus
PACKAGES   := ./...
STATICCHECK = $(GO) tool -modfile=$(CURDIR)/tools/go.mod staticcheck
# Where the packages that users import must build, too.
SYSTEMS    := linux/arm64,darwin/amd64,windows/amd64
PORTABLE   := . ./poller ./cgo ./scheduler ./internal/sys
comma      := ,
# Executions and not a time: up to Go 1.26, a fuzzer whose time ends may say "context deadline exceeded" and fail
# (go.dev/issue/75804).
FUZZTIME   ?= 100000x
# What is found is not made smaller, which would take most of the time.
FUZZMINIMIZETIME ?= 0x
ROUNDS     ?= 7
BENCH      := cd bench && $(GO) run ./cmd/bench

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: run
run: deps ## install, build, and run the comparison with other pollers (about a minute)
	$(BENCH) echo -quick

.PHONY: test
test: deps lint test-plain test-nocgo test-race bench-smoke fuzz-smoke ## everything that must hold before a commit

.PHONY: deps
deps:
	@for m in $(MODULES); do (cd $$m && $(GO) mod download) || exit 1; done

.PHONY: lint
lint: ## gofmt, vet and staticcheck, and types on other systems
	@out=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); [ -z "$$out" ] || { echo "gofmt would change:"; echo "$$out"; exit 1; }
	@for m in $(MODULES); do echo "vet and staticcheck $$m"; (cd $$m && $(GO) vet $(PACKAGES) && $(STATICCHECK) $(PACKAGES)) || exit 1; done
	cd tools && $(GO) vet ./... && $(GO) build -o $(CURDIR)/bin/systems ./systems
	bin/systems -on $(SYSTEMS) -not linux/386=polluxNeeds64Bits $(PORTABLE)

.PHONY: systems
systems: ## build and vet for the other systems, with what `make lint` cannot see: the assembler and the compiler (two minutes)
	@for system in $(subst $(comma), ,$(SYSTEMS)); do \
		echo "$$system"; export GOOS=$${system%/*} GOARCH=$${system#*/}; $(GO) build $(PORTABLE) && $(GO) vet $(PORTABLE) || exit 1; \
	done
	@GOARCH=386 $(GO) build ./internal/sys 2>&1 | grep -q polluxNeeds64Bits || { echo "386 must not build: internal/sys/bits_linux.go"; exit 1; }

# The sweeps, and most of the test module, wait for what does not come: they run beside the other tests.
define both_modules
	$(1) -c -o /dev/null .
	@echo "$(1) $(PACKAGES), here and in test"
	@$(1) -skip Sweep $(PACKAGES) & most=$$!; $(1) -run Sweep . && cd test && $(1) $(PACKAGES); rest=$$?; wait $$most && exit $$rest
endef

.PHONY: test-plain
test-plain: ## the tests, and those of the net API against package net's
	$(call both_modules,$(GO) test)
	cd bench && $(GO) test $(PACKAGES)
	cd metrics/prometheus && $(GO) test $(PACKAGES)
	POLLUX_DISPATCH=workers $(GO) test -run 'Test[ABDFH][0-9]' .

.PHONY: test-nocgo
test-nocgo: ## the tests of a build without cgo
	$(call both_modules,CGO_ENABLED=0 $(GO) test)

.PHONY: test-race
test-race: ## the tests under the race detector
	$(call both_modules,$(GO) test -race -timeout 20m)

.PHONY: test-nettest
test-nettest: ## golang.org/x/net/nettest, 20 times under the race detector
	cd test && $(GO) test -race -run 'TestNettest' -count=20 $(PACKAGES)

# What Linux 6.6, 6.1 and 5.19 lack, and each feature alone.
WITHOUT_66  := -no_iowait,-epoll_wait
WITHOUT_61  := $(WITHOUT_66),-no_sqarray
WITHOUT_519 := $(WITHOUT_61),-defer_taskrun,-multishot_recv
MASKS       ?= none $(WITHOUT_66) $(WITHOUT_61) $(WITHOUT_519) $(addprefix -,restrictions multishot_poll skip_cqe registered_ring \
	coop_taskrun buffer_ring multishot_accept multishot_recv defer_taskrun no_sqarray resize_rings no_iowait epoll_wait)

.PHONY: test-matrix
test-matrix: ## all tests on io_uring under the race detector, with what kernels lack masked off (about 40 minutes)
	POLLUX_TEST_MATRIX=all $(GO) test -race -run TestConformance .
	@for mask in $(MASKS); do \
		echo "io_uring without $$mask"; \
		export POLLUX_BACKEND=io_uring POLLUX_URING_FEATURES=$${mask#none}; \
		$(GO) test -race -timeout 20m . && (cd test && $(GO) test -race $(PACKAGES)) || exit 1; \
	done

.PHONY: test-direct
test-direct: ## all tests on io_uring with direct descriptors, under the race detector (about 5 minutes)
	POLLUX_BACKEND=io_uring POLLUX_DIRECT=1000 $(GO) test -race -timeout 20m .

# The tests of the test module that run handlers. Each takes both backends. The others are of the net API, whose poller is the
# same whatever the backend and Dispatch are.
HANDLERS := TestMixed|TestDetached|TestNettest/.*/detached|TestHTTP/events

.PHONY: test-dispatch
test-dispatch: ## what test does with steal, with handlers on the loops only, and on workers only, with cgo, without, and under the race detector (about half an hour)
	@for dispatch in inline workers; do \
		echo "handlers: $$dispatch"; \
		export POLLUX_DISPATCH=$$dispatch; \
		CGO_ENABLED=0 $(GO) test . && $(GO) test -race -timeout 20m . || exit 1; \
		(cd test && CGO_ENABLED=0 $(GO) test -run '$(HANDLERS)' . && $(GO) test -race -run '$(HANDLERS)' .) || exit 1; \
	done
	@echo "handlers: steal, every turn with two events shared"
	POLLUX_TEST_BACKLOG=all $(GO) test -race -timeout 20m .

.PHONY: test-sweep
test-sweep: ## every system call of the scenarios fails once, with every error that makes sense
	POLLUX_TEST_SWEEP=all $(GO) test -run 'Sweep' -timeout 30m .

.PHONY: test-cgocheck
test-cgocheck: ## the tests of what C sees, with a check of each pointer that is written, and with C's address sanitizer (two minutes, and a build of Go's packages)
	GOEXPERIMENT=cgocheck2 $(GO) test ./cgo ./internal/uring
	GOEXPERIMENT=cgocheck2 $(GO) test -run 'TestConformance|TestF[0-9]' .
	$(GO) test -asan ./cgo

.PHONY: test-stress
test-stress: ## the tests ten times, at 1, 2, 4 and 8 Ps, under the race detector
	$(GO) test -race -count=10 -cpu 1,2,4,8 -timeout 80m . ./poller ./internal/...

.PHONY: soak
soak: ## what takes long: 10^8 items through the scheduler, histories of 10^5 operations, 10,000 engines (about five minutes)
	POLLUX_TEST_LONG=1 $(GO) test -timeout 60m ./scheduler
	cd test && POLLUX_TEST_LONG=1 $(GO) test -timeout 60m -run 'Linearizable' .
	POLLUX_TEST_LONG=1 $(GO) test -timeout 60m -run 'TestF13|TestF14|TestCloseTells' .

.PHONY: model
model: ## check the models of the lock-free parts with spin (one or two minutes; scheduler/model)
	scheduler/model/run.sh

.PHONY: kernels
kernels: ## Linux 5.4, 5.10, 6.1 and 6.12 in an emulator, and the tests on each (about 15 minutes; docs/kernels.md)
	test/kernels/run.sh

.PHONY: bench
bench: deps ## the comparison in full: 1, 64 and 1000 connections, deadlines, idle connections (about 15 minutes)
	$(BENCH) echo -rounds $(ROUNDS) -duration 1s -warmup 300ms
	$(BENCH) echo -rounds $(ROUNDS) -duration 1s -warmup 300ms -servers std,pollux-net -deadline 5s
	$(BENCH) idle

.PHONY: conns
conns: deps ## 100,000 connections in one process beyond RLIMIT_NOFILE, by direct descriptors (about a minute, 2 GB)
	$(BENCH) conns

.PHONY: bench-smoke
bench-smoke: ## every benchmark once, so that none rots
	$(GO) test -run '^$$' -bench . -benchtime 1x $(PACKAGES)

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME: 100000x executions, or 10m
	@for p in $$($(GO) list $(PACKAGES)); do \
		for f in $$($(GO) test -list '^Fuzz' $$p | grep '^Fuzz'); do \
			echo "fuzz $$f in $$p"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime $(FUZZMINIMIZETIME) $$p || exit 1; \
		done; \
	done

.PHONY: fuzz-smoke
fuzz-smoke:
	@$(MAKE) --no-print-directory fuzz FUZZTIME=2000x

.PHONY: cover
cover: ## coverage of the tests, in coverage.html
	$(GO) test -coverpkg=./,./poller,./internal/sys -coverprofile=coverage.out . ./poller ./internal/...
	$(GO) tool cover -func=coverage.out | tail -1
	$(GO) tool cover -html=coverage.out -o coverage.html

.PHONY: clean
clean: ## remove what the commands have made
	rm -rf bin coverage.out coverage.html
	$(GO) clean -testcache
