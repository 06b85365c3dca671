# `make` lists what there is. Everything runs in .venv, which demo, test and check set up by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two test processes of one thread each: torch's own threads would wait for one another.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile
MODALITY ?= audio
.DEFAULT_GOAL := help
TESTS ?=
MATRIX ?= 3.11-pinned 3.11-newest 3.12-pinned 3.13-pinned
.PHONY: help setup demo test check newest pin matrix clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

setup: $(VENV)/.installed ## create .venv with the tested versions of constraints/ and the development tools

demo: $(VENV)/.installed ## pretrain on the embedded data and probe the result: make demo [MODALITY=audio|vision|text]
	$(BIN)/python train.py modality=$(MODALITY)

test: $(VENV)/.installed ## run the tests
	$(PYTEST)

check: $(VENV)/.installed ## lint, format, types and tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST)

newest: ## test the newest versions that pyproject.toml allows, in a new environment
	$(PYTHON) constraints/matrix.py 3.11-newest --tests '$(TESTS)'

pin: ## resolve all versions but torch's anew, test them on each Python, write them to constraints/
	$(PYTHON) constraints/matrix.py 3.11-refresh 3.12-refresh 3.13-refresh --tests '$(TESTS)'

matrix: ## test oldest and newest torch and each Python, in new environments: make matrix [TESTS=tests/models]
	$(PYTHON) constraints/matrix.py $(MATRIX) --tests '$(TESTS)'

clean: ## remove .venv, caches and build leftovers (not runs/)
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache

# Installed again only when pyproject.toml or the pinned versions changed.
$(VENV)/.installed: pyproject.toml $(wildcard constraints/py*.txt)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "d2v_pretrain needs Python 3.11 to 3.13, not $$($(PYTHON) -V); say which: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || [ -x $(BIN)/pip ] || \
	  { echo "This Python cannot create virtual environments; install the part that Debian splits off: apt-get install python3-venv"; exit 1; }
	@[ -x $(BIN)/pip ] || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --editable '.[dev]' \
	  --constraint constraints/py$$($(BIN)/python -c 'import sys; print("%d%d" % sys.version_info[:2])').txt
	@touch $@
