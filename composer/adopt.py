"""``python -m composer adopt``: pins another release of upstream, and says which patches it still needs."""

import difflib
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from composer import Refusal, base, lock, record, tree
from composer.graft import definition, fingerprint

ON_STOCK = "FORK_TESTS_ON_STOCK"  # set while the regression tests run on a stock release, where they must fail


def adopt(version):
    """Pin a release, print what upstream changed there, and run the regression tests on it.

    Arguments
    ---------
    version : str
        The release.

    Raises
    ------
    Refusal
        If the release cannot be downloaded.
    """
    if not re.fullmatch(r"\d+(\.\d+)+", version):
        raise Refusal(f"{version} is not a release: give one as the package index names it, such as 1.1.2.")
    wheel = base.fetch(record.Base(version, ""))
    pin(version, wheel)
    print(f"\nThe regression tests on stock {version}, which show which patches it needs:", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        base.unpack(wheel, folder)
        for patch in record.all_patches():
            if tree.replaces(record.lock(), patch):
                rows, _ = outcomes(version, folder, patch.tests, "-m", "regression")
                print(f"  {patch.name}: {verdict(rows)}", flush=True)
            else:
                print(f"  {patch.name}: replaces no upstream definition")
    print(
        "\nNow check the requirements of the new base in pyproject.toml, read README.md and the pages, "
        "run `python -m composer check` and `make test`, and commit."
    )


def pin(version, wheel, root=record.ROOT):
    """Pin a release in the lock, and print which of the definitions that the patches replace have changed in it.

    If nothing changed for a patch, the release is written into the row "Applies to"
    of its page. Otherwise the patch is left out until somebody writes it there.

    Arguments
    ---------
    version : str
        The release.
    wheel : bytes
        Its wheel.
    root : pathlib.Path
        The folder of pyproject.toml.

    Returns
    -------
    list of str
        The names of the patches that are left out.
    """
    locked, news, left_out = record.lock(root), base.members(wheel), []
    sha256 = hashlib.sha256(wheel).hexdigest()
    print(f"speechbrain {version}: sha256 {sha256}")
    like = _before(version, locked["bases"])
    olds = base.members(base.fetch(record.Base(like, locked["bases"][like])))
    for patch in record.all_patches(root):
        if record.covers(patch.span, version) or not record.covers(patch.span, like):
            continue
        entries = tree.locked_entries(locked, like)[patch.name]
        changes = compare(entries, olds, news)
        print(f"\n{patch.name}: {chr(10).join(changes) or f'the definitions that it replaces are the same as in {like}'}")
        span = _widened(patch.span, version)
        if changes:
            left_out.append(patch.name)
            print(
                f"It is left out on {version}. If its definitions fit that release as they are, or once you have corrected "
                f'them, write "{span}" into the row "Applies to" of {patch.page} and {record.RENEW}.'
            )
        else:
            row = rf"(?m)^(\|\s*Applies to\s*\|\s*){re.escape(patch.span)}"
            (root / patch.page).write_bytes(re.sub(row, rf"\g<1>{span}", patch.text, count=1).encode())
    lock.renew(root, {**locked["bases"], version: sha256})
    return left_out


def compare(entries, olds, news):
    r"""Compare two releases in what a patch replaces and adds.

    Arguments
    ---------
    entries : dict of str to str
        The definitions, with the fingerprints of the old release, or ``new``.
    olds, news : dict of str to bytes
        The files of the two releases.

    Returns
    -------
    list of str
        What differs, with a diff if both releases have the definition.

    Example
    -------
    >>> old, new = {"x.py": b"X = 1\nY = 2"}, {"x.py": b"X = 1\nY = 3"}
    >>> print(*compare({"x.py::X": fingerprint(b"X = 1"), "x.py::Y": fingerprint(b"Y = 2")}, old, new))
    x.py::Y changed:
        -Y = 2
        +Y = 3
    """
    changes = []
    for entry, known in entries.items():
        path, _, name = entry.partition("::")
        new = definition(news[path], name) if name and path in news else None
        if known == tree.NEW:
            if new is not None or (path in news and not name):
                changes.append(f"{entry} is new in the delta, but upstream now has its own")
        elif new is None:
            changes.append(f"{entry} is missing, or is there more than once")
        elif fingerprint(new) != known:
            lines = (source.decode(errors="replace").splitlines() for source in (definition(olds[path], name), new))
            diff = [line for line in difflib.unified_diff(*lines, lineterm="", n=2) if line[:3] not in ("---", "+++", "@@ ")]
            changes.append("\n    ".join([f"{entry} changed:", *diff]))
    return changes


def outcomes(version, folder, *arguments):
    """Run tests on a stock release.

    Arguments
    ---------
    version : str
        The release.
    folder : str or pathlib.Path
        Where it is unpacked.
    *arguments : str
        Arguments of pytest: files or folders, and options.

    Returns
    -------
    regression, others : dict of str to set of str
        The outcome of each regression test and of each other test: empty if it passed, else failure, error or skipped.
    """
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch, "report.xml")
        options = ["-q", "-p", "no:cacheprovider", "--tb=no", f"--junitxml={report}"]
        subprocess.run(
            [sys.executable, "-m", "pytest", *options, *map(str, arguments)],
            cwd=record.ROOT,
            env={**os.environ, "PYTHONPATH": str(folder), ON_STOCK: "1", record.WANTED: version},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        cases = ElementTree.parse(report).findall(".//testcase") if report.exists() else []
    found = {True: {}, False: {}}
    for case in cases:
        outcome = {child.tag for child in case} & {"failure", "error", "skipped"}
        found[case.find(".//property[@name='regression']") is not None][case.get("name")] = outcome
    return found[True], found[False]


def verdict(rows):
    """Say whether a release needs a patch, from the outcomes of the patch's regression tests on it.

    Arguments
    ---------
    rows : dict of str to set of str
        As `outcomes` returns them.

    Returns
    -------
    str
        The verdict.

    Example
    -------
    >>> verdict({"test_zero": {"failure"}, "test_nan": set()})
    'needed, 1 of 2 tests fail; upstream now gets these right: test_nan'
    """
    right = sorted(name for name, outcome in rows.items() if not outcome)
    if not rows:
        return "no test ran: use an environment with pytest, torch and everything else that the tests need (`make test`)"
    if len(right) == len(rows):
        return f"no longer needed, all {len(rows)} tests pass: see whether you can delete it"
    some = f"; upstream now gets these right: {', '.join(right)}" if right else ""
    return f"needed, {len(rows) - len(right)} of {len(rows)} tests fail{some}"


def _before(version, versions):
    """The newest of `versions` that is older than `version`; the oldest if none is."""
    older = [other for other in versions if record.order(other) < record.order(version)]
    return max(older, key=record.order) if older else min(versions, key=record.order)


def _widened(span, version):
    """A span of versions, extended to cover `version`."""
    versions = sorted([*span.split(" to "), version], key=record.order)
    return f"{versions[0]} to {versions[-1]}"
