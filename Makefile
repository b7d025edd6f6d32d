# Everything from nothing. `make help` lists what there is.
SHELL := /bin/sh
.DEFAULT_GOAL := help
export PATH := $(PATH):$(HOME)/.cargo/bin

TARGET := $(or $(CARGO_TARGET_DIR),target)
DEBUG := $(TARGET)/debug/throughline
RELEASE := $(TARGET)/release/throughline

.PHONY: help demo test chaos soak sabotage bench build fmt lint verify setup dev-up dev-down clean

help: ## List every target
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: setup ## Run the order book through everything and prove the result (DEMO_EXIT=1: then exit)
	@cargo build --release --locked --bin throughline --example demo
	@$(TARGET)/release/examples/demo

test: setup ## Run all tests on a Kafka and a PostgreSQL of their own
	@cargo test --locked --no-run
	@deploy/with-services.sh $(DEBUG) $(TARGET)/test-services cargo test --locked

chaos: setup ## Kill, pause, cut and poison everything under load, and check all of it (CHAOS_SEED repeats a run's plan)
	@cargo test --locked --features throughline-reference/chaos --test chaos -- --nocapture nothing_is_lost

soak: setup ## As chaos, for CHAOS_SECONDS (3600), with as many commands a second
	@CHAOS_SECONDS=$${CHAOS_SECONDS:-3600} CHAOS_COMMANDS=$${CHAOS_COMMANDS:-600000} $(MAKE) --no-print-directory chaos

sabotage: setup ## Put one deliberate bug after the other into the pipeline: the checker of chaos must catch each
	@cargo test --locked --features throughline-reference/chaos --test chaos -- --nocapture each_deliberate_bug

bench: setup ## Run the benches, ours and the references, on services of their own
	@cargo build --release --locked --bin throughline
	@deploy/with-services.sh $(RELEASE) $(TARGET)/bench-services cargo bench --locked

build: setup ## Build the release binary
	@cargo build --release --locked

fmt: ## Format the code
	@cargo fmt

lint: setup ## Check the format, the lints and the documentation
	@cargo fmt --check
	@cargo clippy --locked --workspace --all-targets -- --deny warnings
	@RUSTDOCFLAGS="--deny warnings" cargo doc --locked --workspace --no-deps

verify: lint test ## Everything that a change must pass

setup: ## Install what is missing (root on Debian), or name the command
	@deploy/setup.sh

dev-up: setup ## Start Kafka and PostgreSQL in the background
	@cargo build --locked --bin throughline
	@$(DEBUG) dev up --detach

dev-down: ## Stop them; their data stays
	@if [ -x $(DEBUG) ]; then $(DEBUG) dev down; fi

clean: dev-down ## Stop the services; delete their data and all that was built
	@if [ -x $(DEBUG) ]; then $(DEBUG) dev reset --yes; fi
	@cargo clean
