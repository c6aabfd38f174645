# Every target works on a fresh machine: what it needs is installed first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# One thread a process: two on two cores fight each other
export OMP_NUM_THREADS ?= 1
# Processes that run tests, each with a few hundred MB of torch
TEST_PROCESSES ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-cluster check bench clean

help:  ## explain the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' | expand -t 14

setup: $(VENV)/.installed  ## make .venv and install the project with its development tools

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("error: Python %s: 3.11 or newer is needed -> make PYTHON=python3.12 setup" % sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

quickstart: setup  ## pretrain on letters, transfer to digits with 5 labels a class, compare the arms (offline, on a CPU)
	$(BIN)/tl pretrain experiment=letters_source
	$(BIN)/tl train -m experiment=digits_5_shots

test: setup  ## run the test suite
	$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile

CLUSTER_PACKAGES := slurm-wlm munge slurmdbd mariadb-server

test-cluster: setup  ## run the tests that start a SLURM and a Ray cluster on this machine; installs SLURM where it is absent
	dpkg -s $(CLUSTER_PACKAGES) > /dev/null 2>&1 || { \
	    as_root=; [ "$$(id -u)" = 0 ] || as_root="sudo -n"; $$as_root apt-get update -qq && \
	    $$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(CLUSTER_PACKAGES); }
	$(BIN)/python -m pytest tests/cluster -m cluster --durations 10

check: setup  ## lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

BENCHMARKS := commands fused_heads penalty_path mix probe_sweep live_step job_overhead feature_cache memory_and_disk scaling solved_probe predict several_devices

bench: setup  ## run the reduced benchmarks on photos under $TL_SHARED_DATA and write docs/benchmarks.md
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	set -e; for name in $(BENCHMARKS); do echo "benchmarks/$$name.py"; $(BIN)/python benchmarks/$$name.py --short; done
	$(BIN)/python scripts/benchmark_page.py

clean:  ## remove the environment, caches and build leftovers; outputs/ stays
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
