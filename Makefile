# Two commands on a fresh machine: `make demo` runs the loop, `make test` passes the tests. Each makes and fills .venv first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
FILLED := .venv/.filled
SEED ?= 0
EXTRA ?= cpu
RESOLVE := $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --upgrade \
    --generate-hashes --no-header --no-annotate --no-emit-index-url

.PHONY: install demo torture test test-full lint format lock clean help
.DELETE_ON_ERROR:

help:  ## say what each target does
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# By the lock of the image, or, to count without models, by what pyproject.toml allows.
install: $(BIN)/uv  ## the commands in .venv: EXTRA=cpu, EXTRA=gpu, or EXTRA=embedded to count without models
	rm -f $(FILLED)
ifeq ($(EXTRA),embedded)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable '.[embedded]'
else
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --requirement requirements-$(EXTRA).lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
endif
	@echo "installed: $(BIN)/queryloop up"

demo: $(FILLED)  ## run the whole loop twice and write demo-report/ (BROKER=kafka for real Apache Kafka, SEED=N)
	$(BIN)/queryloop demo --seed $(SEED) $(if $(BROKER),--broker $(BROKER))

test: $(FILLED)  ## the tests, some twelve minutes on two cores
	$(BIN)/python -m pytest -m "not full" --numprocesses 3 --dist loadfile

torture: $(FILLED)  ## kill workers and broker while 500,000 events flow, then verify (BROKER=embedded, BROKERS=3, SEED=N)
	$(BIN)/queryloop torture --seed $(SEED) $(if $(BROKER),--broker $(BROKER)) $(if $(BROKERS),--brokers $(BROKERS))

test-full: $(FILLED)  ## the long runs
	$(BIN)/python -m pytest -m full

lint: $(FILLED)  ## ruff, mypy --strict, import directions, declared dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry --no-ansi .

format: $(FILLED)  ## let ruff lay the code out
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# requirements.lock fills .venv, the other two the images. They take its versions, so that the images run what the tests ran.
lock: $(FILLED)  ## resolve the locks anew: .venv and both images (versions and hashes, no download addresses)
	$(RESOLVE) --extra dev --output-file requirements.lock
	$(RESOLVE) --extra embedded --extra cpu --constraint requirements.lock --output-file requirements-cpu.lock
	$(RESOLVE) --extra embedded --extra gpu --constraint requirements.lock --output-file requirements-gpu.lock

clean:  ## remove what was built; data/ stays
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache

# uv is itself in the lock: pip installs that one entry by hash, uv then links the rest from its cache in seconds. Compiling takes 20 s
# more once; without it every process of every test compiles faust, pyarrow and torch's Python anew where PYTHONDONTWRITEBYTECODE is set.
$(FILLED): requirements.lock pyproject.toml $(BIN)/uv
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $(FILLED)

$(BIN)/uv:
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	awk '/^uv==/{on=1} on{print} on&&!/\\$$/{exit}' requirements.lock > .venv/uv.lock
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps -r .venv/uv.lock
