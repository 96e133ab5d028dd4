# Each target does all its own set-up in .venv, from any python3 >= 3.11.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: demo demo-short test test-slow test-devices test-site test-dist lint types docs pictures dist clean

demo: $(READY)  ## train AugLocal and backprop on digits; table and picture in runs/demo
	$(BIN)/python -m experiments.compare --config=experiments/configs/auglocal_digits.py \
	  --rules=auglocal,backprop --workdir=runs/demo

demo-short: $(READY)  ## the same in a few steps
	$(BIN)/python -m experiments.compare --config=experiments/configs/auglocal_digits.py:smoke \
	  --rules=auglocal,backprop --workdir=runs/demo-short

test: $(READY)  ## the suite, but for what is marked slow
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: $(READY)  ## the rest of it, but for what wants compilers of other devices
	$(BIN)/python -m pytest -n 2 -m "slow and not devices"

test-devices: $(READY)  ## that; the TPU's compiler is installed first, half a gigabyte
	$(BIN)/python -m pip install --quiet --editable '.[dev,tpu]' --constraint constraints.txt
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -n 2 -m devices $(ONLY) tests/test_accelerators.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

docs: $(READY)  ## the site, in docs/_build/html; warnings are errors
	$(BIN)/python -m sphinx --quiet --fail-on-warning --conf-dir docs . docs/_build/html

pictures: $(READY)  ## the pictures of experiments/results, from the numbers there
	$(BIN)/python -m experiments.pictures

test-site: docs  ## that, in a browser: chromium or google-chrome
	$(BIN)/python -m pytest tests/test_site.py

dist: $(READY)  ## what is released, in dist
	rm -rf dist
	$(BIN)/python -m build --outdir dist

test-dist: $(READY)  ## that, built anew, in an empty environment and directory
	$(BIN)/python -m pytest tests/test_dist.py

clean:
	rm -rf $(VENV) runs docs/_build dist build

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "jaxlocal needs Python 3.11 or newer, $(PYTHON) is older: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]' --constraint constraints.txt
	touch $@
