# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test check lint types floors tests bench clean

demo: $(READY)            ## watch, diagnose, treat and prove a sick network on real data; writes demo/report.html
	$(BIN)/normscope demo

test: check               ## everything that CI runs

check: lint types floors tests

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/pyright

floors: $(READY)
	$(BIN)/lint-imports

tests: $(READY)           ## the last line is pytest's own: N passed
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal tests
	OMP_NUM_THREADS=1 $(BIN)/pytest --doctest-modules src/normscope

bench: $(READY)           ## every norm and kernel beside torch; writes benchmarks/results
	$(BIN)/python benchmarks/norms.py
	$(BIN)/python benchmarks/kernels.py --compile
	$(BIN)/python benchmarks/kernels.py --fresh

# torch first, under the constraints, so that nothing later pulls a CUDA build.
$(READY): pyproject.toml setup.py constraints.txt $(wildcard src/normscope/stats/*.[ch])
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt torch numpy
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) build dist demo runs
