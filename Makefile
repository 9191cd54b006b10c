# Each target sets up what it needs in .venv; the first one that you run takes the time to fetch PyTorch.
PYTHON ?= python3
RECIPE := recipes/SpokenWords
IN_VENV := .venv/bin/python
BENCHMARK := @OMP_NUM_THREADS=1 $(IN_VENV) tests/benchmarks
MODULES := $(subst /,.,$(basename $(shell find speechbrain -name '*.py')))

.PHONY: verify test bench faults fuzz parity reproducible bases diff lint

verify: .venv/installed    ## the recipe on the stock release and on the fork, side by side
	$(IN_VENV) $(RECIPE)/verify_fix.py

test: .venv/installed      ## what CI runs: the tests, then the doctests of the composer and of the installed modules
	$(IN_VENV) -m pytest
	$(IN_VENV) -m pytest --doctest-modules composer --pyargs $(MODULES)

bench: .venv/benchmarks    ## against the stock release and other libraries: ratios of calls in turn; four minutes, then the recipe's
	$(BENCHMARK)/formatter.py
	$(BENCHMARK)/counting.py
	$(BENCHMARK)/installing.py
	$(BENCHMARK)/saving.py
	$(BENCHMARK)/preflight.py
	$(BENCHMARK)/audio_scan.py --files 100 --rounds 3
	$(BENCHMARK)/recipe.py

faults: .venv/installed    ## kills at random moments, a full disk, nan at every place of an epoch, damaged files, two processes
	$(IN_VENV) tests/faults/checkpoints.py
	$(IN_VENV) tests/faults/recipe.py
	$(IN_VENV) -m pytest tests/unittests/test_nonfinite_steps.py tests/unittests/test_checkpoints.py tests/unittests/test_torchrun.py

fuzz: .venv/installed      ## random inputs, deltas, modules, logs, manifests and audio files; exits with 1 for a defect
	$(IN_VENV) tests/fuzz/formatter.py
	$(IN_VENV) tests/fuzz/grafter.py
	$(IN_VENV) tests/fuzz/watch.py
	$(IN_VENV) tests/fuzz/preflight.py

parity: .venv/installed    ## the doctests of the whole package on the stock release and on the fork; nothing may differ
	$(IN_VENV) tests/fork/parity.py

reproducible: .venv/installed  ## the same bytes whatever the path, umask, front end and Python; prints the hashes
	$(IN_VENV) -m pytest tests/fork/test_wheel.py -k "same_wheel or hashes"

bases:                     ## every pinned base, each in an environment of its own in .venv-bases (7 GB), and a table
	$(PYTHON) tests/fork/bases.py

diff:                      ## what the fork changes, as a diff against the release
	@$(PYTHON) -m composer diff

lint: .venv/installed
	$(IN_VENV) -m ruff check
	$(IN_VENV) -m ruff format --check

PAGES := PR_2537.md $(wildcard patches/*.md)

.venv/installed: pyproject.toml NOTICE $(PAGES) $(shell find composer speechbrain -name '*.py') tests/requirements.txt $(RECIPE)/extra_requirements.txt
	$(PYTHON) -m venv .venv
	$(IN_VENV) -m pip install . -r tests/requirements.txt
	touch $@

.venv/benchmarks: .venv/installed tests/benchmarks/requirements.txt
	$(IN_VENV) -m pip install -r tests/benchmarks/requirements.txt
	touch $@
