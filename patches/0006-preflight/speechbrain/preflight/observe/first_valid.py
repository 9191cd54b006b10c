"""Does what ``fit`` does after the first epoch: the end of training, one batch of validation, and the end of validation."""

import inspect
import linecache
import math
import random
import re
import statistics
import sys
import traceback
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from speechbrain.core import Brain, Stage
from speechbrain.nnet.schedulers import NewBobScheduler, ReduceLROnPlateau
from speechbrain.preflight.attempts import failure, is_own, shown
from speechbrain.preflight.observe.given import parts
from speechbrain.preflight.observe.resume import changed
from speechbrain.preflight.observe.sequences import Watched, watched_sequences
from speechbrain.preflight.quiet import alone, replaced, writes_nothing
from speechbrain.utils import checkpoints
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.epoch_loop import EpochCounterWithStopper
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

SECONDS = 60.0  # how long all of it may take
AGAIN = 5.0  # a batch that takes longer than this is not evaluated again
DROPOUTS = {getattr(torch.nn.functional, name) for name in dir(torch.nn.functional) if name.endswith("dropout")}
DRAWS = DROPOUTS | {torch.rand, torch.randn, torch.randint, torch.randperm, torch.rand_like, torch.randn_like}
HERE = (__file__, torch.overrides.__file__, torch.nn.functional.__file__)
TORCH = str(Path(torch.__file__).parent)
JUDGES = [  # here, because the preflight replaces one of them
    (owner, name, inspect.signature(getattr(owner, name)))
    for owner, name in (
        (Checkpointer, "save_and_keep_only"),
        (NewBobScheduler, "__call__"),
        (ReduceLROnPlateau, "__call__"),
        (EpochCounterWithStopper, "update_metric"),
    )
]
# What metrics say that cannot work on the few items of one batch, or on the outputs of a model that was not trained.
FEW = re.compile(r"empty|at least|zero|one class|too few|not enough|no utterances|(list|string|tuple) index", re.IGNORECASE)


@dataclass(frozen=True)
class FirstValid:
    """The first validation batch."""

    # The losses of the same batch under seed 1, seed 2, and seed 1 again; the third only if the others differ.
    losses: tuple = ()
    dropouts: tuple = ()  # the modules whose dropout is active, and the lines that call a function with active dropout
    augments: tuple = ()  # the lines that call an augmentation
    unfed: bool = False  # whether ``on_stage_end`` succeeded, but gave no metric to the epoch counter, which may stop
    changed: tuple = ()  # the names of what a checkpointer could save, and whose state has changed by the end
    # The calls that find out which value is best: the type, its ``direction`` (None without one), the place, the line of code,
    # and, of ``save_and_keep_only``, its arguments, in how many ways it ranks checkpoints, and which values are negative.
    judged: tuple = ()
    seconds: float = 0.0  # how long one evaluation took

    @property
    def random(self):
        """bool: Whether the loss depends on the seed, and on nothing else that changes."""
        return len(self.losses) == 3 and _same(self.losses[0], self.losses[2])


def _same(one, other):
    return math.isclose(one, other, rel_tol=1e-3, abs_tol=1e-6)


def first_valid(given, start, step, log):
    """Validate on one batch."""
    brain = given.brain
    finite = all(math.isfinite(backward.value) for backward in step.backwards)
    usual = all(getattr(type(brain), name) is getattr(Brain, name) for name in ("_fit_train", "_fit_valid"))
    usual = usual and not any(hasattr(module, "_orig_mod") for module in brain.modules.modules())  # whose compiler writes files
    if step.taken and finite and usual and start.valid_loader is not None:
        return log.apart("the first validation", brain, SECONDS, _validate, given, start, step) or FirstValid()
    log.ranks.agree(True)  # other processes may validate
    return FirstValid(changed=tuple(changed(start.resumed.states)))


def _validate(given, start, step, log):
    """Validate; in the order of ``fit``."""
    brain, epoch, writes, losses, drops, augments, modules = given.brain, start.epoch, [], [], {}, {}, set()
    judged = []

    def tried(function, *args):
        """Whether a function succeeded, and what it returned; a failure that is certain becomes a finding."""
        try:
            return True, function(*args)
        except Exception as error:
            if certain(error, writes):
                log.findings.append(failure("first-validation-failed", error))
            return False, None

    def watch():  # on a GPU, a label that is not a class would also make all later calls fail
        return nullcontext() if torch.device(brain.device).type == "cpu" else watched_sequences(brain, Watched())

    def evaluate(seed):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        brain.on_stage_start(Stage.VALID, epoch)
        brain.modules.eval()
        brain.step = 1
        with torch.no_grad(), _Draws(drops, augments), _hooked(modules), watch():
            loss = brain.evaluate_batch(batch, stage=Stage.VALID)
            average = brain.update_average(loss, 0.0)
            # Stock's average of NaN is 0
            losses.append(float(loss if torch.is_tensor(loss) and loss.numel() == 1 else average))

    def end_training():
        if type(brain).on_fit_batch_end is not Brain.on_fit_batch_end and not step.custom:
            brain.fit_batch(start.batch)  # the first step was left before it came to on_fit_batch_end
        brain.avg_train_loss = step.backwards[0].value if step.backwards else 0.0
        brain.on_stage_end(Stage.TRAIN, brain.avg_train_loss, epoch)
        brain.step = 0

    def end_validation():
        brain.step = 0
        with torch.no_grad():
            brain.on_stage_end(Stage.VALID, losses[0], epoch)

    def feed(*args, **kwargs):
        fed.append(args)
        return update_metric(*args, **kwargs)

    fed, update_metric, unfed = [], EpochCounterWithStopper.update_metric, False
    _, batch = tried(lambda: next(iter(start.valid_loader), None))  # here, because workers make files
    if batch is None:
        return FirstValid()
    with (
        alone(brain),
        writes_nothing(writes),
        replaced(EpochCounterWithStopper, "update_metric", feed),
        _noted(judged),
    ):
        ended, _ = tried(end_training)
        began = perf_counter()
        if not log.findings and tried(evaluate, 1)[0] and ended:
            unfed = tried(end_validation)[0] and not fed and type(given.epochs) is EpochCounterWithStopper
        seconds = perf_counter() - began
        again = bool(losses) and seconds < AGAIN
        with suppress(Exception):  # which a run would not meet
            while again and (len(losses) == 1 or (len(losses) == 2 and not _same(*losses))):
                evaluate(len(losses) % 2 + 1)
    dropouts = [name for name, module in parts(brain) if module in modules]
    after = tuple(changed(start.resumed.states))
    return FirstValid(tuple(losses), (*dropouts, *drops), tuple(augments), unfed, after, tuple(judged), seconds)


def certain(error, writes):
    """Whether an exception would also end a real run, which has more items, a trained model and files."""
    codes = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    few = isinstance(error, (ZeroDivisionError, statistics.StatisticsError)) or FEW.search(str(error))
    # Nothing was written, and what a function that writes returns is None.
    unreal = writes and (isinstance(error, OSError) or "NoneType" in str(error))
    # A trained model may not output what has no text.
    decodes = any("decode" in code.co_name.lower() and not is_own(code.co_filename) for code in codes)
    untrained = decodes and isinstance(error, LookupError)
    return not few and not unreal and not untrained and checkpoints.__file__ not in [code.co_filename for code in codes]


@contextmanager
def _hooked(modules):
    """Note the modules that are called while their dropout is active."""

    def note(module, arguments):
        share = getattr(module, "p" if isinstance(module, _DropoutNd) else "dropout", 0)
        if module.training and isinstance(share, float) and share > 0:
            modules.add(module)

    handle = register_module_forward_pre_hook(note)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _noted(judged):
    """Note the calls that find out which value is best."""

    def noting(function, signature):
        def note(judge, *args, **kwargs):
            frame, bound = sys._getframe(1), signature.bind(judge, *args, **kwargs)
            bound.apply_defaults()
            file, number = frame.f_code.co_filename, frame.f_lineno
            given, saved = bound.arguments, {}
            if "num_to_keep" in given:
                saved = {key: given[key] for key in ("max_keys", "min_keys", "num_to_keep")}
                keys = (given[key] or () for key in ("max_keys", "min_keys", "importance_keys"))
                saved["rankings"] = sum(map(len, keys)) + given["keep_recent"]
                numbers = {key: value for key, value in given["meta"].items() if isinstance(value, (int, float))}
                saved["negative"] = [key for key, value in numbers.items() if value < 0]
            how = type(judge).__name__, getattr(judge, "direction", None)
            judged.append((*how, f"{shown(file)}:{number}", linecache.getline(file, number), saved))
            return function(judge, *args, **kwargs)

        return note

    with ExitStack() as stack:
        for owner, name, signature in JUDGES:
            stack.enter_context(replaced(owner, name, noting(getattr(owner, name), signature)))
        yield


class _Draws(TorchFunctionMode):
    """Notes the lines that call a function with active dropout, or an augmentation."""

    def __init__(self, drops, augments):
        super().__init__()
        self.drops, self.augments = drops, augments

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in DRAWS:
            stack = [frame for frame in traceback.extract_stack() if frame.filename not in HERE]
            own = [f"{shown(frame.filename)}:{frame.lineno}" for frame in stack if is_own(frame.filename)]
            if func not in DROPOUTS and "augment" in Path(stack[-1].filename).parts:
                self.augments.update(dict.fromkeys(own[-1:]))
            elif func in DROPOUTS and not stack[-1].filename.startswith(TORCH) and _drops(func, args, kwargs or {}):
                self.drops.update(dict.fromkeys(own[-1:]))
        return func(*args, **(kwargs or {}))


def _drops(func, args, kwargs):
    given = inspect.signature(func).bind(*args, **kwargs)
    given.apply_defaults()
    return given.arguments["training"] and given.arguments["p"] > 0
