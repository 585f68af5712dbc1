# make help: what each target does. The chapters are the source; all else follows from them.
PYTHON ?= python
BOOK ?= .

help:        ## this list
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

export:      ## chapters → ddlm_core/*.py and tests/test_*.py
	$(PYTHON) tools/notebooks.py --pull
	$(PYTHON) -m ruff format notebooks
	$(PYTHON) tools/export.py

notebooks: export  ## execute the chapters that changed and store their outputs
	$(PYTHON) tools/notebooks.py

check:       ## all that CI checks except the tests
	$(PYTHON) tools/export.py --check
	$(PYTHON) tools/notebooks.py --check
	$(PYTHON) tools/colab.py --check
	$(PYTHON) tools/minutes.py --check
	$(PYTHON) tools/repository.py --check
	$(PYTHON) tools/pins.py --check
	$(PYTHON) tools/tracked.py
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	lint-imports --no-cache
	$(PYTHON) -m mypy

test:        ## every test, and every chapter from top to bottom; `pytest` alone is the quick part
	$(PYTHON) -m pytest --all

pins:        ## resolve pyproject.toml into requirements.txt again (needs uv)
	$(PYTHON) tools/pins.py

book:        ## the rendered book, in _build/html
	$(PYTHON) tools/vendor.py
	$(PYTHON) tools/live_models.py
	rm -rf $(BOOK)/_build/html $(BOOK)/_build/.doctrees
	jupyter-book build . -n -W --keep-going --path-output $(BOOK)

train-pocket:  ## train the bundled model again
	ddlm-train --config-name pocket

BENCH ?=
bench:       ## measure this machine: a table of each kind; BENCH=--quick only sees that all run
	$(PYTHON) benchmarks/imports.py $(BENCH)
	$(PYTHON) benchmarks/tokenizer.py $(BENCH)
	$(PYTHON) benchmarks/step.py $(BENCH)
	$(PYTHON) benchmarks/generate.py $(BENCH)
	$(PYTHON) benchmarks/grids.py $(BENCH)
	$(PYTHON) benchmarks/learning.py --seconds 15 --only shipped entropy AdamW $(BENCH)
	$(PYTHON) benchmarks/learning.py --scale --steps 100 $(BENCH)
	$(PYTHON) benchmarks/pocket.py --samples 64 --steps 64 --train-samples 20000 $(BENCH)
	$(PYTHON) benchmarks/sampling.py --samples 16 --windows 64 --train-samples 20000 --output /dev/null $(BENCH)

clean:       ## remove what was built
	rm -rf _build _vendor build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis

.PHONY: help export notebooks check test pins book train-pocket bench clean
