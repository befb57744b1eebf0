PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PLUGINS := $(wildcard plugins/*/pyproject.toml)

# The tests start hundreds of processes: what one has compiled, wherever that is switched off, the next need not.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: install run serve test collect check lint types rules bench clean
.DEFAULT_GOAL := install

install: $(STAMP)  ## create the environment: core, the three plugins, and what the tests need

$(STAMP): pyproject.toml $(PLUGINS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' $(foreach p,$(PLUGINS),-e $(dir $(p)))
	touch $(STAMP)

run: $(STAMP)  ## the server with the built-in plugins and a simulated shop as traffic
	$(BIN)/analytics demo

serve: $(STAMP)  ## the server alone
	$(BIN)/analytics serve

test: $(STAMP)  ## one more at a time than a small machine has processors: much of a test is waiting
	$(BIN)/python -m pytest -q -n 3 --dist worksteal

collect: $(STAMP)  ## whether every test can be imported; what that compiles, the tests need not
	$(BIN)/python -m pytest -qq --collect-only

check: lint types rules  ## lint, format, types and import rules

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

rules: $(STAMP)
	$(BIN)/python -m pytest -q tests/unit/test_architecture.py

bench: $(STAMP)
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache
