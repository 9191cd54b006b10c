"""Gets the upstream wheel, checks its hash and reads its members."""

import hashlib
import io
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from composer import Refusal

LOCAL_WHEEL = "SPEECHBRAIN_BASE_WHEEL"


def fetch(base):
    """Get the wheel of an upstream release, from a local file or from the package index.

    ``SPEECHBRAIN_BASE_WHEEL=/path/x.whl`` names a local wheel, or a folder
    that holds it under its own name. Otherwise pip downloads it, with the index
    that PIP_* variables and pip.conf name (flags of an outer ``pip install`` do
    not reach this inner pip).

    Arguments
    ---------
    base : composer.record.Base
        The release; with an empty hash it is taken as it comes, to be pinned.

    Returns
    -------
    bytes
        The wheel, whose hash is the recorded one.

    Raises
    ------
    Refusal
        If the wheel cannot be had, or is another than the recorded one.
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
    with tempfile.TemporaryDirectory() as folder:
        pinned = Path(folder, "base.txt")
        pinned.write_text(f"speechbrain=={base.version}" + (f" --hash=sha256:{base.sha256}\n" if base.sha256 else "\n"))
        # The hash stands in a file, and wheels alone are allowed: with a bare `name==version` PIP_REQUIRE_HASHES
        # refuses, and PIP_NO_BINARY quietly brings the sdist.
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
            + ["--only-binary=:all:", "-r", str(pinned), "-d", folder],
            env={**os.environ, "PIP_REQUIRE_HASHES": "1" if base.sha256 else "0"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            said = [line for line in done.stdout.splitlines() if line.strip()]
            reason = next(
                (line for mark in ("DO NOT MATCH", "ERROR: ", "") for line in said if mark in line), "pip said nothing"
            )
            raise Refusal(
                f"{base.wheel} could not be downloaded ({reason.strip()}): check the network, PIP_INDEX_URL and pip.conf, "
                f"or set {LOCAL_WHEEL} to a copy of that wheel to build offline."
            )
        return verified(Path(folder, base.wheel).read_bytes(), base, "the package index")


def verified(wheel, base, origin):
    """Check the hash of a wheel.

    Arguments
    ---------
    wheel : bytes
        The wheel.
    base : composer.record.Base
        The release that it should be.
    origin : str
        Where it came from, for the error.

    Returns
    -------
    bytes
        The same wheel.

    Raises
    ------
    Refusal
        If the hash is another than the recorded one.
    """
    found = hashlib.sha256(wheel).hexdigest()
    if base.sha256 and found != base.sha256:
        raise Refusal(
            f"the wheel from {origin} is not {base.wheel}: its sha256 is {found}, recorded is {base.sha256}; "
            "it may be truncated, altered or another release: fetch that wheel again."
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
        If a member's path leads out of the tree, or the wheel is no zip file.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
            files = {info.filename: archive.read(info) for info in archive.infolist() if not info.is_dir()}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise Refusal(f"the base wheel is damaged ({error}): fetch it again.") from None
    for name in files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or str(path) != name or "\\" in name or ":" in name:
            raise Refusal(
                f"the base wheel holds {name!r}, which would leave the package tree: do not trust this wheel, fetch it again."
            )
    return files


def unpack(wheel, folder):
    """Write all members of a wheel into a folder; put first on PYTHONPATH, it is what is imported.

    Arguments
    ---------
    wheel : bytes
        The wheel.
    folder : str or pathlib.Path
        Where its members go.

    Raises
    ------
    Refusal
        If a member's path leads out of the folder, or the wheel is no zip file.
    """
    for name, data in members(wheel).items():
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
