# Each target does all its own set-up in .venv, from any python3 >= 3.11.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
# GPT-2 small in two blocks, compiled for an H100, which need not be here.
H100 = $(BIN)/python -m experiments.memory --models='gpt(layers=12,heads=12,features=768,context=1024,vocabulary=50304)' \
  --rules='remat(backprop),greedy' --cuts=even:2 --batch_sizes=8 --dtypes=bfloat16 --executors=fused --device=h100 \
  --workdir=runs/h100

.PHONY: demo demo-short demo-text demo-text-short test test-slow test-devices test-site test-dist lint types docs pictures dist clean

demo-short demo-text-short: FORM := :smoke

demo demo-short: $(READY)  ## local rules beside backprop on digits; table, and picture in runs/demo; -short: in a few steps
	$(BIN)/python -m experiments.compare --config=experiments/configs/auglocal_digits_deep.py$(FORM) \
	  --rules='auglocal,dgl(width=0.5),remat(backprop,every=4),backprop' --workdir=runs/$@

demo-text demo-text-short: $(READY)  ## a GPT in two blocks, for a minute; what each writes; what GPT-2 takes on an H100
	$(BIN)/python -m experiments.train --config=experiments/configs/greedy_shakespeare.py$(FORM) --workdir=runs/$@
	$(BIN)/python -m experiments.generate --workdir=runs/$@ --exit=1 --prompt=ROMEO: --temperature=0.8 --length=200
	$(BIN)/python -m experiments.generate --workdir=runs/$@ --exit=2 --prompt=ROMEO: --temperature=0.8 --length=200
	@if $(BIN)/python -c 'import jax_cuda12_plugin' 2>/dev/null; then $(H100); else \
	  echo "What GPT-2 takes on an H100 is known to its compiler, 2.6 GB, which is not installed. To ask it:"; \
	  echo "  $(BIN)/python -m pip install -e '.[cuda]' -c constraints.txt && make demo-text"; fi

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
