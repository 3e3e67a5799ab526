# make run     search MobileNetV3 for ImageNet-1K with the embedded default; ARGS="--acq pi" and so on
# make test    all tests but those that need root or a GPU
# make check   format, lint, types and the quick tests
# make bench   the benchmarks whose results are in benchmarks/results

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: run test check bench

run: $(VENV)/run-ready
	$(BIN)/python -m orchestrator.run_bo $(ARGS)

test: $(VENV)/dev-ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest $(ARGS)

check: $(VENV)/dev-ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -m "not slow and not ray" $(ARGS)

bench: $(VENV)/run-ready
	$(BIN)/python benchmarks/iteration.py
	$(BIN)/python benchmarks/sampling.py
	$(BIN)/python benchmarks/generation.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/constraints.py
	$(BIN)/python benchmarks/search.py --space mobilenetv3

$(VENV)/run-ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/dev-ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@ $(VENV)/run-ready
