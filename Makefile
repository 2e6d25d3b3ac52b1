# Thin on purpose: each target is the command a person would type.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/pip --disable-pip-version-check --quiet
# The data sets lie beside the checkout on a development machine; SPACEDML_DATA names another place.
ifneq ($(wildcard ../shared/data),)
export SPACEDML_DATA ?= $(abspath ../shared/data)
endif
# Where it is set, each of a thousand starts of a program in the tests would compile it once more.
unexport PYTHONDONTWRITEBYTECODE
export OPENBLAS_NUM_THREADS = 1
export OMP_NUM_THREADS = 1

# torch stands in no lock. Its CPU builds are on PyTorch's own index, with +cpu in the version; PyPI's torch of the
# same number brings gigabytes of CUDA. `==2.13.0+cpu` takes the one and never the other, on x86-64 and aarch64, from
# that index or from a folder in PIP_FIND_LINKS. What it needs besides is in the lock, so no index but this is asked.
TORCH ?= 2.13.0+cpu
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH_MISSING = make: no torch $(TORCH) at $(TORCH_INDEX) or in PIP_FIND_LINKS; TORCH_INDEX=URL names a mirror
INSTALL_TORCH = install --no-deps --retries 1 --index-url $(TORCH_INDEX) torch==$(TORCH)

# uv makes the locks and nothing else needs it.
UV := .venv-uv/bin/uv
UPGRADE ?= --upgrade
LOCK = UV_CUSTOM_COMPILE_COMMAND='make lock' $(UV) pip compile --quiet --universal --python-version 3.10 \
  --generate-hashes --no-emit-index-url

.PHONY: env demo test coverage floors test-newest test-lowest check bench docs lock wheelhouse clean

env: $(VENV)/.all

# Each stamp is written last, so an install that was cut off is done again, and a newer lock is installed.
$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("make: Python 3.10 or newer is needed, $(PYTHON) is older")'
	@$(PYTHON) -c 'import sys; sys.maxsize > 2**32 or sys.exit("make: $(PYTHON) is 32-bit: see docs/howto/offline.md")'
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	touch $@

$(VENV)/.locked: locks/all.txt pyproject.toml $(VENV)/.python
	$(PIP) install --require-hashes -r locks/all.txt
	$(PIP) install --no-deps --no-build-isolation -e .
	touch $@

$(VENV)/.all: $(VENV)/.locked Makefile
	$(PIP) $(INSTALL_TORCH) || { echo '$(TORCH_MISSING)' >&2; exit 1; }
	touch $@

demo: $(VENV)/.locked
	$(BIN)/firmware-sim demo $(ARGS)

# Four at once on two cores: much of what the suite does is to wait for lines and clocks of real programs.
WORKERS ?= 4
test: $(VENV)/.all check
	$(BIN)/pytest -n $(WORKERS) --dist worksteal $(ARGS)

# Measured branch by branch, in the programs that the tests start as well. `coverage` is the whole suite once more,
# which takes three times as long; `floors` asks of the parts that others stand on what their own tests reach. It fails
# below a floor alone: whether the tests pass is what `test` says, and a measured program is too slow for some.
COVERED_95 = wire codec learn link storage
UNMEASURED = test_schedules.py test_object_life.py # a third of the time, and they reach nothing that others do not
FLOORS = $(BIN)/coverage combine --quiet; for part in $(COVERED_95); do echo "onboard/$$part, floor 95 %:"; \
  $(BIN)/coverage report --include="onboard/$$part/*" --fail-under=95 --skip-covered || exit 1; done
MEASURED = $(BIN)/coverage erase && $(BIN)/coverage run -m pytest -n $(WORKERS) --dist worksteal

coverage: $(VENV)/.all
	$(MEASURED) $(ARGS)
	@$(FLOORS)
	$(BIN)/coverage report --fail-under=90 --skip-covered

floors: export HYPOTHESIS_PROFILE = few
floors: $(VENV)/.all
	-$(MEASURED) -q $(COVERED_95:%=tests/onboard/%) $(UNMEASURED:%=--ignore=tests/onboard/wire/%) $(ARGS)
	@$(FLOORS)

check: $(VENV)/.all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy examples docs/generate.py

bench: $(VENV)/.all
	$(BIN)/python -m benchmarks $(ARGS)

# The pages of docs/reference/ that the code writes; a test fails when one is stale.
docs: $(VENV)/.locked
	$(BIN)/python docs/generate.py

$(UV):
	$(PYTHON) -m venv .venv-uv
	.venv-uv/bin/pip --disable-pip-version-check --quiet install uv

# The suite against the newest versions that the registry has, in an environment of its own, begun anew each time.
test-newest: VENV := .venv-newest
test-newest:
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) install --upgrade pip
	$(PIP) install --group locked -e '.[ground,sim,crypto,test]'
	$(PIP) $(INSTALL_TORCH) || { echo '$(TORCH_MISSING)' >&2; exit 1; }
	$(BIN)/pip freeze --exclude-editable
	$(BIN)/pytest -n $(WORKERS) --dist worksteal $(ARGS)

# The same against the oldest that pyproject.toml admits, on a Python that all of them have wheels for.
test-lowest: VENV := .venv-lowest
test-lowest: $(UV)
	$(PYTHON) -m venv --clear $(VENV)
	$(UV) pip install --quiet --python $(BIN)/python --resolution lowest-direct --only-binary :all: \
	  --no-binary spacedml-edge --group locked -e '.[ground,sim,crypto,test]'
	$(PIP) $(INSTALL_TORCH) || { echo '$(TORCH_MISSING)' >&2; exit 1; }
	$(BIN)/pip freeze --exclude-editable
	$(BIN)/pytest -n $(WORKERS) --dist worksteal $(ARGS)

# One file for Python 3.10 to 3.14 on x86-64 and aarch64: uv resolves for all of them at once ("universal"), which
# pip-tools cannot, and pip alone installs what it wrote. board.txt is the part of all.txt that goes to a board.
lock: $(UV)
	$(LOCK) $(UPGRADE) --group locked --extra ground --extra sim --extra crypto --extra test \
	  -o locks/all.txt pyproject.toml
	$(LOCK) --upgrade -c locks/all.txt --extra flight --extra crypto -o locks/board.txt pyproject.toml

# What a board without internet installs from: the locked wheels for its Python and processor, and the project's own.
# uv writes which those are, because pip download evaluates markers for the computer that it runs on.
BOARD_PYTHON ?= 3.11
BOARD_ARCH ?= aarch64
wheelhouse: $(UV)
	rm -rf wheelhouse
	$(UV) build --quiet --wheel -o wheelhouse .
	$(UV) pip compile --quiet --python-version $(BOARD_PYTHON) --python-platform $(BOARD_ARCH)-manylinux_2_28 \
	  --generate-hashes --no-emit-index-url -c locks/board.txt --extra flight --extra crypto \
	  -o wheelhouse/requirements.txt pyproject.toml
	.venv-uv/bin/pip --disable-pip-version-check --quiet download --no-deps --only-binary :all: --require-hashes \
	  -r wheelhouse/requirements.txt --python-version $(BOARD_PYTHON) \
	  $(foreach tag,_2_28 _2_27 _2_26 _2_24 _2_17 2014,--platform manylinux$(tag)_$(BOARD_ARCH)) -d wheelhouse
	du -sh wheelhouse

clean:
	rm -rf .venv .venv-uv .venv-newest .venv-lowest wheelhouse build dist *.egg-info
	rm -rf .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis
