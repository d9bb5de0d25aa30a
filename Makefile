# make demo   set up, render an hour of video, ask three questions about it, write outputs/demo/
# make test   set up, run the tests, WORKERS (2) files at a time; each takes up to 5 GB of memory
# make lint   ruff
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
WORKERS ?= 2
export JAX_PLATFORMS ?= cpu

.PHONY: demo test lint clean

demo: $(VENV)/runtime
	$(BIN)/python -m launch.demo

test: $(VENV)/tests
	$(BIN)/python -m pytest -m "not huge" -n $(WORKERS) --dist loadfile $(ARGS)

lint: $(VENV)/tests
	$(BIN)/ruff check .

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip

$(VENV)/runtime: requirements.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -r requirements.txt
	touch $@

$(VENV)/tests: requirements-test.txt $(VENV)/runtime
	$(BIN)/python -m pip install -q -r requirements-test.txt
	touch $@

clean:
	rm -rf $(VENV) outputs $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/revision_jax/test-programs
