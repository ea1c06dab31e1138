# `make help` lists what there is. Everything is installed into .venv, beside this file, and nowhere else.
# Works with GNU make 3.81, which macOS has.

SHELL = /bin/sh
.DEFAULT_GOAL = help
.DELETE_ON_ERROR:
.PHONY: help demo test bench gpu lock clean install

# torch comes first and by version alone: which build is right depends on the machine. Keep it in step with the lock.
TORCH = 2.13.0
# What resolves the lock; only `make lock` needs it.
UV = 0.13.9
# How many tests run at once.
TEST_JOBS = 2

VENV = .venv
BIN = $(VENV)/bin
DONE = $(VENV)/.done
PIP = $(BIN)/python -m pip --disable-pip-version-check --no-input
SOURCES = $(shell find lmconsole -name __pycache__ -prune -o \( -type d -o -type f \) -print) \
          experiments.toml pyproject.toml README.md LICENSE

# The first of these that will do. `make demo PYTHON=python3.12` names one.
PYTHON = python3 python3.13 python3.12 python3.14 python3.11
SUITABLE = import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))

# Tests and training see the installed package, never the folder they are started from.
unexport PYTHONPATH PYTHONHOME
export PYTHONSAFEPATH = 1

# An environment that was moved or copied here, or whose Python has gone, is made anew.
ifneq ($(shell cat $(DONE)/where 2>/dev/null),$(shell pwd -P))
.PHONY: $(DONE)/where
else ifneq ($(shell $(BIN)/python -c 'print("works")' 2>/dev/null),works)
.PHONY: $(DONE)/where
endif

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 15

demo: install ## train all twelve experiments on a small text and print the results (minutes)
	$(BIN)/lmconsole run --all --preset demo --headless

test: install ## lint, types and tests: what CI runs
	$(BIN)/ruff check --quiet
	$(BIN)/ruff format --quiet --check
	$(BIN)/mypy --no-error-summary
	$(BIN)/pytest -n $(TEST_JOBS) --dist worksteal

bench: install ## measure speed and memory, into benchmarks/results/local.json
	PYTHONSAFEPATH= $(BIN)/python benchmarks/run.py --json benchmarks/results/local.json

# Packages that were carried to a machine without a network are found through PYTHONPATH, which only this target keeps.
gpu: ## measure on one NVIDIA GPU, most valuable first, into benchmarks/results (nine minutes)
	@python="$(BIN)/python"; [ -x "$$python" ] || python=python3; \
	PYTHONPATH="$(PYTHONPATH)" PYTHONSAFEPATH= exec "$$python" benchmarks/gpu.py

lock: $(DONE)/where ## choose the development versions anew: requirements-dev.lock
	@$(PIP) install -qq uv==$(UV)
	@echo "torch==$(TORCH)" > $(VENV)/torch.txt
	@$(BIN)/uv pip compile --quiet --no-progress --upgrade --universal --python-version 3.11 \
	    --fork-strategy fewest --generate-hashes --group dev --constraint $(VENV)/torch.txt \
	    --no-annotate --no-emit-package torch --custom-compile-command "make lock" \
	    --output-file requirements-dev.lock pyproject.toml

clean: ## remove the environment and caches; runs and exports stay
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

install: $(DONE)/package

# Each step leaves a stamp when it has succeeded, so an interrupted one is simply repeated.
$(DONE)/where:
	@for python in $(PYTHON); do \
	    if "$$python" -c '$(SUITABLE)' 2>/dev/null; then \
	        rm -rf $(VENV) && "$$python" -m venv $(VENV) && mkdir -p $(DONE) && pwd -P > $@; \
	        exit; \
	    fi; \
	done; \
	echo "Python 3.11 to 3.14 with its venv module is needed; none of these is one: $(PYTHON)" >&2; \
	echo "(on Debian and Ubuntu venv is a package of its own: python3-venv)." >&2; \
	echo "If you have one under another name: make $(or $(MAKECMDGOALS),demo) PYTHON=/path/to/python" >&2; \
	exit 1

$(DONE)/torch-$(TORCH): $(DONE)/where
	@if ! $(BIN)/python -c 'import sys; from importlib.metadata import version; \
	        sys.exit(version("torch").split("+")[0] != "$(TORCH)")' 2>/dev/null; then \
	    echo "Installing torch $(TORCH) into $(VENV) (up to a few GB, once)"; \
	    $(PIP) install -qq torch==$(TORCH); \
	fi
	@touch $@

$(DONE)/lock: requirements-dev.lock $(DONE)/torch-$(TORCH)
	@echo "Installing the development versions into $(VENV)"
	@$(PIP) install -qq --require-hashes --requirement requirements-dev.lock
	@touch $@

# This stamp bears the time of the start: what is edited during the installation is installed next time.
$(DONE)/package: $(DONE)/lock $(SOURCES)
	@touch $@.started
	@$(PIP) install -qq --no-deps --no-build-isolation --force-reinstall .
	@mv $@.started $@
