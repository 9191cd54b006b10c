"""A savedir with files of another source gets those of the right one."""

import dataclasses
import json
import os
import pathlib
import re
from typing import Optional, Union

import huggingface_hub

from speechbrain.utils.distributed import main_process_only
from speechbrain.utils.fetching import (
    FetchConfig,
    FetchFrom,
    FetchSource,
    LocalStrategy,
    _upstream_fetch,
    guess_source,
    logger,
)

# A file next to fetched files that says where they are from. Symlinks need no
# entry in it.
ORIGINS_FILE = ".fetched_from.json"


def _stamp(path):
    """Returns size and time of a file, to notice when it is changed."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _read_origins(folder):
    try:
        text = (folder / ORIGINS_FILE).read_text(encoding="utf-8")
        origins = json.loads(text)
    except (OSError, ValueError):
        return {}
    return origins if isinstance(origins, dict) else {}


@main_process_only
def _write_origin(path, origin):
    if path.is_file() and not path.is_symlink():
        origins = _read_origins(path.parent)
        origins[path.name] = [origin, *_stamp(path)]
        part = path.with_name(f"{ORIGINS_FILE}.part")
        part.write_text(json.dumps(origins, indent=1), encoding="utf-8")
        os.replace(part, path.parent / ORIGINS_FILE)


@main_process_only
def _other_origin(path, fetch_from, source, filename, origin):
    """Returns where a file was fetched from, if that is another origin; None
    if it is this one, or if nothing says where it is from."""
    if path.is_symlink():
        target = pathlib.Path(os.path.realpath(path))
        if fetch_from == FetchFrom.LOCAL:
            expected = pathlib.Path(os.path.realpath(f"{source}/{filename}"))
            is_other = expected.exists() and target != expected
        else:
            cached = re.search(r"models--([^/\\]+)", str(target))
            is_other = (
                fetch_from == FetchFrom.HUGGING_FACE
                and cached
                and cached[1] != str(source).replace("/", "--")
            )
        return str(target) if is_other else None
    noted, *stamp = _read_origins(path.parent).get(path.name, [None])
    is_other = noted and noted != origin and stamp == _stamp(path)
    return noted if is_other else None


def fetch(
    filename,
    source: Union[str, FetchSource],
    savedir: Optional[Union[str, pathlib.Path]] = None,
    save_filename: Optional[str] = None,
    local_strategy: LocalStrategy = LocalStrategy.SYMLINK,
    fetch_config: FetchConfig = FetchConfig(),
):
    fetch_from, path = guess_source(source)
    root = os.path.realpath(path) if fetch_from == FetchFrom.LOCAL else path
    origin = f"{root}/{filename}"
    destination = None
    if savedir is not None:
        destination = pathlib.Path(savedir, save_filename or filename)
        destination = destination.absolute()
    found = destination is not None and destination.exists()
    if found and not fetch_config.overwrite:
        other = _other_origin(destination, fetch_from, path, filename, origin)
        if other is None:
            return _upstream_fetch(
                filename,
                source,
                savedir,
                save_filename,
                local_strategy,
                fetch_config,
            )
        logger.warning(
            f"{destination} is from another source, {other}: fetching {origin} "
            "instead."
        )
        fetch_config = dataclasses.replace(fetch_config, overwrite=True)
    try:
        fetched = _upstream_fetch(
            filename,
            source,
            savedir,
            save_filename,
            local_strategy,
            fetch_config,
        )
    except Exception as error:
        if fetch_from != FetchFrom.HUGGING_FACE:
            raise
        message = (
            f"There is no folder {path}, and {filename} cannot be fetched from "
            f"the HuggingFace hub with {path} as the id"
        )
        if isinstance(error, huggingface_hub.utils.HFValidationError):
            raise ValueError(
                f"{message}, since it is not a valid id: correct the path or "
                "the id."
            ) from error
        logger.error(f"{message}: correct the path or the id.")
        raise
    if destination is not None:
        _write_origin(destination, origin)
    return fetched
