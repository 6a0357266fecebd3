# make train   environment, data, recipes/quickstart.yaml, evaluation, sample, saved model in out/quickstart
# make test    environment, then the whole test-suite
# make lint    ruff's checks and formatting
# make floor   the test-suite with the oldest transformers that pyproject.toml admits

PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
OUT ?= out/quickstart

.PHONY: train test lint floor
train: $(VENV)/.train
	$(RUN) -m scripts.train --config recipes/quickstart.yaml --output_dir $(OUT)

test: $(VENV)/.dev
	$(RUN) -m pytest --numprocesses auto

lint: $(VENV)/.dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

floor:
	$(PYTHON) -m venv $(VENV)-floor
	$(VENV)-floor/bin/python -m pip install --quiet torch==2.13.0 transformers==5.17.0 --editable ".[test]"
	$(VENV)-floor/bin/python -m pytest --numprocesses auto

$(VENV)/.train: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.train
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable ".[test,dev]"
	touch $@
