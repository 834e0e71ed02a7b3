PYTHON ?= python3
QUICKSTART_STEPS ?=
DEMO_FLAGS ?=
CONFIG ?=
NPROC ?=
TEST_WORKERS ?= auto

VENV := .venv
BIN := $(VENV)/bin
LAUNCHER = $(BIN)/$(if $(NPROC),torchrun --nproc_per_node $(NPROC),python)
# Versions that passed the tests together; LATEST=1 installs the newest ones that setup.py allows.
CONSTRAINTS ?= constraints.txt
LATEST ?=
PIP_INSTALL = $(BIN)/python -m pip install \
  $(if $(LATEST),--upgrade --upgrade-strategy eager,-c $(CONSTRAINTS)) -e
INSTALLED := $(VENV)/.installed$(if $(LATEST),-latest)
REQUIREMENTS := setup.py requirements.txt pyproject.toml $(if $(LATEST),,$(CONSTRAINTS))
# A file's tests stay together: they share trained models.
PYTEST = $(BIN)/python -m pytest -n $(TEST_WORKERS) --maxprocesses 8 --dist loadfile --no-loadscope-reorder

.PHONY: help install install-dev quickstart demo train test test-all lint format clean

help:
	@echo "make quickstart   install; an autoencoder learns photographs, a flow draws what prompts say"
	@echo "make demo         a page in the browser to try the quick start's models on; DEMO_FLAGS='--port 80'"
	@echo "make train        train what CONFIG=FILE.yaml says: flags of one training, or a pipeline; NPROC=4"
	@echo "make install      make .venv with the package in it; install-dev adds tests and linters;"
	@echo "                  versions that passed together, or with LATEST=1 the newest"
	@echo "make test         every test but the slow ones; test-all runs those too; TEST_WORKERS=2"
	@echo "make lint         check style; format applies it"
	@echo "make clean        remove caches and what the quick start wrote"

install: $(INSTALLED)

install-dev: $(INSTALLED)-dev

# A half-made .venv (Debian without python3-venv) must not pass for a whole one.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: Python 3.11 or newer is needed; name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(INSTALLED): $(REQUIREMENTS) | $(BIN)/python
	$(PIP_INSTALL) ".[eval,nvml]"
	@rm -f $(VENV)/.installed* && touch $@

$(INSTALLED)-app: $(REQUIREMENTS) | $(BIN)/python
	$(PIP_INSTALL) ".[app]"
	@touch $@

$(INSTALLED)-dev: $(REQUIREMENTS) | $(BIN)/python
	$(PIP_INSTALL) ".[dev]"
	@rm -f $(VENV)/.installed* && touch $(INSTALLED) $@

quickstart: install
	$(BIN)/python scripts/quickstart.py $(if $(QUICKSTART_STEPS),--steps $(QUICKSTART_STEPS))
	$(BIN)/python scripts/quickstart_flow.py $(if $(QUICKSTART_STEPS),--steps $(QUICKSTART_STEPS))

demo: quickstart/flow/hf_flow quickstart/hf_model $(INSTALLED)-app
	$(BIN)/python scripts/gradio_demo.py --from_pretrained quickstart/flow/hf_flow \
	  --autoencoder WFVAE2Image:quickstart/hf_model $(DEMO_FLAGS)

quickstart/flow/hf_flow quickstart/hf_model:
	@echo "error: $@ is missing: run make quickstart first, which trains the models" >&2; exit 1

# A pipeline has a section of that name; a file of flags cannot.
train: install
	@test -n "$(CONFIG)" || { echo "error: name a file: make train CONFIG=FILE.yaml" >&2; exit 1; }
	@test -f "$(CONFIG)" || { echo "error: CONFIG=$(CONFIG) does not exist" >&2; exit 1; }
	$(LAUNCHER) train_ddp.py $(if $(shell grep -s '^training:' "$(CONFIG)"),--pipeline,--config) "$(CONFIG)"

test: install-dev
	$(PYTEST) -m "not slow"

test-all: install-dev
	$(PYTEST)

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/shellcheck -x *.sh scripts/*.sh examples/*.sh examples/cluster/*.sh .ci/run

format: install-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf quickstart build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
