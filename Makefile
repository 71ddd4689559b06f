# make help lists what there is. PYTHON and PIP_FLAGS can be given: make test PYTHON=python3.12
PYTHON ?= python3
PIP_FLAGS ?=
BIN := .venv/bin
ROOT ?= runs/demo
# one thread per process: two busy threads on two shared cores are slower than one
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1

.PHONY: help demo test test-long coverage docs lint bench clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

.venv/.installed: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { echo "error: $(PYTHON) -m venv failed; on Debian: apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -e '.[test,dev]'
	@touch $@

demo: .venv/.installed  ## the complete SPEED loop in miniature, offline; figures in runs/demo
	$(BIN)/speedlit run --config demo --root $(ROOT)

test: .venv/.installed  ## the test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile tests/test_loop.py tests  # the longest file first

test-long: .venv/.installed  ## what takes half an hour: the whole first hour, and the blocks of the docs that take minutes
	SPEEDLIT_LONG=1 $(BIN)/python -m pytest -m long --durations=0 tests/long

coverage: .venv/.installed  ## the test suite, and which lines it runs, in subprocesses too; build/coverage/index.html
	$(BIN)/python -m pytest -n 2 --dist loadfile --cov --cov-report=term --cov-report=html:build/coverage tests/test_loop.py tests

docs: .venv/.installed  ## the documentation as a site in build/docs; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict --config-file scripts/docs/mkdocs.yml

lint: .venv/.installed  ## ruff, and mypy --strict on the package
	$(BIN)/ruff check speedlit callbacks tests scripts
	$(BIN)/python -m mypy speedlit callbacks

bench: .venv/.installed  ## speed and memory beside TRL, sentence-transformers, transformers; writes docs/benchmarks.json
	OMP_NUM_THREADS=$$(env -u OMP_NUM_THREADS nproc) $(BIN)/python -m scripts.bench

clean:  ## remove runs and caches, keep .venv
	rm -rf runs .pytest_cache .ruff_cache .mypy_cache build *.egg-info
