"""Files that are absent or do not fit are reported with a remedy."""

import contextvars
import copy
import filecmp
import os
import pathlib

from speechbrain.utils.checkpoints import (
    DEFAULT_TRANSFER_HOOKS,
    PARAMFILE_EXT,
    _mismatches,
    get_default_hook,
)
from speechbrain.utils.fetching import (
    FetchConfig,
    FetchFrom,
    LocalStrategy,
    guess_source,
)
from speechbrain.utils.parameter_transfer import logger

# Whether a label encoder must have labels once it is loaded. Not at inference,
# since embeddings need none.
LABELS_NEEDED = contextvars.ContextVar("LABELS_NEEDED", default=True)


class _NoLabels(dict):
    """The labels of an encoder whose file is absent or empty."""

    def __missing__(self, index):
        raise ValueError(self.reason)


def _local_file(source, filename):
    """Returns the file that is meant, None if it is on the hub or the web."""
    if source is None:
        return None
    fetch_from, folder = guess_source(source)
    file = pathlib.Path(folder, filename).absolute()
    if fetch_from == FetchFrom.HUGGING_FACE:
        # No id on the hub starts with a dot, or has more than one slash
        is_path = os.path.isabs(folder) or folder.startswith(".")
        return file if is_path or folder.count("/") > 1 else None
    return file if fetch_from == FetchFrom.LOCAL else None


class Pretrainer:
    def set_collect_in(self, path):
        if path is not None:
            path = os.path.expanduser(path)
        self._upstream_set_collect_in(path)

    @staticmethod
    def split_path(path):
        if isinstance(path, os.PathLike):
            path = os.fspath(path)
        return Pretrainer._upstream_split_path(path)

    def collect_files(
        self,
        default_source=None,
        local_strategy=LocalStrategy.SYMLINK,
        fetch_config=FetchConfig(),
    ):
        asked = dict(self.paths)
        own, absent = {}, {}
        present = copy.copy(self)
        present.loadables = dict(self.loadables)
        for name, obj in self.loadables.items():
            if not self.is_loadable(name):
                continue
            source, filename = default_source, name + PARAMFILE_EXT
            kept = self.collect_in and self.collect_in / filename
            if name in asked:
                source, filename = self.split_path(asked[name])
                own[name] = _local_file(default_source, filename)
            file = _local_file(source, filename)
            if file is None or file.exists() or (kept and kept.exists()):
                continue
            if hasattr(obj, "lab2ind"):
                # Left to `_call_load_hooks`: it is not always needed
                del present.loadables[name]
                self.paths[name] = str(file)
                self.is_local.append(name)
            elif name not in self.custom_hooks and get_default_hook(
                obj, DEFAULT_TRANSFER_HOOKS
            ):
                absent[name] = file
        if absent:
            remedy = "Correct the source, or the `paths` of the pretrainer."
            found = [n for n in absent if own.get(n) and own[n].is_file()]
            if found:
                remedy = (
                    f"The source has {', '.join(str(own[n]) for n in found)}. "
                    "A name without a folder is looked up in the current "
                    f"folder: remove {', '.join(found)} from the `paths` of "
                    "the pretrainer."
                )
            raise FileNotFoundError(
                "The pretrainer needs these files, which are absent: "
                f"{', '.join(map(str, absent.values()))}. {remedy}"
            )
        paths = present._upstream_collect_files(
            default_source, local_strategy, fetch_config
        )
        for name, path in paths.items():
            file = own.get(name)
            if file and file.is_file() and path.is_file():
                if not filecmp.cmp(file, path, shallow=False):
                    logger.warning(
                        f"{name} is loaded from {asked[name]}, as the `paths` "
                        "of the pretrainer say, but the source has another "
                        f"file of that name, {file}: remove {name} from "
                        "`paths` to load it."
                    )
        return paths

    def _call_load_hooks(self, paramfiles):
        empty = []
        for name, path in paramfiles.items():
            obj = self.loadables[name]
            one = copy.copy(self)
            one.loadables = {name: obj}
            # An encoder is recognized by an attribute, since importing its
            # module would be a circular import
            if hasattr(obj, "lab2ind") and (
                not os.path.exists(path) or os.path.getsize(path) == 0
            ):
                empty.append(name)
                continue
            try:
                one._upstream__call_load_hooks(paramfiles)
            except RuntimeError as error:
                if "size mismatch" not in str(error):
                    raise
                raise RuntimeError(
                    f"{path} does not fit the loadable {name}: "
                    f"{_mismatches(error)}. To train it from scratch, leave "
                    f"{name} out of the loadables of the pretrainer."
                ) from error
            has_own_hook = name in self.custom_hooks
            if not has_own_hook and not getattr(obj, "lab2ind", True):
                empty.append(name)
        for name in empty:
            reason = (
                f"The label encoder {name} has no labels: {paramfiles[name]} "
                "is absent or empty. Restore it, or remove the encoder from "
                "the loadables of the pretrainer."
            )
            encoder = self.loadables[name]
            # A text encoder is needed to transcribe
            if LABELS_NEEDED.get() or hasattr(encoder, "add_bos_eos"):
                raise ValueError(reason)
            logger.warning(reason)
            encoder.ind2lab = _NoLabels(encoder.ind2lab)
            encoder.ind2lab.reason = reason
