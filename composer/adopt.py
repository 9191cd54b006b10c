"""``python -m composer adopt``: pins another release of upstream, and tells which patches it still needs."""

import difflib
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from composer import base, record
from composer.graft import definition, fingerprint

ON_STOCK = "FORK_TESTS_ON_STOCK"  # set where the regression rows run on a stock release, to see them fail


def adopt(version, accepted=()):
    """Pin a release, print what upstream changed there, and run the regression rows on it.

    Arguments
    ---------
    version : str
        The release.
    accepted : collection of str
        The pages of the patches that fit although upstream changed what they replace.

    Raises
    ------
    Refusal
        If the release cannot be had.
    """
    wheel = base.fetch(record.Base(version, ""))
    left_out = pin(version, wheel, accepted)
    print(f"\nThe regression rows on stock {version}, to see which patches it needs:", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        base.unpack(wheel, folder)
        for page, patch in record.table()["patches"].items():
            if any(patch["replaces"].values()):
                rows = outcomes(version, folder, "regression", *patch["tests"])
                print(f"  {Path(page).stem}: {verdict(rows)}", flush=True)
            else:
                print(f"  {Path(page).stem}: replaces nothing of upstream's")
    for name in (Path(page).stem for page in left_out):
        print(
            f"\n{name} is left out on {version}: read above what changed. If its definitions are right there as they are, run\n"
            f"  python -m composer adopt {version} --accept {name}\n"
            "If not, mend them, or say in its page why it is left out."
        )
    print("\nThen the requirements of the new base, README.md and the pages; `python -m composer check`, `make test`, commit.")


def pin(version, wheel, accepted=(), root=record.ROOT):
    """Record a release in pyproject.toml, and print what upstream changed of what the patches replace.

    The file is edited as text, so that its comments stay, and what it holds
    already is left alone. A patch of whose definitions one has changed is left
    out, unless it is accepted.

    Arguments
    ---------
    version : str
        The release.
    wheel : bytes
        Its wheel.
    accepted : collection of str
        The pages of the patches to record nevertheless.
    root : pathlib.Path
        The folder of pyproject.toml.

    Returns
    -------
    list of str
        The pages of the patches that are left out.
    """
    recorded, news, left_out = record.table(root), base.members(wheel), []
    path = root / "pyproject.toml"
    text = path.read_text(encoding="utf-8")
    if version not in recorded["bases"]:
        sha256, like = hashlib.sha256(wheel).hexdigest(), _before(version, recorded["bases"])
        print(f"speechbrain {version}: sha256 {sha256}; given the requirements of {like}.")
        block = _block(text, f'bases."{like}"')
        own = block.replace(like, version, 1).replace(recorded["bases"][like]["sha256"], sha256)
        text = text.replace(block, f"{block}\n{own}")
    if record.order(version) > record.order(recorded["base"]):
        text = text.replace(f'\nbase = "{recorded["base"]}"', f'\nbase = "{version}"', 1)
    for page, patch in recorded["patches"].items():
        if version in patch["replaces"]:
            continue
        like = _before(version, patch["replaces"])
        olds = base.members(base.fetch(record.load(root, like).base))
        found, changes = compare(patch["replaces"][like], patch.get("adds", ()), olds, news)
        print(f"\n{Path(page).stem}: {chr(10).join(changes) or f'upstream has what it replaces as in {like}'}")
        if changes and page not in accepted:
            left_out.append(page)
            continue
        block = _block(text, f'patches."{page}".replaces."{like}"')
        own = "".join(f'"{entry}" = "{value}"\n' for entry, value in found.items())
        text = text.replace(block, f'{block}\n[tool.fork.patches."{page}".replaces."{version}"]\n{own}')
    path.write_text(text, encoding="utf-8")
    digest = record.digest(record.delta(), root)
    if digest != recorded["digest"]:
        text = text.replace(f"\nrevision = {recorded['revision']}", f"\nrevision = {recorded['revision'] + 1}", 1)
        path.write_text(text.replace(recorded["digest"], digest, 1), encoding="utf-8")
    return left_out


def compare(replaces, adds, olds, news):
    r"""Compare what a patch replaces in two releases.

    Arguments
    ---------
    replaces : dict of str to str
        The definitions, with the fingerprints of the old release.
    adds : list of str
        What the patch adds, which upstream is not to have.
    olds, news : dict of str to bytes
        The files of the two releases.

    Returns
    -------
    found : dict of str to str
        The definitions that the new release has, with their fingerprints.
    changes : list of str
        What differs, with a diff where both have it.

    Example
    -------
    >>> path = "speechbrain/x.py"
    >>> old, new = {path: b"X = 1\nY = 2"}, {path: b"X = 1\nY = 3"}
    >>> found, changes = compare({f"{path}::X": fingerprint(b"X = 1"), f"{path}::Y": fingerprint(b"Y = 2")}, [], old, new)
    >>> print(*changes)
    speechbrain/x.py::Y changed:
        -Y = 2
        +Y = 3
    """
    found, changes = {}, []
    for entry, known in replaces.items():
        path, _, name = entry.partition("::")
        new = definition(news[path], name) if path in news else None
        if new is None:
            changes.append(f"{entry} is not there, or not exactly once")
            continue
        found[entry] = fingerprint(new)
        if found[entry] != known:
            lines = (source.decode(errors="replace").splitlines() for source in (definition(olds[path], name), new))
            diff = [line for line in difflib.unified_diff(*lines, lineterm="", n=2) if line[:3] not in ("---", "+++", "@@ ")]
            changes.append("\n    ".join([f"{entry} changed:", *diff]))
    for entry in adds:
        path, _, name = entry.partition("::")
        if path in news and (not name or definition(news[path], name) is not None):
            changes.append(f"{entry} is new here, and upstream has its own now")
    return found, changes


def outcomes(version, folder, marks, *tests):
    """Run tests on a stock release.

    Arguments
    ---------
    version : str
        The release.
    folder : str or pathlib.Path
        Where it is unpacked.
    marks : str
        Which of the tests, in pytest's words.
    *tests : str
        Their files.

    Returns
    -------
    dict of str to set of str
        For each test what became of it: nothing, or failure, error, skipped.
    """
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch, "report.xml")
        arguments = ["-q", "-p", "no:cacheprovider", "--tb=no", f"--junitxml={report}", "-m", marks, *tests]
        subprocess.run(
            [sys.executable, "-m", "pytest", *arguments],
            cwd=record.ROOT,
            env={**os.environ, "PYTHONPATH": str(folder), ON_STOCK: "1", record.WANTED: version},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        cases = ElementTree.parse(report).findall(".//testcase") if report.exists() else []
    return {case.get("name"): {child.tag for child in case} & {"failure", "error", "skipped"} for case in cases}


def verdict(rows):
    """Say whether a release needs a patch, from what became of the patch's regression rows there.

    Arguments
    ---------
    rows : dict of str to set of str
        As `outcomes` gives them.

    Returns
    -------
    str
        The verdict.

    Example
    -------
    >>> verdict({"test_zero": {"failure"}, "test_nan": set()})
    'needed, 1 of 2 rows fail; upstream gets these right now: test_nan'
    """
    right = sorted(name for name, outcome in rows.items() if not outcome)
    if not rows:
        return "no row ran; an environment with pytest, torch and all else that the tests need is wanted: see `make test`"
    if len(right) == len(rows):
        return f"no longer needed, all {len(rows)} rows pass: see whether it can be deleted"
    some = f"; upstream gets these right now: {', '.join(right)}" if right else ""
    return f"needed, {len(rows) - len(right)} of {len(rows)} rows fail{some}"


def _before(version, versions):
    """The newest of some versions that is older than one, else the oldest."""
    older = [other for other in versions if record.order(other) < record.order(version)]
    return max(older, key=record.order) if older else min(versions, key=record.order)


def _block(text, table):
    """The lines of a table of pyproject.toml, which ends at an empty line."""
    return re.search(rf"(?m)^\[tool\.fork\.{re.escape(table)}\]\n(?:.+\n)*", text)[0]
