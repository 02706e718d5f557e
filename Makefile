# Two commands do everything: `make compare` and `make test`. Each sets up the environment it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TIER ?= quick
DIST ?= dist
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help setup compare test test-all check docs docs-serve wheel mutants fuzz speed speed-layers speed-devices speed-recurrent speed-online speed-images scaling growth throughput gpu claims clean

help:
	@echo "make compare     which norm at which batch size: trains about 1,000 small models in about 4 minutes, opens the report"
	@echo "make test        the tests but those that are slow by nature; make test-all: all of them"
	@echo "make check       formatting, lint, types, direction of imports"
	@echo "make docs        the documentation site, into build/site; make docs-serve shows it while pages are edited"
	@echo "make wheel       a wheel for other machines, into $(DIST)"
	@echo "make mutants     break the norms on purpose; some test must notice each"
	@echo "make fuzz        5,000 random cases of every norm and cell beside float64"
	@echo "make speed       each norm beside Flax's; make speed-devices: across 8 devices"
	@echo "make speed-layers  each norm beside those of Flax, equinox, haiku, Keras and PyTorch"
	@echo "make speed-recurrent  cells with a norm beside Flax's and PyTorch's LSTM"
	@echo "make speed-online  learning from a stream beside a Python loop, river and deep-river"
	@echo "make speed-images  an update on CIFAR-10's shapes beside a Flax loop and PyTorch"
	@echo "make scaling     a comparison with two worker processes beside one"
	@echo "make growth      time and memory against runs in a folder, seeds, learning rates, norms, examples, devices"
	@echo "make throughput  trained models per minute beside a Flax loop and PyTorch"
	@echo "make gpu         correctness and speed on an accelerator, in 9 minutes; PYTHON is one whose JAX sees the accelerator"
	@echo "make claims      every study of a claim, with larger networks, on an accelerator: OUTPUT, DATA, DATA_DIR, NETWORKS, STUDIES, ARGS"
	@echo "make clean       remove the environment, and what was built"
	@echo "make compare TIER=smoke shows in a minute that everything works; $(BIN)/normlab --help, once that is there, the rest"
	@echo "PYTHON=python3.12 and VENV=.venv312 choose an interpreter and a folder; TIER=smoke|quick|standard|paper the budget"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Expected Python 3.11 or newer, got $$($(PYTHON) --version). Pass PYTHON=python3.12, say."; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/study.stamp: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing normlab and its packages into $(VENV), about a minute"
	@$(PIP) --editable '.[study]'
	@touch $@

$(VENV)/test.stamp: $(VENV)/study.stamp
	$(PIP) --editable '.[test]'
	@touch $@

setup: $(VENV)/test.stamp

compare: $(VENV)/study.stamp
	@$(BIN)/normlab run batch_size --tier $(TIER) --open

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-all: $(VENV)/test.stamp
	$(BIN)/python -m pytest -n 2

check: $(VENV)/test.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

$(VENV)/docs.stamp: $(VENV)/study.stamp
	$(PIP) --editable '.[docs]'
	@touch $@

docs: $(VENV)/docs.stamp
	@rm -f build/site.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@touch build/site.stamp
	@echo "Open build/site/index.html in a browser."

docs-serve: $(VENV)/docs.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve

wheel: $(BIN)/python
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir $(DIST) .

mutants: $(VENV)/test.stamp
	$(BIN)/python -m tests.mutants

fuzz: $(VENV)/test.stamp
	$(BIN)/python -m tests.support.fuzz

speed: $(VENV)/study.stamp
	$(BIN)/python -m benchmarks.speed.norms

speed-layers: $(VENV)/peers.stamp
	$(BIN)/python -m benchmarks.speed.layers

speed-devices: $(VENV)/study.stamp
	$(BIN)/python -m benchmarks.speed.norms --devices 8

speed-recurrent: $(VENV)/peers.stamp
	$(BIN)/python -m benchmarks.speed.recurrent

speed-online: $(VENV)-peers/online.stamp
	$(VENV)-peers/bin/python -m benchmarks.speed.online

speed-images: $(VENV)/peers.stamp
	$(BIN)/python -m benchmarks.speed.images

scaling: $(VENV)/study.stamp
	$(BIN)/python -m benchmarks.speed.scaling

growth: $(VENV)/study.stamp
	$(BIN)/python -m benchmarks.speed.growth

throughput: $(VENV)/peers.stamp
	$(BIN)/python -m benchmarks.speed.throughput

# Nothing is installed: JAX for an accelerator comes with the machine, or as its owner wants it.
gpu:
	$(PYTHON) -m benchmarks.accelerator $(ARGS)

OUTPUT ?= build/claims
claims:
	$(PYTHON) -m experiments.claims.all --output $(OUTPUT) $(if $(DATA),--data $(DATA)) $(if $(DATA_DIR),--data-dir $(DATA_DIR)) \
		$(if $(NETWORKS),--networks $(NETWORKS)) $(if $(STUDIES),--studies $(STUDIES)) $(ARGS)

$(VENV)/peers.stamp: $(VENV)/study.stamp
	$(PIP) --editable '.[study,peers]'
	@touch $@

# deep-river wants an older river than the constraints, and an older torch than it needs: an environment of its own.
$(VENV)-peers/online.stamp: pyproject.toml
	$(PYTHON) -m venv $(VENV)-peers
	$(VENV)-peers/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[online,peers]' \
		'river==0.25.*' 'pandas<3' sortedcontainers torchviz tqdm
	$(VENV)-peers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps deep-river==0.3.4
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-peers build dist
