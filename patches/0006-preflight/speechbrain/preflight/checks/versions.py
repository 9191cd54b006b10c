"""Checks the versions of the installed packages."""

import re
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version
from speechbrain.preflight.report import Finding

CODES = {
    "version-untested": "a package has a version outside the range that SpeechBrain asks for",
    "version-of-recipe": "a package has a version outside the range that the recipe's extra_requirements.txt asks for",
    "not-installed": "a package in the recipe's extra_requirements.txt is not installed",
}


def versions(seen):
    """Compare the installed versions with what SpeechBrain and the recipe ask for."""
    asked = []
    with suppress(PackageNotFoundError):  # of a checkout that was never installed
        asked = requires("speechbrain") or []
    for one, found in _others(asked):
        if found:
            what = f"{one.name} {found} is installed, but SpeechBrain asks for {one.specifier}"
            yield Finding("warning", "version-untested", what, one.name, f'pip install "{one.name}{one.specifier}"')
    others = {}  # a package may be in both files, or twice in one
    folders = seen.given.script.absolute().parents[:2] if seen.given.script else ()  # several scripts may share a file
    for file in [folder / "extra_requirements.txt" for folder in folders]:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else ()
        for one, found in _others(lines):
            others.setdefault((canonicalize_name(one.name), found and one.specifier), (one, found, file))
    for one, found, file in others.values():
        what, code, level = f"{one.name} {found} is installed", "version-of-recipe", "warning"
        if found is None:
            what, code, level = f"{one.name} is not installed", "not-installed", "note"
        what += f", but the recipe asks for {one.name}{one.specifier}"
        yield Finding(level, code, what, str(file), f"pip install -r {file}")


def _others(lines):
    """Yield the requirements that are not satisfied, each with the installed version, or None if there is none."""
    for line in lines:
        found = None
        with suppress(InvalidRequirement, InvalidVersion):  # options and URLs, which only pip understands
            one = Requirement(re.sub(r"(^|\s)#.*", "", line).strip())
            if one.marker is not None and not one.marker.evaluate({"extra": ""}):
                continue
            with suppress(PackageNotFoundError):
                found = version(one.name)
            # A development build of a version counts as that version
            if not found or not any(one.specifier.contains(v, prereleases=True) for v in (found, Version(found).base_version)):
                yield one, found


RULES = (versions,)
