PYTHON ?= python3
BIN := .venv/bin

.PHONY: ablate test lint clean

# Trains and compares the three forms on the shipped pairs; skips what runs/ablate already holds.
ablate: .venv/installed
	$(BIN)/oblique-clip ablate --out runs/ablate

test: lint
	$(BIN)/pytest

lint: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv runs/ablate
