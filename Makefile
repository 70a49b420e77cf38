# The only entry: CI calls the same targets. `make` alone lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
export OMP_WAIT_POLICY := PASSIVE
export DO_NOT_TRACK := true
export MLFLOW_DISABLE_TELEMETRY := true
export PATH := $(CURDIR)/.tools/bin:$(PATH)
export PYTHONPYCACHEPREFIX ?= $(CURDIR)/.venv/pycache
unexport PYTHONDONTWRITEBYTECODE
DEMO ?= out/demo

.PHONY: help setup packages docs demo replay test contract check lint types lock pythons wheel layers goldens golden bench bench-full clean images cluster-up install e2e cluster-down

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || { echo "rareclass needs Python 3.11, 3.12 or 3.13. Install one, or set PYTHON=/path/to/python"; exit 2; }
	@echo "setting up $(VENV) (once, about a minute)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check uv 2>&1 | grep -v -i '^warning' || true
	@VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install -q -r requirements.lock
	@VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install -q --no-deps -e .
	@touch $@

setup: $(VENV)/.installed ## make the virtual environment from requirements.lock

packages: ## install the Debian packages, the Helm and the Kafka that tests need, or say what is missing
	@tools/debian-packages
	@tools/helm
	@tools/kafka

demo: setup ## train on the real 2013 New York flights: diagnose, train, gate, register, report
	@$(BIN)/rareclass run -c examples/flights/config.yaml --out $(DEMO)
	@echo "next: make replay  plays the following half year through the whole loop (serve, late labels, drift, triage, repair) in about three minutes"

replay: setup ## play months of flights through the whole loop: serve, late labels, drift, triage, repair
	@$(BIN)/rareclass replay -c examples/flights/config.yaml --out out/replay

test: setup packages ## run all tests that need no cluster
	@$(BIN)/python -m pytest -m "not cluster" $(ARGS)

contract: setup ## try every combination of learner, weighting, resampler, loss, filter, split and refit
	@$(BIN)/python -m pytest tests/core/test_recipe_contract.py --every-combination --timeout=0 $(ARGS)

lint: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@said=$$($(BIN)/deptry --no-ansi src components pipelines 2>&1) || { echo "$$said"; exit 1; }

LOCK := $(BIN)/uv pip compile -q --no-header --universal --python-version 3.11 --generate-hashes
lock: setup ## bring the locks to pyproject.toml; versions that still fit stay (UPGRADE="-P NAME" moves one)
	@$(LOCK) pyproject.toml --all-extras --group dev -o requirements.lock $(UPGRADE)
	@for image in serving pipeline; do \
	  own=$$(sed -nE 's/^([a-z0-9-]+)[<>=].*/\1/p' components/$$image.in | paste -sd'|'); \
	  sed -nE 's/ *\\$$//; /^[a-z0-9]/p' requirements.lock | grep -vE "^($${own:-none})==" >$(VENV)/$$image.constraints; \
	  $(LOCK) components/$$image.in -c $(VENV)/$$image.constraints -o components/$$image.lock; \
	  sed -i 's|$(VENV)/'$$image'.constraints|requirements.lock|' components/$$image.lock; \
	done

pythons: setup ## run the fast tests on every other supported Python that is installed
	@tools/pythons

types: setup
	@$(BIN)/mypy

layers: setup
	@$(BIN)/lint-imports

goldens: setup packages ## fail where a golden file is not what the code makes
	@$(BIN)/python tools/goldens.py --check

golden: setup packages ## rewrite the golden files (compiled pipeline, dashboards, rendered chart)
	@$(BIN)/python tools/goldens.py

docs: $(VENV)/.docs ## build the documentation site into out/site; a broken link fails
	@NO_MKDOCS_2_WARNING=1 $(VENV)/docs/bin/python -m mkdocs build --quiet --strict
	@echo "out/site/index.html"

$(VENV)/.docs: docs/requirements.lock | setup
	@$(BIN)/uv venv -q --allow-existing $(VENV)/docs
	@$(BIN)/uv pip install -q --python $(VENV)/docs/bin/python -r docs/requirements.lock
	@touch $@

wheel: setup ## build the wheel, install it in an empty environment and run the demo there, small
	@tools/wheel

check: lint types layers goldens docs wheel test ## what CI runs

bench: setup ## the short benchmarks; the README's tables are their output
	@$(BIN)/python -m benchmarks short

bench-full: setup ## every benchmark
	@$(BIN)/python -m benchmarks all

images: ## build the container images with docker, podman or buildah
	@tools/images

cluster-up: ## start a Kubernetes with the platform (CLUSTER_KIT=/path/to/kit, else kind)
	@tools/cluster up

install: ## install the chart on the cluster that kubectl reaches
	@tools/cluster install

e2e: setup ## the whole loop on a real Kubernetes, from nothing
	@tools/cluster e2e

cluster-down: ## stop that Kubernetes
	@tools/cluster down

clean: ## remove what make made
	@rm -rf $(VENV) .tools out .rareclass .pytest_cache .mypy_cache .ruff_cache .hypothesis
