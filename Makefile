# make run: set up and generate with the embedded model. make test: set up and run every check. SEGUE_LAWS=all make test:
# every method on every family of models, which takes twice as long.
# make test-llamacpp: the laws on the second backend, which has to be built.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test test-llamacpp check clean

run: .venv/.core
	printf 'User: I want to book a table for two.\nAssistant:' | $(BIN)/segue generate --method token_recycling --max-tokens 64

test: .venv/.test
	$(MAKE) --no-print-directory check

# The second backend, with the same laws. llama-cpp-python is built from its source package: five to ten minutes on two
# cores the first time, after which pip keeps the wheel.
test-llamacpp: .venv/.llamacpp
	$(BIN)/pytest -n 2 tests/models/llamacpp tests/laws/test_llamacpp.py tests/bench/test_llamacpp.py tests/cli/test_convert.py

check:
	$(BIN)/ruff check src tests
	$(BIN)/ruff format --check src tests
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m segue.docs --check
	$(BIN)/pytest -n 2

# torch first and pinned: alone it resolves to the CPU build where one lies at hand, and no other requirement moves it.
.venv/.core: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet -e .
	touch $@

.venv/.test: .venv/.core
	$(BIN)/pip install --quiet -e ".[test]"
	touch $@

.venv/.llamacpp: .venv/.test
	$(BIN)/pip install --quiet -e ".[llamacpp]"
	touch $@

clean:
	rm -rf .venv build dist src/*.egg-info
