"""``python -m speechbrain.fork`` prints what is installed: base, patches, and whether the files are those that were built."""

import base64
import hashlib
import importlib.metadata
import pathlib
import sys

import speechbrain


def differing():
    """Compare the installed files with the hashes that were recorded when the wheel was built.

    Returns
    -------
    list of str
        What differs, or is missing; empty if nothing is.

    Example
    -------
    >>> differing()
    []
    """
    installed = importlib.metadata.distribution("speechbrain")
    here = pathlib.Path(__file__).resolve()
    if pathlib.Path(installed.locate_file("speechbrain/fork.py")).resolve() != here:
        return [f"{here} (imported, but not what is installed)"]
    found = []
    for file in installed.files or ["RECORD"]:
        path = pathlib.Path(installed.locate_file(file))
        if not path.is_file():
            found.append(f"{file} (missing)")
        elif file.hash:
            digest = hashlib.new(file.hash.mode, path.read_bytes()).digest()
            if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value:
                found.append(f"{file} (changed)")
    return found


def main():
    """Print what is installed; returns the exit status, 1 if the files are not those that were built."""
    base, _, local = speechbrain.__version__.partition("+")
    label, _, revision = local.partition(".")
    print(f"speechbrain {speechbrain.__version__}: base {base}, label {label}, revision {revision}; its patches are")
    for line in pathlib.Path(__file__).with_name("patches.txt").read_text(encoding="utf-8").splitlines():
        print(f"    {line}")
    found = differing()
    print(f"Not as they were built: {', '.join(found)}" if found else "All files are as they were built.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
