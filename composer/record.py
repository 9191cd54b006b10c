"""What pyproject.toml records under ``[tool.fork]``: the pinned bases, and what each patch replaces and adds."""

import hashlib
import os
import re
from dataclasses import dataclass, replace
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
WANTED = "SPEECHBRAIN_BASE"


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
    """The fork on one base, as pyproject.toml describes it.

    Attributes
    ----------
    label : str
        First part of the local version label.
    revision : int
        The fork's own revision, raised whenever the delta changes.
    digest : str
        The digest of the delta and the record that belongs to this revision.
    base : Base
        The release to build on.
    replaces : dict of str to str
        ``path::name`` of each replaced definition, with the fingerprint of upstream's.
    adds : frozenset of str
        ``path::name`` of each new definition, ``path`` of each new file.
    pages : dict of str to str
        The page that tells the story of each of these.
    left_out : dict of str to str
        The same for what belongs to the patches that do not apply to this base.
    tests : dict of str to str
        The page that each file of tests belongs to.
    """

    label: str
    revision: int
    digest: str
    base: Base
    replaces: dict
    adds: frozenset
    pages: dict
    left_out: dict
    tests: dict

    @property
    def version(self):
        """str: The version of the wheel, e.g. ``1.1.2+pr2537.1``."""
        return f"{self.base.version}+{self.label}.{self.revision}"

    @property
    def patches(self):
        """str: What ``python -m speechbrain.fork`` prints of the patches, those that do not apply to this base included."""
        lines = [_titled(page) for page in sorted(set(self.pages.values()))]
        lines += [f"(not on {self.base.version}) {_titled(page)}" for page in sorted(set(self.left_out.values()))]
        return "".join(f"{line}\n" for line in lines)

    def only(self, *pages):
        """Leave all patches out but these.

        Arguments
        ---------
        *pages : str
            Their pages.

        Returns
        -------
        Fork
            What is recorded for these patches.

        Example
        -------
        >>> set(load().only("PR_2537.md").pages.values())
        {'PR_2537.md'}
        """
        chosen = {entry: page for entry, page in self.pages.items() if page in pages}
        return replace(
            self,
            replaces={entry: fingerprint for entry, fingerprint in self.replaces.items() if entry in chosen},
            adds=self.adds.intersection(chosen),
            pages=chosen,
            left_out={**self.left_out, **{entry: page for entry, page in self.pages.items() if page not in pages}},
        )


def table(root=ROOT):
    """Read the record as it stands.

    Arguments
    ---------
    root : pathlib.Path
        The folder of pyproject.toml.

    Returns
    -------
    dict
        The table ``tool.fork``.

    Example
    -------
    >>> table()["label"]
    'pr2537'
    """
    with open(root / "pyproject.toml", "rb") as file:
        return tomllib.load(file)["tool"]["fork"]


def bases(root=ROOT):
    """List the pinned bases.

    Arguments
    ---------
    root : pathlib.Path
        The folder of pyproject.toml.

    Returns
    -------
    list of str
        Their versions, oldest first.

    Example
    -------
    >>> bases()[-1]
    '1.1.2'
    """
    return sorted(table(root)["bases"], key=order)


def order(version):
    """Give the key by which versions are sorted.

    Arguments
    ---------
    version : str
        A release.

    Returns
    -------
    list of int
        Its numbers.

    Example
    -------
    >>> order("1.0.10") > order("1.0.9")
    True
    """
    return [int(number) for number in re.findall("[0-9]+", version)]


def page(patch):
    """Find the page of a patch.

    Arguments
    ---------
    patch : str
        The patch's name, or what stands before its first dash.

    Returns
    -------
    str
        The path of the page.

    Raises
    ------
    Refusal
        If there is no such patch.

    Example
    -------
    >>> page("0001")
    'patches/0001-average-of-what-is-finite.md'
    """
    names = {Path(path).stem: path for path in table()["patches"]}
    for name, path in names.items():
        if patch in (name, name.partition("-")[0]):
            return path
    raise Refusal(f"there is no patch {patch}: there are {', '.join(names)}.")


def default(root=ROOT):
    """Tell the base of a build that names none.

    Arguments
    ---------
    root : pathlib.Path
        The folder of pyproject.toml.

    Returns
    -------
    str
        Its version.

    Example
    -------
    >>> default()
    '1.1.2'
    """
    return table(root)["base"]


def load(root=ROOT, version=None):
    """Read the record.

    Arguments
    ---------
    root : pathlib.Path
        The folder of pyproject.toml.
    version : str
        The base; by default the one that the environment variable
        ``SPEECHBRAIN_BASE`` names, else that of pyproject.toml.

    Returns
    -------
    Fork
        What is recorded for that base. A patch that records nothing for it is
        left out.

    Raises
    ------
    Refusal
        If a definition belongs to two patches, the base is not pinned, or the
        label could not stand in a version.

    Example
    -------
    >>> load().base.wheel
    'speechbrain-1.1.2-py3-none-any.whl'
    >>> load(version="1.0.3").base.wheel
    'speechbrain-1.0.3-py3-none-any.whl'
    """
    recorded = table(root)
    version = version or os.environ.get(WANTED) or recorded["base"]
    if version not in recorded["bases"]:
        raise Refusal(
            f"pyproject.toml pins no base {version}: pinned are {', '.join(bases(root))}; let {WANTED} name one of them, "
            "or unset it."
        )
    if not re.fullmatch("[a-z0-9]+", recorded["label"]):
        raise Refusal(f"pyproject.toml: the label {recorded['label']!r} must hold lower case letters and digits alone.")
    replaces, adds, pages, left_out, tests = {}, set(), {}, {}, {}
    for page, patch in recorded["patches"].items():
        applies = version in patch["replaces"]
        of_any_base = {entry for entries in patch["replaces"].values() for entry in entries}
        for entry in [*(patch["replaces"][version] if applies else of_any_base), *patch.get("adds", ())]:
            other = pages.get(entry) or left_out.get(entry)
            if other:
                raise Refusal(
                    f"pyproject.toml: {entry} is recorded under {other} and under {page}; "
                    "a definition belongs to exactly one patch: remove one of the two."
                )
            (pages if applies else left_out)[entry] = page
        if applies:
            replaces.update(patch["replaces"][version])
            adds.update(patch.get("adds", ()))
        tests.update(dict.fromkeys(patch.get("tests", ()), page))
    base = recorded["bases"][version]
    return Fork(
        label=recorded["label"],
        revision=recorded["revision"],
        digest=recorded["digest"],
        base=Base(version, base["sha256"].lower(), tuple(base.get("requires", ()))),
        replaces=replaces,
        adds=frozenset(adds),
        pages=pages,
        left_out=left_out,
        tests=tests,
    )


def read(name):
    """Read a file of the repo.

    Arguments
    ---------
    name : str
        Its path in the repo.

    Returns
    -------
    bytes
        Its content.

    Raises
    ------
    Refusal
        If it cannot be read.

    Example
    -------
    >>> read("PR_2537.md").splitlines()[0]
    b'# format_order_of_magnitude takes the logarithm of zero'
    """
    try:
        return (ROOT / name).read_bytes()
    except OSError as error:
        raise Refusal(f"{name} cannot be read ({error.strerror}), and a build needs it: take a whole checkout.") from None


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


def digest(files, root=ROOT):
    """Digest the delta, and what the record makes of it on each base.

    Arguments
    ---------
    files : dict of str to bytes
        The delta.
    root : pathlib.Path
        The folder of pyproject.toml.

    Returns
    -------
    str
        16 hexadecimal digits.

    Example
    -------
    >>> digest(delta()) == digest({})
    False
    """
    forks = [load(root, version) for version in bases(root)]
    on_each_base = [part for fork in forks for part in (fork.base.sha256, *fork.base.requires, fork.patches)]
    sha = hashlib.sha256()
    for part in [*on_each_base, *(part for item in sorted(files.items()) for part in item)]:
        part = part.encode() if isinstance(part, str) else part
        sha.update(b"%d:" % len(part) + part)
    return sha.hexdigest()[:16]


def _titled(page):
    """The name and the title of a patch's page, which starts with its title."""
    return f"{Path(page).stem}: {read(page).decode().splitlines()[0].removeprefix('# ')}"
