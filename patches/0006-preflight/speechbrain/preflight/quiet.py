"""Keeps what the Brain's hooks do from leaving traces: files, logs, output, and from taking too long."""

import builtins
import io
import logging
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import threading
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress

import numpy as np
import soundfile
import torch
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.train_logger import FileTrainLogger, TrainLogger

IDLE = ("save_checkpoint", "save_and_keep_only", "delete_checkpoints")  # methods of a Checkpointer
# Functions that change files without Python's open().
CHANGES = {
    os: ("remove", "unlink", "rmdir", "rename", "replace", "symlink", "link"),
    shutil: ("rmtree", "move", "copy", "copy2", "copyfile", "copytree"),
    soundfile: ("write",),
    torch: ("save",),
    Checkpointer: IDLE[:2],
}
HELD = []  # not empty while limited() must not interrupt


class TimeUp(BaseException):
    """Something takes too long; a BaseException, so that a script's ``except Exception`` cannot catch it."""


@contextmanager
def replaced(owner, name, value):
    """Replace an attribute while this context lasts."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield before
    finally:
        setattr(owner, name, before)


def noted(owner, name, note):
    """Replace a function while this context lasts: ``note`` gets the arguments of each call first."""
    real = getattr(owner, name)

    def noting(*args, **kwargs):
        note(*args, **kwargs)
        return real(*args, **kwargs)

    return replaced(owner, name, noting)


def seed_all(seed):
    """Seed Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_state():
    """Return a value that is another one after a random number was drawn."""
    _, keys, *others = np.random.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return random.getstate(), keys.tobytes(), others, [state.tolist() for state in (torch.get_rng_state(), *cuda)]


def _loggers(cls):
    """The train loggers that write in another way than with ``open``."""
    return [one for each in cls.__subclasses__() if each is not FileTrainLogger for one in (each, *_loggers(each))]


@contextmanager
def writes_nothing(writes):
    """Leave files and logs as they are, and print nothing; the list gets what would be written.

    What ``open`` opens for writing is a file in a temporary folder, which can also be read. Other functions do nothing.
    """
    copies, made, level = {}, [], logging.root.manager.disable
    real_open, real_mkdir, real_rmdir = builtins.open, os.mkdir, os.rmdir

    def opening(file, mode="r", *args, **kwargs):
        if isinstance(file, (str, os.PathLike)):
            path = os.path.abspath(file)
            if set(mode) & set("wax+") and path != os.devnull and path not in copies:
                copy = os.path.join(folder, str(len(copies)))
                if "w" not in mode and os.path.exists(path):
                    with real_open(path, "rb") as old, real_open(copy, "wb") as new:
                        shutil.copyfileobj(old, new)
                copies[path] = copy
                writes.append(path)
            file = copies.get(path, file)
        return real_open(file, mode, *args, **kwargs)

    def making(path, *args, **kwargs):
        real_mkdir(path, *args, **kwargs)
        made.append(path)

    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        torchaudio = [sys.modules["torchaudio"]] if "torchaudio" in sys.modules else []
        changes = {**CHANGES, **dict.fromkeys(_loggers(TrainLogger), ("log_stats",)), **dict.fromkeys(torchaudio, ("save",))}
        own = getattr(pathlib, "_normal_accessor", None)  # Python 3.10's pathlib calls its own references, and no remove()
        changes |= {own: CHANGES[os][1:]} if own else {}
        for owner, name in ((owner, name) for owner, names in changes.items() for name in names):
            stack.enter_context(replaced(owner, name, lambda *args, _name=name, **kwargs: writes.append(_name)))
        for owner in filter(None, (builtins, io, own)):
            stack.enter_context(replaced(owner, "open", opening))
        for owner in filter(None, (os, own)):
            stack.enter_context(replaced(owner, "mkdir", making))
        stack.enter_context(redirect_stdout(io.StringIO()))
        logging.disable()
        try:
            yield
        finally:
            logging.disable(level)
            for path in reversed(made):
                with suppress(OSError):
                    real_rmdir(path)


@contextmanager
def limited(seconds):
    """Raise :class:`TimeUp` when this context lasts longer than some seconds; only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_):
        if HELD:  # try again soon
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            return
        raise TimeUp(f"it takes more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds)  # of the script, for which this time does not count
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *timer)


@contextmanager
def uninterrupted():
    """Keep :func:`limited` from raising TimeUp while this context lasts, because other processes wait for its end."""
    HELD.append(True)
    try:
        yield
    finally:
        HELD.pop()


@contextmanager
def alone(brain):
    """Stop the processes of torchrun from waiting for one another, so that none waits for one that has failed."""
    wrapped = [m for m in brain.modules.values() if isinstance(m, torch.nn.parallel.DistributedDataParallel)]
    with ExitStack() as stack:
        if torch.distributed.is_available():
            stack.enter_context(replaced(torch.distributed, "is_initialized", lambda: False))
        for module in wrapped:
            stack.enter_context(replaced(module, "require_backward_grad_sync", False))
            stack.enter_context(replaced(module, "require_forward_param_sync", False))
        yield
