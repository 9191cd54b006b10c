"""Does what ``fit`` does after the first epoch: the end of training, one batch of validation, and the end of validation."""

import inspect
import linecache
import re
import sys
import traceback
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import StatisticsError
from time import perf_counter

import torch
from speechbrain.core import Brain, Stage
from speechbrain.nnet.schedulers import NewBobScheduler, ReduceLROnPlateau
from speechbrain.preflight.attempts import caller, chain, failure, is_own, shown
from speechbrain.preflight.observe.calls import watched_calls
from speechbrain.preflight.observe.first_step import statistics
from speechbrain.preflight.observe.given import hooked, is_compiled, parts
from speechbrain.preflight.observe.resume import begin_validation, changed, equal, same
from speechbrain.preflight.observe.start import rates_of
from speechbrain.preflight.quiet import alone, noted, random_state, replaced, writes_nothing
from speechbrain.preflight.ranks import Apart
from speechbrain.utils import checkpoints
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.epoch_loop import EpochCounterWithStopper
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode

SECONDS = 60.0  # how long all of it may take
AGAIN = 5.0  # a batch that takes longer than this is not evaluated again
DROPOUTS = {getattr(torch.nn.functional, name) for name in dir(torch.nn.functional) if name.endswith("dropout")}
DRAWS = DROPOUTS | {torch.rand, torch.randn, torch.randint, torch.randperm, torch.rand_like, torch.randn_like}
HERE = (__file__, torch.overrides.__file__, torch.nn.functional.__file__)
TORCH = str(Path(torch.__file__).parent)
SAVE = inspect.signature(Checkpointer.save_and_keep_only)  # here, because the preflight replaces it
JUDGES = {
    Checkpointer: "save_and_keep_only",
    NewBobScheduler: "__call__",
    ReduceLROnPlateau: "__call__",
    EpochCounterWithStopper: "update_metric",
}
# What metrics say that cannot work on the few items of one batch, or on the outputs of a model that was not trained.
FEW = re.compile(r"empty|at least|zero|one class|too few|not enough|no utterances|(list|string|tuple) index", re.IGNORECASE)


@dataclass(frozen=True)
class FirstValid:
    """The first validation batch."""

    # The losses of the same batch under seed 1, seed 2 if it draws random numbers, and seed 1 again if these two differ.
    losses: tuple = ()
    training: tuple = ()  # the modules that run in training mode, and have dropout or change their running statistics
    trains: str = ""  # the line that calls ``train()`` during the batch
    sampled: bool = False  # whether this is for dropout only, as to sample outputs
    dropouts: tuple = ()  # the lines that call a function with active dropout
    augments: tuple = ()  # the lines that call an augmentation
    unfed: bool = False  # whether ``on_stage_end`` succeeded, but gave no metric to the epoch counter, which may stop
    changed: tuple = ()  # the names of what a checkpointer could save, and whose state has changed by the end
    # The calls that find out which value is best: the type, its ``direction`` (None without one), the place, the line of code,
    # and, of ``save_and_keep_only``, its arguments, in how many ways it ranks checkpoints, and which values are negative.
    judged: tuple = ()
    rates: tuple = ()  # the learning rates at the end, and if all are 0, at the start of the next epoch
    apart: tuple = ()  # by rank, where its process waits for the others, if they wait in different places: a name and a line

    @property
    def random(self):
        """bool: Whether the loss depends on the seed, and on nothing else that changes."""
        return len(self.losses) == 3 and same(self.losses[0], self.losses[2])


def first_valid(given, start, step, log):
    """Validate on one batch."""
    brain = given.brain
    usual = all(getattr(type(brain), name) is getattr(Brain, name) for name in ("_fit_train", "_fit_valid"))
    able = step.taken and step.finite and usual and not is_compiled(brain) and start.valid_loader is not None
    found = log.apart("the first validation", brain, SECONDS, _validate if able else None, given, start, step)
    return found or FirstValid(changed=() if able else tuple(changed(start.resumed.states)))


def _validate(given, start, step, log):
    """Validate; in the order of ``fit``."""
    brain, epoch, losses, causes, judged, moved = given.brain, start.epoch, [], _Causes(), [], set()
    ranks, drawn, apart, writes = log.ranks, [], [], ["what rank 0 writes"] * (log.ranks.rank > 0)

    def tried(function, *args):
        """Whether a function succeeded, and what it returned; a failure that is certain becomes a finding."""
        try:
            return True, function(*args)
        except Apart as error:
            apart.extend(*error.args)
        except Exception as error:
            if certain(error, writes):
                log.findings.append(failure("first-validation-failed", error))
        return False, None

    def evaluate(seed):
        begin_validation(brain, epoch, seed)
        state, before, train = random_state(), statistics(parts(brain)), noted(torch.nn.Module, "train", causes.note_train)
        with torch.no_grad(), hooked(brain, causes.note), watched_calls(brain, [], {}), train, causes:
            loss = brain.evaluate_batch(batch, stage=Stage.VALID)
            average = brain.update_average(loss, 0.0)
            # Stock's average of NaN is 0
            losses.append(float(loss if torch.is_tensor(loss) and loss.numel() == 1 else average))
        drawn.append(random_state() != state)
        after = statistics(parts(brain))
        moved.update(name for name in after if not equal(before.get(name), after[name]))

    def end_training():
        if type(brain).on_fit_batch_end is not Brain.on_fit_batch_end and not step.custom:
            hook = brain.on_fit_batch_end  # the first step was left before it came to this

            def ending(*args, **kwargs):
                with ranks.together("on_fit_batch_end"):
                    return hook(*args, **kwargs)

            with replaced(brain, "on_fit_batch_end", ending):
                brain.fit_batch(start.batch)
        brain.avg_train_loss = step.backwards[0].value if step.backwards else 0.0
        with ranks.together("on_stage_end"):
            brain.on_stage_end(Stage.TRAIN, brain.avg_train_loss, epoch)

    def end_validation():
        brain.step = 0
        with torch.no_grad(), ranks.together("on_stage_end"):
            brain.on_stage_end(Stage.VALID, losses[0], epoch)

    _, batch = tried(lambda: next(iter(start.valid_loader), None))  # here, because workers make files
    if batch is None:
        return FirstValid()
    unfed = False
    with alone(brain), writes_nothing(writes), _judging(judged):
        ended, _ = tried(end_training)
        began = perf_counter()
        if not log.findings and tried(evaluate, 1)[0] and ended:
            unfed = tried(end_validation)[0] and type(given.epochs) is EpochCounterWithStopper
            unfed = unfed and not any(kind == EpochCounterWithStopper.__name__ for kind, *_ in judged)
        again = any(drawn) and perf_counter() - began < AGAIN
        with suppress(Exception):  # which a run would not meet
            while again and (len(losses) == 1 or (len(losses) == 2 and not same(*losses))):
                evaluate(len(losses) % 2 + 1)
    ran = [(name, module) for name, module in parts(brain) if module in causes.ran]
    training = tuple(name for name, module in ran if name in moved or module in causes.active)
    own = causes.ran.intersection(brain.modules.modules())
    sampled = bool(causes.trains) and all(isinstance(module, _DropoutNd) for module in own)
    causes, after = (causes.trains, sampled, tuple(causes.drops), tuple(causes.augments)), tuple(changed(start.resumed.states))
    if not any(rates_of(step.optimizers)):
        with alone(brain), writes_nothing([]), suppress(Exception):
            brain.on_stage_start(Stage.TRAIN, epoch + 1)  # it may set a rate for each epoch
    rates, judged, apart = rates_of(step.optimizers), tuple(judged), tuple(apart)
    return FirstValid(tuple(losses), training, *causes, unfed, after, judged, rates, apart)


def certain(error, writes):
    """Whether an exception would also end a real run, which has more items, a trained model and files."""
    for one in chain(error):
        codes = [frame.f_code for frame, _ in traceback.walk_tb(one.__traceback__)]
        few = isinstance(one, (ZeroDivisionError, StatisticsError)) or FEW.search(str(one))
        # Nothing was written, and what a function that writes returns is None.
        unreal = writes and (isinstance(one, OSError) or "NoneType" in str(one))
        # A trained model may not output what has no text.
        decodes = any("decode" in code.co_name.lower() and not is_own(code.co_filename) for code in codes)
        untrained = decodes and isinstance(one, LookupError)
        if few or unreal or untrained or checkpoints.__file__ in [code.co_filename for code in codes]:
            return False
    return True


@contextmanager
def _judging(judged):
    """Note the calls that find out which value is best."""

    def note(judge, *args, **kwargs):
        frame, saved = sys._getframe(2), {}
        frame = frame.f_back if frame.f_code.co_name == "joined" else frame  # of Ranks.together
        if isinstance(judge, Checkpointer):
            bound = SAVE.bind(judge, *args, **kwargs)
            bound.apply_defaults()
            given = bound.arguments
            saved = {key: given[key] for key in ("max_keys", "min_keys", "num_to_keep")}
            # Each ranking counts once: stock adds recency to its default list in every call
            keys = {*(given["importance_keys"] or ()), *[checkpoints.ckpt_recency] * given["keep_recent"]}
            saved["rankings"] = len(keys) + sum(len(given[key] or ()) for key in ("max_keys", "min_keys"))
            numbers = {key: value for key, value in given["meta"].items() if isinstance(value, (int, float))}
            saved["negative"] = [key for key, value in numbers.items() if value < 0]
        place = frame.f_code.co_filename, frame.f_lineno
        how = type(judge).__name__, getattr(judge, "direction", None), f"{shown(place[0])}:{place[1]}"
        judged.append((*how, linecache.getline(*place), saved))

    with ExitStack() as stack:
        for owner, name in JUDGES.items():
            stack.enter_context(noted(owner, name, note))
        yield


class _Causes(TorchFunctionMode):
    """Notes modules in training mode, and the lines that call a function with active dropout, an augmentation, or train()."""

    def __init__(self):
        super().__init__()
        self.ran, self.active, self.drops, self.augments, self.trains = set(), set(), {}, {}, ""

    def note(self, module, arguments):
        """Note a module that runs in training mode, and whether it has dropout: one of torch's, as others call functions."""
        if module.training:
            self.ran.add(module)
            share = getattr(module, "p" if isinstance(module, _DropoutNd) else "dropout", 0)
            able = isinstance(module, (_DropoutNd, torch.nn.MultiheadAttention)) or getattr(module, "num_layers", 1) > 1
            self.active.update([module] * (able and isinstance(share, float) and share > 0))

    def note_train(self, module, mode=True):
        """Note the line that puts a module into training mode."""
        if mode and not self.trains:
            self.trains = caller(sys._getframe())

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in DRAWS:
            stack = [frame for frame in traceback.extract_stack() if frame.filename not in HERE]
            own = [f"{shown(frame.filename)}:{frame.lineno}" for frame in stack if is_own(frame.filename)]
            if func not in DROPOUTS and "augment" in Path(stack[-1].filename).parts:
                self.augments.update(dict.fromkeys(own[-1:]))
            elif func in DROPOUTS and not stack[-1].filename.startswith(TORCH):
                given = inspect.signature(func).bind(*args, **(kwargs or {}))
                given.apply_defaults()
                if given.arguments["training"] and given.arguments["p"] > 0:
                    self.drops.update(dict.fromkeys(own[-1:]))
        return func(*args, **(kwargs or {}))
