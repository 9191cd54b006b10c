"""``python -m speechbrain.fork`` prints what is installed: base, patches, and whether the files are as they were built."""

import base64
import csv
import hashlib
import importlib.metadata
import pathlib
import sys

import speechbrain


def differing():
    """Compare the installed files with the hashes in RECORD, which were written when the wheel was built.

    Returns
    -------
    list of str
        What differs or is missing; empty if nothing is.

    Example
    -------
    >>> differing()
    []
    """
    here = pathlib.Path(__file__).resolve()
    installed = next(importlib.metadata.distributions(name="speechbrain"), None)
    if installed is None or pathlib.Path(installed.locate_file("speechbrain/fork.py")).resolve() != here:
        return [f"{here} (imported, but not installed)"]
    found = []
    # Not Distribution.files: from Python 3.12 on it leaves out files that do not exist
    for name, recorded, _ in csv.reader((installed.read_text("RECORD") or "RECORD,,").splitlines()):
        if name.startswith(".."):  # a command, which `pip install --target` puts elsewhere
            continue
        path = pathlib.Path(installed.locate_file(name))
        if not path.is_file():
            found.append(f"{name} (missing)")
        elif recorded:
            algorithm, _, expected = recorded.partition("=")
            digest = hashlib.new(algorithm, path.read_bytes()).digest()
            if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != expected:
                found.append(f"{name} (changed)")
    return found


def main():
    """Print what is installed; returns the exit status, 1 if the files are not as they were built."""
    base, _, local = speechbrain.__version__.partition("+")
    label, revision, *_ = [*local.split("."), "", ""]
    lines = [f"speechbrain {speechbrain.__version__}: base {base}, label {label}, revision {revision}; its patches:"]
    patches = pathlib.Path(__file__).with_name("patches.txt")
    listed = patches.read_text(encoding="utf-8").splitlines() if patches.is_file() else ["unknown, patches.txt is missing"]
    lines += [f"    {line}" for line in listed]
    found = differing()
    lines.append(f"Not as they were built: {', '.join(found)}" if found else "All files are as they were built.")
    print("\n".join(lines))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
