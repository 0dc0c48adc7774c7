# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := models/fashion-cnn-w4a4/recipe.toml

.PHONY: demo test tensorrt test-slow test-gpu lint bench system clean

demo: $(STAMP)
	$(BIN)/hardbit run $(DEMO)

test: $(STAMP) system tensorrt lint
	$(BIN)/pytest

test-slow: $(STAMP) system
	$(BIN)/pytest -m slow

# On a machine with a GPU: every test that needs one, and one report of it. GPU_PYTHON may be another environment's, with
# a PyTorch for CUDA, TensorRT and PyCUDA; what is missing is skipped, and the report says so.
GPU_PYTHON ?= $(BIN)/python
test-gpu: $(if $(filter $(BIN)/python,$(GPU_PYTHON)),$(STAMP))
	$(GPU_PYTHON) tests/gpu_report.py runs/gpu-report

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

# TensorRT for RTX (95 MB) parses and builds without a GPU. It is published for x86-64; elsewhere, and where it cannot be
# had, the tests that need it skip, visibly.
tensorrt: $(STAMP)
	@case "$$(uname -s) $$(uname -m)" in \
	"Linux x86_64") $(BIN)/python -c 'import tensorrt_rtx' 2>/dev/null \
	    || $(BIN)/pip install --quiet -c constraints.txt tensorrt-rtx \
	    || echo "could not install tensorrt-rtx (tests that need it will skip)";; \
	*) echo "tensorrt-rtx is not published for this machine (tests that need it will skip)";; \
	esac

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
