"""Checks the versions of the installed packages."""

from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version
from speechbrain.preflight.report import Finding

CODES = {"version-untested": "a package has a version outside the range that SpeechBrain asks for"}


def versions(seen):
    """Compare the installed versions with what SpeechBrain asks for."""
    try:
        asked = requires("speechbrain") or []
    except PackageNotFoundError:  # a checkout that was never installed
        asked = []
    for one in map(Requirement, asked):
        found = _other_version(one) if one.marker is None or one.marker.evaluate({"extra": ""}) else None
        if found:
            what = f"{one.name} {found} is installed, but SpeechBrain asks for {one.specifier}"
            yield Finding("warning", "version-untested", what, one.name, f'pip install "{one.name}{one.specifier}"')


def _other_version(requirement):
    """The installed version if it does not satisfy the requirement, else None."""
    try:
        found = version(requirement.name)
        base = Version(found).base_version  # a development build of a version counts as that version
    except (PackageNotFoundError, InvalidVersion):
        return None
    fits = any(requirement.specifier.contains(one, prereleases=True) for one in (found, base))
    return None if fits else found


RULES = (versions,)
