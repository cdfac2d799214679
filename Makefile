# Needs Python 3.11, pip, make and a package registry. `make test` and `make lint` also install system packages by apt
# (tests/install-services); `make demo` and `make serve` need nothing else.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
# Arguments for pytest, such as: make test PYTEST="tests/unit -x"
PYTEST ?=
# Arguments for the rounds of faults; the first may be snapshots or restores
FAULTS ?=
export PYTHON

BIN := .venv/bin
DEMO := .venv-demo/bin
MAKE_ENVIRONMENT = rm -rf $(@D) && $(PYTHON) -m venv $(@D) && $(@D)/bin/python -m pip install -q -c constraints.txt --upgrade pip
INSTALL = $(@D)/bin/python -m pip install -q -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo serve test faults lint bench docs constraints clean python system-packages

help: ## Say what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv-demo/stamp ## Snapshot a project with a real Celery worker, destroy its data, restore it, prove it equal
	$(DEMO)/python -m tasks.demo

serve: .venv-demo/stamp ## Keep the demo's worker and beat running, with the admin on a local port
	$(DEMO)/python -m tasks.demo --serve

test: .venv/stamp ## Run all tests against private servers (PYTEST="..." for some of them, in one process)
	$(BIN)/python -m $(if $(strip $(PYTEST)),tests.services run -- $(BIN)/python -m pytest $(PYTEST),tests.sharing)

faults: .venv/stamp ## Play long rounds of faults (FAULTS="restores --rounds 300 --seed 1" for some)
	$(BIN)/python -m tests.faults $(FAULTS)

lint: .venv/stamp ## Check style, types and the direction of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/stamp ## Measure against the shell pipe and django-dbbackup
	$(BIN)/python -m tests.services run -- $(BIN)/python -m tests.bench

docs: .venv/stamp ## Build the documentation; a warning fails it
	$(BIN)/python -m sphinx -W --keep-going -n -q -b html docs docs/_build/html
	@echo "Open docs/_build/html/index.html"

constraints: python system-packages ## Resolve all dependencies anew and write constraints.txt
	rm -rf .venv-constraints && $(PYTHON) -m venv .venv-constraints
	.venv-constraints/bin/python -m pip install -q --upgrade pip
	.venv-constraints/bin/python -m pip install -q -e '.[redis,postgres,mysql,rclone,service]' --group lint --group test --group docs
	{ sed -n '/^#/p' constraints.txt && \
	  .venv-constraints/bin/python -m pip freeze --all --exclude setuptools --exclude-editable; } > constraints.new
	mv constraints.new constraints.txt
	rm -rf .venv-constraints

clean: ## Remove the environments, the demo's data and what the tools left
	rm -rf .venv .venv-demo .venv-constraints .demo build dist *.egg-info docs/_build \
	  .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

# An environment is made anew when what it is made of changes. Its stamp is written last: a half-made one doesn't count.
.venv/stamp: pyproject.toml constraints.txt | python system-packages
	$(MAKE_ENVIRONMENT)
	$(INSTALL) -e '.[redis,postgres,mysql,rclone,service]' --group lint --group test --group docs
	@touch $@

.venv-demo/stamp: pyproject.toml constraints.txt | python
	$(MAKE_ENVIRONMENT)
	$(INSTALL) -e '.[service]'
	@touch $@

python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name it by: make PYTHON=/path/to/python3.11" >&2; exit 1; }

system-packages:
	@tests/install-services
