# Driftloop: `make demo` runs the whole loop on this machine, `make test` runs all tests.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PEERS  := .venv-bench

.DEFAULT_GOAL := help
.PHONY: help demo test check bench secrets lock contracts clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

demo: $(VENV)/run.stamp $(if $(filter aci-fake,$(TARGET)),$(VENV)/dev.stamp)  ## the whole loop on this machine; TARGET=process, docker or aci-fake
	$(if $(filter aci-fake,$(TARGET)),$(BIN)/python -m tests.demo_azure,$(if $(TARGET),DRIFTLOOP_TARGET=$(TARGET) )$(BIN)/driftloop demo) $(DEMO)

test: check  ## all checks and tests
	$(BIN)/python -m pytest -n 2 --dist loadfile $(TESTS)

check: $(VENV)/dev.stamp  ## format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(VENV)/dev.stamp $(PEERS)/stamp  ## the measurements behind the README's figures
	@$(BIN)/python -m tests.bench $(DATA)

contracts: $(VENV)/run.stamp  ## JSON Schemas, AsyncAPI and golden examples, from the code
	$(BIN)/python -m schemas.generate

secrets: .secrets/postgres_password .secrets/monitor_token .secrets/grafana_password  ## random ones for docker compose

.secrets/%:
	@mkdir -p .secrets && chmod 711 .secrets
	@$(PYTHON) -c "import secrets; print(secrets.token_hex(24), end='')" > $@ && chmod 644 $@

lock:  ## the hash-locked requirements, anew from pyproject.toml (needs uv)
	uv pip compile -q --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --extra build -o requirements.txt pyproject.toml
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --extra build --extra dev -c requirements.txt -o requirements-dev.txt pyproject.toml
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -c requirements.txt -o deploy/image/requirements.txt deploy/image/requirements.in
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --group bench -o requirements-bench.txt

clean:  ## everything that make, the demo and the tests made
	-@test -x $(BIN)/driftloop && $(BIN)/driftloop down >/dev/null 2>&1
	rm -rf $(VENV) $(PEERS) .driftloop .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Driftloop needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/run.stamp: $(BIN)/python requirements.txt pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@touch $@

$(PEERS)/stamp: requirements-bench.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-bench.txt
	@touch $@
