# Needs Python >= 3.10, git and make; everything else goes into .venv.
#   make test ARGS="tests/unit -k lease"     make bench ARGS="--only tick"     make demo SECONDS=30 JSON=1     make PYTHON=python3.12 test

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.installed-bench
EXTRAS := dev
ARGS ?=

# The floor of coverage is checked where everything runs: in CI, and not for a part of the tests.
COVERAGE := $(if $(filter true 1,$(CI)),$(if $(ARGS),,--cov))
# Tests with services wait most of their time: the others run beside them (tests/lanes.py).
LANES := $(if $(ARGS),,-n 3)

export SECONDS JSON

# Set the shell variable python to the first Python >= 3.10 that has these modules: $(call find_python,MODULES)
define find_python
python=""; for p in $(PYTHON) python3.13 python3.12 python3.11 python3.10 python3 python; do \
    if "$$p" -c 'import sys, importlib; [importlib.import_module(m) for m in "$(1)".split()]; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then python=$$p; break; fi; done; \
if [ -z "$$python" ]; then echo "no Python >= 3.10 with $(1) found (on Debian: apt-get install python3 python3-venv); name one with PYTHON=..." >&2; exit 1; fi
endef

.PHONY: help install test lint format typing demo bench screenshots dist clean
.DEFAULT_GOAL := help

help: ## show this list
	@awk -F ':[^#]*## ' '/^[a-z]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## make .venv and install everything for development into it

$(STAMP): pyproject.toml
	@$(call find_python,venv ensurepip); \
	echo "$(VENV): $$($$python --version)"; test -x $(BIN)/python || $$python -m venv $(VENV)
	@echo "$(VENV): installing, which takes a minute or two"
	$(BIN)/python -m pip install --quiet --editable ".[$(EXTRAS)]"
	@touch $@

test: $(STAMP) ## run every test that this machine can run; ARGS="tests/unit -k lease" narrows it
	$(BIN)/python -m pytest $(LANES) $(COVERAGE) $(ARGS)

lint: $(STAMP) ## check rules and format with ruff, and the layers of the package
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo --cache-dir .cache/import-linter

format: $(STAMP) ## mend rules and format with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typing: $(STAMP) ## check types with mypy, strictly
	$(BIN)/mypy

demo: $(STAMP) ## three beats, a worker, an embedded Kafka, and faults; SECONDS=30 JSON=1
	$(BIN)/python -m example_project.demo

$(BENCH_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --editable ".[bench]"
	@touch $@

bench: $(BENCH_STAMP) ## measure speed and memory; ARGS="--only tick"
	$(BIN)/python -m benchmarks $(ARGS)

screenshots: $(STAMP) ## take the pictures of docs/page.md and docs/django.md with Chromium
	$(BIN)/python -m tests.ui.screenshots

dist: ## build a wheel in dist/; needs no .venv
	rm -rf dist
	@$(call find_python,venv ensurepip); made=$$(mktemp -d) && trap 'rm -rf "$$made"' EXIT && \
	$$python -m venv "$$made" && "$$made/bin/python" -m pip wheel --quiet --no-deps --wheel-dir dist . && ls dist/*.whl

clean: ## remove .venv, caches and builds
	rm -rf $(VENV) .cache .tox .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage .coverage.* htmlcov build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
