"""Does what ``fit`` does after the first epoch: the end of training, one batch of validation, and the end of validation."""

import inspect
import math
import random
import re
import statistics
import sys
import traceback
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from speechbrain.augment.time_domain import Resample
from speechbrain.core import Brain, Stage
from speechbrain.preflight.attempts import Log, failure
from speechbrain.preflight.isolate import can_fork, in_child, put_back
from speechbrain.preflight.observe.first_step import alone
from speechbrain.preflight.observe.given import parts
from speechbrain.preflight.observe.loads import replaced
from speechbrain.preflight.quiet import TimeUp, limited, writes_nothing
from speechbrain.utils import checkpoints
from speechbrain.utils.checkpoints import Checkpointer
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

SECONDS = 60.0  # how long all of it may take
AGAIN = 10.0  # a batch that takes longer than this is not evaluated again
DROPOUTS = {getattr(torch.nn.functional, name) for name in dir(torch.nn.functional) if name.endswith("dropout")}
TORCH = (torch.overrides.__file__, torch.nn.functional.__file__)
SAVER = inspect.signature(Checkpointer.save_and_keep_only)
# What metrics say that cannot work on the few items of one batch, or on the outputs of a model that was not trained.
FEW = re.compile(r"empty|at least|zero|one class|too few|not enough|no utterances|(list|string|tuple) index", re.IGNORECASE)


@dataclass(frozen=True)
class FirstValid:
    """The first validation batch.

    Attributes
    ----------
    losses : tuple of float
        The losses of the same batch under seed 1, seed 2, and seed 1 again; the third only if the others differ.
    causes : tuple of str
        The modules and lines of code that drop or augment something.
    chosen : tuple of str
        The keys of the checkpoint's meta that choose the best one, and whose value is the validation loss.
    """

    losses: tuple = ()
    causes: tuple = ()
    chosen: tuple = ()


def first_valid(given, start, step, log):
    """Validate on one batch, in a forked process if possible; else everything is restored.

    Arguments
    ---------
    given : Given
        What ``fit`` is given.
    start : Start
        What happened before the first step.
    step : FirstStep
        The first step.
    log : speechbrain.preflight.attempts.Log
        Gets what fails.

    Returns
    -------
    FirstValid
    """
    finite = all(math.isfinite(backward.value) for backward in step.backwards)
    usual = type(given.brain)._fit_valid is Brain._fit_valid
    valid, findings, said = FirstValid(), [], []
    if step.taken and finite and usual and start.valid_loader is not None:
        valid, findings, said = _in_time(given.brain, lambda: _look(given, start, step, Log(log.ranks)))
    log.findings += findings
    log.said += said
    log.ranks.agree(True)  # wait for the others, which may take longer
    return valid


def _in_time(brain, look):
    try:
        if can_fork(brain) and not torch.cuda.is_available():  # where it is, a forked process cannot go backward
            return in_child(look, SECONDS)
        with put_back(brain), limited(SECONDS):
            return look()
    except (TimeUp, TimeoutError, ChildProcessError) as error:
        return FirstValid(), [], [f"The first validation was not checked: {error}."]


def _look(given, start, step, log):
    valid = log.guarded("the first validation", _validate, given, start, step, log)
    return valid or FirstValid(), log.findings, log.said


def _validate(given, start, step, log):
    brain, epoch, writes, choosers = given.brain, start.epoch, [], []

    def tried(function, *args):
        """Whether a function succeeded, and what it returned; a failure that is certain becomes a finding."""
        try:
            return True, function(*args)
        except Exception as error:
            if _certain(error, writes or choosers):
                log.findings.append(failure("first-validation-failed", error))
            return False, None

    def evaluate(seed):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        brain.on_stage_start(Stage.VALID, epoch)
        brain.modules.eval()
        brain.step = 1
        with torch.no_grad(), mode:
            return float(brain.update_average(brain.evaluate_batch(batch, stage=Stage.VALID), 0.0))

    def end_training():
        if type(brain).on_fit_batch_end is not Brain.on_fit_batch_end and not step.custom:
            brain.fit_batch(start.batch)  # the first step was left before it came to on_fit_batch_end
        brain.avg_train_loss = step.backwards[0].value if step.backwards else 0.0
        brain.on_stage_end(Stage.TRAIN, brain.avg_train_loss, epoch)

    _, batch = tried(lambda: next(iter(start.valid_loader), None))  # here, because workers make files
    if batch is None:
        return None
    losses, mode = [], _TrainingMode()
    with alone(brain), writes_nothing(writes), _choosers(choosers):
        ended = type(brain)._fit_train is Brain._fit_train and tried(end_training)[0]
        began = perf_counter()
        evaluated, loss = (False, None) if log.findings else tried(evaluate, 1)
        seconds = perf_counter() - began
        if evaluated:
            losses.append(loss)
            if ended:
                with torch.no_grad():
                    brain.step = 0
                    tried(brain.on_stage_end, Stage.VALID, loss, epoch)
        with suppress(Exception):  # which a run would not meet
            while seconds < AGAIN and 0 < len(losses) < 3 and (len(losses) == 1 or not same(*losses)):
                losses.append(evaluate(len(losses) % 2 + 1))
    chosen = {key for meta, keys in choosers for key in keys if losses and meta.get(key) is losses[0]}
    return FirstValid(tuple(losses), mode.causes(brain), tuple(sorted(chosen)))


def same(one, other):
    """Return whether two losses are equal up to rounding.

    Arguments
    ---------
    one, other : float
        The losses.

    Returns
    -------
    bool
    """
    return math.isclose(one, other, rel_tol=1e-3, abs_tol=1e-6)


def _certain(error, writes):
    """Whether an exception would also end a real run, which has more items, a trained model and files."""
    frames = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    few = isinstance(error, (ZeroDivisionError, statistics.StatisticsError)) or FEW.search(str(error))
    # Nothing was written, and what a function that writes returns is None.
    unreal = writes and (isinstance(error, OSError) or "NoneType" in str(error))
    return not few and not unreal and checkpoints.__file__ not in frames


@contextmanager
def _choosers(found):
    """Note the meta of checkpoints, and the keys that choose the best of them; none is saved."""

    def note(*args, **kwargs):
        given = SAVER.bind(*args, **kwargs).arguments
        found.append((given.get("meta", {}), [*(given.get("min_keys") or ()), *(given.get("max_keys") or ())]))

    with replaced(Checkpointer, "save_and_keep_only", note):
        yield


class _TrainingMode(TorchFunctionMode):
    """Notes dropouts and augmentations that are active."""

    def __init__(self):
        super().__init__()
        self.modules, self.lines = {}, {}

    def __enter__(self):
        self.hook = register_module_forward_pre_hook(self.called)
        return super().__enter__()

    def __exit__(self, *raised):
        self.hook.remove()
        return super().__exit__(*raised)

    def called(self, module, arguments):
        share = module.p if isinstance(module, _DropoutNd) else getattr(module, "dropout", 0)
        drops = module.training and isinstance(share, float) and share > 0
        augments = type(module).__module__.startswith("speechbrain.augment") and not isinstance(module, Resample)
        if drops or augments:
            self.modules[id(module)] = module

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in DROPOUTS:
            given = inspect.signature(func).bind(*args, **(kwargs or {}))
            given.apply_defaults()
            caller = sys._getframe(1)
            while caller.f_code.co_filename in TORCH:
                caller = caller.f_back
            if given.arguments["training"] and given.arguments["p"] > 0 and "torch/nn/modules" not in caller.f_code.co_filename:
                self.lines[f"{caller.f_code.co_filename}:{caller.f_lineno}"] = None
        return func(*args, **(kwargs or {}))

    def causes(self, brain):
        names = [name for name, module in parts(brain) if id(module) in self.modules]
        return (*(names or {type(module).__name__ for module in self.modules.values()}), *self.lines)
