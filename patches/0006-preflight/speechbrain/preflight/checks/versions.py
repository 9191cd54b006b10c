"""Checks the versions of the installed packages."""

import re
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version
from speechbrain.preflight.report import Finding

CODES = {
    "version-untested": "a package has a version outside the range that SpeechBrain asks for",
    "version-of-recipe": "a package has a version outside the range that the recipe's extra_requirements.txt asks for",
    "not-installed": "a package in the recipe's extra_requirements.txt is not installed",
}

EXTRA = "extra_requirements.txt"


def versions(seen):
    """Compare the installed versions with what SpeechBrain and the recipe ask for."""
    try:
        asked = requires("speechbrain") or []
    except PackageNotFoundError:  # a checkout that was never installed
        asked = []
    for requirement in _parse(asked):
        found = _other_version(requirement)
        if found:
            what = f"{requirement.name} {found} is installed, but SpeechBrain asks for {requirement.specifier}"
            remedy = f'pip install "{requirement.name}{requirement.specifier}"'
            yield Finding("warning", "version-untested", what, requirement.name, remedy)
    for file in _extra_files(seen.given.script):
        for requirement in _parse(file.read_text(encoding="utf-8", errors="replace").splitlines()):
            found = _other_version(requirement)
            wants = f"{requirement.name}{requirement.specifier}"
            where, remedy = str(file), f"pip install -r {file}"
            if found is None:
                yield Finding("note", "not-installed", f"the recipe asks for {wants}, which is not installed", where, remedy)
            elif found:
                what = f"{requirement.name} {found} is installed, but the recipe asks for {wants}"
                yield Finding("warning", "version-of-recipe", what, where, remedy)


def _extra_files(script):
    """The recipe's requirements files: next to the script, and in the folder above, where several scripts share one."""
    folders = list(script.absolute().parents)[:2] if script is not None else []
    return [folder / EXTRA for folder in folders if (folder / EXTRA).is_file()]


def _parse(lines):
    """The requirements among lines that apply here; skips options, URLs and anything else that only pip understands."""
    for line in lines:
        try:
            requirement = Requirement(re.sub(r"(^|\s)#.*", "", line).strip())
            applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        except InvalidRequirement:
            continue
        if applies:
            yield requirement


def _other_version(requirement):
    """The installed version if it does not satisfy the requirement; "" if it does, None if the package is not installed."""
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return None
    try:
        base = Version(found).base_version  # a development build of a version counts as that version
    except InvalidVersion:
        return ""
    fits = any(requirement.specifier.contains(one, prereleases=True) for one in (found, base))
    return "" if fits else found


RULES = (versions,)
