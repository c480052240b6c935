# make demo         environment, install, and a real search on a tiny model
# make test         environment, install, and every test          make test-faults  the fault matrix
# make check        ruff, mypy, imports and budgets               make env          only the environment
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
MODEL  := .cache/tiny-model

.PHONY: env demo test test-faults check clean

env: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml scripts/install_vllm.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python scripts/install_vllm.py
	$(BIN)/python -m pip --disable-pip-version-check install --quiet --editable '.[dev]'
	touch $@

$(MODEL)/config.json: env scripts/make_tiny_model.py demo/corpus.txt
	$(BIN)/python scripts/make_tiny_model.py $(MODEL)

demo: env $(MODEL)/config.json
	PATH="$(abspath $(BIN)):$$PATH" scripts/demo.sh $(MODEL)

check: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/pytest tests/test_architecture.py

test: env $(MODEL)/config.json
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pytest tests -m real_vllm --durations=15
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pytest tests -m "not real_vllm" -n 2 --dist loadfile --durations=15

test-faults: env
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pytest tests/faults -m "not real_vllm" --durations=10

clean:
	rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
