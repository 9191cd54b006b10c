"""Checkpoints are written whole or not at all."""

import functools
import logging
import os
import shutil

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
    for parent, _, files in os.walk(folder):
        for name in files:
            with open(os.path.join(parent, name), "rb+") as f:
                os.fsync(f.fileno())
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

    if path.is_dir():
        return None
    try:
        with open(path, "rb") as f:
            start = f.read(4)
            f.seek(0)
            if start.startswith(b"PK"):  # What torch.save writes
                with zipfile.ZipFile(f) as archive:
                    broken = archive.testzip()
                return f"its part {broken} is damaged" if broken else None
            if start.startswith(b"\x80"):
                for _ in pickletools.genops(f):
                    pass
            elif start and not start.strip(b"\0") and not f.read().strip(b"\0"):
                return "it contains only zeros"
    except (
        OSError,
        EOFError,
        ValueError,
        zipfile.BadZipFile,
        pickle.UnpicklingError,
    ) as error:
        return f"{type(error).__name__}: {error}"
    return None


@functools.cache
def _warn_once(message):
    logger.warning(message)


class Checkpointer:
    def save_checkpoint(
        self, meta={}, end_of_epoch=True, name=None, verbosity=logging.INFO
    ):
        ckpt_dir = None
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
        # The main process decides for all
        choice = None
        if if_main_process():
            choice = self._choose(
                importance_key, max_key, min_key, ckpt_predicate
            )
        chosen_ckpt, error = ddp_broadcast(choice, src=0)
        if error is not None:
            raise error
        if chosen_ckpt is not None:
            self.load_checkpoint(chosen_ckpt)
        else:
            logger.info("Would load a checkpoint here, but none found yet.")
        return chosen_ckpt

    def _choose(self, *keys):
        """Finds the best readable checkpoint, before any object is changed.

        Returns it, or None, and the error that all processes have to raise.
        """
        try:
            ckpts = self.find_checkpoints(*keys)
        except Exception as error:
            return None, error
        num_damaged = 0
        for ckpt in ckpts:
            problem = self._problem(ckpt, ckpts)
            if problem is None:
                return ckpt, None
            num_damaged += 1
            logger.warning(f"Skipping {ckpt.path}: {problem}.")
        # Checkpoints with a damaged meta file are not listed
        num_damaged += len(self._list_checkpoint_dirs())
        num_damaged -= len(self.list_checkpoints())
        if num_damaged:
            return None, RuntimeError(
                f"None of the {num_damaged} checkpoints in "
                f"{self.checkpoints_dir} can be read, see the warnings above: "
                "restore one of them, or remove them all to start from scratch."
            )
        return None, None

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
                os.rename(path, ckpt_dir)

    def _list_checkpoint_dirs(self):
        if if_main_process():
            self._restore()
        return self._upstream__list_checkpoint_dirs()

    @staticmethod
    def _construct_checkpoint_objects(checkpoint_dirs):
        checkpoints = []
        construct = Checkpointer._upstream__construct_checkpoint_objects
        keys = {"unixtime", "end-of-epoch"}
        for ckpt_dir in checkpoint_dirs:
            # One at a time, since a damaged meta file stops upstream's loop
            try:
                (ckpt,) = construct([ckpt_dir])
                if not isinstance(ckpt.meta, dict) or keys - ckpt.meta.keys():
                    raise ValueError("it has no unixtime or no end-of-epoch")
                checkpoints.append(ckpt)
            except (OSError, ValueError, yaml.YAMLError) as error:
                _warn_once(
                    f"Skipping {ckpt_dir}: {METAFNAME} cannot be read: {error}"
                )
        return checkpoints
