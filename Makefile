# `make demo` labels drawn images, `make test` runs the tests. Both set up .venv first.
PYTHON ?= python3.11
UV_VERSION := 0.13.9
BIN := .venv/bin
# Tests that start Ray start processes of their own: more than two workers would only slow each other down.
WORKERS ?= 2

.PHONY: setup lock test test-long test-faults faults simulate fuzz test-readers check format demo train-demo gpu-report clean

setup: .venv/.ready

.venv/.ready: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip sync --quiet --require-hashes --compile-bytecode requirements.lock
	$(BIN)/uv pip install --quiet --no-deps --editable .
	touch $@

lock:
	$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --extra aws --extra dev \
		--quiet pyproject.toml --output-file requirements.lock

test: setup
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadgroup --durations 15 -m "not faults and not long"

# Tests that take too long for every change: more evaluations of drawn images, clusters of several nodes.
test-long: setup
	$(BIN)/python -m pytest --durations 15 -m "long and not faults"

# One trial of each kind; `make faults` runs all trials, which takes an hour.
test-faults: setup
	$(BIN)/python -m pytest -m faults

faults: setup
	$(BIN)/python -m tests.faults

# Half an hour of drawn histories: drivers that die at any change of the storage, corpora that change.
simulate: setup
	$(BIN)/python -m tests.simulation

# One hour of fuzzing.
fuzz: setup
	for target in decode tar table vocabulary embeddings; do $(BIN)/python -m tests.fuzz $$target --seconds 720 || exit 1; done

# Reads every export with the programs that people use: Ultralytics, Label Studio's SDK, Datumaro and LabelMe. They have
# an environment of their own, because they want other versions than the job.
test-readers: setup .readers/.ready
	rm -rf .readers/exports
	$(BIN)/python -m tests.readers.write .readers/exports
	.readers/bin/python tests/readers/read.py .readers/exports

.readers/.ready: tests/readers/requirements.txt
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .readers
	$(BIN)/uv pip install --quiet --python .readers/bin/python --requirement $<
	touch $@

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: setup
	$(BIN)/python -m demo

train-demo: setup
	$(BIN)/python -m demo.training

# Under ten minutes on a machine with a GPU: measures labelling and writes docs/gpu.md.
gpu-report: setup
	$(BIN)/python -m benchmarks.gpu_report

clean:
	rm -rf demo-output .pytest_cache .mypy_cache .ruff_cache
