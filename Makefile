# Two commands do everything on a fresh machine: `make quickstart` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Where pip finds a CPU build of torch, if plain pip would bring a CUDA build and there is no GPU:
# an index URL or a folder of wheels.
ECHO_LM_TORCH_WHEELS ?=
comma := ,
HAS_GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && echo yes)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
export TOKENIZERS_PARALLELISM := false

.PHONY: quickstart install test lint test-gpu test-netns soak soak-habits images chromium reference docs clean help

help:
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/'

quickstart: $(VENV)/.quickstart ## from nothing to a trained, evaluated model and its report (about 9 minutes on 2 cores)
	$(BIN)/echo-lm run quickstart

install: $(VENV)/.quickstart ## the environment alone, in .venv (about 3 minutes)

test: $(VENV)/.dev chromium lint ## everything a change must pass (CPU, 12 to 21 minutes on 2 idle cores)
	bash -c 'TIMEFORMAT="tests: %R s of wall time, %U + %S s of processor time (user + system)"; \
	  time $(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not gpu and not netns and not slow"'
	@echo "not run here: gpu (needs a CUDA device: make test-gpu), netns (needs root: make test-netns), slow (make soak)"

lint: $(VENV)/.dev ## style, imports between folders, types (half a minute)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/basedpyright --pythonpath $(BIN)/python

test-gpu: $(VENV)/.dev ## the tests that need a CUDA device
	$(BIN)/pytest -m gpu

# Hosts are network namespaces, which only root can make; where the tool is missing it is installed.
test-netns: $(VENV)/.dev ## `echo-lm run` over two hosts, network namespaces of this machine (root, Linux)
	command -v ip >/dev/null || (apt-get update -qq && apt-get install -qq -y iproute2)
	$(BIN)/pytest -m "netns and not slow" tests/orchestration

soak: $(VENV)/.dev ## long trials
	$(BIN)/pytest -m slow

HABITS := $(if $(ECHO_LM_HABITS_SEED),--seed $(ECHO_LM_HABITS_SEED)) --out build/habits$(ECHO_LM_HABITS_SEED).json
soak-habits: $(VENV)/.dev ## of these the random sequences of habits alone, as many at once as there are cores
	$(BIN)/python -m tests.helpers.habits.trial $(HABITS)

images: ## build the CPU image and start it: alone, with compose, stopped (docker or podman; a quarter of an hour)
	docker/check-images.sh

# The dashboard's tests look at it in a browser. Without root, name one that is there in ECHO_LM_CHROMIUM.
CHROMIUM := $(firstword $(ECHO_LM_CHROMIUM) $(foreach name,chromium-headless-shell chromium chromium-browser google-chrome,\
	$(shell command -v $(name))))
chromium: ## a headless browser for the dashboard's tests, from Debian's or Ubuntu's packages where there is none
ifeq ($(CHROMIUM),)
	@echo "installing a headless Chromium (half a minute) ..."
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium-headless-shell >/dev/null \
		|| DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null
endif

reference: $(VENV)/.dev ## the generated pages of docs/reference, from the code itself
	$(BIN)/python -m typer echo_lm.orchestration.cli.main utils docs --name echo-lm --title "Command line" --output docs/reference/cli.md
	$(BIN)/python docs/reference/generate.py
	$(BIN)/python docs/reference/generate_files.py

docs: $(VENV)/.dev ## the documentation as a web site with the Python API in build/site; a broken link fails
	$(BIN)/mkdocs build

clean: ## remove the environment; data, runs and the record stay
	rm -rf $(VENV)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# A GPU machine keeps or gets the torch of its CUDA; elsewhere the pinned release, from the wheels named above if any.
TORCH := $(if $(HAS_GPU),torch,torch==$(shell sed -n 's/^torch==//p' constraints.txt))
TORCH_FROM := $(if $(ECHO_LM_TORCH_WHEELS),$(if $(wildcard $(ECHO_LM_TORCH_WHEELS)),--find-links,--extra-index-url) $(ECHO_LM_TORCH_WHEELS))

$(VENV)/.torch: constraints.txt | $(BIN)/python
	@echo "installing torch ..."
	$(PIP) "$(TORCH)" $(TORCH_FROM)
	@touch $@

$(VENV)/.quickstart: pyproject.toml constraints.txt $(VENV)/.torch
	@echo "installing Echo-LM with Ray and MLflow (2 to 3 minutes) ..."
	$(PIP) -e ".[cluster,track,serve]" $(if $(HAS_GPU),,-c constraints.txt)
	@touch $@

# mamba-ssm is a reference for our CPU scan; without its CUDA extension it installs everywhere.
$(VENV)/.dev: pyproject.toml constraints.txt $(VENV)/.torch
	@echo "installing the development environment (3 to 4 minutes) ..."
	$(PIP) -e ".[dev$(if $(HAS_GPU),$(comma)rivals)]" $(if $(HAS_GPU),,-c constraints.txt)
	$(PIP) setuptools wheel ninja
	MAMBA_FORCE_BUILD=TRUE MAMBA_SKIP_CUDA_BUILD=TRUE $(PIP) --no-build-isolation --no-deps mamba-ssm==2.3.2.post1
	@touch $@
