"""Whose file it is that a savedir holds already. The rest of this module is upstream's."""

import dataclasses
import json
import os
import pathlib
import re

import huggingface_hub
from speechbrain.utils.distributed import main_process_only
from speechbrain.utils.fetching import (  # upstream's own
    FetchConfig,
    FetchFrom,
    FetchSource,
    LocalStrategy,
    _upstream_fetch,
    guess_source,
    logger,
)

# Left beside what was fetched as a file of its own; a symlink tells for itself.
NOTE = ".fetched_from.json"


def _stamp(path):
    """What tells whether a file is still the one that was fetched."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _read_note(folder):
    """Read the note of a savedir; no note, or one that cannot be read, tells nothing."""
    try:
        note = json.loads((folder / NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


@main_process_only
def _write_note(path, origin):
    """Note where a file of a savedir was fetched from."""
    if path.is_file() and not path.is_symlink():
        note = {**_read_note(path.parent), path.name: [origin, *_stamp(path)]}
        part = path.with_name(f"{NOTE}.part")
        part.write_text(json.dumps(note, indent=1), encoding="utf-8")
        os.replace(part, path.parent / NOTE)


@main_process_only
def _other_origin(path, kind, source, filename, origin):
    """Tell where the file at a path was fetched from if that is elsewhere; None where it is not, or nothing can tell."""
    if path.is_symlink():
        target = pathlib.Path(os.path.realpath(path))
        if kind == FetchFrom.LOCAL:
            wanted = pathlib.Path(source, filename)
            return str(target) if wanted.exists() and target != pathlib.Path(os.path.realpath(wanted)) else None
        hub = re.search(r"models--([^/\\]+)", str(target))
        return str(target) if hub and kind == FetchFrom.HUGGING_FACE and hub[1] != str(source).replace("/", "--") else None
    noted, *stamp = _read_note(path.parent).get(path.name, [None])
    return noted if noted and noted != origin and stamp == _stamp(path) else None


def fetch(
    filename,
    source: str | FetchSource,
    savedir: str | pathlib.Path | None = None,
    save_filename: str | None = None,
    local_strategy: LocalStrategy = LocalStrategy.SYMLINK,
    fetch_config: FetchConfig = FetchConfig(),  # noqa: B008
):
    """Get a local path of a file, from a folder, a web address or the HuggingFace hub.

    Upstream's took whatever the savedir held under that name, fetched from the
    same source or not: another model was served without a word. And it told the
    author of a mistyped folder about the form of a repo id.

    Arguments
    ---------
    filename : str
        Name of the file.
    source : str or FetchSource
        The folder, web address or hub id that it is in.
    savedir : str or pathlib.Path
        Where to put it, or a link to it. A file that is there already is taken,
        unless its link, or the note beside it, says that it is of another source.
    save_filename : str
        Its name there; the same by default.
    local_strategy : LocalStrategy
        Whether to link or to copy.
    fetch_config : FetchConfig
        How to fetch.

    Returns
    -------
    pathlib.Path
        Where the file is.

    Raises
    ------
    ValueError
        If it cannot be had.

    Example
    -------
    >>> folder = pathlib.Path(getfixture("tmpdir"))
    >>> for name in ("a", "b"):
    ...     (folder / name).mkdir()
    ...     _ = (folder / name / "text").write_text(name)
    >>> fetch("text", str(folder / "a"), savedir=folder / "saved").read_text()
    'a'
    >>> fetch("text", str(folder / "b"), savedir=folder / "saved").read_text()
    'b'
    """
    kind, place = guess_source(source)
    destination = pathlib.Path(savedir, save_filename or filename).absolute() if savedir is not None else None
    root = os.path.realpath(place) if kind == FetchFrom.LOCAL else place
    origin = f"{root}/{filename}"
    if destination is not None and destination.exists() and not fetch_config.overwrite:
        other = _other_origin(destination, kind, place, filename, origin)
        if other is None:
            return _upstream_fetch(filename, source, savedir, save_filename, local_strategy, fetch_config)
        logger.warning(f"{destination} is of another source, {other}: fetching {origin} instead.")
        fetch_config = dataclasses.replace(fetch_config, overwrite=True)
    try:
        path = _upstream_fetch(filename, source, savedir, save_filename, local_strategy, fetch_config)
    except Exception as error:
        said = f"There is no folder {place}; taken as an id on the HuggingFace hub, {filename} could not be had from it either"
        if kind == FetchFrom.HUGGING_FACE and isinstance(error, huggingface_hub.utils.HFValidationError):
            raise ValueError(f"{said}, since it is no such id: mend the path or the id.") from error
        if kind == FetchFrom.HUGGING_FACE:
            logger.error(f"{said}: mend the path or the id.")
        raise
    if destination is not None:
        _write_note(destination, origin)
    return path
