# `make demo` shows everything once; `make test` proves it. See README.md.
PYTHON ?= python3
BIN := .venv/bin
UV := $(BIN)/uv
MINISTACK := ministack==1.5.33
AWSCLI := awscli==1.46.3
LOCK := $(UV) pip compile --quiet --universal --python-version 3.11 --exclude-newer 2026-11-01 --no-emit-index-url

.PHONY: env demo airflow test soak gateway bench lint requirements lock clean

env: .venv/.built ## the environment, in .venv

.venv/.built: requirements-dev.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or newer is needed; {sys.executable} is {sys.version.split()[0]}. Try: make PYTHON=python3.11")'
	@echo "Building the environment in .venv (a few minutes, once) ..."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	$(UV) pip install --quiet --python $(BIN)/python -r requirements-dev.txt
	$(PYTHON) -m venv .venv/ministack
	$(UV) pip install --quiet --python .venv/ministack/bin/python $(MINISTACK)
	@touch $@

demo: env ## back up a small Synapse, lose it, bring it back, prove it equal; then drill the loss of a region
	$(BIN)/python -m include.sandbox.demo

airflow: env ## Airflow over a small Synapse, to try, until Ctrl-C
	@$(BIN)/python -m include.sandbox.tryout

test: env ## the whole suite
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

soak: env ## the long ones
	$(BIN)/python -m pytest -m soak --override-ini addopts="-ra --strict-markers"

gateway: env ## what is tested on the second S3 server, alone
	@for program in radosgw ceph-mon ceph-osd; do command -v $$program >/dev/null || { \
	  echo "There is no $$program. On Debian: apt-get install radosgw ceph-mon ceph-osd" >&2; exit 1; }; done
	$(BIN)/python -m pytest -m "gateway and not soak" --override-ini addopts="-ra --strict-markers --import-mode=importlib"

bench: env .venv/awscli ## ours beside pg_dump, pgBackRest and the aws command, on one server and one store; a drill beside its forecast; about forty minutes
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.physical
	$(BIN)/python -m benchmarks.replication
	$(BIN)/python -m benchmarks.rotation
	$(BIN)/python -m benchmarks.retention
	$(BIN)/python -m benchmarks.drill

.venv/awscli: Makefile
	$(PYTHON) -m venv $@
	$(UV) pip install --quiet --python $@/bin/python $(AWSCLI)
	@touch $@

lint: env ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

requirements: .test-results/requirements.json ## which tests prove which item of docs/requirements.md
	@$(BIN)/python -m tests.requirements

.test-results/requirements.json:
	$(MAKE) test

lock: env ## pin the newest versions of the release's age
	$(LOCK) requirements.in --output-file requirements.txt
	$(LOCK) requirements-dev.in --output-file requirements-dev.txt

clean: ## everything that make made
	rm -rf .venv .test-results .pytest_cache .mypy_cache .ruff_cache
