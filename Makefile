# `make demo` and `make test` do all the set-up themselves; `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
export PATH := $(PATH):/usr/sbin:/sbin
CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)

.PHONY: help setup build demo test fmt lint opa unit lab deny demo-as-user bench fuzz install clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install the Debian packages that are missing (asks sudo when not root)
	@scripts/setup.sh

build: setup ## the four programs, optimised
	$(CARGO) build --release --locked --bins

demo: build ## the main job on embedded defaults, step by step, with times
	@$(TARGET)/release/demo --bin-dir $(TARGET)/release --dir $(TARGET)/demo

test: setup fmt lint deny opa unit demo-as-user ## everything that guards main
	@echo "make test: everything passed"

fmt:
	$(CARGO) fmt --all --check

lint:
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

opa: ## a real Open Policy Agent for the tests: built once and cached, or the reason why not
	@scripts/opa-for-tests.sh

unit: # a shell that runs this in its background has SIGINT ignored, and tests send it
	env --default-signal=INT,QUIT $(CARGO) test --workspace --locked --no-fail-fast

lab: setup ## the tests that need a real Apptainer, and a VM whose kernel has dm-crypt: builds both once (root, mmdebstrap; six minutes), then `make test` runs them too
	@scripts/apptainer.sh build
	@scripts/vm.sh build
	$(CARGO) test --workspace --locked --test apptainer --test escrow

deny: ## licences, sources and duplicate crates (offline part of cargo-deny)
	@scripts/deny.sh

demo-as-user: ## the demo again, as an ordinary user made for it
	$(CARGO) build --workspace --locked --all-targets # as `unit` builds them: nothing is left to do after it
	@scripts/demo-as-user.sh $(TARGET)/debug $(TARGET)/demo-user

bench: build ## measure against floors and peers of the same run; writes target/bench/summary.json
	@env -u RUST_BACKTRACE -u RUST_LIB_BACKTRACE $(TARGET)/release/bench --bin-dir $(TARGET)/release --out $(TARGET)/bench

fuzz: ## fuzz every parser, FUZZ_SECONDS (600) each; FUZZ_TARGETS="a b" for some
	@scripts/fuzz.sh

install: ## install into DESTDIR and PREFIX (/usr/local): programs (of BIN_FROM, else the optimised ones), units, man pages, completions, example configurations
	@scripts/install.sh $(or $(BIN_FROM),$(TARGET)/release)

clean: ## remove what was built
	$(CARGO) clean
