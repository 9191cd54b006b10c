"""The build backend (PEP 517): composes the package in memory and writes it as a wheel, or packs the delta as an sdist.

Nothing but the finished archive reaches the disk, so that no failed build
leaves anything behind and no stale build folder can enter a wheel.
"""

import base64
import csv
import gzip
import hashlib
import io
import os
import re
import tarfile
import time
import zipfile
from pathlib import Path

from composer import Refusal, base, record, tree

EPOCH = 1711929600  # 2024-04-01: the date of everything in the archives, unless SOURCE_DATE_EPOCH says otherwise
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "NOTICE")


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    """Build the fork's wheel; the hook that pip, build and uv call.

    Arguments
    ---------
    wheel_directory : str
        Where the wheel goes.
    config_settings : dict
        ``base`` names the base, as the environment variable ``SPEECHBRAIN_BASE`` does.
    metadata_directory : object
        Not used.

    Returns
    -------
    str
        The file name of the wheel.

    Raises
    ------
    Refusal
        If the base cannot be had, or the delta does not fit it.
    """
    fork = record.load(version=(config_settings or {}).get("base"))
    upstream = base.members(base.fetch(fork.base))
    files = tree.compose(fork, upstream, record.delta())
    theirs, ours = (f"speechbrain-{version}.dist-info" for version in (fork.base.version, fork.version))
    licenses = "licenses/" if f"{theirs}/licenses/LICENSE" in upstream else ""  # where METADATA 2.4 has them, not 2.1
    files[f"{ours}/{licenses}LICENSE"] = upstream[f"{theirs}/{licenses}LICENSE"]
    files[f"{ours}/{licenses}NOTICE"] = record.read("NOTICE")
    files[f"{ours}/top_level.txt"] = b"speechbrain\n"
    files[f"{ours}/METADATA"] = metadata(upstream[f"{theirs}/METADATA"], fork)
    files[f"{ours}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: composer\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    rows = [(name, f"sha256={_urlsafe(data)}", len(data)) for name, data in sorted(files.items())]
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([*rows, (f"{ours}/RECORD", "", "")])
    files[f"{ours}/RECORD"] = table.getvalue().encode()

    out = io.BytesIO()
    # Stored, not deflated: another zlib packs the same bytes otherwise, and the same inputs are to give the same wheel.
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, data in sorted(files.items(), key=lambda item: (".dist-info/" in item[0], item[0])):
            info = zipfile.ZipInfo(name, time.gmtime(_epoch())[:6])
            info.create_system, info.external_attr = 3, 0o100644 << 16
            archive.writestr(info, data)
    return _written(out.getvalue(), wheel_directory, f"speechbrain-{fork.version}-py3-none-any.whl")


def build_sdist(sdist_directory, config_settings=None):
    """Pack what a build needs: the delta, the composer, and what people read.

    It can build on every base, and has the version of a build that names none.

    Arguments
    ---------
    sdist_directory : str
        Where the sdist goes.
    config_settings : object
        Not used.

    Returns
    -------
    str
        The file name of the sdist.
    """
    fork = record.load(version=record.default())
    stem = f"speechbrain-{fork.version}"
    composer = [f"composer/{path.name}" for path in (record.ROOT / "composer").glob("*.py")]
    pages = {*fork.pages.values(), *fork.left_out.values()}
    files = {**record.delta(), **{name: record.read(name) for name in (*SOURCES, *pages, *composer)}}
    # 2.1, since from 2.2 on an installer takes what PKG-INFO does not name for settled, the requirements among it
    files["PKG-INFO"] = f"Metadata-Version: 2.1\nName: speechbrain\nVersion: {fork.version}\n".encode()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in sorted(files.items()):
            info = tarfile.TarInfo(f"{stem}/{name}")
            info.size, info.mtime = len(data), _epoch()
            archive.addfile(info, io.BytesIO(data))
    return _written(gzip.compress(out.getvalue(), mtime=_epoch()), sdist_directory, f"{stem}.tar.gz")


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    """Refuse ``pip install -e``: there is no package tree in this repo to point at.

    Arguments
    ---------
    wheel_directory, config_settings, metadata_directory : object
        Not used.

    Raises
    ------
    Refusal
        Always.
    """
    raise Refusal(
        "speechbrain cannot be installed with -e from here: this repo holds only what the fork changes, "
        "no package to point at; run `pip install .`, and again after each change."
    )


def metadata(upstream, fork):
    """Write the fork's METADATA: upstream's, with another version and further requirements.

    Arguments
    ---------
    upstream : bytes
        Upstream's METADATA.
    fork : composer.record.Fork
        Gives the version and the requirements.

    Returns
    -------
    bytes
        The fork's METADATA.
    """
    head, gap, description = upstream.partition(b"\n\n")
    head = re.sub(rb"(?m)^Version: .*$", f"Version: {fork.version}".encode(), head)
    head = re.sub(rb"(?m)^Requires-Python: .*$", b"Requires-Python: >=3.10", head)  # which the delta is written for
    more = ["License-File: NOTICE", *(f"Requires-Dist: {requirement}" for requirement in fork.base.requires)]
    return head + b"\n" + "\n".join(more).encode() + gap + description


def _epoch():
    epoch = os.environ.get("SOURCE_DATE_EPOCH") or str(EPOCH)
    if not re.fullmatch("[0-9]{1,10}", epoch) or not 315532800 <= int(epoch) < 2**32:
        raise Refusal(f"SOURCE_DATE_EPOCH={epoch} is no time from 1980 to 2106 in seconds since 1970: unset or mend it.")
    return int(epoch)


def _urlsafe(data):
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def _written(data, folder, name):
    """Write a file whole or not at all."""
    path = Path(folder, name)
    part = path.with_name(f".{name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(data)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise Refusal(f"{path} cannot be written ({error.strerror}): name a folder that can be, with space left.") from None
    return name
