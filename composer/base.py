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

# Settings for the user's own pip command, with which this one would fail.
NOT_FOR_THE_INNER_PIP = ("PIP_REQUIREMENT", "PIP_PYTHON", "PIP_PLATFORM", "PIP_REQUIRE_VIRTUALENV", "PIP_UPLOADED_PRIOR_TO")

# What pip prints when it fails, what that means, and what to do.
REASONS = (
    ("No module named pip", "the build downloads it with pip, and there is no pip in its environment: install pip there"),
    ("No space left on device", "the disk of the temporary folder is full: free some space, or let TMPDIR name another folder"),
    ("ProxyError", "the proxy does not answer: check HTTPS_PROXY, PIP_PROXY and pip.conf"),
    ("NewConnectionError", "neither the index nor a proxy answers: check the network, HTTPS_PROXY, PIP_INDEX_URL and pip.conf"),
    ("DO NOT MATCH THE HASHES", "the index serves another file of that name ({}): check PIP_INDEX_URL and pip.conf"),
    ("ERROR: ", "{}: check the network, PIP_INDEX_URL and pip.conf"),
    ("", "{}: check the network, PIP_INDEX_URL and pip.conf"),
)


def fetch(base):
    """Get the wheel of an upstream release, from a local file or from the package index.

    ``SPEECHBRAIN_BASE_WHEEL=/path/x.whl`` names a local wheel, or a folder
    that has it under its own name. Otherwise pip downloads it, with the index
    that PIP_* variables and pip.conf name (flags of an outer ``pip install`` do
    not reach this inner pip) and without the user's constraints.

    Arguments
    ---------
    base : composer.record.Base
        The release; without a hash it is accepted as it comes, to be pinned.

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
                f"let it name {base.wheel}, or unset it to download that wheel."
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
    # The hash is in a file, and only wheels are allowed: with a bare `name==version` PIP_REQUIRE_HASHES refuses, and
    # PIP_NO_BINARY silently brings the sdist. A constraint that holds the fork itself would exclude its base.
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
    """Check the hash of a wheel.

    Arguments
    ---------
    wheel : bytes
        The wheel.
    base : composer.record.Base
        The release that it should be.
    origin : str
        Where it is from, for the error.

    Returns
    -------
    bytes
        The same wheel.

    Raises
    ------
    Refusal
        If the hash is not the pinned one.
    """
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
        If a member's path leads out of the tree or is there twice, or the wheel is damaged.
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
    """Write all members of a wheel into a folder; if PYTHONPATH starts with it, its packages are imported.

    Arguments
    ---------
    wheel : bytes
        The wheel.
    folder : str or pathlib.Path
        Where its members go.

    Raises
    ------
    Refusal
        As for `members`.
    """
    for name, data in members(wheel).items():
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
