# `make demo` and `make test` do everything on a fresh machine with Python >= 3.11.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FUZZ_SECONDS ?= 600
FUZZED := pickle zip safetensors onnx toml npz sums manifest table answer depfiles signature certificate
STAMP := $(VENV)/installed
RUNTIME := $(VENV)/runtime-installed
DEMO := benchmarks/zoo/demo
SUITES := smoke cpu signs mobile table2-cpu table2 table4

.PHONY: help install demo test test-without-programs test-slow test-ray test-gpu coverage fuzz check docs format build clean

help:
	@echo "make install    a virtual environment with edgeclean and its tools"
	@echo "make demo       compress and purify a small backdoored network"
	@echo "make test       every test but the slow ones"
	@echo "make test-slow  the slow ones"
	@echo "make test-without-programs  those that start programs from outside, as if none was here"
	@echo "make test-ray   those of fleets on a real Ray"
	@echo "make test-gpu   those that need a CUDA device"
	@echo "make coverage   every test that needs no GPU, and whether they run enough of the code"
	@echo "make fuzz       ten minutes of fuzzing of each reader (FUZZ_SECONDS)"
	@echo "make check      format, lint, types, layers"
	@echo "make docs       the site of the documentation, in build/docs"
	@echo "make bench-X    a benchmark: smoke, cpu, signs, mobile, table2-cpu, table2, table4, or any python -m benchmarks.studies.X"
	@echo "make build      wheel and source archive"

# An installed torch (say, a CUDA build) is kept; see docs/guides/installing.md.
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,bench,docs]'
	touch $@

# The demo needs no tools of a developer, whose installation takes as long again.
$(RUNTIME): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

install: $(STAMP)

demo: $(RUNTIME)
	$(BIN)/edgeclean compress $(DEMO).safetensors --model $(DEMO).toml \
		--target jetson --ratio 2 --effort quick -o build/demo
	@$(BIN)/python -m benchmarks.rendering.demo_levels

# In less than eight minutes on two quiet cores. worksteal: a worker begins with half of the tests in
# their order, so that what a module makes for its tests is made once. Compiled code is kept, whatever
# the shell says: every process that a test starts would compile it anew.
test: export PYTHONDONTWRITEBYTECODE :=
test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow and not gpu" -n 2 --dist worksteal

# tests/support/programs.py has the programs: each test that asks for one is skipped, and none ends otherwise.
test-without-programs: $(STAMP)
	$(BIN)/python -m pytest -m "programs and not gpu" --programs none

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m "slow and not gpu"

# Real clusters of Ray on this machine, whose nodes and workers are killed; needs the extra "ray".
# RAY_TESTS chooses among them, as -k of pytest does.
test-ray: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[ray]'
	$(BIN)/python -m pytest -m "slow and not gpu" -k "$(RAY_TESTS)" tests/fleet/test_fleet_ray.py

test-gpu: $(STAMP)
	$(BIN)/python -m pytest -m gpu

# Lines and branches, against the marks in benchmarks/coverage_marks.py; writes its results.
coverage: export COVERAGE_FILE := $(CURDIR)/build/coverage/data
coverage: $(STAMP)
	rm -rf build/coverage
	mkdir -p build/coverage
	$(BIN)/coverage run -m pytest -m "not gpu" -n 2 --dist worksteal
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage json --quiet -o build/coverage/measured.json
	$(BIN)/python -m benchmarks.coverage_marks build/coverage/measured.json

# Needs the extra "fuzz"; FUZZ_SECONDS for each reader, and what is found lies in build/fuzz.
fuzz: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[fuzz]'
	mkdir -p build/fuzz
	for reader in $(FUZZED); do \
		$(BIN)/python tests/fuzz/fuzz.py $$reader -max_total_time=$(FUZZ_SECONDS) \
			-artifact_prefix=build/fuzz/$$reader- || exit 1; \
	done

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Strict: a dead link or anchor is an error. The reference is read from the code by docs/hooks.
# The theme's end of life (May 2027; its successor reads mkdocs.yml) is known: one line less of noise.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# bench-smoke takes minutes and starts over; cpu and signs take hours, table2-cpu days, and go on with
# the columns that are missing in benchmarks/results; table2 and table4 want a GPU, and bench-gpu runs
# on one what is missing of both, the most telling cells first.
bench-smoke: HOW := --fresh --jobs 2
bench-cpu bench-signs bench-mobile bench-table2-cpu: HOW := --jobs 2
$(SUITES:%=bench-%): bench-%: $(STAMP)
	$(BIN)/python -m benchmarks.suite $* $(HOW)

# bench-tucker, bench-published, bench-clp-zoo, bench-compress-zoo, ...
bench-%: $(STAMP)
	$(BIN)/python -m benchmarks.studies.$(subst -,_,$*)

build: $(STAMP)
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps -w dist .

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
