"""The stock release has no preflight: nothing here is run on it."""

import os

collect_ignore_glob = ["*"] if os.environ.get("FORK_TESTS_ON_STOCK") else []
