"""A savedir with files of another source gets those of the right one."""

import dataclasses
import json
import os
import pathlib
import uuid
from typing import Optional, Union

from huggingface_hub.utils import (
    EntryNotFoundError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from speechbrain.utils.distributed import main_process_only
from speechbrain.utils.fetching import (
    FetchConfig,
    FetchFrom,
    FetchSource,
    LocalStrategy,
    _upstream_download_file,
    _upstream_fetch,
    _upstream_link_with_strategy,
    logger,
)

# A file next to fetched files that says where they are from. Symlinks need no
# entry in it.
ORIGINS_FILE = ".fetched_from.json"


def link_with_strategy(
    src: pathlib.Path, dst: pathlib.Path, local_strategy: LocalStrategy
) -> pathlib.Path:
    if local_strategy == LocalStrategy.NO_LINK:
        return src
    same_name = src.name == dst.name
    if same_name and src.parent.resolve() == dst.parent.resolve():
        # Its own folder, perhaps by another path: there is nothing to replace
        return _upstream_link_with_strategy(dst, dst, local_strategy)
    # Moved into place, since other processes may do the same
    part = dst.with_name(f"{dst.name}.{uuid.uuid4().hex}.part").absolute()
    try:
        _upstream_link_with_strategy(src, part, local_strategy)
    except OSError as error:
        if local_strategy != LocalStrategy.SYMLINK:
            raise
        _upstream_link_with_strategy(src, part, LocalStrategy.COPY)
        logger.warning_once(
            f"A symbolic link cannot be made ({error.strerror or error}): "
            "files are copied instead. Pass local_strategy=LocalStrategy.COPY "
            "to do so without this warning."
        )
    os.replace(part, dst)
    return dst.absolute()


def guess_source(source: Union[str, FetchSource]) -> tuple[FetchFrom, str]:
    if isinstance(source, FetchSource):
        fetch_from, path = source
        return FetchSource(fetch_from, os.path.expanduser(path))
    source = os.path.expanduser(source)
    if os.path.isfile(source):
        raise ValueError(
            f"The source {source} is a file: use the folder that contains it, "
            f"{os.path.dirname(source) or '.'}, as the source."
        )
    if os.path.isdir(source):
        return FetchFrom.LOCAL, source
    if source.startswith(("http:", "https:")):
        return FetchFrom.URI, source
    return FetchFrom.HUGGING_FACE, source


@main_process_only
def download_file(source, source_path, destination):
    # Writing to a symlink would change the file that it points to
    part = pathlib.Path(f"{destination}.{uuid.uuid4().hex}.part")
    _upstream_download_file(source, source_path, part)
    os.replace(part, destination)


class NotFetchedError(LocalEntryNotFoundError, ValueError):
    """A source is neither a folder nor a repo on the HuggingFace hub."""


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
    is_copy = os.path.realpath(path) != os.path.realpath(origin)
    if path.is_file() and not path.is_symlink() and is_copy:
        origins = _read_origins(path.parent)
        origins[path.name] = [origin, *_stamp(path)]
        part = path.with_name(f"{ORIGINS_FILE}.{uuid.uuid4().hex}.part")
        part.write_text(json.dumps(origins, indent=1), encoding="utf-8")
        os.replace(part, path.parent / ORIGINS_FILE)


@main_process_only
def _other_origin(path, fetch_from, source, filename, origin):
    """Returns where a file was fetched from, if that is another origin; None
    if it is this one, or if nothing says where it is from; "" if there is no
    file."""
    if not path.exists():
        return ""
    if fetch_from == FetchFrom.LOCAL:
        expected = pathlib.Path(source, filename)
        if expected.exists() and expected.samefile(path):
            return None
    target = os.readlink(path) if path.is_symlink() else ""
    # Relative links are not from here: `link_with_strategy` makes none
    if os.path.isabs(target):
        parts = pathlib.Path(target).parts + path.resolve().parts
        cached = f"models--{source.replace('/', '--')}" in parts
        return None if cached and fetch_from != FetchFrom.LOCAL else target
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
    is_local = fetch_from == FetchFrom.LOCAL
    origin = f"{os.path.realpath(path) if is_local else path}/{filename}"
    destination, other, hint = None, "", ""
    if savedir is not None:
        savedir = os.path.expanduser(savedir)
        destination = pathlib.Path(savedir, save_filename or filename)
        destination = destination.absolute()
        if not fetch_config.overwrite:
            other = _other_origin(
                destination, fetch_from, path, filename, origin
            )
    if other:
        hint = f"{destination} is from another source, {other}. "
        if is_local and not os.path.exists(origin):
            raise FileNotFoundError(
                f"{hint}There is no {origin}: correct the source, or use "
                "another savedir."
            )
        logger.warning(f"{hint}Fetching {origin} instead.")
        if local_strategy == LocalStrategy.COPY_SKIP_CACHE:
            # Offline, the hub takes what is in the savedir for its own
            local_strategy = LocalStrategy.COPY
    if other is not None:
        # All processes fetch if the main one does
        fetch_config = dataclasses.replace(fetch_config, overwrite=True)
        if (
            local_strategy == LocalStrategy.NO_LINK
            and fetch_from != FetchFrom.URI
        ):
            savedir = destination = None
    try:
        fetched = _upstream_fetch(
            filename,
            source,
            savedir,
            save_filename,
            local_strategy,
            fetch_config,
        )
    except (
        ValueError,
        EntryNotFoundError,
        RepositoryNotFoundError,
    ) as error:
        if fetch_from != FetchFrom.HUGGING_FACE:
            raise
        raise NotFetchedError(
            f"There is no folder {path}, and {filename} cannot be fetched from "
            f"the HuggingFace hub with {path} as the id: correct the path or "
            f"the id. {hint}{error}"
        ) from error
    if destination is not None and other is not None:
        _write_origin(destination, origin)
    return fetched
