# make        bin/gssproxyd, static
# make bin/gssproxyd-csi  the CSI driver, which shows pods of Kubernetes their sockets
# make bin/keystored  the store of a fleet's keys, a daemon beside gssproxyd
# make plugin bin/gssproxyd_mech.so, the plugin for MIT's libgssapi (needs a C compiler and libkrb5-dev)
# make test   everything: packages, lint, unit, golden, fuzz seeds, race detector, end to end (needs root for the last)
# make test-nfs   the daemon with the Linux kernel as its client, in a virtual machine
# make test-samba the daemon in a domain of Active Directory, with Samba as its controller
# make test-unit  end to end with our daemon started by systemd, as its unit has it
# make test-programs  our plugin and Debian's in Dovecot, Squid's helper, Java and Gunicorn
# make test-observability  what dist/observability has for Prometheus, with promtool
# make fuzz   every fuzz target for FUZZTIME (5m)
# make busy   the tests with timing in them, again and again, and then all three times, while every core is kept busy
# make nightly    test and every test-..., end to end with Debian's plugin too, every fuzz target for 30 s, and the tests
#             of how long things take
# make lint   gofmt, go vet, staticcheck, deadcode, and GCC's analyzer for the plugin
# make arch   the plan: which room may import which, lines per package, upward arrows between its files
# make bench  Go benchmarks, then the C daemon and ours side by side (BENCH_ROUNDS=3); fails if a goal is missed, and
#             writes docs/performance.md with its picture
# make demo   a realm, an acceptor that cannot read the keytab, and a client, in under a minute
# make packages bin/packages, deb and rpm (needs what the plugin needs, and the Go module proxy)
# make test-packages their life in roots of Debian 12 and 13
# make install  what is built, units, manual pages and examples, below PREFIX (/usr/local) of DESTDIR;
#             make install-gssproxyd and make install-keystored one of the two

BENCH_ROUNDS ?= 3
FUZZTIME ?= 5m
BUSY_COUNT ?= 50
PREFIX ?= /usr/local
# Git refuses to tell root of a checkout that another user owns, and go build fails then.
export GOFLAGS := $(GOFLAGS) -buildvcs=false
# A program with the race detector sleeps for a second before it ends, unless it is told not to, and tests start thousands.
export GORACE ?= atexit_sleep_ms=0

# What is named first comes first, with -j too: Go is parallel by itself.
.NOTPARALLEL:

.PHONY: all test test-nfs test-samba test-unit test-programs test-observability nightly fuzz busy timing deps lint arch race bench demo install install-gssproxyd install-keystored clean
all: bin/gssproxyd

.PHONY: bin/gssproxyd
bin/gssproxyd:
	@echo "build"
	@CGO_ENABLED=0 go build -trimpath -o $@ ./gssproxyd

# A program of its own, which nothing else needs: it has gRPC.
.PHONY: bin/gssproxyd-csi
bin/gssproxyd-csi:
	@echo "build $@"
	@CGO_ENABLED=0 go build -trimpath -o $@ ./gssproxyd-csi

# Likewise: it has the client of etcd.
.PHONY: bin/keystored
bin/keystored:
	@echo "build $@"
	@CGO_ENABLED=0 go build -trimpath -o $@ ./keystored

# The plugin is loaded into every GSSAPI process: nothing but its entry points is seen, and it is bound at load.
# MECH_OUT and MECH_CFLAGS are for tests, which build it elsewhere and with sanitizers.
MECH_OUT ?= bin/gssproxyd_mech.so
mech = interposer/mechglue
mech_flags = -std=c11 -D_GNU_SOURCE -O2 -g -fPIC -fvisibility=hidden -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wvla \
	-D_FORTIFY_SOURCE=2 -fstack-protector-strong -fstack-clash-protection
mech_link = -shared -Wl,-z,relro,-z,now,-z,noexecstack,-z,defs -lgssapi_krb5 -lkrb5 -lpthread

.PHONY: plugin
plugin:
	@echo "plugin $(MECH_OUT)"
	@mkdir -p $(dir $(MECH_OUT))
	@$(CC) $(CPPFLAGS) $(mech_flags) $(CFLAGS) $(wildcard $(mech)/*.c) -o $(MECH_OUT) $(LDFLAGS) $(mech_link) $(MECH_CFLAGS)

test: deps lint race

deps:
	@tests/install-deps

lint:
	@echo "lint"
	@out=$$(gofmt -l .); [ -z "$$out" ] || { echo "gofmt these:"; echo "$$out"; exit 1; }
	@go vet ./...
	@go tool staticcheck ./...
	@for c in $(mech)/*.c; do $(CC) $(CPPFLAGS) $(mech_flags) -fanalyzer -c $$c -o /dev/null || exit 1; done
	@out=$$(go tool deadcode -filter '^gssproxyd/([^tx]|xdr/)' $(programs)) || exit 1; \
		[ -z "$$out" ] || { echo "nothing but tests calls these:"; echo "$$out"; exit 1; }

# Where deadcode starts: what is run, and what other programs use. It is not asked about packages below tests/, nor
# about xdr, which has what generated code of any .x file needs.
programs = ./gssproxyd ./gssproxyd-csi ./keystored ./conf/gen ./xdr/gen ./interposer/example/... ./tests/demo ./tests/face

# How many packages are tested at a time: tests wait more than they compute.
at_a_time = $$(($$(getconf _NPROCESSORS_ONLN) + 1))

# All packages, those that take longest first: nothing is left to run beside the last one.
tested = ./tests/e2e ./tests/mechglue ./tests/files ./tests/fleet ./...

arch:
	@go run ./tests/arch

race:
	@echo "test"
	@[ "$$(id -u)" = 0 ] || echo "not root: the tests with a real KDC, tests/e2e above all, are skipped"
	@go test -race -p $(at_a_time) -timeout 60m $(tested)

# For every night, not for every change: an emulated machine's waits are real ones, and the kernel in it gives a user up
# whose name was looked up after ten seconds. By itself it takes 95 s, and half a minute more the first time
# (QEMU and 75 MB of packages, kept in the user's cache; no KVM, no network in the guest). With others at work on both
# cores 64 users at once may come too late, and that says nothing of a change.
# LAB_DAEMONS=ours leaves the C daemon out, which is there to tell a fault of the kernel or of QEMU from one of ours.
# rpc.gssd has our plugin; LAB_PLUGIN=debian leaves it Debian's.
test-nfs: deps
	@tests/nfsvm/install-deps
	@go test -count=1 -timeout 15m -v ./tests/nfsvm -vm

# For every night: it provisions a domain, in a network namespace that has nothing but the loopback interface, which takes a
# quarter of a minute; the whole takes three. It installs Samba, whose services stay disabled (only here, not for make test).
test-samba: deps
	@tests/samba/install-deps
	@go test -count=1 -timeout 15m -v ./tests/samba -ad

# For every night: it installs a mail server, a proxy, a web server and a JDK, with services disabled.
test-programs: deps
	@tests/programs/install-deps
	@go test -count=1 -timeout 15m -v ./tests/programs -programs

# For every night: it unpacks promtool, of a package of 20 MB. What takes no promtool make test does too.
test-observability: deps
	@tests/observability/install-deps
	@go test -count=1 -v ./tests/observability -promtool

# For every night: with the user, the rights and the restrictions of dist/gssproxyd.service. It installs nothing and asks
# nothing of the machine's systemd, which may not be there: a systemd of its own is started in namespaces.
test-unit: deps
	@LAB_UNIT=1 go test -count=1 -timeout 30m ./tests/e2e ./tests/fleet

nightly: test test-nfs test-samba test-unit test-packages test-programs test-observability timing
	@LAB_PLUGIN=debian go test -count=1 -timeout 30m ./tests/e2e ./tests/fleet
	@tests/fuzz 30s

# How long things take and how much they hold, by themselves: one package after the other, and without the race detector.
timing: deps
	@go test -count=1 -run '^TestIdleConnection$$' ./rpc
	@NIGHTLY=1 go test -count=1 -p 1 -timeout 90m -run '^TestNightly' ./tests/...
	@NIGHTLY=1 go test -count=1 -timeout 60m -v ./tests/abuse
	@go test -count=1 -timeout 60m -v ./tests/scale -scale

fuzz:
	@tests/fuzz $(FUZZTIME)

# Tests make order and time, and do not hope for them: they pass on a machine that is busy with other things, and with one
# thread. What is stale in the cache of the go command is what -count is for.
busy: deps
	@tests/busy go test -race -count=$(BUSY_COUNT) -timeout 4h -p 1 $(timed)
	@tests/busy go test -race -count=1 -p $(at_a_time) -timeout 60m $(tested)
	@tests/busy go test -race -count=1 -p $(at_a_time) -timeout 60m $(tested)
	@GOMAXPROCS=1 tests/busy go test -race -count=1 -p $(at_a_time) -timeout 60m $(tested)

# The packages with goroutines, clocks and processes in their tests.
timed = ./audit ./fuse ./keystore/... ./keystored ./rpc/... ./keytab/... ./limits ./gssproxyd/... ./mech/krb5/ccache ./mech/krb5/kdc ./mech/krb5/rcache ./interposer/...

bench: deps bin/gssproxyd
	@go test -run '^$$' -bench . -benchmem $$(go list ./... | grep -v /tests/)
	@go run ./tests/bench -rounds $(BENCH_ROUNDS) -gssproxyd bin/gssproxyd -out docs

demo: bin/gssproxyd
	@tests/install-deps demo
	@CGO_ENABLED=0 go run ./tests/demo -gssproxyd bin/gssproxyd

# Which services there are is the administrator's to say: configurations and drop-ins of units are installed as examples.
lib = $(DESTDIR)$(PREFIX)/lib
doc = $(DESTDIR)$(PREFIX)/share/doc
man = $(DESTDIR)$(PREFIX)/share/man

install: install-gssproxyd $(if $(wildcard bin/keystored),install-keystored)

# Root may have no Go: it is built here only if it was not before.
install-gssproxyd: $(if $(wildcard bin/gssproxyd),,bin/gssproxyd)
	install -D -m 755 bin/gssproxyd $(DESTDIR)$(PREFIX)/sbin/gssproxyd
	$(if $(wildcard bin/gssproxyd-csi),install -D -m 755 bin/gssproxyd-csi $(DESTDIR)$(PREFIX)/sbin/gssproxyd-csi)
	install -D -m 644 -t $(lib)/systemd/system dist/gssproxyd.service dist/gssproxyd-fs.service
	install -D -m 644 -t $(lib)/systemd/user dist/gssproxyd-user.service dist/gssproxyd-user.socket
	sed -i 's,/usr/sbin/,$(PREFIX)/sbin/,' $(lib)/systemd/*/gssproxyd*.service
	install -D -m 644 dist/gssproxyd.sysusers $(lib)/sysusers.d/gssproxyd.conf
	install -D -m 644 dist/gssproxyd.tmpfiles $(lib)/tmpfiles.d/gssproxyd.conf
	install -D -m 644 -t $(man)/man8 docs/gssproxyd.8 docs/gssproxyd-mech.8
	install -D -m 644 -t $(man)/man5 docs/gssproxyd.conf.5 docs/gssproxyd-fs.5
	install -D -m 644 -t $(doc)/gssproxyd README.md CHANGELOG.md LICENSE docs/performance.svg $(filter-out docs/README.md,$(wildcard docs/*.md))
	install -D -m 644 -t $(doc)/gssproxyd/examples dist/*.conf
	install -D -m 644 -t $(doc)/gssproxyd/examples/kubernetes dist/kubernetes/*
	install -D -m 644 -t $(doc)/gssproxyd/examples/observability dist/observability/*
	for d in dist/*.service.d; do install -D -m 644 -t $(doc)/gssproxyd/examples/$${d#dist/} $$d/* || exit 1; done

install-keystored: $(if $(wildcard bin/keystored),,bin/keystored)
	install -D -m 755 bin/keystored $(DESTDIR)$(PREFIX)/sbin/keystored
	install -D -m 644 -t $(lib)/systemd/system dist/keystored.service
	sed -i 's,/usr/sbin/,$(PREFIX)/sbin/,' $(lib)/systemd/system/keystored.service
	install -D -m 644 dist/keystored.sysusers $(lib)/sysusers.d/keystored.conf
	install -D -m 644 dist/keystored.tmpfiles $(lib)/tmpfiles.d/keystored.conf
	install -D -m 644 -t $(man)/man8 docs/keystored.8
	install -D -m 644 -t $(man)/man5 docs/keystored.conf.5
	install -D -m 644 -t $(doc)/keystored CHANGELOG.md LICENSE $(wildcard docs/keystore*.md) $(addprefix docs/,audit.md json.md on-disk.md reasons.md threat-model.md)
	install -D -m 644 -t $(doc)/keystored/examples dist/keystored/*

clean:
	@rm -rf bin

# The same bytes for the same commit: see docs/install.md.
PACKAGES ?= bin/packages
.PHONY: packages test-packages
packages:
	@echo "packages"
	@dist/packages/build $(PACKAGES)

# For every night: it installs a hundred packages into roots of Debian 12 and 13, again and again. The archive is asked for
# them once a week; in the test there is no network. By itself it takes a minute, and two more when a root is made.
test-packages: deps
	@for release in bookworm trixie; do \
		tests/packages/install-deps $$release && \
		go test -count=1 -timeout 15m -v -run '^TestRoot' ./tests/packages \
			-root "$${XDG_CACHE_HOME:-$$HOME/.cache}/gssproxyd/packages/$$release" || exit 1; \
	done
