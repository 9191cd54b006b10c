"""GALLERY.md has an entry for each kind of finding, which shows what the preflight says now."""

import os
import re
import subprocess
import sys

import pytest
from speechbrain.preflight.checks import CODES

from composer import record
from composer.adopt import ON_STOCK

FORK = record.load()
WHOLE = FORK.base.version == max(record.lock()["bases"], key=record.order) and not FORK.not_chosen


def test_every_code_has_an_entry():
    entries = re.findall(r"^### (\S+)$", (record.ROOT / "GALLERY.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(entries) == sorted(CODES)


@pytest.mark.skipif(not WHOLE or bool(os.environ.get(ON_STOCK)), reason="without all patches, some reports differ")
def test_it_is_up_to_date(tmp_path):
    command = [sys.executable, record.ROOT / "tests" / "gallery.py", "--check"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
