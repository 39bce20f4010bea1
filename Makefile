# Environment, quickstart, tests and checks; `make` alone lists the targets.
VENV = .venv
BIN = $(VENV)/bin
# `make PYTHON=python3.12 ...` picks the interpreter; otherwise the first of these that is new enough.
PYTHONS = $(or $(PYTHON),python3 python3.13 python3.12 python3.11)
PIP_INSTALL = $(BIN)/python -m pip install -q --disable-pip-version-check

QUICK_RUN = output/quickstart

# Two processes, whole files to each: fixtures of a module are made once.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile
# Documents hold doctests too; the package's are part of the quick suite already. Tutorials are run by a slow test.
DOCTESTS = --doctest-glob='*.md' --ignore=docs/tutorials gradmix_timm $(wildcard README.md docs)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help quickstart test test-all check lint docs bench gpu clean stale

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile
	@echo 'PYTHON=python3.12 picks the interpreter (3.11 or newer) that $(VENV) is made with.'

quickstart: $(VENV)/.base  ## train with GradMix on the embedded digits, evaluate open-set, write the report
	$(BIN)/python -m gradmix_timm.quickstart --output output

test: $(VENV)/.test  ## the quick suite: CPU, offline
	$(PYTEST)

test-all: $(VENV)/.full node_modules/axe-core  ## the slow tests too, with the examples' and pytorch-ood's packages
	$(PYTEST) -m 'not gpu and not net' tests $(DOCTESTS)

check: lint  ## ruff, mypy, doctests (package and documents) and the quick suite
	$(PYTEST) tests $(DOCTESTS)

lint: $(VENV)/.test  ## ruff, mypy, and the documentation without warnings
	$(BIN)/ruff check .
	$(BIN)/mypy
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs: $(VENV)/.test  ## the documentation as a site in site/ (offline)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(VENV)/.test  ## pytest-benchmark's tables
	$(BIN)/python -m pytest -q benchmarks --benchmark-only

gpu: $(VENV)/.test  ## the tests that need a CUDA device
	@$(BIN)/python -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else \
	  f"make gpu: torch {torch.__version__} sees no CUDA device; run it on a machine with one")'
	$(BIN)/python -m pytest -q -m gpu

clean:  ## remove .venv, caches, builds and the quickstart's run (other runs in output/ stay)
	rm -rf $(VENV) $(QUICK_RUN) build dist site node_modules *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Accessibility rules for the browser tests, which are skipped without them (no npm, or no network).
node_modules/axe-core:
	@npm install --no-save --no-package-lock --no-audit --no-fund axe-core@4 || \
	  echo 'axe-core was not installed: tests that need it are skipped'

comma := ,
# One environment, three stamps: each installs only when it is missing or older than the package's metadata.
# What a larger one installs holds the smaller ones, so `make quickstart` after `make test` installs nothing.
# A missing interpreter (never made, or its Python was removed) makes all of them stale.
STALE := $(shell test -x $(BIN)/python || echo stale)
METADATA = setup.cfg setup.py pyproject.toml $(STALE)

define install
@test -x $(BIN)/python || { $(make_venv); }
@test -x $(BIN)/pip || $(BIN)/python -m ensurepip >/dev/null
@echo 'Setting up $(VENV): pip install -e "$(1)" (once; PyTorch alone can take minutes)'
@$(PIP_INSTALL) -e '$(1)'
@touch $(addprefix $(VENV)/,$(2))
endef

define make_venv
for python in $(PYTHONS); do \
  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
    exec $$python -m venv --clear $(VENV); \
  fi; \
done; \
echo "make: gradmix_timm needs Python 3.11 or newer, and none of these is: $(PYTHONS)." >&2; \
echo "make: install one, or say where it is: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; \
exit 1
endef

$(VENV)/.base: $(METADATA)
	$(call install,.,.base)

$(VENV)/.test: $(METADATA)
	$(call install,.[test$(comma)docs],.base .test)

$(VENV)/.full: $(METADATA)
	$(call install,.[test$(comma)docs$(comma)examples$(comma)scores],.base .test .full)
