# make train    create .venv, train recipes/quickstart.yaml, save the model in out/quickstart
# make check    create .venv, run the fast tests: all that are not marked as slow
# make test     create .venv, run all tests
# make lint     lint rules, formatting, spelling and types
# make floor    run all tests with the oldest transformers that pyproject.toml allows
# make newest   run all tests with the newest packages that pyproject.toml allows
# make fuzz     run the fuzz tests with new random examples for FUZZ_MINUTES (10)
# make matrix   load saved folders under the releases of transformers from 4.51 (exports) or 5.4 to the newest
# make golden   compare the golden runs with their records; UPDATE=1 writes the record for this kind of CPU

PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
OUT ?= out/quickstart
FUZZ_MINUTES ?= 10

.PHONY: train check test lint floor newest golden matrix fuzz
train: $(VENV)/.train
	$(RUN) -m scripts.train --config recipes/quickstart.yaml --output_dir $(OUT)

check: $(VENV)/.dev
	$(RUN) -m pytest -m "not slow" --numprocesses auto

test: $(VENV)/.dev
	$(RUN) -m pytest --numprocesses auto

lint: $(VENV)/.dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m codespell_lib
	$(RUN) -m mypy

floor:
	$(PYTHON) -m venv $(VENV)-floor
	$(VENV)-floor/bin/python -m pip install --quiet torch==2.13.0 transformers==5.17.0 --editable ".[test]"
	$(VENV)-floor/bin/python -m pytest --numprocesses auto

newest:
	$(PYTHON) -m venv $(VENV)-newest
	$(VENV)-newest/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager --editable ".[test]"
	$(VENV)-newest/bin/python -m pytest --numprocesses auto

golden: $(VENV)/.train
	$(RUN) -m benchmarks.golden $(if $(UPDATE),--update)

fuzz: $(VENV)/.dev
	$(RUN) -m benchmarks.fuzz --minutes $(FUZZ_MINUTES)

matrix: $(VENV)/.train
	$(RUN) -m benchmarks.matrix

$(VENV)/.train: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.train
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable ".[test,dev]"
	touch $@
