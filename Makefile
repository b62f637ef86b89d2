# `make demo` and `make test` are all that a fresh machine needs: Python 3.11 or newer with pip, and make.
#
# Each check is one target here. `BIN=` names the environment it runs in: this file's own `.venv`, made on
# first use, or any other (tox passes its own, see tox.ini).

PYTHON ?= python3
VENV := .venv
BIN ?= $(VENV)/bin
PYTEST_ARGS ?=

# Relative on purpose: pip splits this variable at spaces, and a clone may lie in a folder that has some.
export PIP_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export OMP_NUM_THREADS ?= 1

STAMP := $(VENV)/.installed
ifeq ($(BIN),$(VENV)/bin)
READY := $(STAMP)
endif
TOX := .tools/bin/tox
NEW_ENOUGH = $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	|| { echo "ckpt-core needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ..."; exit 1; }

# Tests wait for the disk more than they compute: more of them at a time than cores.
WORKERS ?= 4
PYTEST := "$(BIN)/pytest" -n $(WORKERS) --dist worksteal
CORE_TESTS := $(wildcard $(addprefix tests/,unit contract stateful crash compat cli))
SNIPPETS := tests/packaging/test_snippets.py tests/packaging/test_benchmarks.py
FRAMEWORKS := $(addprefix test-,torch lightning transformers jax tensorflow frameworks)
CELLS := test_killed_and_run_again and (TestContract or TestNative)
EXACT := $(CURDIR)/build/exactness.jsonl
CRASH := $(CURDIR)/build/crash.jsonl
KERAS := $(addprefix test-keras-,jax torch tensorflow)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup servers demo exact crash bits fuzz histories test lint types test-core test-wheel test-lean test-adapters $(FRAMEWORKS) \
	test-links test-keras $(KERAS) format clean

help: ## list the targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' Makefile

setup: $(READY) ## make .venv and install everything for development

$(STAMP): pyproject.toml constraints.txt
	@$(NEW_ENOUGH)
	@echo "installing all frameworks and tools into $(VENV): this takes some minutes"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

servers: ## install MariaDB and PostgreSQL, which tests start by themselves (Debian and Ubuntu, as root)
	@missing=; export PATH="$$PATH:/usr/sbin"; \
	command -v mariadbd > /dev/null || missing="mariadb-server-core mariadb-client-core"; \
	ls /usr/lib/postgresql/*/bin/initdb > /dev/null 2>&1 || command -v initdb > /dev/null || missing="$$missing postgresql"; \
	test -n "$$missing" || exit 0; \
	command -v apt-get > /dev/null || { echo "there is no apt-get here: install $$missing" >&2; exit 1; }; \
	test "$$(id -u)" = 0 || { echo "only root may install $$missing: sudo make servers" >&2; exit 1; }; \
	apt-get update -qq; DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends $$missing > /dev/null

$(TOX): tox.ini
	@$(NEW_ENOUGH)
	$(PYTHON) -m venv .tools
	.tools/bin/python -m pip install --quiet tox
	@touch $@

demo: $(READY) ## train, kill, resume, compare bit for bit
	"$(BIN)/python" examples/demo.py

# The leanest checks come first, so that a slip shows in seconds. Then two lanes side by side, one with few packages
# to install and one with all: while the one waits, the other computes. The first one's lines are shown at the end.
test: $(TOX) ## everything CI runs: lint, types, test-lean, test-adapters, test-keras
	@mkdir -p build
	"$(TOX)" run -e lint
	@$(MAKE) --no-print-directory test-lean WORKERS=2 > build/lean.log 2>&1 & lean=$$!; \
	$(MAKE) --no-print-directory --keep-going types test-adapters test-keras WORKERS=2; rest=$$?; \
	wait $$lean; lean=$$?; cat build/lean.log; \
	test $$rest = 0 || echo "make test: what ran in .venv failed, further up"; exit $$((lean + rest))

lint: $(READY) ## ruff and the import floors
	"$(BIN)/ruff" check
	"$(BIN)/ruff" format --check
	"$(BIN)/lint-imports"

types: $(READY) ## mypy --strict
	"$(BIN)/mypy"

test-lean: $(TOX) ## tox: the core and the wheel without any framework; links
	WORKERS=$(WORKERS) "$(TOX)" run -e core,wheel,links

test-core: $(READY) ## the core's tests, in the environment at hand
	$(PYTEST) $(CORE_TESTS) $(PYTEST_ARGS)

test-wheel: $(READY) ## the built wheel, public names, import cost, documents
	$(PYTEST) tests/packaging $(PYTEST_ARGS)

# What is marked `native` measures the frameworks' own checkpoints, not ours: `make exact` runs it.
$(FRAMEWORKS): test-%: $(READY) # one framework's adapter
	$(PYTEST) tests/integrations/$* $(PYTEST_ARGS)

test-keras: $(KERAS) ## Keras with each backend, to which no other framework is there

$(KERAS): test-keras-%: $(READY) # Keras with one backend
	PYTHONPATH="$(CURDIR)/tests/alone" KERAS_BACKEND=$* $(PYTEST) -m "not native" tests/integrations/keras $(PYTEST_ARGS)

test-links: $(READY) # trackers and monitors, and their page; one MLflow server
	$(PYTEST) --dist loadfile tests/integrations/links tests/packaging/test_snippets.py -k links $(PYTEST_ARGS)

test-adapters: $(READY) ## every adapter but that of Keras, and the documents that need one
	KERAS_BACKEND=jax $(PYTEST) -m "not native" tests/integrations $(SNIPPETS) --ignore tests/integrations/keras --ignore tests/integrations/links $(PYTEST_ARGS)

exact: $(READY) ## kill every adapter's training and the frameworks' own at six moments; the table of docs/exactness.md
	mkdir -p build && rm -f $(EXACT)
	for framework in torch lightning transformers jax; do CKPT_EXACTNESS=$(EXACT) \
		$(PYTEST) -q tests/integrations/$$framework -k "$(CELLS)" $(PYTEST_ARGS) || exit 1; done
	for backend in jax torch tensorflow; do KERAS_BACKEND=$$backend CKPT_EXACTNESS=$(EXACT) \
		$(PYTEST) -q tests/integrations/keras -k "$(CELLS)" $(PYTEST_ARGS) || exit 1; done
	PYTHONPATH=tests "$(BIN)/python" tests/contract/exactness.py $(EXACT) docs/exactness.md

crash: $(READY) ## strike every call of every operation with four faults; the table of docs/reliability.md (an hour, root)
	mkdir -p build && rm -f $(CRASH)
	CKPT_CRASH=$(CRASH) $(PYTEST) -q -o timeout=0 tests/crash/test_matrix.py -k every_call $(PYTEST_ARGS)
	PYTHONPATH=tests "$(BIN)/python" tests/crash/table.py $(CRASH) docs/reliability.md

histories: $(READY) ## ten thousand histories of writers, readers and prunes; 8 processes on one store for a minute
	CKPT_TEST_HISTORIES=10000 CKPT_TEST_MINUTES=1 "$(BIN)/pytest" -q -s tests/stateful/test_histories.py \
		tests/stateful/test_many_processes.py $(PYTEST_ARGS)

bits: $(READY) ## flip every bit of a small store and 10,000 of a large one; heal them with parity and with a mirror
	CKPT_ALL_BITS=1 CKPT_LARGE_BITS=10000 $(PYTEST) -q -rP -o timeout=0 tests/crash/test_repair_bits.py \
		tests/crash/test_large_bits.py -k "every_bit or ten_thousand" $(PYTEST_ARGS)

fuzz: $(READY) ## a million hostile inputs for each parser (an hour)
	CKPT_FUZZ=1000000 $(PYTEST) -q -rP -o timeout=0 tests/crash/test_fuzz.py -k refused $(PYTEST_ARGS)

format: $(READY) ## let ruff format and fix
	"$(BIN)/ruff" check --fix
	"$(BIN)/ruff" format

clean: ## remove environments, caches and build results
	rm -rf $(VENV) .tools .tox dist build demo-run .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		.import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
