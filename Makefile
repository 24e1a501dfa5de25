# Verbs that do the same here and in CI. They need Go, and gcc for race.
export PATH := $(PATH):/usr/local/go/bin
GO       ?= go
FUZZTIME ?= 10s
SEED     ?= 1
DURATION ?= 60s
BROKER   ?= embedded
RUNS     ?= 100000
# As long as a slow and busy machine may take; it says nothing of how long they do.
LONG      = -timeout 45m
PACKAGES  = . ./client/... ./cmd/... ./internal/...
HAS_C     = echo '\#include <stdlib.h>' | gcc -E - >/dev/null 2>&1
# Another program may have apt for a while, and a network may swallow packets.
APT       = timeout -k 30 300 apt-get -o DPkg::Lock::Timeout=200 -o Acquire::Retries=2 -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20
install   = { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && $(APT) -q update && \
	DEBIAN_FRONTEND=noninteractive $(APT) -q -y --no-install-recommends install $(1); }
UPDATE    = $$(grep -rl --include='*_test.go' 'flag.Bool("update"' . | xargs -n1 dirname | sort -u)

.PHONY: build scout build-scout cross install-tools vet lint unit test race fuzz e2e examples chaos simulate bench demo docs update hosts hosts-if-possible hosts-selftest clean
.NOTPARALLEL:

# SMALL has the compiler inline nothing but ciphers, which takes 150 kB off scout.
SMALL     = CGO_ENABLED=0 $(GO) build -trimpath -gcflags=all=-l -gcflags=crypto/...= -gcflags=golang.org/x/crypto/...= \
	-ldflags "-s -w $(SCOUT_LDFLAGS)"
TARGETS   = linux/amd64 linux/arm64 linux/arm linux/riscv64 darwin/amd64 darwin/arm64 windows/amd64

build: ## bin/muster and bin/scout
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w" -o bin/muster ./cmd/muster
	$(SMALL) -o bin/scout ./cmd/scout

scout: ## bin/scout with a constellation in it: make scout CONSTELLATION=lab.json
	@[ -r "$(CONSTELLATION)" ] || { echo "name the constellation's file: make scout CONSTELLATION=lab.json"; exit 1; }
	@umask 077; $(MAKE) --no-print-directory build-scout SCOUT_LDFLAGS="-X github.com/musterfleet/muster/internal/constellation.embedded=$$(base64 <"$(CONSTELLATION)" | tr -d '\n')" >/dev/null
	@echo "bin/scout holds the secret of $(CONSTELLATION): keep it from those who are not to have that"

build-scout:
	$(SMALL) -o bin/scout ./cmd/scout

cross: ## dist/scout-OS-ARCH for all that scout is built for
	@for t in $(TARGETS); do \
		os=$${t%/*} arch=$${t#*/}; [ $$os = windows ] && ext=.exe || ext=; \
		GOOS=$$os GOARCH=$$arch $(SMALL) -o dist/scout-$$os-$$arch$$ext ./cmd/scout || exit 1; \
		wc -c dist/scout-$$os-$$arch$$ext; done

install-tools: ## installs what tests need: a C compiler, and libsodium for Python to compare with
	@command -v $(GO) >/dev/null || { echo "Go is missing: install Go 1.26 or newer (https://go.dev/dl)"; exit 1; }
	@$(HAS_C) || $(call install,gcc libc6-dev) || \
		echo "SKIPPED: the race detector, which needs gcc and the C library's headers (Debian: gcc libc6-dev)"
	@/usr/bin/python3 -c 'import nacl, cbor2' 2>/dev/null || $(call install,python3-nacl python3-cbor2) || \
		echo "SKIPPED: the comparison with libsodium, which needs the Python modules nacl and cbor2 (Debian: python3-nacl python3-cbor2)"

vet:
	$(GO) vet ./...

lint: ## gofmt and staticcheck, whose version is in tools/go.mod
	@unformatted=$$(gofmt -l .); [ -z "$$unformatted" ] || { echo "gofmt -w is needed for:"; echo "$$unformatted"; exit 1; }
	$(GO) tool -modfile=tools/go.mod staticcheck ./...

# Tests build programs. Git refuses to name the version in a tree that belongs to
# somebody else, as in a container, and that would be an error.
unit race e2e: export GOFLAGS += -buildvcs=false

unit:
	$(GO) test $(LONG) $(PACKAGES)

race: install-tools
	! $(HAS_C) || CGO_ENABLED=1 $(GO) test -race $(LONG) $(PACKAGES)

e2e: hosts-if-possible ## the tests of the whole program; those on hosts where there can be hosts
	$(GO) test -count=1 $(LONG) ./test/...

examples: ## the example plug-in answers, run by hand
	@for p in examples/*/muster-method-*; do echo "$$p"; \
		"$$p" schema >/dev/null && echo '{}' | "$$p" run >/dev/null || exit 1; done

test: install-tools vet lint unit race e2e examples
	@echo "vet, lint, unit, race, e2e and examples passed"

fuzz: ## each target for FUZZTIME
	@for file in $$(grep -rl --include='*_test.go' '^func Fuzz' .); do \
		for target in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' $$file); do \
			echo "$$(dirname $$file) $$target"; \
			$(GO) test ./$$(dirname $$file) -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 20x -parallel 1 || exit 1; \
		done; done

chaos: build ## faults chosen by SEED for DURATION, with BROKER=embedded or external
	SEED=$(SEED) DURATION=$(DURATION) BROKER=$(BROKER) $(GO) test -count=1 -v -timeout 0 -run Chaos ./test/...

simulate: ## RUNS random runs of the order protocol, and a search of its states
	MUSTER_ORDER_RUNS=$(RUNS) MUSTER_ORDER_DEPTH=3 $(GO) test -count=1 -v -timeout 0 -run 'TestInvariants$$|TestExplore$$' ./internal/order

bench: build ## figures against bare JetStream, kept in bench/RESULTS.md
	$(GO) run ./bench bin/muster >bench/RESULTS.new
	mv bench/RESULTS.new bench/RESULTS.md
	@cat bench/RESULTS.md

demo: build ## a session with nodes on this machine
	$(GO) run ./test/demo bin/muster

docs: ## docs/reference.md from the program's help and schemas
	$(GO) test -count=1 ./internal/cli -run TestReference -update

update: ## writes golden files and test vectors anew; read the diff
	@for dir in $(UPDATE); do $(GO) test -count=1 $$dir -update || exit 1; done

hosts: ## hosts with systemd, Podman and Caddy for tests: root; downloads 320 MB of Debian once
	test/hosts/testhosts.sh build

hosts-if-possible: # installs what they need; without it, tests with hosts are skipped
	@test/hosts/testhosts.sh check && timeout -k 30 900 test/hosts/testhosts.sh build && \
		TESTHOSTS_LAB=try-$$$$ timeout -k 30 900 test/hosts/testhosts.sh try || \
		echo "SKIPPED: tests on hosts with systemd, for the reason above"

hosts-selftest: hosts ## every feature of the hosts that tests use
	CGO_ENABLED=0 $(GO) build -o bin/hosts-app ./test/hosts/testdata/app
	TESTHOSTS_LAB=selftest test/hosts/selftest.sh bin/hosts-app

clean:
	rm -rf bin dist
