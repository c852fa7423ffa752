# A fresh clone needs Python (3.11 or newer) and make, nothing else:
#
#   make demo     install, train a character-level GPT on Shakespeare, print where the run folder is
#   make test     install, then formatting, lint, types and the default test suite
#
# PYTHON=... chooses the interpreter; each version has its own environment, .venv/<version>.

ifndef PYTHON
PYTHON := $(shell for python in python3.11 python3.12 python3 python; do \
	if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo $$python; break; fi; done)
endif
ifeq ($(strip $(PYTHON)),)
$(error no Python 3.11 or newer found: install one, or name it with PYTHON=/path/to/python)
endif
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
ifeq ($(strip $(VERSION)),)
$(error PYTHON=$(PYTHON) does not run)
endif

WORKERS ?= 2
VENV := .venv/$(VERSION)
BIN := $(VENV)/bin

# Every installation, build environments included, is held to the versions the project is tested with.
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
INSTALL := $(BIN)/python -m pip install -qq

.DELETE_ON_ERROR:
.PHONY: help demo test lint format types unit vision releases test-slow docs dist dist-check clean

help:
	@sed -n 's/^#   //p' Makefile
	@echo "also: make lint format types unit vision releases test-slow docs dist dist-check clean"

$(VENV)/.created:
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.examples: pyproject.toml constraints.txt $(VENV)/.created
	@echo "installing variform[examples] into $(VENV) (a few minutes the first time)"
	@$(INSTALL) -e '.[examples]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt $(VENV)/.created
	@echo "installing variform[dev] into $(VENV) (a few minutes the first time)"
	@$(INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/.examples

# timm and torchvision, of which no CPU build exists, lie beside the environment: tests that want them say so.
$(VENV)/.vision: constraints.txt $(VENV)/.dev
	@$(INSTALL) --no-deps --upgrade --target $(VENV)/vision timm torchvision
	@touch $@

# An earlier release of x-transformers, whose checkpoints are read too; the newest one is in the environment itself.
$(VENV)/.releases: constraints.txt $(VENV)/.dev
	@PIP_CONSTRAINT= $(INSTALL) --no-deps --upgrade --target $(VENV)/x-transformers-2.26.4 x-transformers==2.26.4
	@touch $@

demo: $(VENV)/.examples
	@$(BIN)/variform train examples/microgpt.yaml

test: lint types unit

lint: $(VENV)/.dev
	@$(BIN)/ruff format --check --quiet . || { $(BIN)/ruff format --diff . 2>/dev/null; echo "make format mends this"; exit 1; }
	@$(BIN)/ruff check .

format: $(VENV)/.dev
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

types: $(VENV)/.dev
	@$(BIN)/mypy

vision: $(VENV)/.vision

releases: $(VENV)/.releases

unit: $(VENV)/.dev $(VENV)/.vision $(VENV)/.releases
	@$(BIN)/python -m pytest -n $(WORKERS)

test-slow: $(VENV)/.dev $(VENV)/.vision $(VENV)/.releases
	@$(BIN)/python -m pytest -n $(WORKERS) -m slow

docs: $(VENV)/.dev $(VENV)/.vision
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict --site-dir site

dist: $(VENV)/.dev
	@rm -rf dist
	@$(BIN)/python -m build --no-isolation --outdir dist .

# Installs the wheel with its declared dependencies alone and runs the five-minute tour in an empty folder.
dist-check: dist
	@rm -rf build/dist-check && mkdir -p build/dist-check/empty
	@$(PYTHON) -m venv build/dist-check/venv
	@build/dist-check/venv/bin/python -m pip install -qq dist/*.whl
	@$(BIN)/python -m tests.snippets.markdown README.md > build/dist-check/tour.py
	@cd build/dist-check/empty && ../venv/bin/python ../tour.py
	@rm -rf build/dist-check && echo "the tour runs from the installed wheel"

clean:
	rm -rf .venv build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis
