"""How checkpoints are written, ranked and read. The rest of this module is upstream's."""

import functools
import logging
import os
import pathlib
import pickle
import pickletools
import shutil
import zipfile

import yaml
from speechbrain.utils.checkpoints import (  # upstream's own
    CKPT_PREFIX,
    DEFAULT_SAVE_HOOKS,
    METAFNAME,
    PARAMFILE_EXT,
    Checkpoint,
    _upstream_torch_patched_state_dict_load,
    ckpt_recency,
    get_default_hook,
    logger,
)
from speechbrain.utils.distributed import ddp_barrier, ddp_broadcast, if_main_process, main_process_only

# What is not a checkpoint yet, or no longer: names that no reader takes for one.
SAVING = ".saving-"

DELETING = ".deleting-"

REPLACED = ".replaced-"


def _flush(folder):
    """Have everything in a folder written to the disk."""
    for parent, _, files in os.walk(folder):
        for name in files:
            with open(os.path.join(parent, name), "rb+") as file:
                os.fsync(file.fileno())
        _flush_names(parent)


def _flush_names(folder):
    """Have the names in a folder written to the disk, where the system can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _damage(path):
    """Say what is wrong with the file of a recoverable, as far as its bytes tell; None if nothing is."""
    if path.is_dir():
        return None
    try:
        with open(path, "rb") as file:
            start = file.read(4)
            file.seek(0)
            if start.startswith(b"PK"):  # what torch.save writes
                with zipfile.ZipFile(file) as archive:
                    broken = archive.testzip()
                return f"its part {broken} is damaged" if broken else None
            if start.startswith(b"\x80"):
                for _ in pickletools.genops(file):
                    pass
            elif start and not start.strip(b"\0") and not file.read().strip(b"\0"):
                return "it holds nothing but zeros"
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def torch_patched_state_dict_load(path, device="cpu"):
    """Load the state of a module, with the names of its parameters brought up to date.

    Upstream's advised ``weights_only=False`` for the pointer that git-LFS leaves
    in place of a file that was not fetched, and did not name a file that is empty,
    cut off or damaged inside.

    Arguments
    ---------
    path : str or pathlib.Path
        The file.
    device : str
        Where the tensors go.

    Returns
    -------
    dict
        The state.

    Raises
    ------
    ValueError
        If the file is a git-LFS pointer.
    RuntimeError
        If it is damaged.
    """
    with open(path, "rb") as file:
        if file.read(40).startswith(b"version https://git-lfs"):
            raise ValueError(
                f"{path} is not the file itself but git-LFS's pointer to it: run `git lfs pull` where it comes from."
            )
    try:
        return _upstream_torch_patched_state_dict_load(path, device)
    except Exception as error:
        damage = _damage(pathlib.Path(path)) if os.path.getsize(path) else "it is empty"
        if damage is None:
            raise
        raise RuntimeError(f"{path} is damaged ({damage}): get it anew.") from error


@functools.cache
def _warn_once(message):
    logger.warning(message)


def _is_nan(value):
    """Tell whether a key by which checkpoints are ranked is nan, or a tuple that holds one."""
    return any(map(_is_nan, value)) if isinstance(value, (tuple, list)) else bool(value != value)


class Checkpointer:
    """Upstream's class with some of its methods replaced."""

    def save_checkpoint(self, meta={}, end_of_epoch=True, name=None, verbosity=logging.INFO):  # noqa: B006
        """Save a checkpoint, whole or not at all.

        Upstream's wrote into the final folder, and first of all the file that
        makes it a checkpoint: a run killed meanwhile could not be resumed. This
        one writes aside, has it flushed to the disk, and renames. What an
        earlier run left behind is removed.

        Arguments
        ---------
        meta : dict
            Goes into the checkpoint's meta, beside ``unixtime`` and ``end-of-epoch``.
        end_of_epoch : bool
            Whether an epoch is complete.
        name : str
            Of the checkpoint, instead of one made of the time; one that there
            is already is replaced.
        verbosity : int
            The logging level at which it is said.

        Returns
        -------
        Checkpoint
            The one that was saved; None on processes other than the main one.

        Raises
        ------
        RuntimeError
            If there is no way to save one of the recoverables.
        """
        folder = None
        if if_main_process():
            self._tidy()
            folder = self._new_checkpoint_dirpath() if name is None else self._custom_checkpoint_dirpath(name)
            os.makedirs(folder.with_name(SAVING + folder.name))
        folder = ddp_broadcast(folder, src=0)
        aside = folder.with_name(SAVING + folder.name)
        try:
            for recoverable, obj in self.recoverables.items():
                save = self.custom_save_hooks.get(recoverable) or get_default_hook(obj, DEFAULT_SAVE_HOOKS)
                if save is None:
                    raise RuntimeError(
                        f"Don't know how to save {type(obj)}. Register a default hook or add a custom hook for it."
                    )
                save(obj, aside / (recoverable + PARAMFILE_EXT))
            ddp_barrier()  # some savers write on all processes
            if if_main_process():
                meta = self._save_checkpoint_metafile(aside / METAFNAME, meta, end_of_epoch)
                _flush(aside)
        except BaseException:
            if if_main_process():
                shutil.rmtree(aside, ignore_errors=True)
            raise
        if not if_main_process():
            ddp_barrier()
            return None
        replaced = folder.with_name(REPLACED + folder.name)
        if folder.exists():
            os.rename(folder, replaced)
        os.rename(aside, folder)
        _flush_names(self.checkpoints_dir)
        shutil.rmtree(replaced, ignore_errors=True)
        ddp_barrier()
        logger.log(verbosity, f"Saved an {'end-of-epoch' if end_of_epoch else 'intra-epoch'} checkpoint in {folder}")
        return Checkpoint(folder, meta, {name: folder / (name + PARAMFILE_EXT) for name in self.recoverables})

    def save_and_keep_only(
        self,
        meta={},  # noqa: B006
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
        """Save a checkpoint, then delete all but the best.

        Upstream's added a key to its own default list at each call, so that each
        save took longer than the one before.

        Arguments
        ---------
        meta, end_of_epoch, name : object
            See ``save_checkpoint``.
        num_to_keep : int
            How many to keep, for each of the keys.
        keep_recent : bool
            Whether to keep the most recent ones too.
        importance_keys : list of callable
            Each gives a value for a Checkpoint, of which the highest are kept.
        max_keys, min_keys : list of str
            Keys of the meta, of which the highest or lowest values are kept.
        ckpt_predicate : callable
            Says of a Checkpoint whether it may be deleted.
        verbosity : int
            The logging level at which all this is said.
        """
        self._upstream_save_and_keep_only(
            meta,
            end_of_epoch,
            name,
            num_to_keep,
            keep_recent,
            list(importance_keys),
            max_keys,
            min_keys,
            ckpt_predicate,
            verbosity,
        )

    def find_checkpoints(
        self,
        importance_key=None,
        max_key=None,
        min_key=None,
        ckpt_predicate=None,
        max_num_checkpoints=None,
    ):
        """Rank the checkpoints, best first.

        Upstream's sorted by keys that may be nan, which compares with nothing,
        so the order was arbitrary and a nan could come out best. Here nan ranks
        last, whichever way the key counts.

        Arguments
        ---------
        importance_key : callable
            Gives a value for a Checkpoint; the highest is the best. By default
            the time of saving.
        max_key, min_key : str
            A key of the meta, of which the highest or lowest value is the best;
            checkpoints without it are left out.
        ckpt_predicate : callable
            Says of a Checkpoint whether to consider it.
        max_num_checkpoints : int
            How many to return at most; all by default.

        Returns
        -------
        list of Checkpoint
            Of equal ones the newest first.

        Raises
        ------
        ValueError
            If ``importance_key`` is given together with another key.

        Example
        -------
        >>> checkpointer = Checkpointer(getfixture("tmpdir"))
        >>> for loss in (2.0, float("nan"), 1.0):
        ...     _ = checkpointer.save_checkpoint(meta={"loss": loss})
        >>> [checkpoint.meta["loss"] for checkpoint in checkpointer.find_checkpoints(min_key="loss")]
        [1.0, 2.0, nan]
        """
        if importance_key and (max_key or min_key):
            raise ValueError("Must specify only one of 'importance_key', 'max_key', and 'min_key'.")
        key = max_key or min_key

        def rank(checkpoint):
            if key:
                value = checkpoint.meta[key] if max_key else -checkpoint.meta[key]
            else:
                value = (importance_key or ckpt_recency)(checkpoint)
            return (False,) if _is_nan(value) else (True, value)

        found = [c for c in self.list_checkpoints() if not key or key in c.meta]
        found = sorted(filter(ckpt_predicate, found), key=ckpt_recency, reverse=True)
        return sorted(found, key=rank, reverse=True)[:max_num_checkpoints]

    def recover_if_possible(self, importance_key=None, max_key=None, min_key=None, ckpt_predicate=None):
        """Load the best checkpoint that can be read, if there is any checkpoint.

        Upstream's loaded the best one whatever its state, object by object, and
        died in the middle of it if a file was damaged. Here the files are read
        before any object is touched, and a damaged checkpoint is passed over
        with a warning. The main process decides for all.

        Arguments
        ---------
        importance_key, max_key, min_key, ckpt_predicate : object
            What makes a checkpoint the best, see ``find_checkpoints``.

        Returns
        -------
        Checkpoint
            The one that was loaded; None if there is none.

        Raises
        ------
        RuntimeError
            If there are checkpoints and none can be read.
        """
        choice = self._choose(importance_key, max_key, min_key, ckpt_predicate) if if_main_process() else None
        chosen, problem = ddp_broadcast(choice, src=0)
        if problem is not None:
            raise problem
        if chosen is None:
            logger.info("Would load a checkpoint here, but none found yet.")
        else:
            self.load_checkpoint(chosen)
        return chosen

    def _choose(self, *keys):
        """Find the best checkpoint that can be read; returns it, and what all processes are to raise instead."""
        try:
            found = self.find_checkpoints(*keys)
        except Exception as error:
            return None, error
        damaged = 0
        for checkpoint in found:
            paths = {name: checkpoint.paramfiles.get(name) for name in self.recoverables}
            damage = [f"{path} ({reason})" for path in paths.values() if path and (reason := _damage(path))]
            # What an older one has is lost from this one; what none has was not saved yet, and is for the loaders to judge.
            older = [other.paramfiles for other in found if other.meta["unixtime"] < checkpoint.meta["unixtime"]]
            lacking = sorted(name for name, path in paths.items() if self._lacks(name, path))
            lost = [name for name in lacking if any(name in files and not self._lacks(name, files[name]) for files in older)]
            if not damage and not lost:
                return checkpoint, None
            damaged += 1
            said = f"it cannot be read: {', '.join(damage)}" if damage else f"absent or empty is its {', '.join(lost)}"
            logger.warning(f"Passing over {checkpoint.path}: {said}.")
        unlisted = len(self._list_checkpoint_dirs()) - len(self.list_checkpoints())
        if damaged + unlisted:
            return None, RuntimeError(
                f"None of the {damaged + unlisted} checkpoints in {self.checkpoints_dir} can be read, see the warnings above: "
                "restore one of them, or remove them all to start afresh."
            )
        return None, None

    def _lacks(self, name, path):
        """Tell whether a recoverable's file is absent and must not be, or holds nothing."""
        if path is None:
            tolerated = self.allow_partial_load or "dataloader" in name or self.optional_recoverables.get(name)
            return not tolerated
        return path.is_file() and path.stat().st_size == 0

    @staticmethod
    @main_process_only
    def _delete_checkpoint(checkpoint, verbosity=logging.INFO):
        # Upstream's could be killed in the middle and leave half a checkpoint under its name.
        if not Checkpointer._is_checkpoint_dir(checkpoint.path):
            raise RuntimeError("Checkpoint does not appear valid for deletion.")
        aside = checkpoint.path.with_name(DELETING + checkpoint.path.name)
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(checkpoint.path, aside)
        shutil.rmtree(aside)
        logger.log(verbosity, f"Deleted checkpoint in {checkpoint.path}")

    def _tidy(self):
        """Remove what a killed run left: half of a new checkpoint or of a deleted one."""
        self._restore()
        for path in self.checkpoints_dir.iterdir():
            if path.name.startswith((SAVING + CKPT_PREFIX, DELETING + CKPT_PREFIX, REPLACED + CKPT_PREFIX)):
                shutil.rmtree(path, ignore_errors=True)

    def _restore(self):
        """Put a checkpoint back that was to be replaced by one of its name when the run was killed."""
        for path in self.checkpoints_dir.glob(f"{REPLACED}{CKPT_PREFIX}*"):
            folder = path.with_name(path.name.removeprefix(REPLACED))
            if not folder.exists():
                os.rename(path, folder)

    def _list_checkpoint_dirs(self):
        # A kill between two renames hides a checkpoint from upstream's.
        if if_main_process():
            self._restore()
        return self._upstream__list_checkpoint_dirs()

    @staticmethod
    def _construct_checkpoint_objects(checkpoint_dirs):
        # Upstream's died of one meta file that cannot be read, whichever checkpoint was wanted.
        checkpoints = []
        for folder in checkpoint_dirs:
            try:
                (checkpoint,) = Checkpointer._upstream__construct_checkpoint_objects([folder])
                if not isinstance(checkpoint.meta, dict) or not {"unixtime", "end-of-epoch"} <= checkpoint.meta.keys():
                    raise ValueError("it holds no unixtime or no end-of-epoch")
            except (OSError, ValueError, yaml.YAMLError) as error:
                _warn_once(f"Passing over {folder}: {METAFNAME} cannot be read: {error}")
            else:
                checkpoints.append(checkpoint)
        return checkpoints
