# Every target sets up the environment first, which is quick once it is installed.
TORCH ?= 2.13.0
MMENGINE ?= 0.10.7
# openmmlab, or onedl: maintained forks with the same module names.
STACK ?= openmmlab
# Name or path of the Python that creates the environment; without it python3.11 if
# there is one, else python3.12 or python3.10.
PYTHON ?=
# Only for install.sh: the scripts that the tests start read a variable of this name.
unexport PYTHON
ARGS ?=
# Number of parallel test processes.
WORKERS ?= 2
# The default versions are in .venv. Every other lane has its own environment, such as
# .venv-torch2.1.2, .venv-mmengine0.11.0rc3, .venv-python3.12 or .venv-onedl.
VENV := .venv$(patsubst %,-torch%,$(filter-out 2.13.0,$(TORCH)))$(patsubst \
	%,-mmengine%,$(filter-out 0.10.7,$(MMENGINE)))$(patsubst \
	%,-%,$(filter-out python python3 python3.11,$(notdir $(PYTHON))))$(patsubst \
	%,-%,$(filter-out openmmlab,$(STACK)))
PY := $(VENV)/bin/python
# For tools that call torchrun or python by name.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.DEFAULT_GOAL := help
# Options of pytest for both kinds of tests.
PYTEST = -n $(WORKERS) --dist loadfile $(ARGS)

.PHONY: help install demo test test-all zoo gpu-check data docs lint format clean

help:  ## list the targets
	@echo 'make TARGET [ARGS="..."] [TORCH=$(TORCH)] [MMENGINE=$(MMENGINE)]' \
		'[PYTHON=python3.12] [STACK=onedl]'
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## */  \1\t/' | expand -t 14

install:  ## create the environment; compiles mmcv once (about 10 minutes on 2 cores)
	@PYTHON='$(PYTHON)' bash tools/dev/install.sh $(TORCH) $(MMENGINE) $(VENV) $(STACK)

demo: install  ## train and evaluate a detector with AGVM on real digits, draw figures
	$(PY) -m demo $(ARGS)

test: lint  ## run lint and the tests of the code; ARGS goes to pytest: ARGS="-k variance"
	$(PY) -m pytest tests -m 'not evidence' $(PYTEST)

test-all: lint  ## run lint and all tests, also those of the project's figures and claims
	$(PY) -m pytest tests $(PYTEST)

zoo: install  ## compare optimizers and gradients of stock configs with and without AGVM
	$(PY) tools/dev/zoo.py $(ARGS)

gpu-check: install  ## train on the GPUs of this machine, compare with the CPU, measure the cost
	$(PY) -m gpu_check $(ARGS)

data: install  ## write the embedded handwritten-digits scenes
	$(PY) -m demo.data $(ARGS)

docs: install  ## build the documentation site into site/
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict $(ARGS)

lint: install  ## check style and formatting
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: install  ## fix style and formatting
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:  ## delete caches and build products, but no environments and no results
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache
	find . -name '.venv*' -prune -o -name __pycache__ -type d -exec rm -rf {} +
