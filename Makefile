PYTHON ?= python3
BIN := .venv/bin

.PHONY: ablate test lint docs clean

# Trains and compares the three forms on the shipped pairs; skips what runs/ablate already holds.
ablate: .venv/installed
	$(BIN)/oblique-clip ablate --out runs/ablate

test: lint
	# Every test has one thread, so that two at a time take two cores.
	$(BIN)/pytest -n 2 --dist worksteal --nbmake

lint: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Writes build/site/index.html: this README, the API reference and the pages of experiments/.
docs: .venv/installed-docs
	$(BIN)/mkdocs build --strict

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install --quiet --editable ".[dev]"
	# Its own dependencies (transformers, pycocoevalcap) serve other models and metrics than those compared with here.
	$(BIN)/pip install --quiet --no-deps "clip_benchmark>=1.6"
	touch $@

.venv/installed-docs: .venv/installed
	$(BIN)/pip install --quiet --editable ".[docs]"
	touch $@

clean:
	rm -rf .venv runs/ablate build/site
