# make run     search MobileNetV3 for ImageNet-1K with the embedded default; ARGS="--acq pi" and so on
# make test    all tests but those that need root or a GPU
# make check   format, lint, types and the quick tests
#              both run JOBS=3 test files at a time, as these often wait; ARGS="-n 0 -x tests/test_sde.py" and so on
# make bench   the benchmarks whose results are in benchmarks/results
# make figures a report of each experiment whose runs are in RUNS (runs/experiments)

PYTHON ?= python3
VENV ?= .venv
RUNS ?= runs/experiments
JOBS ?= 3
BIN := $(VENV)/bin
# 20,000 files are installed and a tenth is used: those are compiled when first imported,
# and kept even where the environment forbids it
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
export PYTHONDONTWRITEBYTECODE =
# in alphabetical order, which mixes tests that wait for Ray with tests that compute
PYTEST := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

.PHONY: run test check bench figures

run: $(VENV)/run-ready
	$(BIN)/python -m orchestrator.run_bo $(ARGS)

test: $(VENV)/dev-ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST) $(ARGS)

check: $(VENV)/dev-ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST) -m "not slow and not ray" $(ARGS)

bench: $(VENV)/dev-ready
	$(BIN)/python benchmarks/iteration.py
	$(BIN)/python benchmarks/sampling.py
	$(BIN)/python benchmarks/generation.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/constraints.py
	$(BIN)/python benchmarks/limits.py
	$(BIN)/python benchmarks/store.py
	$(BIN)/python benchmarks/loader.py
	$(BIN)/python benchmarks/tune.py

figures: $(VENV)/run-ready
	@ls $(RUNS)/experiment-*.json >/dev/null 2>&1 || { echo "error: no experiment in $(RUNS): run python -m orchestrator.experiment FILE --out $(RUNS)" >&2; exit 2; }
	for file in $(RUNS)/experiment-*.json; do name=$${file##*/experiment-}; \
	  $(BIN)/python -m orchestrator.report $$file --out $(RUNS)/report-$${name%.json} $(ARGS) || exit; done

$(VENV)/run-ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	touch $@

$(VENV)/dev-ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[dev]'
	touch $@ $(VENV)/run-ready
