# Two commands matter: `make demo` and `make test`. Everything else is for those who change the code.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The build backend warns at length of things that are as they should be, which --quiet does not stop.
PIP := PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet
DEMO := var/demo
PORT ?= 8000
FAISS ?= cpu
DATA ?= data
MODELS := mini-cross-first mini-cross mini-sparse mini-late-first mini-late-second mini-late
INTO ?= .
SCALE ?= 1
SET ?=

.PHONY: demo test test-slow check lint types layers bench docs models clean

demo: $(VENV)/.runtime
	@$(BIN)/chamfer demo --dir $(DEMO) --port $(PORT) $(if $(ONCE),--once "$(ONCE)")

test: $(VENV)/.dev
	$(BIN)/pytest -m "not slow"

test-slow: $(VENV)/.dev
	$(BIN)/pytest -m slow

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
	  "Chamfer runs on Python 3.11 and 3.12, this is %d.%d: say make PYTHON=python3.11" % v)'
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

# DATA holds BEIR folders: fairytaleqa, scifact, nl2bash, medquad. Hours on two cores; goes on where it was stopped.
# All is written below INTO, which belongs to one SCALE and one SET. A small try that leaves the shipped models alone:
#   make models DATA=/data INTO=var/small SCALE=0.01 SET="--set data.max_train_groups=32 --set fit.save_steps=1"
models: $(VENV)/.dev
	mkdir -p $(INTO)
	cd $(INTO) && $(abspath $(BIN))/python -m recipes.prepare $(abspath $(DATA)) --out var/mini --scale $(SCALE)
	cd $(INTO) && for name in $(MODELS); do \
	  $(abspath $(BIN))/chamfer train $(CURDIR)/recipes/$$name.toml --work var/mini/$$name $(SET) || exit 1; done

clean:
	rm -rf $(VENV) var build dist *.egg-info
