# Every target below sets up .venv when it is missing or older than its lock file. Variables:
#   CONFIG=file.yaml      configuration of cache-teacher and train-student
#   ARGS="..."            passed on to the command behind the target
#   LOCK=cpu|gpu          which lock file to install; default: gpu where nvidia-smi answers
#   TORCH_INDEX=url       extra package index with CPU builds of PyTorch, where the default one only has CUDA builds
#   JOBS=2                processes that run the tests, a file at a time
#   PYTHON=path           interpreter of the virtual environment; 3.11 or 3.12
ifndef LOCK
LOCK := $(shell nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
endif
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
TORCH_INDEX ?=
ARGS ?=
JOBS ?= 2

BIN := .venv/bin
INSTALLED := .venv/.installed-$(LOCK)
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup flash-attn demo recipe cache-teacher train-student test test-full lint bench gpu-check docs clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## create .venv from the lock file (TORCH_INDEX=url for an extra index of CPU builds, LOCK=cpu|gpu)

$(INSTALLED): requirements/$(LOCK).lock pyproject.toml
	@test -n "$(PYTHON)" && $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: Python 3.11 or newer is needed, '$(PYTHON)' is not; use PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@rm -f .venv/.installed-*
	@echo "installing requirements/$(LOCK).lock into .venv (a few minutes)"
	@$(PIP_INSTALL) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r requirements/$(LOCK).lock
	@$(BIN)/python -c 'import torch' || { echo "error: this build of torch does not load here; without an NVIDIA GPU," \
		"use TORCH_INDEX=url with an index of CPU builds of PyTorch" >&2; exit 1; }
	@$(PIP_INSTALL) --no-build-isolation --editable .
ifeq ($(LOCK),gpu)
	@$(BIN)/python -m teacher_cache.gpu_driver >&2
endif
	@touch $@

flash-attn: setup ## build flash-attn for student.attention: flash_attention_2 (needs nvcc and up to an hour; optional)
	$(PIP_INSTALL) --no-build-isolation -r requirements/gpu-flash-attn.txt

demo: setup ## cache a real teacher, train students from the cache, print what it bought
	$(BIN)/python -m benchmarks.demo $(ARGS)

recipe: setup ## two teachers, a pyramid, four students, one page: the whole recipe in miniature (ARGS=--dry-run shows it)
	$(BIN)/python -m benchmarks.recipe $(ARGS)

cache-teacher: CONFIG ?= configs/demo-cache.yaml
cache-teacher: setup ## run the teacher once and write its signals (CONFIG=file.yaml, ARGS="--set key=value")
	$(BIN)/teacher-cache run $(CONFIG) $(ARGS)

train-student: CONFIG ?= configs/demo-train.yaml
train-student: setup ## train a student from a cache (CONFIG=file.yaml, ARGS="--set key=value")
	$(BIN)/train-student run $(CONFIG) $(ARGS)

test: setup ## run the tests (ARGS="-k name" picks some)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-full: export TEST_FULL = 1
test-full: test ## run the tests with all repetitions: more kills, changes and steps

lint: setup ## check style, formatting, types and that schemas/json is up to date
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m schemas.generate --check

bench: setup ## run the benchmarks and fail when a bar does not hold (ARGS="NAME" picks one)
	$(BIN)/python -m benchmarks $(ARGS)

gpu-check: setup ## check correctness and speed on this GPU in eight minutes (ARGS="PART" picks one)
	$(BIN)/python -m benchmarks.gpu_check $(ARGS)

docs: .venv-docs/.installed ## build the documentation in site/; any warning is an error
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict
	@echo "site/index.html"

.venv-docs/.installed: requirements/docs.lock
	@test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	@.venv-docs/bin/python -m pip install -qq --disable-pip-version-check --no-deps -r requirements/docs.lock
	@touch $@

clean: ## remove runs/, site/ and caches of tools; keeps .venv and .venv-docs
	rm -rf runs site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -path ./.venv -prune -o -type d -name __pycache__ -exec rm -rf {} +
