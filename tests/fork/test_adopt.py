"""Adopting a release: 1.1.2, into a record that does not know it."""

import re

import pytest

from composer import adopt, base, record

NEWEST, BEFORE = "1.1.2", "1.1.1"
CHANGED = "patches/0005-the-model-that-was-asked-for.md"  # upstream changed `fetch` between the two
SET = ("base = ", "revision = ", "digest = ")


@pytest.fixture
def older(tmp_path, wheels, monkeypatch):
    """pathlib.Path: The folder of a pyproject.toml that does not know the newest release."""
    monkeypatch.setenv(base.LOCAL_WHEEL, str({wheels(version).parent for version in (NEWEST, BEFORE)}.pop()))
    table = rf'^\[tool\.fork\.(?:bases|patches\.".*"\.replaces)\."{re.escape(NEWEST)}"\]\n(?:.+\n)*\n?'
    text = re.sub(table, "", (record.ROOT / "pyproject.toml").read_text(), flags=re.M)
    (tmp_path / "pyproject.toml").write_text(re.sub(r'^base = ".*"', f'base = "{BEFORE}"', text, flags=re.M))
    return tmp_path


@pytest.mark.parametrize("accepted", [(), (CHANGED,)])
def test_what_fits_is_recorded_and_the_rest_is_shown(older, wheels, capsys, accepted):
    before = (older / "pyproject.toml").read_text().splitlines()
    left_out = adopt.pin(NEWEST, wheels(NEWEST).read_bytes(), accepted, older)
    said = capsys.readouterr().out
    assert left_out == ([] if accepted else [CHANGED])
    assert "speechbrain/utils/fetching.py::fetch changed:\n" in said and '\n    -                "force_filename"' in said
    fork, real = record.load(older), record.load(version=NEWEST)
    assert fork.base.version == NEWEST and fork.base.sha256 == real.base.sha256
    assert fork.base.requires == record.load(older, BEFORE).base.requires
    wanted = {entry: value for entry, value in real.replaces.items() if accepted or real.pages[entry] != CHANGED}
    assert fork.replaces == wanted and set(fork.left_out.values()) == set(left_out)
    assert fork.revision == real.revision + 1 and fork.digest == record.digest(record.delta(), older)
    after = iter((older / "pyproject.toml").read_text().splitlines())
    assert all(line in after for line in before if not line.startswith(SET)), "a line of the record, or a comment, is gone"


def test_what_is_accepted_later_is_added(older, wheels):
    for accepted in ((), (CHANGED,)):
        left_out = adopt.pin(NEWEST, wheels(NEWEST).read_bytes(), accepted, older)
    assert not left_out and record.load(older).replaces == record.load(version=NEWEST).replaces


@pytest.mark.parametrize(
    "upstream, change",
    [
        (b"X = 1\nY = 2\n", None),
        (b"X = 5\nY = 2\n", "x.py::X changed:\n    -X = 1\n    +X = 5"),
        (b"Y = 2\n", "x.py::X is not there, or not exactly once"),
        (b"X = 1\nX = 1\n", "x.py::X is not there, or not exactly once"),
        (b"X = 1\nclass C:\n    z = 3\n", "x.py::C.z is new here, and upstream has its own now"),
    ],
)
def test_compares_what_is_replaced_and_what_is_added(upstream, change):
    replaces = {"x.py::X": adopt.fingerprint(b"X = 1")}
    _, changes = adopt.compare(replaces, ["x.py::C.z", "new.py"], {"x.py": b"X = 1\n"}, {"x.py": upstream})
    assert changes == ([change] if change else [])


@pytest.mark.parametrize(
    "rows, said",
    [
        ({"a": {"failure"}, "b": {"error"}}, "needed, 2 of 2 rows fail"),
        ({"a": {"failure"}, "b": set()}, "upstream gets these right now: b"),
        ({"a": set()}, "no longer needed, all 1 rows pass"),
        ({}, "no row ran"),
    ],
)
def test_the_verdict(rows, said):
    assert said in adopt.verdict(rows)
