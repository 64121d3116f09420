# Everything sets up .venv by itself. `make demo` and `make test` are the two to start with.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Tests that need more than the package and its test requirements, by their pytest marks.
MARKED := postgres or redis or browser or crash

.PHONY: env demo test test-services test-all lint format docs bench bench-ranking bench-search bench-overhead bench-digits bench-speed bench-learned bench-limits bench-pruning bench-throughput bench-trainings clean

env: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "Setting up $(VENV) ..."
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --editable '.[test]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP_INSTALL) --editable '.[test,docs,lint,services,browser]'
	@touch $@

demo: env
	$(BIN)/python examples/search_nas_bench_201.py

# All that runs anywhere.
test: env
	$(BIN)/python -m pytest -m "not ($(MARKED))"

# The rest: PostgreSQL, Redis and Chromium must be there, and none of it may be skipped.
test-services: $(VENV)/.installed-dev
	$(BIN)/python -m pytest --require-services -m "$(MARKED)"

test-all: test test-services

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-dev
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet docs docs/_build/html
	@echo "Open docs/_build/html/index.html"

bench: bench-ranking bench-speed bench-throughput bench-search bench-overhead bench-digits bench-limits bench-pruning bench-learned bench-trainings

bench-ranking: env
	$(BIN)/python -m benchmarks.gauntlet --workers 2

bench-search: env
	$(BIN)/python -m benchmarks.search

bench-overhead: env
	$(BIN)/python -m benchmarks.overhead

bench-digits: env
	$(BIN)/python -m benchmarks.digits

bench-learned: env
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.learned
	$(BIN)/python -m benchmarks.learned --plain

bench-trainings: env
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.trainings

bench-limits: env
	$(BIN)/python -m benchmarks.limits --table docs/tables/limits.rst

bench-pruning: env
	$(BIN)/python -m benchmarks.pruning

bench-throughput: env
	$(BIN)/python -m benchmarks.throughput

bench-speed: env
	$(BIN)/python -m benchmarks.speed
	$(BIN)/python -m benchmarks.multiples

clean:
	rm -rf $(VENV) docs/_build docs/auto_tutorials .pytest_cache .mypy_cache .ruff_cache .hypothesis
