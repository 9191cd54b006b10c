"""Puts deltas into a base, compares the package with the lock, and writes the difference between two packages as a diff."""

import difflib
import re

from composer import Refusal, record
from composer.graft import graft, parsed

VERSION_FILE = "speechbrain/version.txt"
PATCHES_FILE = "speechbrain/patches.txt"  # read by FORK_FILE
FORK_FILE = "speechbrain/fork.py"  # reports what is installed
NEW = "new"  # in place of a fingerprint: upstream has nothing of that name


def compose(fork, upstream, locked):
    """Put the patches of a build into its base.

    Arguments
    ---------
    fork : composer.record.Fork
        The build.
    upstream : dict of str to bytes
        The members of the upstream wheel.
    locked : dict
        The lock, which must have every definition of the delta.

    Returns
    -------
    dict of str to bytes
        The files of the package, ``speechbrain/`` only.

    Raises
    ------
    Refusal
        If the delta does not fit the base, or differs from the lock; then no
        definition is grafted.
    """
    package, found, changed = patched(fork.patches, upstream)
    problems = differences(locked_entries(locked, fork.base.version, fork), found, fork.base.version)
    if problems:
        raise Refusal("\n".join(problems))
    return marked(fork, package, changed)


def marked(fork, package, changed):
    """Add what marks a package as the fork: a notice in each changed file (the license requires it), version and patches."""
    for path, names in changed.items():
        package[path] = _noticed(package[path], f"# Changed by the {fork.label} fork of SpeechBrain: {', '.join(names)}")
    package[VERSION_FILE] = f"{fork.version}\n".encode()
    package[PATCHES_FILE] = fork.listing.encode()
    package[FORK_FILE] = record.read("composer/fork.py")
    return package


def patched(patches, upstream):
    """Put patches into a base one after the other, without marking the result as the fork.

    Arguments
    ---------
    patches : list of composer.record.Patch
        The patches, in order.
    upstream : dict of str to bytes
        The members of the upstream wheel.

    Returns
    -------
    package : dict of str to bytes
        The files of the package.
    found : dict of str to dict
        By patch, what it replaces or adds (``path::name``, ``path`` of a new file),
        with the fingerprint of upstream's definition, or ``new``.
    changed : dict of str to list of str
        Names of the patches in each file of upstream's that changed.

    Raises
    ------
    Refusal
        If a delta cannot be put in, or two patches define the same name.
    """
    package = {path: data for path, data in upstream.items() if path.startswith("speechbrain/")}
    found, changed, owner = {}, {}, {}
    places = {place.lower(): place for path in package for place in (path, *_folders(path))}
    for patch in patches:
        mine = found[patch.name] = {}
        for path, data in patch.delta.items():
            if path in upstream:
                package[path], entries = _grafted(patch, path, data, package[path])
                changed.setdefault(path, []).append(patch.name)
            else:
                entries = {path: NEW}
            for entry in entries:
                if entry in owner:
                    raise Refusal(
                        f"{owner[entry]} and {patch.name} both define {_readable(entry)}; "
                        "a definition belongs to exactly one patch: remove one of the two."
                    )
                owner[entry] = patch.name
            if path not in upstream:
                _check_new(patch, path, data, package, places)
                package[path] = data
                places.update({place.lower(): place for place in (path, *_folders(path))})
            mine.update(entries)
    return package, found, changed


def _grafted(patch, path, data, source):
    if not path.endswith(".py"):
        raise Refusal(
            f"{patch.name}: {path} is an upstream file that is not Python: it cannot be changed; choose another file name."
        )
    try:
        done = graft(source, data, path)
    except Refusal as refusal:
        raise Refusal(f"{patch.name}: {refusal}") from None
    if not done.replaced and not done.added:
        raise Refusal(f"{patch.name}: {path} defines nothing: delete it, or define something there.")
    names = {**done.replaced, **dict.fromkeys(done.added, NEW)}
    return done.source, {f"{path}::{name}": fingerprint for name, fingerprint in names.items()}


def _folders(path):
    """The folders that a file is in."""
    return [path[: match.start()] for match in re.finditer("/", path)]


def _check_new(patch, path, data, package, places):
    """Refuse a new file that would hide one of the package, or be hidden; `places` are all files and folders by lower case."""
    if path in (PATCHES_FILE, FORK_FILE):
        raise Refusal(f"{patch.name}: the build itself writes {path}: choose another name.")
    if path.endswith(".py"):
        parsed(data, f"{patch.name}: {path}")
    for place in (path, *_folders(path)):
        same = places.get(place.lower(), place)
        if same != place:
            raise Refusal(
                f"{patch.name}: {place} and {same} are the same if the file system ignores case: choose another name."
            )
    module = path.removesuffix(".py").removesuffix("/__init__")
    hidden = [place for place in (*_folders(path), f"{module}.py") if place in package]  # a file of that name
    hidden += [module] if path == f"{module}.py" and module.lower() in places else []  # a folder
    if hidden:
        raise Refusal(f"{patch.name}: {path} hides upstream's {hidden[0]}, or is hidden by it: choose another name.")


def diff(base, package):
    r"""Write the difference between two packages.

    Arguments
    ---------
    base, package : dict of str to bytes
        The files of the two packages, by path.

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
    """Put a line at the top, below a shebang and an encoding line."""
    head = re.match(rb"(#!.*\r?\n)?(#.*coding[:=].*\r?\n)?", source).end()
    newline = b"\r\n" if b"\r\n" in source else b"\n"
    return source[:head] + notice.encode() + newline + source[head:]


def locked_entries(locked, version, fork=None):
    """Read the lock for one base: by patch, the fingerprint of each definition, without the patches that `fork` leaves out."""
    skipped = [patch.name for patch in fork.not_chosen + fork.not_applicable] if fork else []
    out = {}
    for name, entries in locked.items():
        if isinstance(entries, dict) and name != "bases" and name not in skipped:
            spans = ((entry, span, value) for entry, values in entries.items() for span, value in values.items())
            out[name] = {entry: value for entry, span, value in spans if record.covers(span, version)}
    return out


def replaces(locked, patch):
    """Whether a patch replaces an upstream definition, instead of only adding new ones."""
    return any(value != NEW for values in locked.get(patch.name, {}).values() for value in values.values())


def differences(locked, found, version):
    """Compare a composed tree with the lock: one sentence for each difference, with the next step."""
    release, problems = f"speechbrain {version}", []
    for patch in sorted(locked.keys() | found.keys()):
        if patch not in found:
            problems.append(f"{patch} is in {record.LOCK}, but its folder is gone: restore it, or {record.RENEW}.")
            continue
        ours, theirs = found[patch], locked.get(patch, {})
        for entry in sorted(ours.keys() | theirs.keys()):
            what = f"{patch}: {_readable(entry)}"
            if entry not in ours:
                problems.append(f"{what} is in {record.LOCK}, but not in the delta: restore it, or {record.RENEW}.")
            elif entry not in theirs and ours[entry] == NEW:
                problems.append(
                    f"{what} is new: {release} has nothing of that name. If it was meant to replace something, correct the "
                    f"name; if not, {record.RENEW}."
                )
            elif entry not in theirs:
                problems.append(
                    f"{what} replaces a definition of {release}, and {record.LOCK} does not have it: {record.RENEW}."
                )
            elif ours[entry] != theirs[entry]:
                here, there = (
                    "is new" if values[entry] == NEW else f"replaces the definition {values[entry]}"
                    for values in (ours, theirs)
                )
                problems.append(
                    f"{what} {here} on {release}, but in {record.LOCK} it {there}: find out what changed, then {record.RENEW}."
                )
    return problems


def _readable(entry):
    path, _, name = entry.partition("::")
    return f"{name} in {path}" if name else path
