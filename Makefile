# Needs Python 3.11+, make and a package registry; every target sets up .venv by itself.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
STAGED := build/typecheck

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-rl demo-coevolve bench study study-readings tables docs test test-all test-browser lint format wheel release clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

setup: $(STAMP)  ## Create .venv with the pinned, known-good versions

# torch first and alone: pinned it is the CPU build here, left open it brings gigabytes of CUDA packages.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=python3.11 ...")'
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==$$(sed -n 's/^torch==//p' constraints.txt)
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,docs]'
	@touch $@

demo: $(STAMP)  ## Evolve a reward model on the embedded synthetic world (minutes on 2 cores)
	$(RUN) -m ser_lightning fit --config configs/rm.yaml --seed_everything 1 --data.split_seed 1

# The same command again goes on where it was broken off, step by step.
RL := runs/demo-rl
demo-rl: $(STAMP)  ## Train a policy against such a reward model: SFT, then PPO
	$(RUN) -m ser_lightning fit --config configs/rm.yaml --run_dir $(RL)/rm --ckpt_path auto
	$(RUN) -m ser_lightning fit --config configs/sft.yaml --run_dir $(RL)/sft --ckpt_path auto
	$(RUN) -m ser_lightning fit --config configs/ppo.yaml --run_dir $(RL)/ppo --ckpt_path auto \
		--model.backbone.path $(RL)/sft --model.reward_model $(RL)/rm
	@$(RUN) scripts/pictures.py $(RL)/ppo --out $(RL)/ppo
	@$(RUN) scripts/show_samples.py $(RL)/ppo

demo-coevolve: $(STAMP)  ## Let policy and reward model teach one another for two turns
	$(RUN) -m benchmarks.coevolution.run --folder runs/coevolve

# What is compared with lives in an environment of its own.
TRL := .venv-trl
bench: $(STAMP)  ## Pairs a second against TRL and a transformers pipeline (half an hour on 2 idle cores)
	test -x $(TRL)/bin/python || $(PYTHON) -m venv $(TRL)
	$(TRL)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==$$(sed -n 's/^torch==//p' constraints.txt)
	$(TRL)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt trl==1.16.0
	@$(RUN) -m benchmarks.speed.run --trl-python $(TRL)/bin/python --pairs 16
	@$(RUN) -m benchmarks.tables
	@$(RUN) -m benchmarks.pictures > /dev/null

# DATA holds the files that benchmarks/real_preferences/run.py names, MODEL is SmolLM2-135M-Instruct.
study: $(STAMP)  ## Self-evolution on real preferences, goes on where it was: make study DATA=folder MODEL=folder
	$(RUN) -m benchmarks.real_preferences.run --data-dir $(DATA) --model $(MODEL)
	@$(RUN) -m benchmarks.real_preferences.mistakes
	$(RUN) -m benchmarks.tables
	@$(RUN) -m benchmarks.pictures

# MODELS names bodies and their folders: MODELS="smollm2-135m=folder qwen2.5-coder-0.5b=folder".
study-readings: $(STAMP)  ## Where the reward is read, on real preferences: make study-readings DATA=folder MODELS="NAME=folder"
	$(RUN) -m benchmarks.readings.run --data-dir $(DATA) --models $(MODELS)
	$(RUN) -m benchmarks.tables

tables: $(STAMP)  ## Write the tables of docs/ from the results in benchmarks/
	$(RUN) -m benchmarks.tables

# mkdocs 1.6 is maintained; the banner that mkdocs-material prints is about mkdocs 2.
docs: $(STAMP)  ## Build the docs as a site into build/site, strictly: open build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --quiet

test: $(STAMP)  ## Run the tests (a few minutes on 2 cores)
	$(RUN) -m pytest

test-all: test  ## Run those that are marked slow as well
	$(RUN) -m pytest -m slow

# Any Chromium on the path will do; without one, playwright fetches its own.
test-browser: $(STAMP)  ## Open a report in a headless Chromium, wide and narrow
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt 'playwright>=1.50'
	command -v chromium > /dev/null || $(RUN) -m playwright install --with-deps chromium
	$(RUN) -m pytest -m browser

lint: $(STAMP)  ## Check style and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(MAKE) --no-print-directory types

# Type checkers follow no package-dir mapping: they get a copy in which the packages lie where they are imported from.
.PHONY: types
types: $(STAMP)
	rm -rf $(STAGED) && mkdir -p $(STAGED)
	cp -R ser_lightning $(STAGED)/ && cp -R callbacks datamodules configs $(STAGED)/ser_lightning/
	cd $(STAGED) && $(CURDIR)/$(RUN) -m mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache -p ser_lightning

format: $(STAMP)  ## Rewrite the code in the project's style
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

wheel: $(STAMP)  ## Build dist/*.whl
	$(RUN) -m pip wheel --no-deps --no-build-isolation --wheel-dir dist .

release: $(STAMP)  ## Check that version, changelog and tag agree, then build dist/*.whl
	$(RUN) scripts/check_release.py
	$(MAKE) --no-print-directory wheel

clean:  ## Remove .venv and all caches; runs/ stays
	rm -rf $(VENV) $(TRL) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
