"""What pyproject.toml records under ``[tool.fork]``: the pinned bases, and what each patch replaces and adds."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from composer import Refusal

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10: every pip for it carries the same parser, and a build needs pip anyway
    try:
        from pip._vendor import tomli as tomllib
    except ModuleNotFoundError:
        raise Refusal("on Python 3.10 a build needs pip in the same environment: install pip there.") from None

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Base:
    """One pinned upstream release.

    Attributes
    ----------
    version : str
        The release, as the package index names it.
    sha256 : str
        The hash of its wheel, in hexadecimal.
    requires : tuple of str
        Requirements that the fork adds to those of the release.
    """

    version: str
    sha256: str
    requires: tuple = ()

    @property
    def wheel(self):
        """str: The file name of the wheel on the package index."""
        return f"speechbrain-{self.version}-py3-none-any.whl"


@dataclass(frozen=True)
class Fork:
    """The fork as pyproject.toml describes it.

    Attributes
    ----------
    label : str
        First part of the local version label.
    revision : int
        The fork's own revision, raised whenever the delta changes.
    digest : str
        The digest of the delta that belongs to this revision.
    base : Base
        The release to build on.
    replaces : dict of str to str
        ``path::name`` of each replaced definition, with the fingerprint of upstream's.
    adds : frozenset of str
        ``path::name`` of each new definition, ``path`` of each new file.
    pages : dict of str to str
        The page that tells the story of each of these.
    """

    label: str
    revision: int
    digest: str
    base: Base
    replaces: dict
    adds: frozenset
    pages: dict

    @property
    def version(self):
        """str: The version of the wheel, e.g. ``1.1.2+pr2537.1``."""
        return f"{self.base.version}+{self.label}.{self.revision}"


def load(root=ROOT):
    """Read the record.

    Arguments
    ---------
    root : pathlib.Path
        The folder of pyproject.toml.

    Returns
    -------
    Fork
        What is recorded for the default base. A patch that records nothing
        for a base is not a part of the build on that base.

    Raises
    ------
    Refusal
        If a definition belongs to two patches, the base is not pinned, or the
        label could not stand in a version.

    Example
    -------
    >>> load().base.wheel
    'speechbrain-1.1.2-py3-none-any.whl'
    """
    with open(root / "pyproject.toml", "rb") as file:
        table = tomllib.load(file)["tool"]["fork"]
    version = table["base"]
    if version not in table["bases"]:
        raise Refusal(f"pyproject.toml pins no base {version}: pinned are {', '.join(table['bases'])}.")
    if not re.fullmatch("[a-z0-9]+", table["label"]):
        raise Refusal(f"pyproject.toml: the label {table['label']!r} must hold lower case letters and digits alone.")
    replaces, adds, pages = {}, set(), {}
    for page, patch in table["patches"].items():
        if version not in patch["replaces"]:
            continue
        for entry in [*patch["replaces"][version], *patch.get("adds", ())]:
            if entry in pages:
                raise Refusal(
                    f"pyproject.toml: {entry} is recorded under {pages[entry]} and under {page}; "
                    "a definition belongs to exactly one patch: remove one of the two."
                )
            pages[entry] = page
        replaces.update(patch["replaces"][version])
        adds.update(patch.get("adds", ()))
    base = table["bases"][version]
    return Fork(
        label=table["label"],
        revision=table["revision"],
        digest=table["digest"],
        base=Base(version, base["sha256"].lower(), tuple(base.get("requires", ()))),
        replaces=replaces,
        adds=frozenset(adds),
        pages=pages,
    )


def delta(root=ROOT):
    """Read the delta.

    Arguments
    ---------
    root : pathlib.Path
        The folder that holds ``speechbrain/``.

    Returns
    -------
    dict of str to bytes
        The content of each file, by its path inside the package tree.

    Example
    -------
    >>> "speechbrain/utils/logger.py" in delta()
    True
    """
    folder = root / "speechbrain"
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(re.match(r"\.|__pycache__$", part) for part in path.relative_to(folder).parts)
    }


def digest(fork, files):
    """Digest the delta and the requirements that the fork adds.

    Arguments
    ---------
    fork : Fork
        Its bases' requirements are a part of the digest.
    files : dict of str to bytes
        The delta.

    Returns
    -------
    str
        16 hexadecimal digits.

    Example
    -------
    >>> fork = load()
    >>> digest(fork, delta()) == digest(fork, {})
    False
    """
    sha = hashlib.sha256()
    for part in [*fork.base.requires, *(p for item in sorted(files.items()) for p in item)]:
        part = part.encode() if isinstance(part, str) else part
        sha.update(b"%d:" % len(part) + part)
    return sha.hexdigest()[:16]
