# Two commands on a fresh machine: `make serve` and `make test`. Each sets up .venv first, once.
# Needs GNU make, Python 3.11 or newer with venv, and a network to pip's package index.

SHELL := /bin/sh
.SHELLFLAGS := -euc
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# The Python that .venv is made from: `make serve PYTHON=python3.12`.
PYTHON ?= python3
# The build of torch, cpu or cuda; an environment that stands keeps its own until another is asked for.
TORCH ?= $(or $(patsubst .venv/.installed-%,%,$(firstword $(wildcard .venv/.installed-*))),cpu)
# More arguments for the command that is run: `make serve ARGS='--port 9000'`, `make test ARGS='-k store'`.
ARGS ?=

ifeq ($(filter cpu cuda,$(TORCH)),)
$(error TORCH is cpu or cuda, not '$(TORCH)')
endif

BIN := .venv/bin
INSTALLED := .venv/.installed-$(TORCH)
# Both names, because older releases of pip constrain the build environment by the first, newer ones by the second.
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt $(BIN)/python -m pip
TORCH_VERSION := $(shell sed -n 's/^torch==//p' constraints.txt)

.PHONY: help
help: ## this list
	@echo "make TARGET [TORCH=cpu|cuda] [PYTHON=python3.12] [ARGS='...']"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1@\2/p' Makefile | awk -F@ '{ printf "%-10s %s\n", $$1, $$2 }'

.PHONY: install
install: $(INSTALLED) ## set up .venv (the other targets do it themselves)

.PHONY: serve
serve: $(INSTALLED) ## run the service in the foreground, data in .data; Ctrl-C stops it
	@exec $(BIN)/reeltalk serve --data-dir .data $(ARGS)

.PHONY: demo
demo: $(INSTALLED) ## start the service, upload a clip, stream two answers, stop
	@exec $(BIN)/reeltalk demo $(ARGS)

.PHONY: test
test: $(INSTALLED) ## the whole suite
	@OMP_NUM_THREADS=1 exec $(BIN)/pytest -n logical --maxprocesses=4 $(ARGS)

.PHONY: lint
lint: $(INSTALLED) ## style, types, import rules, Dockerfile and compose file
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@if [ -x $(BIN)/hadolint ]; then echo '$(BIN)/hadolint docker/Dockerfile'; $(BIN)/hadolint docker/Dockerfile; \
	else echo 'Left out: hadolint has no wheel for this platform.'; fi
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker/compose*.yaml

.PHONY: format
format: $(INSTALLED) ## rewrite the sources in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: openapi
openapi: $(INSTALLED) ## write openapi/openapi.json from the app
	@exec $(BIN)/python -m service.commands.openapi

.PHONY: bench
bench: $(INSTALLED) ## measure; a table, then one JSON line
	@exec $(BIN)/python -m benchmarks $(ARGS)

.PHONY: clean
clean: ## remove .venv and every cache; what was uploaded to .data stays
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp a build of torch. The other build's stamp means another environment, which is laid anew: the CUDA build brings
# gigabytes of packages that the CPU build would leave behind.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Reeltalk needs Python 3.11 or newer, and '$(PYTHON)' is not: name one, as in 'make $(MAKECMDGOALS) PYTHON=python3.12'." >&2; \
	  exit 1; }
	@if [ -e $@ ] || { ! ls .venv/.installed-* && $(BIN)/python -m pip --version; } >/dev/null 2>&1; then :; \
	else echo '[1/3] Making .venv.'; $(PYTHON) -m venv --clear .venv; fi
	@echo '[2/3] Installing torch $(TORCH_VERSION), $(TORCH) build. Unpacking it takes a minute.'
	@$(install-torch-$(TORCH))
	@echo '[3/3] Installing everything else, versions pinned by constraints.txt.'
	@$(PIP) install -e '.[dev]' -c constraints.txt
	@touch $@
	@echo 'Installed in .venv.'

# Linux: the +cpu build from what pip is configured with, else that one package from PyTorch's public index. Elsewhere the
# plain wheel is the CPU build. `===` refuses the +cpu build, which `==` would accept.
define install-torch-cpu
if [ "$$(uname -s)" != Linux ]; then $(PIP) install 'torch==$(TORCH_VERSION)'; \
elif $(PIP) install 'torch==$(TORCH_VERSION)+cpu' 2>.venv/torch.log; then :; \
else \
  echo "pip's own package index has no CPU build of torch: taking it from PyTorch's."; \
  $(PIP) install --no-deps --index-url https://download.pytorch.org/whl/cpu 'torch==$(TORCH_VERSION)+cpu' \
  || { cat .venv/torch.log >&2; exit 1; }; \
fi
endef
define install-torch-cuda
$(PIP) install 'torch===$(TORCH_VERSION)'
endef
