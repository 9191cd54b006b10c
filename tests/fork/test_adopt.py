"""Adopting a release: 1.1.2, in a copy of the repo that does not have it yet."""

import re
import shutil

import pytest

from composer import Refusal, adopt, base, lock, record, tree

NEWEST, BEFORE = "1.1.2", "1.1.1"
CHANGED = "0005-load-the-right-model"  # upstream changed `fetch` between the two


@pytest.fixture
def older(tmp_path, wheels, monkeypatch):
    """pathlib.Path: A copy of the repo as it was before the newest release."""
    monkeypatch.setenv(base.LOCAL_WHEEL, str({wheels(version).parent for version in (NEWEST, BEFORE)}.pop()))
    for name in ("speechbrain", "patches", "composer"):
        shutil.copytree(record.ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "tests"))
    for name in ("pyproject.toml", "PR_2537.md"):
        shutil.copy(record.ROOT / name, tmp_path)
    for patch in record.all_patches(tmp_path):
        page = tmp_path / patch.page
        page.write_text(page.read_text().replace(f"to {NEWEST}", f"to {BEFORE}", 1))
    page.write_text(page.read_text().replace("| Applies to |", "| Applies to   |"))  # as a formatter aligns a table
    lock.renew(tmp_path, {BEFORE: record.lock()["bases"][BEFORE]})
    return tmp_path


def applies_to(page):
    return re.search(r"^\| Applies to\s*\| (\S+ to \S+?)[ ;]", page.read_text(), re.M)[1]


def test_unchanged_patches_are_carried_over_and_the_rest_is_shown(older, wheels, capsys):
    before = {path: path.read_text() for path in older.rglob("*") if path.is_file() and path.suffix in (".md", ".toml")}
    assert record.load(older).base.version == BEFORE
    assert adopt.pin(NEWEST, wheels(NEWEST).read_bytes(), older) == [CHANGED]
    printed = capsys.readouterr().out
    assert "speechbrain/utils/fetching.py::fetch changed:\n" in printed and '\n    -                "force_filename"' in printed
    assert f'write "1.1.0 to {NEWEST}" into the row "Applies to" of patches/{CHANGED}/README.md and run `python -m' in printed
    fork, real = record.load(older), record.load(version=NEWEST, patches="")
    assert fork.base == real.base and [patch.name for patch in fork.not_applicable] == [CHANGED]
    assert fork.revision == record.lock()["revision"] + 2, "one for the base that is gone in the copy, and one for the new one"
    entries, expected = (tree.locked_entries(record.lock(root), NEWEST) for root in (older, record.ROOT))
    assert entries == {**expected, CHANGED: {}}
    for path, text in before.items():
        old, new = text.splitlines(), path.read_text().splitlines()
        if path.name != "lock.toml":
            assert [line for line in old if line not in new] == [
                line for line in old if line.startswith("| Applies to") and CHANGED not in str(path)
            ]
    # Somebody reads what changed, and accepts it
    page = older / f"patches/{CHANGED}/README.md"
    page.write_text(page.read_text().replace(f"to {BEFORE}", f"to {NEWEST}", 1))
    lock.renew(older)
    assert tree.locked_entries(record.lock(older), NEWEST) == expected and not record.load(older).not_applicable
    assert all(applies_to(older / patch.page).endswith(NEWEST) for patch in record.all_patches(older))


def test_adopting_again_changes_nothing(older, wheels):
    assert adopt.pin(NEWEST, wheels(NEWEST).read_bytes(), older) == [CHANGED]
    before = (older / record.LOCK).read_text()
    assert adopt.pin(NEWEST, wheels(NEWEST).read_bytes(), older) == [CHANGED]
    assert (older / record.LOCK).read_text() == before


@pytest.mark.parametrize("version", ["v1.1.2", "1.1.*", "1.2.0rc1", "../x"])
def test_what_is_not_a_release_is_refused(version):
    with pytest.raises(Refusal, match="is not a release: give one as the package index names it"):
        adopt.adopt(version)


@pytest.mark.parametrize(
    "upstream, change",
    [
        (b"X = 1\nY = 2\n", None),
        (b"X = 5\nY = 2\n", "x.py::X changed:\n    -X = 1\n    +X = 5"),
        (b"Y = 2\n", "x.py::X is missing, or is there more than once"),
        (b"X = 1\nX = 1\n", "x.py::X is missing, or is there more than once"),
        (b"X = 1\nclass C:\n    z = 3\n", "x.py::C.z is new in the delta, but upstream now has its own"),
    ],
)
def test_compares_what_is_replaced_and_what_is_added(upstream, change):
    entries = {"x.py::X": adopt.fingerprint(b"X = 1"), "x.py::C.z": tree.NEW, "new.py": tree.NEW}
    assert adopt.compare(entries, {"x.py": b"X = 1\n"}, {"x.py": upstream}) == ([change] if change else [])


@pytest.mark.parametrize(
    "rows, message",
    [
        ({"a": {"failure"}, "b": {"error"}}, "needed, 2 of 2 tests fail"),
        ({"a": {"failure"}, "b": set()}, "upstream now gets these right: b"),
        ({"a": set()}, "no longer needed, all 1 tests pass"),
        ({}, "no test ran"),
    ],
)
def test_the_verdict(rows, message):
    assert message in adopt.verdict(rows)
