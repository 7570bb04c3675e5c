# `make help` lists the targets. Everything runs in .venv, made from constraints.txt on first use.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench compare clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY)  ## forecast with the bundled weights, and train a small model in minutes; writes to demo/
	$(BIN)/convlstm demo --out demo

test: $(READY)  ## run the test suite
	$(BIN)/python -m pytest

lint: $(READY)  ## check style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(READY)  ## measure training steps, and how fast sequences are drawn
	$(BIN)/python benchmarks/layer.py
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/data.py

compare: $(READY)  ## train the whole LSTM family on the same clips, for hours, and compare; resumes
	$(BIN)/python benchmarks/compare.py speed
	$(BIN)/python benchmarks/compare.py train

clean:  ## remove the environment and the demo
	rm -rf .venv demo

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@
