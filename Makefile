# The README's commands. Each makes .venv when it is missing or older than what it is built from.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-slow lint format clean

help:
	@echo "make quickstart   install, pretrain a small encoder on a real genome, score variants, embed intervals"
	@echo "make test         install with [dev], run the checks and the tests (under 10 minutes)"
	@echo "make test-slow    the tests marked slow"
	@echo "make format       let ruff format and mend"
	@echo "make clean        remove what the above made"

NATIVE := setup.py $(wildcard genosparse/attention/cpu/kernels/*.[ch] genosparse/readers/native/*.[ch])

$(VENV)/.user: pyproject.toml constraints.txt $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/.user

quickstart: $(VENV)/.user
	$(BIN)/genosparse quickstart

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/pytest -n 2

test-slow: $(VENV)/.dev
	OMP_NUM_THREADS=2 $(BIN)/pytest -m slow

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info quickstart
