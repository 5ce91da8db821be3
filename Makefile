# make run: install and train on the demo.   make test: what CI runs.   make accept: every claim at full size.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_WAIT_POLICY := PASSIVE
export GOMP_SPINCOUNT := 0
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
# Tests are collected by each of their processes: what they import is compiled once.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: run test tests test-gpu lint types bench accept docs demo clean

run: $(VENV)/.installed
	$(BIN)/align run --method orpo

# Types are checked by one process, in the minute in which the one that tests are forks of imports what they need.
test: $(VENV)/.installed-test lint
	$(MAKE) --no-print-directory -j 2 types tests

# Three processes on two cores: tests wait for commands, locks and signals for a quarter of their time.
tests: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q -n 3 --dist loadscope --no-loadscope-reorder

# Tests that take a device, on CUDA.
test-gpu: $(VENV)/.installed-test
	@$(BIN)/python -c "import sys, torch; sys.exit(not torch.cuda.is_available() and 'make test-gpu needs a CUDA device')"
	$(BIN)/python -m pytest -q -n 0 -m gpu

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.installed-test
	$(BIN)/mypy

bench: $(VENV)/.installed-test
	$(BIN)/python -m bench $(BENCH)

accept: $(VENV)/.installed-test
	$(BIN)/python -m tests.accept $(ACCEPT)

docs: $(VENV)/.installed-test
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	$(BIN)/python docs/build_reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python docs/build_site.py

demo: $(VENV)/.installed
	$(BIN)/align demo build

# torch comes first and alone: constraints.txt pins the version whose CPU build the index serves.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@

clean:
	rm -rf $(VENV) runs build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
