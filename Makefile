# linnet: `make demo` and `make test` need only Python (3.11 or newer), make and git; they do all set-up.
#
#   make demo    install, train a three-digit adder, score it, let it add, look inside
#   make test    install with what the tests need, then lint, types, layers and tests (what CI runs)
#   make lint    the checks of `make test` that run no tests; `make tests` only the tests
#   make bench   ours beside a plain PyTorch model of the same shape, on this machine
#   make docs    write docs/help.md anew from the command line's own help
#
# PYTHON chooses the interpreter, VENV the folder; PIP_ARGS goes to pip as it stands, for instance to choose an index.

VENV ?= .venv
PYTHON ?= $(shell for p in python3 python python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PIP_ARGS ?=

BIN := $(VENV)/bin
LINNET := $(BIN)/linnet
DEMO := demo-runs
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check $(PIP_ARGS) -c constraints.txt

.PHONY: demo test tests lint bench docs venv clean
.DEFAULT_GOAL := test

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer was found; name one with PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

# A stamp says what is installed, so that a second run goes straight to work.
$(VENV)/installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo 'installing linnet into $(VENV): a minute or two'
	@$(PIP) -e .
	@touch $@

$(VENV)/installed-test: pyproject.toml constraints.txt | $(BIN)/python
	@echo 'installing linnet and what its tests need into $(VENV): a minute or two'
	@$(PIP) -e '.[test]'
	@touch $@ $(VENV)/installed

venv: $(VENV)/installed-test

lint: $(VENV)/installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Types take one core for a minute, so the tests begin beside them.
test: $(VENV)/installed-test
	@$(MAKE) --no-print-directory --jobs=2 lint tests

tests: $(VENV)/installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal

demo: $(VENV)/installed
	$(LINNET) train arithmetic --out $(DEMO)/adder --force
	$(LINNET) eval $(DEMO)/adder
	$(LINNET) generate $(DEMO)/adder "123+456=" "999+1=" "507+498=" --temperature 0
	$(LINNET) inspect attention $(DEMO)/adder "123+456=579"

bench: $(VENV)/installed
	$(LINNET) bench train

docs: $(VENV)/installed
	$(BIN)/python -m linnet.cli.pages > docs/help.md

clean:
	rm -rf $(VENV) demo-runs build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
