"""Runs a function so that the Brain stays the same: in another process, or by restoring everything afterwards."""

import collections
import ctypes
import gc
import os
import pickle
import random
import signal
import sys
import threading
import traceback
import warnings
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from types import SimpleNamespace

import numpy as np
import torch
from speechbrain.core import Brain
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset, Sampler

# The packages whose threads a step does not wait for.
OTHERS = {"tqdm", "multiprocessing", "speechbrain", "IPython", "ipykernel", "zmq", "debugpy", "_pydevd_bundle"}


def can_fork(brain):
    """Return whether a Brain can run in a forked process: that can use no GPU, and none of the other threads of this one."""
    threads = {*threading.enumerate()} - {threading.current_thread(), threading.main_thread()}
    packages = {str((getattr(one, "_target", None) or type(one)).__module__).partition(".")[0] for one in threads}
    alone = packages <= OTHERS and not (torch.distributed.is_available() and torch.distributed.is_initialized())
    return alone and torch.device(brain.device).type == "cpu" and not torch.cuda.is_available() and hasattr(os, "fork")


def end_with_parent():
    """Let the system end this process when its parent ends; only on Linux."""
    with suppress(Exception):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def in_child(function, seconds=None):
    """Run a function in a forked process; a ChildProcessError if it ends without a result, a TimeoutError after ``seconds``."""
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        # Since Python 3.12, fork() warns where there are threads. The child uses none of them.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        status = 1
        try:
            end_with_parent()
            gc.freeze()  # what the parent no longer uses, such as an iterator with workers, must not be collected here
            os.close(reader)
            torch.set_num_threads(1)  # with more, the child waits forever for threads that only its parent has
            with os.fdopen(writer, "wb") as pipe:
                pickle.dump(function(), pipe)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe, suppress(EOFError):
        if not wait([pipe], seconds):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise TimeoutError(f"it takes more than {seconds:g} s")
        answer = pickle.load(pipe)  # not to the end of the pipe: DataLoader workers may keep it open for longer
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        raise ChildProcessError(f"the preflight's process ended with status {status}" + f" (signal {-status})" * (status < 0))
    return answer


# Objects of these types have their attributes saved, as have all SpeechBrain objects and the checkpointer's recoverables.
KEPT = (Brain, SimpleNamespace, torch.nn.Module, torch.optim.Optimizer, LRScheduler, Sampler, DataLoader)


def _contents(brain, *others):
    """Save objects and everything they refer to: by id, the object, the function that restores it, and its content."""
    todo, found = [brain, *others], {}
    named = {id(item) for item in [brain.scaler, *getattr(brain.checkpointer, "recoverables", {}).values()]}
    while todo:
        item = todo.pop()
        if id(item) in found or isinstance(item, Dataset):  # a step does not change it, and it may be large
            continue
        if isinstance(item, (list, collections.deque)):
            found[id(item)] = item, lambda item, content: (item.clear(), item.extend(content)), list(item)
            todo += item
        elif isinstance(item, (dict, set)):
            found[id(item)] = item, lambda item, content: (item.clear(), item.update(content)), item.copy()
            todo += item.values() if isinstance(item, dict) else []
        elif isinstance(item, tuple):
            todo += item
        elif isinstance(item, torch.Tensor) and torch.nn.parameter.is_lazy(item):
            found[id(item)] = item, _make_lazy, (type(item), item.data)
        elif isinstance(item, torch.Tensor):
            grad = item.grad if item.is_leaf else None
            found[id(item)] = item, _put_tensor_back, (item.detach().to("cpu", copy=True), item.requires_grad, grad)
            todo += [] if grad is None else [grad]
        elif isinstance(item, torch.Generator):
            found[id(item)] = item, torch.Generator.set_state, item.get_state()
        elif isinstance(item, KEPT) or id(item) in named or type(item).__module__.startswith("speechbrain."):
            todo.append(getattr(item, "__dict__", None))
            if isinstance(item, torch.nn.modules.lazy.LazyModuleMixin):
                found[id(item)] = item, lambda item, kind: setattr(item, "__class__", kind), type(item)
            if isinstance(item, torch.nn.Module):  # a scripted module does not have them in its __dict__
                todo += [*item.parameters(recurse=False), *item.buffers(recurse=False)]
    return found


def _put_tensor_back(tensor, content):
    value, requires_grad, grad = content
    if tensor.shape != value.shape:  # one that was resized
        tensor.data = value.to(tensor.device)
    else:
        tensor.copy_(value)
    if tensor.is_leaf:
        tensor.requires_grad_(requires_grad)
        tensor.grad = grad


def _make_lazy(parameter, content):
    kind, empty = content
    if type(parameter) is not kind:  # the step initialized it
        parameter.data, parameter.grad = empty, None
        parameter.__class__ = kind


@contextmanager
def put_back(brain, *others):
    """Restore what a run up to the first step changes.

    This covers the Brain's attributes, its modules (parameters, buffers, ``requires_grad``, gradients, training flags,
    wrappers), its optimizers, its hparams and its checkpointer's recoverables, all lists, dicts and tensors that these refer
    to, and the random states of Python, NumPy and torch. It does not cover what a hook or a dataset changes elsewhere.
    """
    contents = _contents(brain, *others)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        with torch.no_grad():
            for item, restore, content in contents.values():
                restore(item, content)
        for restore, state in zip((random.setstate, np.random.set_state, torch.set_rng_state), states):
            restore(state)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
