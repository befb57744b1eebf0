PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PLUGINS := $(wildcard plugins/*/pyproject.toml)

.PHONY: install run serve test check bench clean
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

test: $(STAMP)
	$(BIN)/python -m pytest -q -n 2

check: $(STAMP)  ## lint, format, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/unit/test_architecture.py

bench: $(STAMP)
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache
