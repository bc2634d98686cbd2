# Every target works on a fresh checkout: it creates .venv, installs the versions of constraints.txt and does its job.
# Nothing is installed again until pyproject.toml, setup.py or constraints.txt change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
PYTEST_ARGS ?=
INPUTS := pyproject.toml setup.py constraints.txt

# the build runs in the same environment: an isolated one would not obey the constraints
define install
	$(PYTHON) -m venv $(VENV)
	@echo "installing segue into $(VENV)"
	$(BIN)/pip install --quiet --constraint constraints.txt setuptools
	$(BIN)/pip install --quiet --constraint constraints.txt --no-build-isolation --editable "$(1)"
	@touch $@
endef

# one thread per test worker: threads of two workers on two cores would fight
PYTEST = OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal

.PHONY: help demo test test-all lint bench gpu

help:
	@echo "make demo      install, and draw out/demo.png: real leaves, and the same leaves by five rules, with what each costs and scores"
	@echo "make test      the tests that fit into 15 minutes on two cores"
	@echo "make test-all  those, and the slow sweeps"
	@echo "make lint      style, format and types"
	@echo "make bench     measure for 12 minutes, beside other implementations, into out/bench; again: go on where it stopped"
	@echo "make gpu       one visit to a GPU, 10 minutes at most, into out/gpu; again: go on where it stopped"

demo: $(VENV)/.core
	$(BIN)/segue bench demo --out out/demo.png --force

test: $(VENV)/.test
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-all: $(VENV)/.test
	$(PYTEST) $(PYTEST_ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python bench/links.py out/links > /dev/null
	cd out/links && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml

bench: $(VENV)/.bench
	$(BIN)/segue bench run --suites cost,e2e,step --limit-minutes 12 --out out/bench/rows.jsonl; \
	failed=$$?; $(BIN)/segue bench report out/bench/rows.jsonl --out out/bench && \
	{ [ $$failed -ne 3 ] || echo "the time is over; make bench goes on"; } && exit $$(( failed == 3 ? 0 : failed ))

# a GPU machine brings its own torch and triton and may have no network: nothing is installed
gpu:
	$(PYTHON) bench/links.py out/links
	PYTHONSAFEPATH=1 PYTHONPATH=$(CURDIR)/out/links$${PYTHONPATH:+:$$PYTHONPATH} $(PYTHON) -m segue bench gpu --out out/gpu

$(VENV)/.core: $(INPUTS)
	$(call install,.)

$(VENV)/.bench: $(INPUTS)
	$(call install,.[plots])

$(VENV)/.test: $(INPUTS)
	$(call install,.[test])
