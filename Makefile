# A newcomer's way in: `make demo`. Needs cargo, make and a C compiler on Debian; the rest is installed when it is missing.
# CARGO_TARGET_DIR is honored.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
# Each target runs cargo, which is parallel already.
.NOTPARALLEL:

# Most tests wait, for a broker or for a delay: more of them than there are cores run side by side.
TESTS_AT_ONCE := RUST_TEST_THREADS=$(or $(RUST_TEST_THREADS),4)

RABBITMQ4 := $(or $(CARGO_TARGET_DIR),target)/rabbitmq4

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## see it work: a private broker, a simulated payment API, a few redemptions
	deploy/local/install rabbitmq-server
	cargo build --release --locked
	deploy/local/demo

.PHONY: test
test: ## all tests, against a private broker
	deploy/local/install rabbitmq-server python3-pika openssl curl prometheus
	$(TESTS_AT_ONCE) cargo test --locked --no-fail-fast --workspace --all-targets
	cargo test --locked --workspace --doc

.PHONY: test-rabbitmq4
test-rabbitmq4: ## all tests again, against RabbitMQ 4 (needs root and the network, or leaves them out aloud)
	@code=0; deploy/local/rabbitmq4 $(RABBITMQ4) || code=$$?; \
	if [[ $$code -eq 3 ]]; then echo 'RabbitMQ 4 NOT tried: see above'; exit 0; fi; \
	[[ $$code -eq 0 ]] || exit $$code; \
	deploy/local/install python3-pika openssl curl prometheus; \
	$(TESTS_AT_ONCE) REDEEMER_TEST_BROKER_TREE=$$(realpath $(RABBITMQ4)) cargo test --locked --no-fail-fast --workspace --all-targets

.PHONY: test-cluster
test-cluster: ## four instances on three nodes, of which some are lost
	deploy/local/install rabbitmq-server
	RECORD=$(RECORDS) cargo test --locked --test cluster -- --nocapture

.PHONY: test-ops
test-ops: ## against a real Prometheus, PostgreSQL and browser: panels find data, each alert's cause makes it fire, the status page
	deploy/local/install prometheus postgresql python3-pika python3-psycopg2 chromium rabbitmq-server openssl
	cargo test --locked --test ops --test brands --test page -- --nocapture

.PHONY: screenshots
screenshots: ## take the pictures of the status page in docs/screenshots
	deploy/local/install chromium rabbitmq-server openssl
	SCREENSHOTS=$(CURDIR)/docs/screenshots cargo test --locked --test page -- --nocapture

.PHONY: test-contract
test-contract: ## the contract for others: examples in five languages on a real broker, types generated in four, schemas by another validator
	deploy/local/install rabbitmq-server python3-pika php-cli php-amqplib php-sqlite3 default-jdk-headless \
	  librabbitmq-client-java libjackson2-databind-java golang-go golang-github-rabbitmq-amqp091-go-dev
	deploy/local/node-packages
	deploy/local/python-packages
	cargo test --locked --test examples -- --nocapture

.PHONY: pace
pace: ## measure the pace in real time; needs a quiet machine
	deploy/local/install rabbitmq-server
	cargo test --locked --release --features measure --test pace -- --nocapture --test-threads 1

.PHONY: test-deploy
test-deploy: ## judge and try what is in deploy/: image, manifests, definitions, unit (root for the image)
	deploy/local/install rabbitmq-server python3-yaml systemd debootstrap strace ca-certificates openssl
	deploy/local/lint-deploy
	cargo test --locked --test deploy -- --test-threads 2

PEERS := $(or $(CARGO_TARGET_DIR),target)/peers

# How far the curves go: 0 leaves them out, 2 goes on to a backlog of a million, the last quarter of an hour.
BENCH_GROWTH ?= 2
# 1 measures a release build from nothing; 1 records with perf where the time goes, if perf is installed.
BENCH_BUILD ?= 1
BENCH_PROFILE ?= $(if $(shell command -v perf),1,0)

.PHONY: bench
bench: bench-parts ## measure against what else one might run; writes docs/performance.md; needs a quiet machine for 50 minutes (BENCH_GROWTH=1: 35; BENCH_ROUNDS=, BENCH_ALLOW_MISSING=1)
	deploy/local/install rabbitmq-server
	benches/peers/prepare $(PEERS)
	BENCH_GROWTH=$(BENCH_GROWTH) BENCH_BUILD=$(BENCH_BUILD) BENCH_PROFILE=$(BENCH_PROFILE) BENCH_REPORT=$(CURDIR)/docs \
	cargo bench --locked --features measure --bench compare

.PHONY: bench-parts
bench-parts: ## measure each part of a command's way by itself
	cargo bench --locked --features measure --bench parts

.PHONY: bench-goodput
bench-goodput: ## how fast commands with nothing wrong are settled while others are in trouble, beside the peers; writes docs/performance/goodput.md; needs a quiet machine for 45 minutes (GOODPUT_SECONDS=, GOODPUT_ROUNDS=, GOODPUT_RATE=, GOODPUT_LIMIT=, GOODPUT_KINDS=)
	deploy/local/install rabbitmq-server
	benches/peers/prepare $(PEERS)
	GOODPUT_PEERS=$$(realpath $(PEERS)) GOODPUT_REPORT=$(CURDIR)/docs/performance \
	cargo bench --locked --features measure --bench goodput

.PHONY: bench-recovery
bench-recovery: ## how fast the full rate is back after a stricter provider, an outage and a restart of the broker; writes docs/performance/recovery.md; needs a quiet machine for 6 minutes (RECOVERY_OUTAGE=)
	deploy/local/install rabbitmq-server
	RECOVERY_REPORT=$(CURDIR)/docs/performance cargo bench --locked --features measure --bench recovery

.PHONY: bench-guard
bench-guard: ## fail where a command costs too many times its cryptography (BENCH_GUARD_RATIO=)
	deploy/local/install rabbitmq-server
	cargo bench --locked --features measure --bench compare -- guard

COMMANDS ?= 10000
KILLS ?= 100
BROKER_KILLS ?= 20
SEED ?= 20261123

.PHONY: torture
torture: ## break everything, again and again, and count what is lost; writes docs/reliability.md (SEED=, COMMANDS=, KILLS=, BROKER_KILLS=)
	deploy/local/install rabbitmq-server
	TORTURE_SEED=$(SEED) TORTURE_COMMANDS=$(COMMANDS) TORTURE_KILLS=$(KILLS) TORTURE_BROKER_KILLS=$(BROKER_KILLS) \
	TORTURE_REPORT=$(CURDIR)/docs/reliability.md \
	cargo test --release --locked --features failpoints --test torture --test failpoints -- --nocapture

.PHONY: torture-versions
torture-versions: ## the short torture and the tests of what differs, on RabbitMQ 3.10 and on 4.0, each named in the output
	deploy/local/install rabbitmq-server
	cargo test --locked --no-fail-fast --test torture -- --nocapture
	cargo test --locked --test it broker_versions -- --nocapture
	@code=0; deploy/local/rabbitmq4 $(RABBITMQ4) || code=$$?; \
	if [[ $$code -eq 3 ]]; then echo 'RabbitMQ 4 NOT tried: see above'; exit 0; fi; \
	[[ $$code -eq 0 ]] || exit $$code; \
	export REDEEMER_TEST_BROKER_TREE=$$(realpath $(RABBITMQ4)); \
	cargo test --locked --no-fail-fast --test torture -- --nocapture; \
	cargo test --locked --test it broker_versions -- --nocapture

# How much more of the main trouble each small world has than in `make test`.
MODEL_MORE ?= 1

.PHONY: model
model: ## every order of events in wider worlds than those of `make test`; recorded in docs/reliability.md (MODEL_MORE=)
	RECORD=$(RECORDS) MODEL_MORE=$(MODEL_MORE) cargo test --profile model --locked --test model -- --nocapture

.PHONY: mutations
mutations: ## break the program in ways that must be noticed, and see that they are
	deploy/local/install rabbitmq-server openssl
	tests/mutations/run

MINUTES ?= 20
RATE ?= 500
BACKLOG ?= 100000
FLOOD ?= 100000

# The pages about the measurements of the long runs: the template, which outlives a torture, and what was made of it.
RECORDS := $(CURDIR)/tests/torture/reliability.md:$(CURDIR)/docs/reliability.md

.PHONY: soak
soak: ## an outage, a long time at full rate, a long backlog, a flood past its deadline: memory and open files stay; recorded in docs/reliability.md (MINUTES=, RATE=, BACKLOG=, FLOOD=)
	deploy/local/install rabbitmq-server
	RECORD=$(RECORDS) MINUTES=$(MINUTES) RATE=$(RATE) BACKLOG=$(BACKLOG) FLOOD=$(FLOOD) cargo test --release --locked --test soak -- --nocapture --test-threads 1
	cargo test --release --locked --test outage -- --nocapture
	FILTER_SECONDS=60 cargo test --release --locked --test it limits::egress_filter -- --nocapture

CASES ?= 1000000

.PHONY: fuzz
fuzz: ## a million hostile cases for everything that reads what others wrote; recorded in docs/reliability.md (CASES=, SEED= to repeat a run)
	RECORD=$(RECORDS) CASES=$(CASES) SEED=$(if $(filter command environment,$(firstword $(origin SEED))),$(SEED),random) cargo test --release --locked --test fuzz -- --nocapture --test-threads 1

.PHONY: lint
lint: ## format, clippy, documentation, dependencies, scripts; links, snippets and translations of the documents
	deploy/local/install shellcheck
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets --all-features -- -D warnings
	cargo clippy --locked --test brands --test cluster --test examples --test ops --test outage --test page --test soak --test deploy -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --workspace --no-deps --all-features
	deploy/local/deny
	grep -rlE '^#!.*sh$$' deploy .ci benches tests/mutations | xargs shellcheck
	cargo test --locked --test documents --test translations

.PHONY: clean
clean: ## remove everything that was built
	cargo clean
