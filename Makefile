# The commands of the repository. Each sets up what it needs on a fresh Debian
# or Ubuntu machine that has Go, curl, git and make.

VERSION  ?= $(shell git describe --tags 2>/dev/null || echo 0.1.0)
LDFLAGS   = -s -w -X sft.Version=$(VERSION)
GOBUILD   = CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)'
# SQLite itself is C that a translator turned into Go, and takes several times
# as long with the race detector. It alone can go without: a package that shares
# generic code with others must not, because the linker takes either's.
RACE      = -race -gcflags=modernc.org/sqlite/lib=-race=false
DESTDIR  ?=
PREFIX   ?= /usr/local

# What also runs on people's own machines has to compile there.
PORTABLE  = . ./cmd/sft ./cmd/sftd ./internal/accounts ./internal/agent ./internal/api ./internal/audit ./internal/broker ./internal/client \
            ./internal/conf ./internal/daemon ./internal/frame ./internal/launch ./internal/loopback ./internal/privsep ./internal/rdp ./internal/rdpsign ./internal/relay \
            ./internal/testdb ./internal/tunnel ./e2e/wine/mstsc

.PHONY: all setup build build-race demo bench test quick vet dist dist-test install install-files uninstall clean

all: build

setup:
	@scripts/setup.sh

build:
	@mkdir -p build/bin
	$(GOBUILD) -o build/bin/ ./cmd/...

# The programs with the race detector, for the end-to-end tests.
build-race:
	@mkdir -p build/race
	CGO_ENABLED=1 go build $(RACE) -o build/race/ ./cmd/...

# One command to a desktop: a platform, two servers and a person's machine in
# namespaces, "sft rdp web01", a screenshot, and nothing left behind. KEEP=1
# leaves it running, and says how to play with it.
demo: setup build
	@go build -o build/demo-run ./e2e/demo
	@build/demo-run -bin build/bin -out build/demo $(if $(KEEP),-keep)

# Speed, round trips and memory beside ssh, stunnel and others, in one run of
# half an hour, written to docs/benchmarks.md, docs/benchmarks-ssh.md and
# docs/benchmarks-platform.md.
# BENCH takes flags, as in BENCH=-quick or BENCH="-only shell,hops".
bench: setup build
	@go build -o build/bench-run ./e2e/bench
	@build/bench-run -bin build/bin -out build/bench $(BENCH)

vet:
	@test -z "$$(gofmt -l . )" || { gofmt -l .; echo "run gofmt -w on these files"; exit 1; }
	go vet ./...
	GOOS=windows go vet $(PORTABLE)
	GOOS=windows go vet -tags winetest ./internal/privsep
	GOOS=darwin go vet . ./cmd/sft ./internal/api ./internal/client ./internal/conf ./internal/frame ./internal/launch ./internal/loopback ./internal/rdp ./internal/rdpsign ./internal/relay ./internal/tunnel

# Everything: vet, unit tests, both databases, namespaced end-to-end tests, and
# what is for Windows under Wine. It needs root, for the namespaces.
#
# One set of flags for all of it, so that packages are built once; and without
# the second that the race detector has each program wait before it ends.
test: export GOFLAGS = -trimpath
test: export GORACE = atexit_sleep_ms=0
test: setup vet build build-race dist-test
	@set -o pipefail; SFT_BIN=$(CURDIR)/build/race go test $(RACE) -json -count=1 -timeout 24m ./... | go run ./scripts/testsum

# What works in under a minute without root, for working.
quick:
	go vet ./...
	@set -o pipefail; go test -short -json $$(go list ./... | grep -v /e2e) | go run ./scripts/testsum

# The packages of a release, for Windows, Linux and macOS, in build/dist: see
# docs/releasing.md.
dist: setup
	@scripts/dist.sh "$(VERSION)"

# Packages for the tests of e2e/dist, which have no way to fetch what makes them.
dist-test: setup
	@OUT=build/dist-test ARCHES=amd64 scripts/dist.sh 0.20.0

# The server's part of a release, by hand, from source: programs, units and
# accounts. Nothing is enabled or started.
install: build
	@$(MAKE) --no-print-directory install-files BIN=build/bin
	@test -n "$(DESTDIR)" || { systemd-sysusers sftd.conf sft-platform.conf && systemd-tmpfiles --create sftd.conf sft-platform.conf && systemctl daemon-reload; }
	@echo 'Installed. Write an enrollment token to /var/lib/sftd/enrollment.token, then: systemctl enable --now sftd'

UNITS = sftd.service sftd-lock.service sft-platform.service
HOOKS = $(foreach of,user group,$(foreach is,created updated deleted,/usr/lib/sftd/hooks/$(of)-$(is).d))

# The files alone, from programs that are built already: in BIN.
install-files:
	install -D -m 755 $(BIN)/sftd $(DESTDIR)$(PREFIX)/sbin/sftd
	install -D -m 755 $(BIN)/sft $(DESTDIR)$(PREFIX)/bin/sft
	install -D -m 755 $(BIN)/sft-platform $(DESTDIR)$(PREFIX)/bin/sft-platform
	install -d $(addprefix $(DESTDIR),/etc/systemd/system /usr/lib/sysusers.d /usr/lib/tmpfiles.d $(HOOKS))
	@for u in $(UNITS); do sed 's|@PREFIX@|$(PREFIX)|g' packaging/$$u > $(DESTDIR)/etc/systemd/system/$$u && chmod 644 $(DESTDIR)/etc/systemd/system/$$u || exit 1; done
	for n in sftd sft-platform; do for d in sysusers tmpfiles; do install -m 644 packaging/$$n.$$d $(DESTDIR)/usr/lib/$$d.d/$$n.conf || exit 1; done; done

uninstall:
	@test -n "$(DESTDIR)" || systemctl disable --now $(UNITS) || true
	@test -n "$(DESTDIR)" || $(PREFIX)/sbin/sftd restore-ssh || true
	rm -f $(DESTDIR)$(PREFIX)/sbin/sftd $(DESTDIR)$(PREFIX)/bin/sft $(DESTDIR)$(PREFIX)/bin/sft-platform
	rm -f $(addprefix $(DESTDIR)/etc/systemd/system/,$(UNITS)) $(foreach d,sysusers.d tmpfiles.d,$(DESTDIR)/usr/lib/$(d)/sftd.conf $(DESTDIR)/usr/lib/$(d)/sft-platform.conf)
	-rmdir -p --ignore-fail-on-non-empty $(addprefix $(DESTDIR),$(HOOKS))
	@test -n "$(DESTDIR)" || systemctl daemon-reload

clean:
	rm -rf build

SHELL := /bin/bash
