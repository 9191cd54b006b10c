"""The stock release has no preflight and no watch: their tests are not run on it."""

import os

collect_ignore = ["preflight", "test_watch.py"] if os.environ.get("FORK_TESTS_ON_STOCK") else []
