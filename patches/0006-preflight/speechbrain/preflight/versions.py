"""Check 6: the versions of what is installed."""

import re
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version
from speechbrain.preflight.report import Finding

CODES = {
    "version-untested": "a package that SpeechBrain needs has a version that this release was not tested with",
    "version-of-recipe": "a package has another version than the recipe's extra_requirements.txt asks for",
    "not-installed": "a package that the recipe's extra_requirements.txt asks for is not installed",
}

EXTRA = "extra_requirements.txt"


def check(seen):
    """Check what is installed against what SpeechBrain and the recipe ask for.

    Arguments
    ---------
    seen : speechbrain.preflight.seen.Seen
        The run.

    Yields
    ------
    Finding
        See ``CODES``.
    """
    try:
        asked = requires("speechbrain") or []
    except PackageNotFoundError:  # a checkout that was never installed
        asked = []
    for requirement in _parse(asked):
        found = _other_version(requirement)
        if found:
            what = f"{requirement.name} {found} is installed, {requirement.specifier} was tested"
            remedy = f'pip install "{requirement.name}{requirement.specifier}"'
            yield Finding("warning", "version-untested", what, requirement.name, remedy)
    for file in _extra_files(seen.script):
        for requirement in _parse(file.read_text(encoding="utf-8", errors="replace").splitlines()):
            found = _other_version(requirement)
            wants = f"{requirement.name}{requirement.specifier}"
            where, remedy = str(file), f"pip install -r {file}"
            if found is None:
                yield Finding("note", "not-installed", f"{wants} is asked for and not installed", where, remedy)
            elif found:
                what = f"{requirement.name} {found} is installed, {wants} is asked for"
                yield Finding("warning", "version-of-recipe", what, where, remedy)


def _extra_files(script):
    """The recipe's requirements: beside the script, and in the folder above, where recipes of several scripts have them."""
    folders = list(script.absolute().parents)[:2] if script is not None else []
    return [folder / EXTRA for folder in folders if (folder / EXTRA).is_file()]


def _parse(lines):
    """The requirements among lines that apply here; options, addresses and what else pip understands are passed over."""
    for line in lines:
        try:
            requirement = Requirement(re.sub(r"(^|\s)#.*", "", line).strip())
            applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        except InvalidRequirement:
            continue
        if applies:
            yield requirement


def _other_version(requirement):
    """The installed version if it is not one of those asked for; "" if it is one of them, None without one."""
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return None
    try:
        base = Version(found).base_version  # what is built from the sources of a version to come counts as that version
    except InvalidVersion:
        return ""
    fits = any(requirement.specifier.contains(one, prereleases=True) for one in (found, base))
    return "" if fits else found
