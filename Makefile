# Two commands: `make quickstart` labels real text and trains a student; `make test` runs the tests.
# Each makes .venv and installs what it needs; a second run installs nothing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
ARGS ?=

.PHONY: help quickstart test lint clean

help:
	@echo "make quickstart   label real text with a real teacher, train a student from the labels"
	@echo "make test         run the tests            (ARGS='-k loader' for some of them)"
	@echo "make lint         ruff and mypy"
	@echo "make clean        remove what the others made"

quickstart: $(VENV)/.quickstart
	@$(BIN)/python pipelines/quickstart.py $(ARGS)

test: $(VENV)/.test
	@$(BIN)/python -m pytest -n auto $(ARGS)

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) models runs build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; name one: make PYTHON=python3.11 …")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.quickstart: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) install -q -c constraints.txt -e '.[transformers,plot]'
	@touch $@

$(VENV)/.test: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) install -q -c constraints.txt -e '.[transformers,plot,test]'
	@touch $@

$(VENV)/.lint: $(VENV)/.test
	$(PIP) install -q -c constraints.txt -e '.[dev]'
	@touch $@
