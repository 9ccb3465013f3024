# Users need `make demo` and `make test`. All other targets are for people who change the code; .ci/run runs them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# setuptools prints long warnings about settings that are intended, and --quiet does not silence them.
PIP := PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet
DEMO := var/demo
PORT ?= 8000
FAISS ?= cpu
DATA ?= data
MODELS := mini-cross-first mini-cross mini-sparse mini-late-first mini-late-second mini-late
INTO ?= .
SCALE ?= 1
SET ?=

SANITIZED := build/sanitized/_fast.so
SANITIZED_TESTS := tests/sanitize tests/indexing/kernels tests/indexing/rows tests/indexing/families

.PHONY: demo test test-slow coverage smoke sanitize packaging check lint types layers bench docs models clean

demo: $(VENV)/.runtime
	@$(BIN)/chamfer demo --dir $(DEMO) --port $(PORT) $(if $(ONCE),--once "$(ONCE)")

test: $(VENV)/.dev
	$(BIN)/pytest -m "not slow" -n auto --dist loadfile

test-slow: $(VENV)/.dev
	$(BIN)/pytest -m slow

# The suite with line coverage; fails below the floor in pyproject.toml.
coverage: $(VENV)/.dev
	$(BIN)/pytest -m "not slow" -n auto --dist loadfile --cov --cov-report=term

# Every benchmark once, on little data: a check that it runs. The figures mean nothing.
smoke: $(VENV)/.dev
	$(BIN)/python -m benchmarks --quick --limit 300

# The C loops under AddressSanitizer and UndefinedBehaviorSanitizer. The interpreter is not instrumented, so the runtime
# is preloaded; Python never frees everything, so leaks are not reported. The normal library stays as it is.
sanitize: $(VENV)/.dev
	mkdir -p $(dir $(SANITIZED))
	gcc -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g -O1 -Wall -fPIC -shared \
	  indexing/kernels/*.c -o $(SANITIZED)
	PYTHONPATH=tests ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	  LD_PRELOAD=$$(gcc -print-file-name=libasan.so) \
	  $(BIN)/pytest -p support_sanitized -p no:cacheprovider -m "not slow" $(SANITIZED_TESTS)

# The wheel and an editable install, each in a fresh environment beside a user's own `models` and `service`.
packaging: $(VENV)/.dev
	$(BIN)/pytest -m slow tests/packaging

check: lint types layers

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.dev
	$(BIN)/mypy

layers: $(VENV)/.dev
	$(BIN)/lint-imports

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks --quick

docs: $(VENV)/.docs
	$(BIN)/python -m reference
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "The site is in build/site: $(BIN)/python -m http.server --directory build/site"

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v in ((3, 11), (3, 12)) else \
	  "Chamfer runs on Python 3.11 and 3.12, this is %d.%d; run: make PYTHON=python3.11" % v)'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	@touch $@

$(VENV)/.runtime: $(VENV)/.python pyproject.toml constraints.txt
	@echo "Installing Chamfer into $(VENV): a few minutes the first time"
	$(PIP) --constraint constraints.txt torch
	$(PIP) --constraint constraints.txt --editable ".[$(FAISS)]"
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(PIP) --constraint constraints.txt --editable ".[$(FAISS),dev,train]"
	@touch $@

$(VENV)/.docs: $(VENV)/.dev
	$(PIP) --constraint constraints.txt --editable ".[$(FAISS),dev,train,docs]"
	@touch $@

# Trains the shipped models: hours on two cores; an interrupted run resumes. DATA holds the BEIR folders fairytaleqa,
# scifact, nl2bash and medquad. Everything is written below INTO; use one INTO for each SCALE and SET. A small trial that
# does not touch the shipped models:
#   make models DATA=/data INTO=var/small SCALE=0.01 SET="--set data.max_train_groups=32 --set fit.save_steps=1"
models: $(VENV)/.dev
	mkdir -p $(INTO)
	cd $(INTO) && $(abspath $(BIN))/python -m recipes.prepare $(abspath $(DATA)) --out var/mini --scale $(SCALE)
	cd $(INTO) && for name in $(MODELS); do \
	  $(abspath $(BIN))/chamfer train $(CURDIR)/recipes/$$name.toml --work var/mini/$$name $(SET) || exit 1; done

clean:
	rm -rf $(VENV) var build dist *.egg-info
