"""Gets the upstream wheel, checks its hash and reads its members."""

import collections
import hashlib
import io
import os
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from composer import Refusal

LOCAL_WHEEL = "SPEECHBRAIN_BASE_WHEEL"

# Settings for the user's own pip command that would make this one fail.
NOT_FOR_THE_INNER_PIP = ("PIP_REQUIREMENT", "PIP_PYTHON", "PIP_PLATFORM", "PIP_REQUIRE_VIRTUALENV", "PIP_UPLOADED_PRIOR_TO")

# What pip prints when it fails, what that means, and what to do.
REASONS = (
    ("No module named pip", "the build downloads it with pip, but its environment has no pip: install pip there"),
    ("No space left on device", "the disk of the temporary folder is full: free some space, or set TMPDIR to another folder"),
    ("ProxyError", "the proxy does not answer: check HTTPS_PROXY, PIP_PROXY and pip.conf"),
    ("NewConnectionError", "neither the index nor a proxy answers: check the network, HTTPS_PROXY, PIP_INDEX_URL and pip.conf"),
    ("DO NOT MATCH THE HASHES", "the index serves another file of that name ({}): check PIP_INDEX_URL and pip.conf"),
    ("ERROR: ", "{}: check the network, PIP_INDEX_URL and pip.conf"),
    ("", "{}: check the network, PIP_INDEX_URL and pip.conf"),
)


def fetch(base):
    """Get the wheel of an upstream release, from a local file or from the package index.

    ``SPEECHBRAIN_BASE_WHEEL=/path/x.whl`` names a local wheel, or a folder
    that contains it under its original name. Otherwise pip downloads it from the
    index that PIP_* variables and pip.conf name, without the user's constraints.
    Options of an outer ``pip install`` do not reach this inner pip.

    Arguments
    ---------
    base : composer.record.Base
        The release; without a hash any wheel is accepted, so that it can be pinned.

    Returns
    -------
    bytes
        The wheel, whose hash is the pinned one.

    Raises
    ------
    Refusal
        If the wheel cannot be read or downloaded, or is not the pinned one.
    """
    local = os.environ.get(LOCAL_WHEEL)
    if local:
        local = os.path.join(local, base.wheel) if os.path.isdir(local) else local
        try:
            wheel = Path(local).read_bytes()
        except OSError as error:
            raise Refusal(
                f"{LOCAL_WHEEL} names {Path(local).absolute()}, which cannot be read ({error.strerror}): "
                f"set it to the path of {base.wheel}, or unset it to download that wheel."
            ) from None
        return verified(wheel, base, local)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return verified(_downloaded(base, Path(folder)), base, "the package index")
    except OSError as error:
        raise Refusal(_failure(base, f"{error.strerror}: {error.filename}")) from None


def _downloaded(base, folder):
    pinned = folder / "base.txt"
    pinned.write_text(f"speechbrain=={base.version}" + (f" --hash=sha256:{base.sha256}\n" if base.sha256 else "\n"))
    # The hash is in a file, and only wheels are allowed: with a bare `name==version`, pip would fail under PIP_REQUIRE_HASHES,
    # and silently download the sdist under PIP_NO_BINARY. A constraint that pins the fork would exclude its base.
    settings = {"PIP_REQUIRE_HASHES": "1" if base.sha256 else "0", "PIP_CONSTRAINT": os.devnull}
    environment = {name: value for name, value in os.environ.items() if name not in NOT_FOR_THE_INNER_PIP}
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        + ["--only-binary=:all:", "-r", str(pinned), "-d", str(folder)],
        env={**environment, **settings},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise Refusal(_failure(base, done.stdout.strip() or "pip printed nothing"))
    return (folder / base.wheel).read_bytes()


def _failure(base, printed):
    """Say in one sentence why a wheel could not be downloaded."""
    mark, reason = next((mark, reason) for mark, reason in REASONS if mark in printed)
    line = next(line.strip() for line in printed.splitlines() if mark in line)
    reason = reason.format(line.rstrip(".:"))
    return f"{base.wheel} could not be downloaded: {reason}, or set {LOCAL_WHEEL} to a copy of that wheel to build offline."


def verified(wheel, base, origin):
    """Return the wheel if its hash is the pinned one, else raise a Refusal that names its origin."""
    found = hashlib.sha256(wheel).hexdigest()
    if base.sha256 and found != base.sha256.lower():
        raise Refusal(
            f"The wheel from {origin} is not {base.wheel}: its sha256 is {found}, but {base.sha256} is pinned. "
            "It may be truncated, altered or another release: download that wheel again."
        )
    return wheel


def members(wheel):
    """Read all members of a wheel into memory.

    Arguments
    ---------
    wheel : bytes
        The wheel.

    Returns
    -------
    dict of str to bytes
        The content of each file, by its path in the wheel.

    Raises
    ------
    Refusal
        If the wheel is damaged, has a path twice, or has a path that leads out of the tree.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir()]
            files = {info.filename: archive.read(info) for info in infos}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise Refusal(f"The base wheel is damaged ({error}): download it again.") from None
    for name, count in collections.Counter(info.filename for info in infos).items():
        path = PurePosixPath(name)
        if count > 1:
            raise Refusal(f"The base wheel has {name} twice: do not trust this wheel, download it again.")
        if path.is_absolute() or ".." in path.parts or str(path) != name or "\\" in name or ":" in name:
            raise Refusal(
                f"The base wheel has {name!r}, which would leave the package tree: do not trust this wheel, download it again."
            )
    return files


def unpack(wheel, folder):
    """Write all members of a wheel into a folder; if PYTHONPATH starts with that folder, its packages are imported."""
    for name, data in members(wheel).items():
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
