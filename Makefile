# Thin on purpose: each target is the command a person would type.
PYTHON ?= python3
BIN := .venv/bin
# The data sets lie beside the checkout on a development machine; SPACEDML_DATA names another place.
ifneq ($(wildcard ../shared/data),)
export SPACEDML_DATA ?= $(abspath ../shared/data)
endif
export OPENBLAS_NUM_THREADS = 1
export OMP_NUM_THREADS = 1

.PHONY: env demo test check bench clean

env: .venv/.all

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.demo: pyproject.toml | .venv/bin/python
	$(BIN)/pip install --disable-pip-version-check --quiet -e '.[flight,ground,sim]'
	touch $@

# torch is pinned: an unpinned one brings gigabytes of CUDA packages.
.venv/.all: pyproject.toml | .venv/bin/python
	$(BIN)/pip install --disable-pip-version-check --quiet torch==2.13.0
	$(BIN)/pip install --disable-pip-version-check --quiet -e '.[all]' torch==2.13.0
	touch $@ .venv/.demo

demo: .venv/.demo
	$(BIN)/firmware-sim demo $(ARGS)

test: .venv/.all check
	$(BIN)/pytest -n 2 --dist worksteal $(ARGS)

check: .venv/.all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/.all
	$(BIN)/python -m benchmarks $(ARGS)

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
