# Two commands do all the set-up: `make demo` and `make test`.
#   TORCH_INDEX=URL  installs torch from that package index, e.g. PyTorch's own index of CPU-only builds.
#   FLAGS=--tiny     makes `make gpu-check` and `make real-model` run on the CPU.
PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Tests of one file run on one worker, because they share fixtures; conftest.py orders slow files first.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
TORCH := $(shell grep '^torch==' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help install demo test test-fast gpu-check real-model lint types clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

# Install torch first: its index must not be used for the other packages.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "longred needs Python 3.11 or newer: make demo PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) '$(TORCH)'
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

install: $(VENV)/.installed ## create the virtual environment with the tested versions

demo: install ## run the whole pipeline on the demo recipe
	$(BIN)/longred demo

test: install lint types ## lint, types and all tests
	$(PYTEST)

test-fast: install ## the fast tests; prints how many it leaves out
	$(PYTEST) -m "not slow and not medium and not gpu"

# Works without longred installed: on a bare GPU machine with torch, triton and transformers.
DEADLINE ?= 540
RESULTS ?= tests/benchmarks/results
RESUME ?=
gpu-check: ## measure this GPU in DEADLINE seconds, into RESULTS=folder; RESUME=file continues; uses PYTHON without the virtual environment
	PYTHONPATH=. $(PYTHON) tests/benchmarks/gpu_check.py --deadline $(DEADLINE) --results $(RESULTS) $(if $(RESUME),--resume $(RESUME)) $(FLAGS)

PREPARED ?= prepared
real-model: ## train and measure a real model on this GPU in DEADLINE seconds; PREPARED=folder of `real_model.py prepare`; else as gpu-check
	PYTHONPATH=. $(PYTHON) tests/benchmarks/real_model.py measure $(PREPARED) --deadline $(DEADLINE) --results $(RESULTS) $(if $(RESUME),--resume $(RESUME)) $(FLAGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

clean: ## remove the virtual environment (never the outputs)
	rm -rf $(VENV)
