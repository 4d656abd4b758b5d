PYTHON ?= python3
TORCH := torch==2.13.0

# `python3` may be an older one while a newer one stands beside it. A Python that was named is taken at its word.
PYTHONS = $(PYTHON) $(if $(filter file,$(origin PYTHON)),python3.13 python3.12 python3.11)
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
# Two processes of one thread each take two cores better than one process of two threads; a file's tests share what they set up
# (tests/conftest.py puts the files in order). numba, in tests that call scanpy, would raise the threads of torch on its way.
PYTEST := OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
INSTALLED := .venv/.installed
DOCS_INSTALLED := .venv/.docs-installed

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast lint docs bench clean

help: ## show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## check, train, predict, evaluate and report on embedded data, into results/demo
	.venv/bin/squidiff demo

test: lint ## lint and the whole test suite
	$(PYTEST)

test-fast: $(INSTALLED) ## the test suite without its slow tests
	$(PYTEST) -m "not slow"

lint: $(INSTALLED) ## ruff and mypy
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

docs: $(DOCS_INSTALLED) ## the documentation site, its tutorials run, into build/docs, and its tests
	.venv/bin/python -m sphinx --fail-on-warning --keep-going --show-traceback --fresh-env -d build/doctrees docs build/docs
	.venv/bin/python -m pytest tests/test_docs.py

bench: $(INSTALLED) ## the project's benchmark, into results/bench: make bench DATA=FOLDER
	@test -n "$(DATA)" || { echo "name the folder of the data: make bench DATA=FOLDER" >&2; exit 2; }
	.venv/bin/squidiff benchmark benchmarks/bench.toml --data "$(DATA)" --out results/bench

clean: ## delete .venv, caches, builds and results/demo
	rm -rf .venv build dist results/demo .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name .git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so an install that broke off is done again, on a new .venv if that one has no working pip.
# torch comes first and by its exact version, so that a fresh machine gets one known build.
$(INSTALLED): pyproject.toml Makefile
	@.venv/bin/python -c 'import pip; $(NEW_ENOUGH)' 2>/dev/null && exit 0; \
	for python in $(PYTHONS); do \
		if "$$python" -c '$(NEW_ENOUGH)' 2>/dev/null; then \
			echo "making .venv with $$python"; \
			exec "$$python" -m venv --clear .venv; \
		fi; \
	done; \
	echo "squidiff needs Python 3.11 or newer, which none of these is: $(strip $(PYTHONS));" \
		"install one, or name one: make PYTHON=/path/to/python3.12" >&2; \
	exit 1
	.venv/bin/python -m pip install --disable-pip-version-check $(TORCH)
	.venv/bin/python -m pip install --disable-pip-version-check --editable ".[dev]"
	@touch $@

$(DOCS_INSTALLED): $(INSTALLED)
	.venv/bin/python -m pip install --disable-pip-version-check --editable ".[docs]"
	@touch $@
