# `make help` lists the targets. Each sets up .venv first.
PYTHON ?= python3.11
UV_VERSION := 0.13.9
BIN := .venv/bin
# Tests that start Ray start processes of their own: more than two workers would only slow each other down.
WORKERS ?= 2

.PHONY: help setup lock test test-long test-faults faults simulate fuzz test-readers test-clouds check format demo train-demo gpu-report docs clean

help: ## this list
	@sed -nE 's/^([a-z-]+):.* ## (.*)/  make \1: \2/p' $(MAKEFILE_LIST)

setup: .venv/.ready ## .venv with everything in requirements.lock

.venv/.ready: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip sync --quiet --require-hashes --compile-bytecode requirements.lock
	$(BIN)/uv pip install --quiet --no-deps --editable .
	touch $@

lock: ## requirements.lock from pyproject.toml
	$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --extra aws --extra dev \
		--quiet pyproject.toml --output-file requirements.lock

test: setup ## tests, about ten minutes on two cores
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadgroup --durations 15 -m "not faults and not long"

test-long: setup ## longer tests, twenty minutes
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadgroup --durations 15 -m "long and not faults"

test-faults: setup ## one trial of every fault, a quarter of an hour
	$(BIN)/python -m pytest -m faults

faults: setup ## all trials, an hour
	$(BIN)/python -m tests.faults

simulate: setup ## 20,000 drawn histories, half an hour
	$(BIN)/python -m tests.simulation

fuzz: setup ## random bytes for the readers, an hour
	for target in decode tar table vocabulary embeddings; do $(BIN)/python -m tests.fuzz $$target --seconds 720 || exit 1; done

# Ultralytics, Label Studio's SDK, Datumaro and LabelMe want other versions than the job.
test-readers: setup .readers/.ready ## reads every export with the programs that people use
	rm -rf .readers/exports
	$(BIN)/python -m tests.readers.write .readers/exports
	.readers/bin/python tests/readers/read.py .readers/exports

.readers/.ready: tests/readers/requirements.txt
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .readers
	$(BIN)/uv pip install --quiet --python .readers/bin/python --requirement $<
	touch $@

# SkyPilot, Azure's packages and moto want other versions than the job.
test-clouds: setup .clouds/.ready ## puts examples/cluster through SkyPilot, Ray's launchers and policy checkers
	.clouds/bin/python -W ignore tests/clouds/check.py

.clouds/.ready: tests/clouds/requirements.txt
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .clouds
	$(BIN)/uv pip install --quiet --python .clouds/bin/python --requirement $<
	touch $@

check: setup docs ## ruff, mypy and the pages of `make docs`
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## ruff formats
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: setup ## labels drawn images and writes a page to look at
	$(BIN)/python -m demo

train-demo: setup ## trains the demo's models again
	$(BIN)/python -m demo.training

gpu-report: setup ## measures labelling on a GPU and writes docs/gpu.md, ten minutes
	$(BIN)/python -m benchmarks.gpu_report

# The first import puts what `cliper` imports on first use where pdoc looks for it. pdoc's warnings fail.
docs: setup ## build/docs, pages about the Python interface
	$(BIN)/python -W error::UserWarning -W "ignore:OpenCV" -c "from cliper import *; from pdoc.__main__ import cli; cli()" --docformat google \
		--no-show-source --template-directory docs/api --output-directory build/docs \
		cliper '!cliper\.' cluster.labeler schemas

clean: ## removes what tests and the demo leave behind
	rm -rf demo-output .pytest_cache .mypy_cache .ruff_cache
