"""Base and delta become a package tree, held against the record; and the difference between the two as a diff."""

import difflib
import re
from itertools import chain

from composer import Refusal
from composer.graft import graft, parsed

VERSION_FILE = "speechbrain/version.txt"
PATCHES_FILE = "speechbrain/patches.txt"  # read by FORK_FILE
FORK_FILE = "speechbrain/fork.py"  # the one file of the delta that is of no patch: it says what is installed


def compose(fork, base, delta):
    """Put the delta into the base.

    Arguments
    ---------
    fork : composer.record.Fork
        The record that every definition of the delta must be found in.
    base : dict of str to bytes
        The members of the upstream wheel.
    delta : dict of str to bytes
        The files of the delta.

    Returns
    -------
    dict of str to bytes
        The files of the package, ``speechbrain/`` alone.

    Raises
    ------
    Refusal
        If the delta does not fit the base, or differs from the record; there
        is no partial graft.
    """
    package, grafted = patched(fork, base, delta)
    for path, pages in grafted.items():
        package[path] = _noticed(package[path], f"# Changed by the {fork.label} fork of SpeechBrain: {', '.join(pages)}")
    package[VERSION_FILE] = f"{fork.version}\n".encode()
    package[PATCHES_FILE] = fork.patches.encode()
    package[FORK_FILE] = delta[FORK_FILE]
    return package


def patched(fork, base, delta):
    """Put the patches into the base, and nothing that marks the result as the fork.

    Arguments
    ---------
    fork : composer.record.Fork
        The record; what it leaves out is left out.
    base, delta : dict of str to bytes
        As for `compose`.

    Returns
    -------
    package : dict of str to bytes
        The files of the package.
    grafted : dict of str to list of str
        The pages of the patches in each file of the base that was changed.

    Raises
    ------
    Refusal
        As for `compose`.
    """
    package = {path: data for path, data in base.items() if path.startswith("speechbrain/")}
    replaced, added, grafted = {}, set(), {}
    for path, data in delta.items():
        if path == FORK_FILE or path in fork.left_out:
            continue
        if path not in package:
            if path.endswith(".py"):
                parsed(data, f"the delta's {path}")
            added.add(path)
            package[path] = data
            continue
        if not path.endswith(".py"):
            raise Refusal(f"{path} is upstream's and no Python file: it cannot be changed; use a file of another name.")
        left_out = {entry.partition("::")[2] for entry in fork.left_out if entry.startswith(f"{path}::")}
        done = graft(package[path], data, path, left_out)
        if not done.replaced and not done.added:
            if not left_out:
                raise Refusal(f"the delta's {path} defines nothing: delete it, or define something there.")
            continue
        replaced.update({f"{path}::{name}": value for name, value in done.replaced.items()})
        added.update(f"{path}::{name}" for name in done.added)
        package[path] = done.source
        grafted[path] = sorted({fork.pages.get(f"{path}::{name}") for name in chain(done.replaced, done.added)} - {None})
    problems = _against_record(fork, replaced, added)
    if problems:
        raise Refusal("\n".join(problems))
    return package, grafted


def diff(base, package):
    r"""Write down what the fork changes.

    Arguments
    ---------
    base, package : dict of str to bytes
        The two trees, by path.

    Returns
    -------
    str
        A unified diff that ``patch -p1`` and ``git apply`` take.

    Example
    -------
    >>> print(diff({"speechbrain/x.py": b"X = 1\n"}, {"speechbrain/x.py": b"X = 2\n"}), end="")
    --- a/speechbrain/x.py
    +++ b/speechbrain/x.py
    @@ -1 +1 @@
    -X = 1
    +X = 2
    """
    out = []
    for path in sorted(package):
        before, after = (_lines(tree.get(path, b"")) for tree in (base, package))
        name = f"a/{path}" if path in base else "/dev/null"
        for line in difflib.unified_diff(before, after, name, f"b/{path}"):
            out.append(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n")
    return "".join(out)


def _lines(data):
    return re.findall(r"[^\n]*\n|[^\n]+\Z", data.decode("utf-8", "surrogateescape"))


def _noticed(source, notice):
    """Put the change notice that the licence asks for at the top, below a shebang and an encoding line."""
    head = re.match(rb"(#!.*\r?\n)?(#.*coding[:=].*\r?\n)?", source).end()
    newline = b"\r\n" if b"\r\n" in source else b"\n"
    return source[:head] + notice.encode() + newline + source[head:]


def _against_record(fork, replaced, added):
    """Say where the delta on this base and the record part: one sentence each, with the next step."""
    release = f"speechbrain {fork.base.version}"
    recorded = {**fork.replaces, **dict.fromkeys(fork.adds)}
    found = {**replaced, **dict.fromkeys(added)}
    problems = []
    for entry in sorted(recorded.keys() | found.keys()):
        path, _, name = entry.partition("::")
        what = f"{name} in {path}" if name else path
        if entry not in found:
            said = "is recorded, but the delta does not hold it: restore it, or remove it from pyproject.toml."
        elif entry not in recorded and entry in added:
            said = (
                f"is new: {release} has nothing there. If it was meant to replace something, mend the name; "
                f'else record "{entry}" under `adds` of its patch in pyproject.toml.'
            )
        elif entry not in recorded:
            said = (
                f"replaces a definition of {release} and is not recorded: add "
                f'"{entry}" = "{found[entry]}" under `replaces` of its patch in pyproject.toml.'
            )
        elif entry in fork.replaces and entry in added:
            said = (
                f"is recorded as replacing upstream's, but {release} does not define it: upstream may have moved or "
                "dropped it; find out where it went, then move or delete the delta's."
            )
        elif entry in fork.adds and entry in replaced:
            said = (
                f"is recorded as new, but {release} defines it: upstream may have its own now; compare the two, "
                "then delete the delta's or record it under `replaces`."
            )
        elif recorded[entry] != found[entry]:
            said = (
                f"differs in {release}: its fingerprint is {found[entry]}, recorded is {recorded[entry]}. Upstream "
                "changed it: if it is mended there, delete the delta's; else revise the delta's, then record the new one."
            )
        else:
            continue
        problems.append(f"{what} {said}")
    return problems
