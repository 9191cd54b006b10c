"""Checkpoints are written whole or not at all, and can be read again."""

import contextlib
import functools
import io
import logging
import numbers
import os
import shutil
import time

import numpy as np
import torch
import yaml


from speechbrain.utils.checkpoints import (
    CKPT_PREFIX,
    DEFAULT_SAVE_HOOKS,
    METAFNAME,
    PARAMFILE_EXT,
    Checkpoint,
    ckpt_recency,
    get_default_hook,
    logger,
)
from speechbrain.utils.distributed import (
    ddp_barrier,
    ddp_broadcast,
    ddp_prevent_block,
    if_main_process,
    main_process_only,
)

# Prefixes of folders that are being saved, deleted or replaced; readers ignore
# them.
SAVING = ".saving-"
DELETING = ".deleting-"
REPLACED = ".replaced-"


def _flush(folder):
    """Writes all files of a folder to the disk."""
    flags = os.O_RDONLY if os.name == "posix" else os.O_RDWR
    for parent, _, files in os.walk(folder):
        for name in files:
            try:
                descriptor = os.open(os.path.join(parent, name), flags)
            except (FileNotFoundError, PermissionError):
                continue  # A link to nowhere, or a copy of a protected file
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        _flush_names(parent)


def _flush_names(folder):
    """Writes the file names of a folder to the disk, on systems that can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _damage(path):
    """Returns how the file of a recoverable is damaged, None if it is not."""
    # Imported here, since most runs have no checkpoint to check
    import pickle
    import pickletools
    import zipfile
    import zlib

    if not path.is_file():  # A folder, or a link to nowhere
        return None
    try:
        with open(path, "rb") as f:
            start = f.read(4)
            f.seek(0)
            if start == b"PK\x03\x04":  # What torch.save writes
                with zipfile.ZipFile(f) as archive:
                    if not any(part.CRC for part in archive.infolist()):
                        return None  # Of torch.serialization's options
                    broken = archive.testzip()
                return f"its part {broken} is damaged" if broken else None
            if start[:1] == b"\x80" and start[1:2] in b"\2\3\4\5":
                for _ in pickletools.genops(f):
                    pass
            elif start and not start.strip(b"\0") and not f.read().strip(b"\0"):
                return "it contains only zeros"
    except (
        OSError,
        EOFError,
        ValueError,
        zipfile.BadZipFile,
        zlib.error,
        pickle.UnpicklingError,
    ) as error:
        return f"{type(error).__name__}: {error}"
    return None


@functools.cache
def _warn_once(message):
    logger.warning(message)


def _plain(value):
    """Turns numbers of NumPy, torch etc. into Python's, and tuples into lists."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {_plain(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, numbers.Number) and not isinstance(value, bool):
        is_integer = isinstance(value, numbers.Integral)
        return int(value) if is_integer else float(value)
    return value


def _plain_meta(meta):
    """Returns what a meta file can hold, and refuses what it could not."""
    plain = {}
    for key, value in meta.items():
        try:
            plain[key] = _plain(value)
            yaml.safe_load(yaml.safe_dump({key: plain[key]}))
        except (
            TypeError,
            ValueError,
            RecursionError,
            yaml.YAMLError,
        ) as error:
            raise ValueError(
                f"The meta of a checkpoint cannot have {key!r}, a "
                f"{type(value).__name__}, because it could not be read again. "
                "Use numbers, strings, and lists or dicts of these."
            ) from error
    return plain


def _construct_number(loader, node):
    dtype, data = loader.construct_sequence(node, deep=True)
    return np.frombuffer(data, dtype)[0].item()


def _construct_dtype(loader, node):
    parts = loader.construct_mapping(node, deep=True)
    return np.dtype(parts["args"][0]).newbyteorder(parts["state"][1])


def _construct_storage(loader, node):
    (data,) = loader.construct_sequence(node, deep=True)
    return torch.load(io.BytesIO(data), weights_only=True)


def _construct_tensor(loader, node):
    storage, offset, size, stride, *_ = loader.construct_sequence(
        node, deep=True
    )
    tensor = torch.tensor([], dtype=storage.dtype)
    tensor.set_(storage._untyped_storage, offset, size, stride)
    return tensor.tolist()


class _MetaLoader(yaml.SafeLoader):
    """Also reads the tuples and the numbers of NumPy and torch that stock has
    saved, but runs no code that a file names."""

    PYTHON = "tag:yaml.org,2002:python/"
    yaml_constructors = {
        **yaml.SafeLoader.yaml_constructors,
        f"{PYTHON}tuple": lambda loader, node: loader.construct_sequence(
            node, deep=True
        ),
        f"{PYTHON}object/apply:numpy.dtype": _construct_dtype,
        f"{PYTHON}object/apply:numpy.core.multiarray.scalar": _construct_number,
        f"{PYTHON}object/apply:numpy._core.multiarray.scalar": _construct_number,
        f"{PYTHON}object/apply:torch.storage._load_from_bytes": _construct_storage,
        f"{PYTHON}object/apply:torch._utils._rebuild_tensor_v2": _construct_tensor,
        f"{PYTHON}object/apply:collections.OrderedDict": lambda *_: None,
    }


def _read_meta(path):
    with open(path, encoding="utf-8") as f:
        meta = yaml.load(f, Loader=_MetaLoader)
    if not {"unixtime", "end-of-epoch"} <= set(meta):
        raise ValueError("it has no unixtime or no end-of-epoch")
    return meta


class Checkpointer:
    # Seconds that a process waits in save_checkpoint() for the others, as long
    # as the group of processes does; and those after which it says so
    max_wait = 7200
    long_wait = 300

    def save_checkpoint(
        self, meta={}, end_of_epoch=True, name=None, verbosity=logging.INFO
    ):
        ckpt_dir = None
        if if_main_process():
            meta = _plain_meta(meta)
        self._wait_for_all()
        if if_main_process():
            self._tidy()
            if name is None:
                ckpt_dir = self._new_checkpoint_dirpath()
            else:
                ckpt_dir = self._custom_checkpoint_dirpath(name)
            os.makedirs(ckpt_dir.with_name(SAVING + ckpt_dir.name))

        # Communicate ckpt_dir to all procs
        ckpt_dir = ddp_broadcast(ckpt_dir, src=0)
        saving_dir = ckpt_dir.with_name(SAVING + ckpt_dir.name)

        try:
            for recoverable, obj in self.recoverables.items():
                save = self.custom_save_hooks.get(recoverable)
                save = save or get_default_hook(obj, DEFAULT_SAVE_HOOKS)
                if save is None:
                    raise RuntimeError(
                        f"Don't know how to save {type(obj)}. Register default "
                        "hook or add custom hook for this object."
                    )
                save(obj, saving_dir / (recoverable + PARAMFILE_EXT))
            ddp_barrier()  # Some savers write on all processes
            if if_main_process():
                saved_meta = self._save_checkpoint_metafile(
                    saving_dir / METAFNAME, meta, end_of_epoch
                )
                _flush(saving_dir)
        except BaseException:
            if if_main_process():
                shutil.rmtree(saving_dir, ignore_errors=True)
            raise

        if not if_main_process():
            ddp_barrier()
            return None

        replaced_dir = ckpt_dir.with_name(REPLACED + ckpt_dir.name)
        if ckpt_dir.exists():
            os.rename(ckpt_dir, replaced_dir)
        os.rename(saving_dir, ckpt_dir)
        _flush_names(self.checkpoints_dir)
        shutil.rmtree(replaced_dir, ignore_errors=True)
        ddp_barrier()

        ckpt_type = "end-of-epoch" if end_of_epoch else "intra-epoch"
        logger.log(verbosity, f"Saved an {ckpt_type} checkpoint in {ckpt_dir}")
        saved_paramfiles = {
            name: ckpt_dir / (name + PARAMFILE_EXT)
            for name in self.recoverables
        }
        return Checkpoint(ckpt_dir, saved_meta, saved_paramfiles)

    def save_and_keep_only(
        self,
        meta={},
        end_of_epoch=True,
        name=None,
        num_to_keep=1,
        keep_recent=True,
        importance_keys=(),
        max_keys=(),
        min_keys=(),
        ckpt_predicate=None,
        verbosity=logging.INFO,
    ):
        if ckpt_predicate is None:
            self.num_to_keep = num_to_keep
        self.save_checkpoint(meta, end_of_epoch, name, verbosity)
        # A new list: appending to the default would make it grow at each call
        recency = [ckpt_recency] if keep_recent else []
        self.delete_checkpoints(
            num_to_keep=num_to_keep,
            max_keys=max_keys,
            min_keys=min_keys,
            importance_keys=[*importance_keys, *recency],
            ckpt_predicate=ckpt_predicate,
            verbosity=verbosity,
        )

    def recover_if_possible(
        self,
        importance_key=None,
        max_key=None,
        min_key=None,
        ckpt_predicate=None,
    ):
        chosen_ckpt = self._choose(
            importance_key, max_key, min_key, ckpt_predicate
        )
        if chosen_ckpt is not None:
            self.load_checkpoint(chosen_ckpt)
        else:
            logger.info("Would load a checkpoint here, but none found yet.")
        return chosen_ckpt

    def _choose(self, importance_key, max_key, min_key, ckpt_predicate):
        """Finds the best readable checkpoint, before any object is changed."""
        ckpts = self.find_checkpoints(
            importance_key, max_key, min_key, ckpt_predicate
        )
        num_damaged = 0
        for ckpt in ckpts:
            problem = self._problem(ckpt, ckpts)
            if problem is None:
                return ckpt
            num_damaged += 1
            logger.warning(f"Skipping {ckpt.path}: {problem}.")
        # Checkpoints with a damaged meta file are not listed
        num_damaged += len(self._list_checkpoint_dirs())
        num_damaged -= len(self.list_checkpoints())
        if num_damaged:
            raise RuntimeError(
                f"None of the {num_damaged} checkpoints in "
                f"{self.checkpoints_dir} can be read, see the warnings above: "
                "restore one of them, or remove them all to start from scratch."
            )
        key = max_key or min_key
        # Checkpoints within an epoch have no values of a validation
        metas = [
            ckpt.meta
            for ckpt in self.list_checkpoints()
            if ckpt.meta["end-of-epoch"]
        ]
        if key and metas and not any(key in meta for meta in metas):
            known = set().union(*metas) - {"unixtime", "end-of-epoch"}
            raise ValueError(
                f"No checkpoint in {self.checkpoints_dir} has the key {key!r}. "
                f"Their keys: {', '.join(map(repr, sorted(known))) or 'none'}. "
                "Use one of these, or save the key in the meta."
            )
        return None

    def _problem(self, ckpt, ckpts):
        """Returns why a checkpoint cannot be loaded, if its files show it."""
        paths = {name: ckpt.paramfiles.get(name) for name in self.recoverables}
        damaged = [
            f"{path} ({damage})"
            for path in paths.values()
            if path and (damage := _damage(path))
        ]
        if damaged:
            return f"it cannot be read: {', '.join(damaged)}"
        # A file that older checkpoints have is lost from this one. One that no
        # older checkpoint has was not saved yet: its loader decides.
        older = [
            other.paramfiles
            for other in ckpts
            if other.meta["unixtime"] < ckpt.meta["unixtime"]
        ]
        lost = [
            name
            for name in sorted(paths)
            if self._lacks(name, paths[name])
            and any(
                name in files and not self._lacks(name, files[name])
                for files in older
            )
        ]
        if lost:
            return f"these are absent or empty: {', '.join(lost)}"
        return None

    def _lacks(self, name, path):
        """Whether the file of a recoverable is empty, or absent although it
        has to be there."""
        if path is None:
            return not (
                self.allow_partial_load
                or "dataloader" in name
                or self.optional_recoverables.get(name)
            )
        return path.is_file() and path.stat().st_size == 0

    @staticmethod
    @main_process_only
    def _delete_checkpoint(checkpoint, verbosity=logging.INFO):
        if not Checkpointer._is_checkpoint_dir(checkpoint.path):
            raise RuntimeError("Checkpoint does not appear valid for deletion.")
        # Renamed first, so that no half-deleted checkpoint keeps its name
        path = checkpoint.path.with_name(DELETING + checkpoint.path.name)
        shutil.rmtree(path, ignore_errors=True)
        os.rename(checkpoint.path, path)
        shutil.rmtree(path)
        logger.log(verbosity, f"Deleted checkpoint in {checkpoint.path}")

    def _wait_for_all(self):
        """Waits until all processes save, and names those that do not."""
        if ddp_prevent_block():
            return
        store = torch.distributed.distributed_c10d._get_default_store()
        rank = torch.distributed.get_rank()
        num_saves = store.add(f"save_checkpoint/{rank}", 1)
        start = time.monotonic()
        pause = 0.01
        said = False
        while absent := [
            str(other)
            for other in range(torch.distributed.get_world_size())
            if store.add(f"save_checkpoint/{other}", 0) < num_saves
        ]:
            waited = time.monotonic() - start
            message = (
                f"Process {rank} has waited {waited:.0f} s in "
                f"save_checkpoint() for these processes: {', '.join(absent)}. "
                "All processes have to call it: do not put it under "
                "if_main_process()."
            )
            if waited > self.max_wait:
                raise RuntimeError(message)
            if waited > self.long_wait and not said:
                logger.warning(message)
                said = True
            time.sleep(pause)
            pause = min(1.5 * pause, 1.0)

    def _tidy(self):
        """Removes the half-saved and half-deleted folders of killed runs."""
        self._restore()
        prefixes = (SAVING, DELETING, REPLACED)
        for path in self.checkpoints_dir.iterdir():
            if path.name.startswith(tuple(p + CKPT_PREFIX for p in prefixes)):
                shutil.rmtree(path, ignore_errors=True)

    def _restore(self):
        """Restores a checkpoint that a killed run was about to replace."""
        for path in self.checkpoints_dir.glob(f"{REPLACED}{CKPT_PREFIX}*"):
            ckpt_dir = path.with_name(path.name[len(REPLACED) :])
            if not ckpt_dir.exists():
                # Another process may do the same; a folder may be read-only
                with contextlib.suppress(OSError):
                    os.rename(path, ckpt_dir)

    def _list_checkpoint_dirs(self):
        self._restore()
        return self._upstream__list_checkpoint_dirs()

    @staticmethod
    def _construct_checkpoint_objects(checkpoint_dirs):
        checkpoints = []
        for ckpt_dir in checkpoint_dirs:
            try:
                meta = _read_meta(ckpt_dir / METAFNAME)
            except Exception as error:  # Damage may lead to any
                _warn_once(
                    f"Skipping {ckpt_dir}: {METAFNAME} cannot be read: {error}"
                )
                continue
            paramfiles = {p.stem: p for p in ckpt_dir.glob(f"*{PARAMFILE_EXT}")}
            checkpoints.append(Checkpoint(ckpt_dir, meta, paramfiles))
        return checkpoints
