# `make train` and `make test` each do all set-up, from a clean clone on a fresh machine.

PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# A process a core, and BLAS of one thread in each: on tiny matrices a second thread costs more than it brings.
ALL_CORES := OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto

.PHONY: train test test-slow prove lint setup clean

train: $(READY)
	$(BIN)/agp train

test: lint
	$(ALL_CORES) -m "not slow and not prove"

test-slow: $(READY)
	$(ALL_CORES) -m "slow and not prove"

# Full counts. Writes results/.
prove: $(READY)
	$(BIN)/python -m pytest -q -m prove
	$(BIN)/agp bench decode
	$(BIN)/agp bench e2b
	$(BIN)/agp bench train
	$(BIN)/agp bench memory
	$(BIN)/agp train
	$(BIN)/agp bench heads
	$(BIN)/agp bench curriculum
	$(BIN)/agp train tiny3n
	$(BIN)/agp bench export
	$(BIN)/agp bench mission
	$(BIN)/agp bench promises
	$(BIN)/agp bench carry
	$(BIN)/agp bench decode --routed runs/tiny
	$(BIN)/agp figures --check

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

setup: $(READY)

# Made again whenever what is installed should change.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "AGP needs Python 3.11 to 3.13; say which: make PYTHON=python3.12 ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[test]' --constraint constraints.txt
	@sh scripts/openblas.sh $(BIN)/python
	@touch $@

clean:
	rm -rf $(VENV)
