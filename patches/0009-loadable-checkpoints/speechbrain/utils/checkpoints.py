"""What a checkpoint saves can be loaded again."""

import contextlib
import inspect
import pickle

import numpy as np
import torch
import yaml

from speechbrain.utils.checkpoints import (
    DEFAULT_LOAD_HOOKS,
    DEFAULT_SAVE_HOOKS,
    DEFAULT_TRANSFER_HOOKS,
    PARAMFILE_EXT,
    _MetaLoader,  # of patch 0002
    _plain,  # of patch 0002
    _upstream_get_default_hook,
    register_checkpoint_hooks,
)


def _allow_numpy_numbers():
    """Lets torch.load read NumPy's numbers, which run no code."""
    if not hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint"):
        return contextlib.nullcontext()  # Such a torch.load reads everything
    scalar = np.float64(0).__reduce__()[0]
    return torch.serialization.safe_globals(
        [
            (scalar, "numpy.core.multiarray.scalar"),
            (scalar, "numpy._core.multiarray.scalar"),
            np.dtype,
            *{type(np.dtype(code)) for code in "?bhilqBHILQefdg"},
        ]
    )


def _python_numbers(state):
    """Replaces NumPy's numbers in a loaded state by Python's."""
    if isinstance(state, np.generic):
        return state.item()
    if isinstance(state, dict):
        state.update((key, _python_numbers(state[key])) for key in state)
    elif isinstance(state, list):
        state[:] = map(_python_numbers, state)
    elif type(state) is tuple:
        state = tuple(map(_python_numbers, state))
    return state


def _make_loadable(path):
    """Replaces the numbers of NumPy and torch in a file that was just saved by
    Python's. Returns what can still not be loaded, None if all can."""
    data = path.read_bytes() if path.stat().st_size < 1e6 else b""
    if b"!!python/" in data:
        try:
            state = yaml.load(data, Loader=_MetaLoader)
            path.write_text(yaml.dump(_plain(state)), encoding="utf-8")
        except yaml.constructor.ConstructorError as error:
            return error.problem
        except (yaml.YAMLError, UnicodeDecodeError):
            pass  # Not YAML
    try:
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (AttributeError, ValueError, RuntimeError, pickle.UnpicklingError):
        return None
    if not unsafe:
        return None
    try:
        with _allow_numpy_numbers():
            state = torch.load(path, map_location="cpu", weights_only=True)
        torch.save(_python_numbers(state), path)
    except pickle.UnpicklingError:
        try:
            torch.load(path, map_location="cpu")
        except pickle.UnpicklingError:
            return f"torch.load refuses {', '.join(sorted(unsafe))} in its file"
    return None


def get_default_hook(obj, default_hooks):
    hooks = (DEFAULT_SAVE_HOOKS, DEFAULT_LOAD_HOOKS, DEFAULT_TRANSFER_HOOKS)
    for cls in type(obj).__mro__:
        if any(cls in known for known in hooks):
            continue
        # A class may have marked methods, but not be registered
        if any(
            hasattr(method, f"_speechbrain_{mark}")
            for method in filter(inspect.isfunction, vars(cls).values())
            for mark in ("saver", "loader", "transfer")
        ):
            register_checkpoint_hooks(cls)
    return _upstream_get_default_hook(obj, default_hooks)


class Checkpointer:
    def _call_load_hooks(self, checkpoint):
        with _allow_numpy_numbers():
            self._upstream__call_load_hooks(checkpoint)

    def _save_checkpoint_metafile(
        self, fpath, meta_to_include={}, end_of_epoch=True
    ):
        for name, obj in self.recoverables.items():
            problem = self._why_not_loadable(name, obj, fpath.parent)
            if problem:
                raise RuntimeError(
                    f"{name} ({type(obj).__name__}) can be saved, but not "
                    f"loaded again: {problem}, or pass a custom_load_hook to "
                    "Checkpointer.add_recoverable()."
                )
        return self._upstream__save_checkpoint_metafile(
            fpath, meta_to_include, end_of_epoch
        )

    def _why_not_loadable(self, name, obj, folder):
        """Returns why a recoverable cannot be loaded from the file that was
        just saved, and what to do."""
        load = self.custom_load_hooks.get(name)
        load = load or get_default_hook(obj, DEFAULT_LOAD_HOOKS)
        path = folder / (name + PARAMFILE_EXT)
        if load is None:
            return "no loader is known. Mark one with mark_as_loader"
        # Only of SpeechBrain's own loaders is known how they read a file
        if (
            not path.is_file()
            or not str(getattr(load, "__module__", "")).startswith(
                "speechbrain."
            )
            or not (problem := _make_loadable(path))
        ):
            return None
        return (
            f"{problem}. Save numbers, strings, tensors, and lists or dicts of "
            "these"
        )
