"""Makes the wheel's dist-info: upstream's METADATA with the fork's version and requirements, licenses, scripts."""

import re
from pathlib import Path

from composer import Refusal, record


def dist_info(fork, upstream):
    """Make the files of the dist-info folder, except WHEEL and RECORD.

    Arguments
    ---------
    fork : composer.record.Fork
        Gives version, requirements and patches.
    upstream : dict of str to bytes
        The members of the upstream wheel.

    Returns
    -------
    dict of str to bytes
        The content of each file.

    Raises
    ------
    Refusal
        If upstream's wheel has no METADATA or no LICENSE.
    """
    theirs = f"speechbrain-{fork.base.version}.dist-info"
    # Wheels with METADATA 2.4 have them in a folder, those with 2.1 do not
    license = next((name for name in ("licenses/LICENSE", "LICENSE") if f"{theirs}/{name}" in upstream), None)
    if license is None or f"{theirs}/METADATA" not in upstream:
        raise Refusal(
            f"{fork.base.wheel} has no METADATA or no LICENSE in {theirs}: it is not upstream's wheel; download it again."
        )
    files = {
        "METADATA": _metadata(upstream[f"{theirs}/METADATA"], fork),
        "top_level.txt": b"speechbrain\n",
        license: upstream[f"{theirs}/{license}"],
        license.replace("LICENSE", "NOTICE"): record.read("NOTICE"),
    }
    scripts = sorted(name for patch in fork.patches for path in patch.delta for name in _command(path))
    if scripts:
        lines = (f"speechbrain-{name} = speechbrain.{name}.__main__:main\n" for name in scripts)
        files["entry_points.txt"] = f"[console_scripts]\n{''.join(lines)}".encode()
    return files


def write(files, folder):
    """Write files into a folder, by their path in it."""
    for name, data in files.items():
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _command(path):
    """The command that a file adds, if any: `speechbrain/watch/__main__.py` adds speechbrain-watch."""
    return re.findall(r"^speechbrain/(\w+)/__main__\.py$", path)


def _metadata(upstream, fork):
    head, gap, description = upstream.partition(b"\n\n")
    head = re.sub(rb"(?m)^Version: .*$", f"Version: {fork.version}".encode(), head)
    head = re.sub(rb"(?m)^Requires-Python: .*$", b"Requires-Python: >=3.10", head)  # the delta needs it
    more = ["License-File: NOTICE", *(f"Requires-Dist: {requirement}" for requirement in fork.base.requires)]
    return head + b"\n" + "\n".join(more).encode() + gap + description
