# `make help` lists what there is. Everything happens in .venv, which the first target that needs it makes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Processes for pytest: one per core, but never one alone, so that tests are always tried side by side.
JOBS = $(shell cores=$$(nproc); echo $$((cores > 2 ? cores : 2)))

.DEFAULT_GOAL := help
.PHONY: help serve test lint bench test-env clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

serve: $(VENV)/.installed-runtime ## install if needed, then run the server with config.toml
	@exec $(BIN)/arcpipe serve --config config.toml

test: test-env ## run the tests; ARGS="-k name" goes to pytest
	$(BIN)/pytest -n $(JOBS) $(ARGS)

lint: test-env ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-bench ## run the benchmarks; ARGS goes to them
	$(BIN)/python -m benchmarks $(ARGS)

test-env: $(VENV)/.installed-test ## install what tests and checks need

clean: ## remove the environment, builds and caches; ./data stays
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed-runtime: EXTRAS =
$(VENV)/.installed-test: EXTRAS = [test]
$(VENV)/.installed-bench: EXTRAS = [bench]

# The stamp is newer than the two files that decide what is installed for as long as neither changes.
$(VENV)/.installed-%: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.$(EXTRAS)' --constraint constraints.txt
	@touch $@

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "arcpipe needs Python 3.11 or newer, and there is no $(PYTHON): make PYTHON=/path/to/python3.11 …" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "arcpipe needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1): make PYTHON=/path/to/python3.11 …" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
