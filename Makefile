# make quickstart: from nothing to two meta-trained optimizers and a report. make test: the test suite.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
QUICKSTART_FLAGS ?=

.PHONY: quickstart test coverage lint docs results stress matrix clean
quickstart: $(VENV)/.installed
	$(BIN)/python examples/quickstart.py $(QUICKSTART_FLAGS)

test: $(VENV)/.installed
	$(BIN)/python -m pytest

# Which lines the tests reach in their own processes.
TESTS ?=
coverage: $(VENV)/.installed
	$(BIN)/python -m slipcover --source regularized_lopt --skip-covered -m pytest $(TESTS)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Faults, bad input and 20 to 50 kills; 20 minutes at most on two cores. A smaller form is in the tests.
stress: $(VENV)/.installed
	$(BIN)/python -m pytest tests/test_resilience.py tests/test_bad_gin.py
	$(BIN)/python benchmarks/stress.py

# Pages, tables and figures of experiments/, numbers in README.md and docs/, from the results that are kept.
results: $(VENV)/.installed
	$(BIN)/python docs/update_pages.py --rewrite

# Every Python that is found, each with constraints.txt and with pip's own choice; writes docs/compatibility.md.
matrix:
	$(PYTHON) .ci/matrix.py --page

docs: $(VENV)/.installed
	$(BIN)/python -m sphinx -b html -n -W --keep-going -c docs . build/docs

$(VENV)/.installed: setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; choose one with: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[study,tfds,dev,docs]'
	$(BIN)/pip install --quiet --no-deps learned_optimization==0.0.1
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info
