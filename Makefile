# The commands of the project: `make help` lists them. Each sets up .venv first if it does not exist.
# Needs GNU make, Python 3.11 or newer with venv, and access to pip's package index.

SHELL := /bin/sh
.SHELLFLAGS := -euc
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# The Python with which .venv is created: `make serve PYTHON=python3.12`.
PYTHON ?= python3
# The build of torch, cpu or cuda; an existing environment keeps its build unless another is given.
TORCH ?= $(or $(patsubst .venv/.installed-%,%,$(firstword $(wildcard .venv/.installed-*))),cpu)
# More arguments for the command: `make serve ARGS='--port 9000'`, `make test ARGS='-k store'`.
ARGS ?=

ifeq ($(filter cpu cuda,$(TORCH)),)
$(error TORCH must be cpu or cuda, not '$(TORCH)')
endif

BIN := .venv/bin
INSTALLED := .venv/.installed-$(TORCH)
# Both variables, because older releases of pip read the first for the build environment, and newer ones the second.
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt $(BIN)/python -m pip
TORCH_VERSION := $(shell sed -n 's/^torch==//p' constraints.txt)

.PHONY: help
help: ## list the targets
	@echo "make TARGET [TORCH=cpu|cuda] [PYTHON=python3.12] [ARGS='...']"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1@\2/p' Makefile | awk -F@ '{ printf "%-10s %s\n", $$1, $$2 }'

.PHONY: install
install: $(INSTALLED) ## set up .venv (the other targets do this too)

.PHONY: serve
serve: $(INSTALLED) ## run the service in the foreground, data in .data; Ctrl-C stops it
	@exec $(BIN)/reeltalk serve --data-dir .data $(ARGS)

.PHONY: demo
demo: $(INSTALLED) ## start the service, upload a clip, stream three answers, stop
	@exec $(BIN)/reeltalk demo $(ARGS)

.PHONY: test
test: $(INSTALLED) ## run the tests
	@OMP_NUM_THREADS=1 exec $(BIN)/pytest -n logical --maxprocesses=4 $(ARGS)

.PHONY: lint
lint: $(INSTALLED) ## check style, types, import rules, Dockerfile and compose files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@if [ -x $(BIN)/hadolint ]; then echo '$(BIN)/hadolint docker/Dockerfile'; $(BIN)/hadolint docker/Dockerfile; \
	else echo 'Skipped hadolint: it has no wheel for this platform.'; fi
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker/compose*.yaml

.PHONY: format
format: $(INSTALLED) ## format the sources and fix what the linter can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: openapi
openapi: $(INSTALLED) ## write openapi/openapi.json from the app
	@exec $(BIN)/python -m service.commands.openapi

.PHONY: bench
bench: $(INSTALLED) ## run a benchmark; prints a table, then one line of JSON
	@exec $(BIN)/python -m benchmarks $(ARGS)

.PHONY: clean
clean: ## remove .venv and all caches; .data, with the uploads, stays
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp file for each build of torch. If the stamp of the other build exists, .venv is created anew: the CUDA build
# installs gigabytes of packages that would remain with the CPU build.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Reeltalk needs Python 3.11 or newer, but '$(PYTHON)' is older. Name another: 'make $(MAKECMDGOALS) PYTHON=python3.12'." >&2; \
	  exit 1; }
	@if [ -e $@ ] || { ! ls .venv/.installed-* && $(BIN)/python -m pip --version; } >/dev/null 2>&1; then :; \
	else echo '[1/3] Creating .venv.'; $(PYTHON) -m venv --clear .venv; fi
	@echo '[2/3] Installing torch $(TORCH_VERSION), $(TORCH) build. This takes a minute.'
	@$(install-torch-$(TORCH))
	@echo '[3/3] Installing all other packages, in the versions of constraints.txt.'
	@$(PIP) install -e '.[dev]' -c constraints.txt
	@touch $@
	@echo 'Installed in .venv.'

# Linux: the +cpu build from pip's configured index, or else from PyTorch's public index. On other systems the plain wheel
# is the CPU build. `===` does not match the +cpu build, which `==` would.
define install-torch-cpu
if [ "$$(uname -s)" != Linux ]; then $(PIP) install 'torch==$(TORCH_VERSION)'; \
elif $(PIP) install 'torch==$(TORCH_VERSION)+cpu' 2>.venv/torch.log; then :; \
else \
  echo "pip's package index has no CPU build of torch; installing it from PyTorch's index."; \
  $(PIP) install --no-deps --index-url https://download.pytorch.org/whl/cpu 'torch==$(TORCH_VERSION)+cpu' \
  || { cat .venv/torch.log >&2; exit 1; }; \
fi
endef
define install-torch-cuda
$(PIP) install 'torch===$(TORCH_VERSION)'
endef
