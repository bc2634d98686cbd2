# Every target works on a fresh checkout: it creates .venv, installs the versions of constraints.txt and does its job.
# Nothing is installed again until pyproject.toml, setup.py or constraints.txt change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
PYTEST_ARGS ?=
CONSTRAINTS := constraints.txt
INPUTS := pyproject.toml setup.py constraints.txt

# the build runs in the same environment: an isolated one would not obey the constraints
define install
	$(PYTHON) -m venv $(VENV)
	@echo "installing segue into $(VENV)"
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) setuptools
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --no-build-isolation --editable "$(1)"
	@touch $@
endef

# tests start many processes: what one has compiled of Python the next need not
unexport PYTHONDONTWRITEBYTECODE

# one thread per test worker: threads of two workers on two cores would fight
PYTEST = OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal

.PHONY: help demo serve test test-all test-oldest lint docs bench gpu bundled

help:
	@echo "make demo      install, and draw out/demo.png: real leaves, and the same leaves by five rules, with what each costs and scores"
	@echo "make serve     install, and serve the bundled model: a page at http://127.0.0.1:8000, and OpenAI's images API"
	@echo "make bundled   hours: make again what derives from the bundled model and is not of its weights; again: go on"
	@echo "make test      the tests that fit into 15 minutes on two cores"
	@echo "make test-all  those, and the slow sweeps"
	@echo "make test-oldest  the tests of diffusers' neighbourhood beside the oldest diffusers that pyproject.toml allows"
	@echo "make lint      style, format, types, and that every test can be collected"
	@echo "make docs      the documents and the API reference as a site, out/site/index.html"
	@echo "make bench     measure for 12 minutes, beside other implementations, into out/bench; again: go on where it stopped"
	@echo "make gpu       one visit to a GPU, 10 minutes at most, into out/gpu; again: go on where it stopped"

demo: $(VENV)/.core
	$(BIN)/segue bench demo --out out/demo.png --force

serve: $(VENV)/.serve
	$(BIN)/segue serve

# What derives from $(MAIN), in this order.  A file that names the model's digest is left as it is, a run in runs/ and the rows
# of scores go on where they stopped; only the pictures are always drawn, once nothing else is to do.
BUNDLED := models/bundled
MAIN := $(BUNDLED)/herbarium.safetensors
JUDGES := --judge herbarium-judge --judge efficientnet-lite0
SCORES := bench/results/quality.jsonl
train = $(BIN)/segue train --recipe $(1) --out runs/$(1) $$(test ! -d runs/$(1) || echo --resume) && \
	$(BIN)/segue export runs/$(1) --out $(BUNDLED)/$(1).safetensors --parent $(MAIN) --force
comma := ,
valid = $(BIN)/python -c "from segue.models import bundled; bundled.$(1)" 2> /dev/null

bundled: $(VENV)/.bundled
	$(call valid,bundled_files('herbarium')) || { $(call train,herbarium-weak); }
	$(call valid,classifier_file('herbarium-classifier')) || { $(call train,herbarium-classifier); }
	$(call valid,classifier_file('herbarium-judge')) || { $(call train,herbarium-judge); }
	$(BIN)/python -c "from segue.engine.rules.tuned_numbers import tuned_rules as rules; rules('herbarium')['cfg']" 2> /dev/null || { rm -f $(BUNDLED)/herbarium.numbers.json; $(BIN)/segue tune-scales $(JUDGES) --out $(SCORES) --write; }
	$(call valid,adapter_file('herbarium'$(comma) 'sgg')) || { $(BIN)/segue distill herbarium -g sgg --out runs/herbarium-sgg $$(test ! -d runs/herbarium-sgg || echo --resume) && cp runs/herbarium-sgg/model.safetensors $(BUNDLED)/herbarium-sgg.safetensors; }
	$(BIN)/segue score $(JUDGES) --out $(SCORES) --beside-cfg
	$(BIN)/segue score $(JUDGES) --out $(SCORES) --adapter sgg
	$(BIN)/segue score --report --out $(SCORES) --model herbarium --samples 960 $(addprefix -g ,none cfg slg exit ag sgg sgg-exit) --into $(BUNDLED)/MODEL_CARD.md
	$(BIN)/segue bench demo --out docs/demo.png --force
	$(BIN)/segue bench quality --out docs/quality-cost.png --force
	$(BIN)/segue bench calls --out docs/live-branches.webp --force

test: $(VENV)/.test
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-all: $(VENV)/.test
	$(PYTEST) $(PYTEST_ARGS)

# In an environment of its own; everything else as the constraints have it, but for the hub's library, of which diffusers
# before 0.42 wants the releases before 2.
OLDEST := $(shell sed -n 's/.*"diffusers>=\(.*\)".*/\1/p' pyproject.toml)
OLDEST_TESTS := tests/engine/adapters tests/engine/prompts tests/models tests/training/distill \
	$(addprefix tests/engine/,planning/test_diffusers_solvers.py rules/test_against_guiders.py running/test_programs_in_use.py \
	test_changed_weights.py test_ddpm.py test_denoiser.py test_encoding_threads.py test_further_networks.py test_gradients.py \
	test_hub.py test_vae.py)

test-oldest:
	@mkdir -p out
	sed -e 's/^diffusers==.*/diffusers==$(OLDEST)/' -e 's/^huggingface_hub==.*/huggingface_hub==1.33.0/' constraints.txt > out/oldest.txt
	$(MAKE) test VENV=.venv-oldest CONSTRAINTS=out/oldest.txt PYTEST_ARGS="$(or $(PYTEST_ARGS),$(OLDEST_TESTS))"

# a test that cannot be imported is found in seconds here, in the tests after all the others
lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python bench/links.py out/links > /dev/null
	cd out/links && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml
	$(BIN)/pytest --collect-only -qq --disable-warnings

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

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

$(VENV)/.serve: $(INPUTS)
	$(call install,.[serve])

$(VENV)/.docs: $(INPUTS)
	$(call install,.[docs])

$(VENV)/.bench: $(INPUTS)
	$(call install,.[plots])

$(VENV)/.bundled: EXTRAS := plots,metrics
$(VENV)/.bundled: $(INPUTS)
	$(call install,.[$(EXTRAS)])

$(VENV)/.test: $(INPUTS)
	$(call install,.[test])
