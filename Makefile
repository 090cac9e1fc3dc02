# make demo    set up .venv and sample pictures with the shipped model into out/demo
# make test    set up .venv with the tools of a developer and run the tests
# make check   lint, types and tests
# make setup-reference   also PyTorch and what the tests compare with, and the TPU's compiler;
#                        without them the tests skip that
# make faults  kill, fill and damage training and sampling, and print what survived (a quarter of an hour)
# make fuzz    fuzz every parser, guided by coverage (Linux; two minutes each)
# make docs    the documentation as a site in site/ (docs-serve shows it at localhost:8000)
# Also: setup, setup-dev, lint, types, format, constraints.

PYTHON ?= python3
DEMO_OUT ?= out/demo
DEMO_PROMPTS ?= "a red apple, 3d style" "a cat face, flat style" "a rocket, noto style" "a guitar, twemoji style"
TEST_WORKERS ?= 2
TESTS ?= tests

BIN := .venv/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check install --no-compile -c constraints.txt
# Two makes at the same time (a demo beside a test) must not install into one folder.
LOCK := $(shell command -v flock >/dev/null 2>&1 && echo flock .venv.lock)

.DEFAULT_GOAL := help
.PHONY: help demo test faults fuzz docs docs-serve check lint types format setup setup-dev setup-reference constraints

help:
	@sed -n 's/^# //p' Makefile | head -9

demo: setup
	@$(BIN)/python sample.py text $(DEMO_PROMPTS) --out $(DEMO_OUT)

test: setup-dev
	@$(BIN)/python -m pytest -q -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder $(TESTS)

faults: setup-dev
	@$(BIN)/python -m tests.faults

fuzz: setup-dev
	@$(PIP) atheris
	@$(BIN)/python -m tests.fuzz all --seconds $(or $(SECONDS_EACH),120)

docs: setup-dev
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

docs-serve: setup-dev
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve

check: lint types test

lint: setup-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: setup-dev
	@PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python

format: setup-dev
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

setup:
	@$(LOCK) $(MAKE) --silent --no-print-directory .venv/installed

setup-dev:
	@$(LOCK) $(MAKE) --silent --no-print-directory .venv/installed-dev

setup-reference:
	@$(LOCK) $(MAKE) --silent --no-print-directory .venv/installed-reference

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "unclip_jax needs Python 3.11 or newer as $(PYTHON): install one, or say make PYTHON=python3.12" >&2; exit 2; }
	@echo "Setting up .venv (once, about a minute) ..."
	@$(PYTHON) -m venv .venv
	@$(PIP) -e .
	@touch $@

.venv/installed-dev: .venv/installed
	@echo "Adding the developer's tools to .venv ..."
	@$(PIP) -e '.[dev,docs]'
	@touch $@

.venv/installed-reference: .venv/installed-dev tests/reference-packages.txt
	@echo "Adding PyTorch, the references and the TPU's compiler to .venv ..."
	@$(PIP) -e '.[dev,docs,plan]'
	@$(PIP) torch==2.13.0
	@$(PIP) --no-deps -r tests/reference-packages.txt
	@$(PIP) einops importlib-metadata psutil pydantic pyyaml requests tokenizers tqdm
	@touch $@

# The newest versions that fit, for every supported Python; names and versions only. Needs uv.
constraints:
	@uv pip compile --quiet --universal --upgrade --python-version 3.11 --no-header --no-annotate \
		--no-emit-index-url --no-emit-find-links --extra dev --extra docs --extra plan --extra track --extra web \
		pyproject.toml -o constraints.txt
