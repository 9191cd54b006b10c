# Each target sets up what it needs in .venv; the first one that you run downloads PyTorch, which takes minutes.
PYTHON ?= python3
RECIPE := recipes/SpokenWords
IN_VENV := .venv/bin/python
BENCHMARK := @OMP_NUM_THREADS=1 $(IN_VENV) tests/benchmarks
PYTEST := OMP_NUM_THREADS=1 $(IN_VENV) -m pytest -n auto --dist loadfile
DELTA := $(shell find speechbrain patches/*/speechbrain -name '*.py')
MODULES := speechbrain.fork $(sort $(subst /,.,$(basename $(shell echo $(DELTA) | sed -E 's:patches/[^ ]*/speechbrain:speechbrain:g'))))

.PHONY: verify quick test cuda recipes bench faults fuzz parity reproducible bases gallery diff lint

verify: .venv/installed    ## the recipe on the stock release, on the minimal fork and on the fork, side by side
	$(IN_VENV) $(RECIPE)/verify_fix.py

quick: .venv/installed lint    ## between two edits: tests of the composer and of the fix, lint; a minute
	$(PYTEST) -q tests/unittests tests/fork/test_graft.py tests/fork/test_composer.py tests/fork/test_adopt.py

test: .venv/installed      ## what CI runs: all tests, then the doctests of the composer and of the modules that the fork changes
	$(PYTEST)
	$(PYTEST) --doctest-modules composer --ignore=composer/fork.py --pyargs $(MODULES)

cuda: .venv/installed      ## the tests that need a GPU; the others skip them
	$(IN_VENV) -m pytest -m cuda

recipes: .venv/installed   ## only the tests of the recipe; with UPSTREAM=<a checkout>, the preflight on all recipes of upstream
	$(if $(UPSTREAM),$(IN_VENV) tests/upstream/recipes.py $(UPSTREAM),$(PYTEST) tests/recipes)

bench: .venv/benchmarks    ## ratios to the stock release and to other libraries; six minutes, then the recipe's
	$(BENCHMARK)/formatter.py
	$(BENCHMARK)/counting.py
	$(BENCHMARK)/installing.py
	$(BENCHMARK)/saving.py
	$(BENCHMARK)/stepping.py
	$(BENCHMARK)/preflight.py
	$(BENCHMARK)/peers.py
	$(BENCHMARK)/watch.py
	$(BENCHMARK)/audio_scan.py --files 100 --rounds 3
	$(BENCHMARK)/recipe.py

faults: .venv/installed    ## kills at random moments, a full disk, nan at every place of an epoch, damaged files, two processes
	$(IN_VENV) tests/faults/checkpoints.py
	$(IN_VENV) tests/faults/recipe.py
	$(IN_VENV) -m pytest $(wildcard patches/0002-*/tests patches/0003-*/tests patches/0004-*/tests)

fuzz: .venv/installed      ## random inputs, deltas, modules, logs, manifests and audio files; exits with 1 if it finds a defect
	$(IN_VENV) tests/fuzz/formatter.py
	$(IN_VENV) tests/fuzz/grafter.py
	$(IN_VENV) tests/fuzz/watch.py
	$(IN_VENV) tests/fuzz/preflight.py

parity: .venv/installed    ## the doctests of the whole package on the stock release and on the fork; nothing may differ
	$(IN_VENV) tests/fork/parity.py

reproducible: .venv/installed  ## the same bytes on each path, umask, front end, setuptools and Python; prints the hashes
	$(IN_VENV) -m pytest tests/fork/test_wheel.py -k "same_wheel or hashes"

bases:                     ## tests each pinned base in its own environment in .venv-bases (7 GB), and prints a table
	$(PYTHON) tests/fork/bases.py

gallery: .venv/installed   ## writes GALLERY.md: for each kind of finding of the preflight, a broken set-up and the report
	$(IN_VENV) tests/gallery.py

diff:                      ## what the fork changes, as a diff against the release
	@$(PYTHON) -m composer diff

lint: .venv/installed
	$(IN_VENV) -m ruff check
	$(IN_VENV) -m ruff format --check

.venv/installed: setup.py pyproject.toml NOTICE PR_2537.md $(wildcard patches/*/README.md) $(wildcard composer/*) $(DELTA) tests/requirements.txt $(RECIPE)/extra_requirements.txt
	$(PYTHON) -m venv .venv
	$(IN_VENV) -m pip install . -r tests/requirements.txt
	touch $@

.venv/benchmarks: .venv/installed tests/benchmarks/requirements.txt
	$(IN_VENV) -m pip install -r tests/benchmarks/requirements.txt
	touch $@
