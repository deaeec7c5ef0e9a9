# One command each. Everything that is worth keeping between runs is below MICA_CACHE; see scripts/cache.sh.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.NOTPARALLEL:

export MICA_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/mica
export CARGO_TARGET_DIR ?= $(MICA_CACHE)/target
# RocksDB is compiled once, by scripts/rocksdb, and linked from the cache.
export ROCKSDB_STATIC := 1
rocksdb-env = ROCKSDB_LIB_DIR="$$(scripts/rocksdb --path)"
# One profile and one set of features for every target: nothing is compiled twice.
cargo = $(rocksdb-env) cargo
flags = --release --workspace --locked

.PHONY: help run test check crash big conformance bench engines scale fuzz build setup rocksdb images bench-images fmt clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: setup build images ## build, start a private containerd with Mica, pull, run and check real containers
	scripts/contained scripts/demo

test: setup build images ## every test, with real engines and real mounts
	$(cargo) test $(flags) --no-run
	@sync # what compiling has left to be written would slow the first tests down
	scripts/contained env $(rocksdb-env) cargo test $(flags) --no-fail-fast
	scripts/contained scripts/conformance --quick

check: rocksdb ## formatting, lints, fast tests
	cargo fmt --all --check
	$(cargo) clippy $(flags) --all-targets -- --deny warnings
	$(cargo) test $(flags) --lib --bins

crash: setup build images ## power cuts at every instant, failures of every call, hundreds of kills
	MICA_CRASH=long $(cargo) test --release --locked --package mica-layerdb --test crash -- --nocapture
	MICA_CRASH=long scripts/contained env $(rocksdb-env) cargo test --release --locked --package mica-tests --test e2e kills -- --nocapture

big: rocksdb ## layers of gigabytes and of millions of files, and what memory they take
	$(cargo) test --release --locked --package mica-layerdb --test memory -- --include-ignored --nocapture

conformance: setup build ## the suites of others on every disk, beside other unions; a million steps against the model
	scripts/contained scripts/conformance --output "$(MICA_CACHE)/conformance.md"
	PROPTEST_CASES=9000 scripts/contained env TMPDIR=/run $(rocksdb-env) cargo test --release --locked --package mica-fs --test model
	PROPTEST_CASES=1000 scripts/contained env TMPDIR=/run $(rocksdb-env) cargo test --release --locked --package mica-fs --test oracle

bench: setup build bench-images ## mounts beside directories, overlayfs and fuse-overlayfs; BENCH='--only cold --repetitions 3' for a part
	scripts/contained "$(CARGO_TARGET_DIR)/release/mica-bench" fs $(BENCH)

engines: setup build images bench-images ## Mica in containerd beside its overlayfs snapshotter; BENCH='--only ingest' for a part
	scripts/contained "$(CARGO_TARGET_DIR)/release/mica-bench" engines $(BENCH)

scale: rocksdb ## what the size of a store costs: a synthetic one at 10, 30 and 100 % (SCALE='10 30' for less)
	$(cargo) build --release --locked -p mica-layerdb --example scale
	scripts/scale $(SCALE)

fuzz: rocksdb ## fuzzers, FUZZ_SECONDS (60) each; TARGETS chooses some
	scripts/fuzz $(TARGETS)

build: rocksdb ## the programs
	$(cargo) build $(flags)

setup: ## packages and engines that building and testing need
	scripts/setup

rocksdb: ## librocksdb.a, once
	@scripts/rocksdb >/dev/null

images: ## the test images, once
	@scripts/images >/dev/null

bench-images: ## the images of benchmarks, once
	@scripts/bench-images >/dev/null

fmt: ## format the sources
	cargo fmt --all

clean: ## what cargo built; engines, images and RocksDB stay in the cache
	cargo clean
	rm -rf target
