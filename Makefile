# make train   environment, data, recipes/quickstart.yaml, evaluation, sample, saved model in out/quickstart
# make test    environment, then the whole test-suite
# make lint    ruff's checks and formatting

PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
OUT ?= out/quickstart

.PHONY: train test lint
train: $(VENV)/.train
	$(RUN) -m scripts.train --config recipes/quickstart.yaml --output_dir $(OUT)

test: $(VENV)/.dev
	$(RUN) -m pytest

lint: $(VENV)/.dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

$(VENV)/.train: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.train
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable ".[test,dev]"
	touch $@
