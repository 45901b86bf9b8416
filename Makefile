# Every target sets up what it needs; the second time that takes no time.
TORCH ?= 2.13.0
ARGS ?=
# Tests run side by side in this many processes.
WORKERS ?= 2
# The default torch lives in .venv, any other in a folder of its own.
VENV := $(if $(filter 2.13.0,$(TORCH)),.venv,.venv-torch$(TORCH))
PY := $(VENV)/bin/python
# For tools that call torchrun or python by name.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help install demo test data lint format clean

help:  ## this list
	@echo 'make TARGET [ARGS="..."] [TORCH=$(TORCH)]'
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/^([a-z]+):.*## */  \1\t/' | expand -t 14

install:  ## create the environment, compile mmcv once (about 10 minutes on 2 cores)
	@bash tools/install.sh $(TORCH) $(VENV)

demo: install  ## train, evaluate and picture a detector with AGVM on real digits
	$(PY) tools/demo.py $(ARGS)

test: lint  ## lint, then all tests; ARGS goes to pytest, as in ARGS="-k variance"
	$(PY) -m pytest tests -n $(WORKERS) --dist loadfile $(ARGS)

data: install  ## write the embedded handwritten-digits scenes
	$(PY) -m agvm_mm.digits $(ARGS)

lint: install  ## check style and formatting
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: install  ## repair style and formatting
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:  ## delete caches and build leftovers, neither the environment nor results
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
	find . -name '.venv*' -prune -o -name __pycache__ -type d -exec rm -rf {} +
