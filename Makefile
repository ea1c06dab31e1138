# `make help` lists the targets. Everything is installed into .venv, next to this file, and nowhere else.
# Works with GNU make 3.81, which macOS has.

SHELL = /bin/sh
.DEFAULT_GOAL = help
.DELETE_ON_ERROR:
.PHONY: help demo test quick coverage bench calibrate placebo gpu lock clean install

# torch is installed first, by version only: the right build depends on the machine. Keep it in step with the lock.
TORCH = 2.13.0
# Resolves the lock; only `make lock` needs it.
UV = 0.13.9
# Test processes: more than cores, since many tests wait.
TEST_JOBS = 3

VENV = .venv
BIN = $(VENV)/bin
DONE = $(VENV)/.done
PIP = $(BIN)/python -m pip --disable-pip-version-check --no-input
COMPILE = $(BIN)/uv pip compile --quiet --no-progress --universal --python-version 3.11 --fork-strategy fewest \
          --generate-hashes --no-annotate --no-emit-package torch --custom-compile-command "make lock"
SOURCES = $(shell find lmconsole -name __pycache__ -prune -o \( -type d -o -type f \) -print) \
          experiments.toml pyproject.toml README.md LICENSE

# The first suitable one is used. `make demo PYTHON=python3.12` names one.
PYTHON = python3 python3.13 python3.12 python3.14 python3.11
SUITABLE = import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))

# Tests and training use the installed package, never the current folder.
unexport PYTHONPATH PYTHONHOME
export PYTHONSAFEPATH = 1

# An environment that was moved or copied, or whose Python is gone, is rebuilt.
ifneq ($(shell cat $(DONE)/where 2>/dev/null),$(shell pwd -P))
.PHONY: $(DONE)/where
else ifneq ($(shell $(BIN)/python -c 'print("works")' 2>/dev/null),works)
.PHONY: $(DONE)/where
endif

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

demo: install ## train all twelve experiments on a small text and print the results (minutes)
	$(BIN)/lmconsole run --all --preset demo --headless

test: install ## lint, types and tests: what CI runs
	$(BIN)/ruff check --quiet
	$(BIN)/ruff format --quiet --check
	@$(BIN)/mypy --no-error-summary & types=$$!; \
	$(BIN)/pytest -n $(TEST_JOBS) --dist worksteal; tests=$$?; \
	wait $$types && exit $$tests

quick: install ## lint, types and the fast tests, before each commit (a minute)
	$(BIN)/ruff check --quiet
	$(BIN)/ruff format --quiet --check
	$(BIN)/mypy --no-error-summary
	$(BIN)/pytest --quiet -m quick -n $(TEST_JOBS) --dist worksteal

coverage: install ## run all tests with coverage, including workers; fail below 95% of lines
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest --quiet -n $(TEST_JOBS) --dist worksteal
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

bench: install ## measure speed and memory, into benchmarks/results/local.json
	PYTHONSAFEPATH= $(BIN)/python benchmarks/run.py --json benchmarks/results/local.json

calibrate: install ## simulate the verdicts of comparisons, and write docs/calibration.md (five minutes)
	PYTHONSAFEPATH= $(BIN)/python benchmarks/calibrate.py

placebo: install ## compute false-win rates from 600 recorded runs, and draw the figure of the README (a minute)
	PYTHONSAFEPATH= $(BIN)/python benchmarks/placebo.py

# On a machine without a network, packages are found through PYTHONPATH, which only this target keeps.
gpu: ## measure on one NVIDIA GPU, most important first, into benchmarks/results (nine minutes)
	@python="$(BIN)/python"; [ -x "$$python" ] || python=python3; \
	PYTHONPATH="$(PYTHONPATH)" PYTHONSAFEPATH= exec "$$python" benchmarks/gpu.py

# The second file has the versions of the first, without what only development needs.
lock: $(DONE)/where ## resolve the versions to install: requirements-dev.lock and requirements.lock
	@$(PIP) install -qq uv==$(UV)
	@echo "torch==$(TORCH)" > $(VENV)/torch.txt
	@echo "hatchling" > $(VENV)/build.txt
	@$(COMPILE) --upgrade --group dev --constraint $(VENV)/torch.txt \
	    --output-file requirements-dev.lock pyproject.toml
	@$(COMPILE) --all-extras --constraint $(VENV)/torch.txt --constraint requirements-dev.lock \
	    --output-file requirements.lock pyproject.toml $(VENV)/build.txt

clean: ## remove the environment and caches; runs and exports stay
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage .coverage.*

install: $(DONE)/package

# Each step leaves a stamp when it succeeds, so an interrupted one is repeated.
$(DONE)/where:
	@for python in $(PYTHON); do \
	    if "$$python" -c '$(SUITABLE)' 2>/dev/null; then \
	        rm -rf $(VENV) && "$$python" -m venv $(VENV) && mkdir -p $(DONE) && pwd -P > $@; \
	        exit; \
	    fi; \
	done; \
	echo "No Python 3.11 to 3.14 with the venv module found among: $(PYTHON)" >&2; \
	echo "On Debian and Ubuntu, install python3-venv." >&2; \
	echo "If Python has another name here: make $(or $(MAKECMDGOALS),demo) PYTHON=/path/to/python" >&2; \
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

# This stamp has the time of the start: files edited during the installation are installed next time.
$(DONE)/package: $(DONE)/lock $(SOURCES)
	@touch $@.started
	@$(PIP) install -qq --no-deps --no-build-isolation --force-reinstall .
	@mv $@.started $@
