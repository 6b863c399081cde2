# make        bin/gssproxyd, static
# make test   everything: packages, lint, unit, golden, fuzz seeds, race detector, end to end (needs root for the last)
# make lint   gofmt, go vet, staticcheck
# make bench  Go benchmarks, then the C daemon and ours side by side (BENCH_ROUNDS=3)
# make demo   a realm, an acceptor that cannot read the keytab, and a client, in under a minute

BENCH_ROUNDS ?= 3

.PHONY: all test deps lint race bench demo clean
all: bin/gssproxyd

.PHONY: bin/gssproxyd
bin/gssproxyd:
	@CGO_ENABLED=0 go build -trimpath -o $@ ./gssproxyd

test: deps lint race

deps:
	@tests/install-deps

lint:
	@echo "lint"
	@out=$$(gofmt -l .); [ -z "$$out" ] || { echo "gofmt these:"; echo "$$out"; exit 1; }
	@go vet ./...
	@go tool staticcheck ./...

race:
	@echo "test"
	@go test -race -timeout 12m ./...

bench: deps bin/gssproxyd
	@go test -run '^$$' -bench . -benchmem $$(go list ./... | grep -v /tests/)
	@go run ./tests/bench -rounds $(BENCH_ROUNDS) -gssproxyd bin/gssproxyd

demo: deps bin/gssproxyd
	@go run ./tests/demo -gssproxyd bin/gssproxyd

clean:
	@rm -rf bin
