"""Reads the repo: the bases, the patches with their pages, and which of them go into a build."""

import contextlib
import os
import re
import stat
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from composer import Refusal

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10: setuptools and pip contain a parser, but importing pip's first breaks setuptools
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "Setuptools is replacing distutils."
        with contextlib.suppress(ImportError):
            import setuptools  # noqa: F401
        try:
            import tomli as tomllib
        except ModuleNotFoundError:
            try:
                from pip._vendor import tomli as tomllib
            except ModuleNotFoundError:
                raise Refusal(
                    "On Python 3.10 the composer needs setuptools 77 or later, or pip: install one of them."
                ) from None

ROOT = Path(__file__).resolve().parent.parent
LOCK = "composer/lock.toml"
RENEW = "run `python -m composer lock`"
WANTED = "SPEECHBRAIN_BASE"  # names the base of a build
CHOSEN = "SPEECHBRAIN_PATCHES"  # names the patches of a build
FIRST = "PR_2537"  # the patch that is always in; its delta is speechbrain/ at the top


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
class Patch:
    """One patch: a folder with a page, a delta and tests.

    Attributes
    ----------
    name : str
        ``PR_2537``, or the name of its folder in ``patches/``.
    page : str
        Path of its page in the repo: a title, a table of two columns, sections.
    folder : pathlib.Path
        The folder whose ``speechbrain/`` is its delta.
    """

    name: str
    page: str
    folder: Path

    @property
    def number(self):
        """str: The short name: ``PR_2537``, ``0001``."""
        return self.name.partition("-")[0]

    @property
    def tests(self):
        """pathlib.Path: The folder of its tests."""
        return self.folder / ("tests/unittests" if self.name == FIRST else "tests")

    @cached_property
    def text(self):
        """str: The page."""
        root = self.folder if self.name == FIRST else self.folder.parent.parent
        if self.name != FIRST and not (root / self.page).exists():
            raise Refusal(f"{self.page} is missing: write the page of this patch; copy the table of another page.")
        page = read(self.page, root)
        try:
            text = page.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise Refusal(f"{self.page} is not UTF-8 ({error}): save it as UTF-8.") from None
        if not re.match("# .*[^ ]", text):
            raise Refusal(f'{self.page} has no title: its first line has to start with "# ".')
        return text

    @property
    def title(self):
        """str: The title of the page."""
        return self.text.splitlines()[0].removeprefix("# ").strip()

    def row(self, name, default=None):
        """Find the value of a row in the page's table."""
        found = re.search(rf"^\|\s*{name}\s*\|(.*)\|\s*$", self.text, re.M)
        return found[1].strip() if found else default

    @property
    def span(self):
        """str: The bases that it applies to, ``1.0.1 to 1.1.2``."""
        row = self.row("Applies to", "")
        found = re.fullmatch(r"(\d+[0-9.]*) to (\d+[0-9.]*)(;.*)?", row)
        if not found or order(found[1]) > order(found[2]):
            raise Refusal(f'{self.page}: the row "Applies to" has to start with two releases, such as `1.0.1 to 1.1.2`.')
        return f"{found[1]} to {found[2]}"

    @property
    def needs(self):
        """List of str: The numbers of the patches that it needs."""
        return re.findall(r"\b[0-9]{4}\b", self.row("Needs", ""))

    @cached_property
    def delta(self):
        """Dict of str to bytes: The content of each file of the delta, by its path inside the package."""
        files = {}
        for folder, folders, names in os.walk(self.folder / "speechbrain", onerror=_unreadable):
            folders[:] = sorted(name for name in folders if not _ignored(name))
            for name in [*folders, *sorted(name for name in names if not _ignored(name))]:
                path = Path(folder, name)
                if not re.fullmatch(r"[A-Za-z0-9_.+-]+", name):
                    raise Refusal(f"{str(path)!a}: rename it; names in a delta have only ASCII letters, digits and _ . + -")
                mode = path.lstat().st_mode
                if stat.S_ISREG(mode):
                    files[path.relative_to(self.folder).as_posix()] = _content(path)
                elif not stat.S_ISDIR(mode):
                    raise Refusal(
                        f"{path} is a link or a special file: a delta has only files and folders; replace it with a file."
                    )
        return files


@dataclass(frozen=True)
class Fork:
    """One build: a base, and the patches that go into it.

    Attributes
    ----------
    label : str
        First part of the local version label.
    revision : int
        The fork's own revision, which the lock raises whenever the package changes.
    base : Base
        The release to build on.
    patches : tuple of Patch
        The patches that go in, in order.
    not_chosen, not_applicable : tuple of Patch
        The patches that the build was asked to leave out, and those that do not apply to the base.
    """

    label: str
    revision: int
    base: Base
    patches: tuple
    not_chosen: tuple = ()
    not_applicable: tuple = ()

    @property
    def version(self):
        """str: The version of the wheel: ``1.1.2+pr2537.6``; with fewer patches ``1.1.2+pr2537.6.none`` or ``...6.p0002``."""
        version = f"{self.base.version}+{self.label}.{self.revision}"
        if not self.not_chosen:
            return version
        return ".".join([version, *([f"p{patch.number}" for patch in self.patches[1:]] or ["none"])])

    @property
    def listing(self):
        """str: What ``python -m speechbrain.fork`` prints of the patches."""
        groups = (("", self.patches), ("(left out) ", self.not_chosen), (f"(not on {self.base.version}) ", self.not_applicable))
        return "".join(f"{note}{patch.name}: {patch.title}\n" for note, patches in groups for patch in patches)


def load(root=ROOT, version=None, patches=None):
    """Choose the base and the patches of a build.

    Arguments
    ---------
    root : pathlib.Path
        The folder of pyproject.toml.
    version : str
        The base; by default the one that the environment variable
        ``SPEECHBRAIN_BASE`` names, else the newest.
    patches : str
        Names of the patches besides PR #2537, ``none`` or ``all``; by default what
        the environment variable ``SPEECHBRAIN_PATCHES`` says, else all.

    Returns
    -------
    Fork
        The base and the patches. A patch whose page does not name the base is left out.

    Raises
    ------
    Refusal
        If the base is not pinned, or a patch does not exist, does not apply to
        the base or needs another one that is left out.

    Example
    -------
    >>> load(version="1.0.3").base.wheel
    'speechbrain-1.0.3-py3-none-any.whl'
    >>> load(version="1.1.2", patches="none").version.endswith(".none")
    True
    """
    settings, locked = table(root), lock(root)
    version = version or os.environ.get(WANTED) or max(locked["bases"], key=order)
    if version not in locked["bases"]:
        raise Refusal(
            f"There is no pinned base {version}: choose one of {', '.join(sorted(locked['bases'], key=order))}, "
            "or pin another with `python -m composer adopt`."
        )
    there = all_patches(root)
    applicable = [patch for patch in there if covers(patch.span, version)]
    if there[0] not in applicable:
        raise Refusal(f"{FIRST} applies to {there[0].span}: this fork cannot be built on {version}.")
    chosen = _chosen(patches or os.environ.get(CHOSEN), there, applicable, version)
    for patch in chosen:
        for need in patch.needs:
            if need not in [other.number for other in chosen]:
                raise Refusal(f"{patch.name} needs {need}, which is left out: add it, or leave {patch.name} out as well.")
    return Fork(
        label=settings["label"],
        revision=locked["revision"],
        base=release(version, locked["bases"], settings),
        patches=tuple(chosen),
        not_chosen=tuple(patch for patch in applicable if patch not in chosen),
        not_applicable=tuple(patch for patch in there if patch not in applicable),
    )


def release(version, pins, settings):
    """Make the Base of a version, with the requirements that pyproject.toml adds to it."""
    requires = (line for span, lines in settings["requires"].items() if covers(span, version) for line in lines)
    return Base(version, pins[version], tuple(requires))


def _chosen(patches, there, applicable, version):
    """Choose the patches that a text names; PR #2537 is always in."""
    names = re.findall(r"[^\s,]+", patches or "")
    if names in ([], ["all"]):
        return applicable
    chosen = {FIRST, *(() if names == ["none"] else (find(name, there).name for name in names))}
    for patch in there:
        if patch.name in chosen and patch not in applicable:
            raise Refusal(
                f"{patch.name} does not apply to {version}, but to {patch.span}: leave it out, or choose another base."
            )
    return [patch for patch in applicable if patch.name in chosen]


def all_patches(root=ROOT):
    """List the patches of the repo: PR #2537, then the folders of ``patches/`` by name."""
    # A folder that git removed may still have a __pycache__ in it
    folders = sorted({path.parent for part in ("README.md", "speechbrain") for path in (root / "patches").glob(f"*/{part}")})
    numbers = set()
    for folder in folders:
        number = re.fullmatch(r"([0-9]{4})-[a-z0-9-]+", folder.name)
        if not number or number[1] in numbers:
            raise Refusal(f"patches/{folder.name}: rename this folder to a free number and a name, as in 0042-what-it-does.")
        numbers.add(number[1])
    return [
        Patch(FIRST, f"{FIRST}.md", root),
        *(Patch(path.name, f"patches/{path.name}/README.md", path) for path in folders),
    ]


def find(name, patches):
    """Find a patch by its name or its short name.

    Example
    -------
    >>> find("0006", all_patches()).name
    '0006-preflight'
    """
    for patch in patches:
        if name in (patch.name, patch.number):
            return patch
    raise Refusal(f"There is no patch {name}: choose from {', '.join(patch.name for patch in patches)}.")


def table(root=ROOT):
    """Read the table ``tool.fork`` of pyproject.toml."""
    settings = _toml("pyproject.toml", root).get("tool", {}).get("fork", {})
    if not re.fullmatch("[a-z][a-z0-9]*", str(settings.get("label"))):
        raise Refusal("pyproject.toml: `label` in [tool.fork] has to be lower-case letters and digits, a letter first.")
    if not isinstance(settings.get("requires"), dict):
        raise Refusal("pyproject.toml has no table [tool.fork.requires]: restore it with git.")
    return settings


def lock(root=ROOT):
    """Read the lock: the revision, the digest, the hash of each base, and by patch what each definition replaces on a base."""
    locked = _toml(LOCK, root)
    pins = locked.get("bases")
    rest = [value for key, value in locked.items() if key not in ("revision", "digest", "bases")]
    if not (
        type(locked.get("revision")) is int
        and locked["revision"] >= 0
        and isinstance(locked.get("digest"), str)
        and isinstance(pins, dict)
        and pins
        and all(re.fullmatch(r"[0-9.]+", version) and re.fullmatch("[0-9a-f]{64}", str(pins[version])) for version in pins)
        and all(isinstance(entries, dict) and all(isinstance(v, dict) for v in entries.values()) for entries in rest)
    ):
        raise Refusal(f"{LOCK} is not as `python -m composer lock` writes it: restore it with git, then {RENEW}.")
    return locked


def _toml(name, root):
    try:
        return tomllib.loads(read(name, root).decode())
    except ValueError as error:
        raise Refusal(f"{name} cannot be read as TOML ({error}): restore it with git, or resolve the conflict in it.") from None


def bases(root=ROOT):
    """List the versions of the pinned bases, oldest first.

    Example
    -------
    >>> bases()[0]
    '1.0.1'
    """
    return sorted(lock(root)["bases"], key=order)


def order(version):
    """Return the key by which versions are sorted.

    Example
    -------
    >>> order("1.0.10") > order("1.0.9")
    True
    """
    return [int(number) for number in re.findall("[0-9]+", version)]


def covers(span, version):
    """Whether a version is in a span of versions.

    Example
    -------
    >>> covers("1.0.1 to 1.0.3", "1.0.2"), covers("1.1.2", "1.1.2"), covers("1.1.2 and later", "1.1.10")
    (True, True, True)
    >>> covers("1.0.1 to 1.0.3", "1.1.0")
    False
    """
    first, _, last = span.partition(" to ")
    if first.endswith(" and later"):
        return order(first) <= order(version)
    return order(first) <= order(version) <= order(last or first)


def read(name, root=ROOT):
    """Read a file of the repo that a build cannot do without."""
    return _content(root / name)


def _content(path):
    try:
        return path.read_bytes()
    except OSError as error:
        raise Refusal(f"{path} cannot be read ({error.strerror}), and the build needs it: restore it with git.") from None


def _ignored(name):
    return name.startswith(".") or name == "__pycache__" or name.endswith((".pyc", ".pyo", "~", ".orig", ".rej"))


def _unreadable(error):
    raise Refusal(f"{error.filename} cannot be read ({error.strerror}), and the build needs it: restore it with git.")
