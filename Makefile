# `make` lists what there is. Everything runs in .venv, which demo, test and check set up by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODALITY ?= audio
.DEFAULT_GOAL := help
.PHONY: help setup demo test check clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

setup: $(VENV)/.installed ## create .venv and install the project with its development tools

demo: $(VENV)/.installed ## pretrain on the embedded data and probe the result: make demo [MODALITY=audio|vision|text]
	$(BIN)/python train.py modality=$(MODALITY)

test: $(VENV)/.installed ## run the tests
	$(BIN)/python -m pytest

check: $(VENV)/.installed ## lint, format, types and tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

clean: ## remove .venv, caches and build leftovers (not runs/)
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache

# Installed again only when pyproject.toml changed.
$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "d2v_pretrain needs Python 3.11 to 3.13, not $$($(PYTHON) -V); say which: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || [ -x $(BIN)/pip ] || \
	  { echo "This Python cannot create virtual environments; install the part that Debian splits off: apt-get install python3-venv"; exit 1; }
	@[ -x $(BIN)/pip ] || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --editable '.[dev]'
	@touch $@
