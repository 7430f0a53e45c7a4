# make run: the whole job on the embedded digits · make test: the whole suite · make attack: attempts to break it · make cluster-test: on Flink · make lint · make docs · make results · make clean
PYTHON ?= python3.11
VENV := .venv
ARGS ?= --dataset digits

.PHONY: run test attack cluster-test lint docs results clean

run: $(VENV)/runtime
	$(VENV)/bin/python -m pipeline.run $(ARGS)

test: $(VENV)/development
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not attack"

# Some minutes, 15 at most.
attack: $(VENV)/development
	timeout 900 $(VENV)/bin/python -m pytest -n 2 --dist load -m attack

# On Flink, if Java and Maven are installed and its parts can be fetched (or FLINK_HOME and FLINK_JOB_SERVER_JAR name them); otherwise it says so.
FLINK ?= $(CURDIR)/.flink
cluster-test: $(VENV)/development
	if [ -z "$$FLINK_JOB_SERVER_JAR" ]; then bash tests/cluster/flink/get.sh $(FLINK) $(abspath $(VENV)/bin/python) || echo "SKIPPED: Flink could not be obtained, so the tests on Flink do not run"; fi
	[ -n "$$FLINK_JOB_SERVER_JAR" ] || [ ! -e $(FLINK)/flink-job-server.jar ] || { export FLINK_JOB_SERVER_JAR=$(FLINK)/flink-job-server.jar FLINK_HOME=$(FLINK)/home; }; \
	$(VENV)/bin/python -m pytest -rs tests/cluster/test_flink.py

lint: $(VENV)/development
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# Builds the pages into site/; a warning, for example about a broken link, is an error. (The variable silences an advertisement.)
docs: $(VENV)/development
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict

# A stamp is written only after pip has succeeded, so an interrupted installation is taken up again.
$(VENV)/runtime: requirements.lock
	@echo "Installing the requirements into $(VENV): about 3 GB, some minutes."
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	touch $@

$(VENV)/development: requirements-dev.lock $(VENV)/runtime
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	touch $@

# The tables and figures of docs/results.md, from the certificates that are kept in docs/results.
results: $(VENV)/development
	$(VENV)/bin/python benchmarks/results.py draw

# Removes what can be made again without effort; runs stay.
clean:
	rm -rf $(VENV) build dist site *.egg-info packaging/*/build packaging/*/dist packaging/*/*.egg-info
