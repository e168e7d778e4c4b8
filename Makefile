# `make run` and `make test` set everything up in .venv. Needs python3 (3.11 to 3.13) with its venv module.
PYTHON ?= python3
BIN := .venv/bin
# The demonstration: digits, IID, all algorithms.
DEMO := --dataset DIGITS --n_epochs 30 --batch_size 16 --lr 0.05 --quiet
ALGORITHMS ?= fedavg fedprox fedacg las
ARGS ?=
# tests side by side: one more than two cores, since some wait for SLURM or for processes; who has nothing left takes
# from the others
WORKERS ?= 3
# round_time, settings, limits, peers, merging, scaling, local_methods, payload or alternatives
BENCHMARK ?= round_time

# Where this is set, each of the hundreds of processes that tests start compiles the whole program again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test test-quick oracles lint docs benchmark gpu-report clean

run: .venv/run.stamp
ifeq ($(strip $(ARGS)),)
	@set -e; for a in $(ALGORITHMS); do $(BIN)/python fedalg.py --algorithm $$a $(DEMO); done
	@echo; $(BIN)/python plotting.py --csv_dir metrics --output_dir final_plots --dataset DIGITS
	@echo "per-round CSVs: metrics/   figures of each run: plots/   one row per run: results.csv"
else
	$(BIN)/python fedalg.py $(ARGS)
endif

test: .venv/test.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rs -n $(WORKERS) --dist worksteal $(ARGS)

# without those that start processes or take seconds: for work in progress
test-quick: .venv/test.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m "not slow" $(ARGS)

# merging rules against FusionBench and mergekit, in an environment of their own on top of that of the tests
oracles: .venv/test.stamp
	test -x .venv-oracles/bin/python || $(BIN)/python -m venv .venv-oracles
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > $$(.venv-oracles/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/tests.pth
	.venv-oracles/bin/python -m pip install --quiet --disable-pip-version-check fusion-bench
	.venv-oracles/bin/python -m pip install --quiet --disable-pip-version-check --no-deps mergekit
	$(BIN)/python -m pytest -q -rs tests/merging/test_oracles.py

lint: .venv/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/shellcheck *.sh .ci/run

# the pages that are made from source and results, then the site, in site/
docs: .venv/docs.stamp
	$(BIN)/python -m fedmerge.reporting.method_pages
	$(BIN)/python -m fedmerge.reporting.leaderboard
	$(BIN)/python docs/site.py

benchmark: .venv/test.stamp
	$(BIN)/python benchmarks/$(BENCHMARK).py $(ARGS)

# all that needs a GPU, tests and rows of benchmarks/README.md, in pieces of nine minutes: call it until it says so
gpu-report: .venv/test.stamp
	$(BIN)/python benchmarks/gpu_report.py $(ARGS)

.venv/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v >= (3, 11) or sys.exit("needs Python 3.11 or newer, not %d.%d: make PYTHON=python3.12 ..." % v)'
	$(PYTHON) -m venv .venv

# Compiling all of torch takes as long as the rest of its installation; what is needed of it is compiled as it is imported.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile

.venv/run.stamp: requirements.txt | .venv/bin/python
	$(PIP) -r requirements.txt
	@$(BIN)/python -c "import matplotlib.pyplot, pandas, sklearn.metrics, torch, torchvision"
	@touch $@

.venv/docs.stamp: requirements-docs.txt .venv/run.stamp
	$(PIP) -r requirements-docs.txt
	@touch $@

.venv/test.stamp: requirements-dev.txt requirements-docs.txt requirements-pretrained.txt .venv/run.stamp
	$(PIP) -r requirements-dev.txt
	@touch $@

clean:
	rm -rf .venv .venv-oracles
