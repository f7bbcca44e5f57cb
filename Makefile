# The command menu. Each target sets up what it needs in .venv; CI runs the same words.
PYTHON ?= python3
BIN := .venv/bin
SHELL := /bin/bash
.DEFAULT_GOAL := help

.PHONY: help setup fmt check structure test test-fast bench docs demo clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

# What the demo and a user need; the marker is older than what it is made from only once.
.venv/.user: pyproject.toml constraints.txt
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear .venv
	@echo "Setting up .venv (once)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[studio]' scikit-learn
	@touch $@

.venv/.dev: .venv/.user
	@echo "Adding the developers' tools to .venv (once)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[studio,cluster,server,telemetry]' $$($(BIN)/python -c "import tomllib; groups = tomllib.load(open('pyproject.toml', 'rb'))['dependency-groups']; print(*groups['dev'], *groups['docs'])" | sed 's/>=[^ ]*//g')
	@if pkg-config --exists tss2-esys 2>/dev/null; then $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[tpm]'; fi
	@touch $@

setup: .venv/.dev  ## everything for working on Edgewright

fmt: setup  ## format, and fix what can be fixed by itself
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

check: setup  ## format, lint, types, import directions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	PYTHONPATH=src $(BIN)/lint-imports --no-logo

structure: setup  ## figures of the tree's structure beside their limits
	PYTHONPATH=src $(BIN)/python -m tests.structure

test-fast: setup  ## what to run before a commit: at most three minutes
	$(BIN)/pytest -n 2 -q -m "not slow" --ignore tests/browser

test: setup  ## all tests, two at a time
	$(BIN)/pytest -n 2 --durations=10

bench: setup  ## one benchmark in full: make bench NAME=compress_peers
	$(BIN)/python -m benchmarks.$(or $(NAME),compress_peers)

docs: setup  ## build the documentation site into site/, strictly, and check its commands and tables
	$(BIN)/zensical build --clean --strict
	$(BIN)/pytest tests/unit/test_docs.py

demo: .venv/.user  ## compress a real model with a certificate, in under five minutes
	$(BIN)/python examples/digits/demo.py

clean:  ## remove what the other targets made
	rm -rf .venv build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis edgewright-out
