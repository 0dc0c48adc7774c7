# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := models/fashion-cnn-w4a4/recipe.toml

.PHONY: demo test test-slow lint bench system clean

demo: $(STAMP)
	$(BIN)/hardbit run $(DEMO)

test: $(STAMP) system lint
	$(BIN)/pytest

test-slow: $(STAMP) system
	$(BIN)/pytest -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy toolchain/hardbit deploy/hardbit_deploy kernels/hardbit_kernels
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python -m pytest tests/benchmarks -m slow -s

# Chromium (opens the report) and Fashion-MNIST (trains) for the tests; without them those tests skip, visibly.
system:
	@sh tests/system_packages.sh

# torch first and by its exact version: a range would pull the CUDA build of several GB where a CPU build will do.
$(STAMP): pyproject.toml deploy/pyproject.toml kernels/pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("hardbit needs Python 3.11 or later: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt "torch==$$(sed -n 's/^torch==//p' constraints.txt)"
	$(BIN)/pip install --quiet -c constraints.txt -e ./kernels -e ./deploy -e '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) runs build
