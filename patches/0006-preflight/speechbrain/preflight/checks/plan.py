"""Checks the plan of a run: its steps, learning rates and warm-up, and the checkpoints that it keeps."""

import inspect
import re
from collections.abc import Callable
from itertools import combinations

from speechbrain.core import Brain
from speechbrain.nnet import schedulers
from speechbrain.preflight.checks.optimised import clips_first_group_only, codes_of
from speechbrain.preflight.observe.given import held
from speechbrain.preflight.observe.start import parameters_of
from speechbrain.preflight.report import Finding, some
from torch.optim.lr_scheduler import LinearLR, LRScheduler
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import BatchSampler, SequentialSampler

CODES = {
    "no-step": "an epoch has fewer batches than grad_accumulation_factor, so no optimizer ever steps",
    "batches-without-step": "each epoch drops its last batches, which are too few for grad_accumulation_factor",
    "learning-rate-zero": "the learning rate of trained parameters is 0, and nothing changes it, or a scheduler keeps it at 0",
    "gradient-clipped-to-zero": "max_grad_norm is 0, so all gradients become 0; on the stock release, below 0 reverses them",
    "warm-up-too-long": "the warm-up of the learning rate is longer than the training",
    "average-hardly-moves": "after all steps, a moving average still mainly has the weights that it began with",
    "trained-twice": "a parameter is in two optimizers that step together",
    "debug-is-on": "debug is on, so training ends after a few batches",
    "best-is-worst": "a checkpointer, scheduler or early stopper takes a high loss or error, or a low score, for the best",
    "averages-more-than-kept": "the script averages more checkpoints than it keeps",
    "loader-not-saved": "checkpoints within an epoch do not save the position in the training data",
}

FEW = 0.05  # the share of batches below which it hardly matters that they are dropped
WARM_UPS = ("n_warmup_steps", "num_warmup_steps", "warmup_steps", "warmup", "step_size")  # the last one of CyclicLRScheduler
LOWER = frozenset("loss wer cer per ser der eer error errors mindcf dcf perplexity ppl mse mae".split())
HIGHER = frozenset("acc accuracy pesq stoi f1 bleu uar auc precision recall".split())
# The last argument of a call at the end of a line, by name.
VALUE = re.compile(r"""[(,]\s*(?:[\w.]+\[['"]([^'"]+)['"]\]|(?:\w+\.)*([a-zA-Z]\w*))\)\s*$""")
PLAIN = (str, int, float)  # hparams that are no schedulers
AVERAGED = ("avg_checkpoints", "average_checkpoints", "checkpoint_avg")  # the hparams that say how many are averaged


def accumulation(seen):
    """Yield batches after which no optimizer steps."""
    plan, batch_sampler = seen.plan.get("epochs", {}), getattr(seen.start.train_loader, "batch_sampler", None)
    batches, factor = plan.get("batches"), plan.get("accumulation", 1)
    where = f"grad_accumulation_factor: {factor}"
    if batches and batches < factor:
        what = f"an epoch has only {batches} batch{'es' * (batches > 1)}, and drops their gradients, so no optimizer ever steps"
        yield Finding("error", "no-step", what, where, f"set it to {batches} at most, or use a smaller batch_size")
    elif batches and batches % factor > FEW * batches and type(batch_sampler) is BatchSampler:  # others may vary
        fixed = isinstance(batch_sampler.sampler, SequentialSampler)
        what = f"each epoch drops the gradients of its last {batches % factor} of {batches} batches"
        what += ", which have the same items each time" * fixed
        remedy = "use a factor that divides the number of batches" + ", or shuffle" * fixed
        yield Finding("warning" if fixed else "note", "batches-without-step", what, where, remedy)


def rates(seen):
    """Yield learning rates of 0 that nothing changes."""
    brain, groups = seen.given.brain, []
    for name, optimizer in seen.step.optimizers.items():
        for number, group in enumerate(optimizer.param_groups):
            if any(p.requires_grad for p in group["params"]):
                groups.append((f"{name}, group {number}", group))
    zero = {where: "initial_lr" not in group for where, group in groups if group.get("lr") == 0}
    plain = [where for where, unscheduled in zero.items() if unscheduled]
    objects = {**seen.given.hparams, **vars(brain)}
    named = " ".join(f"{name} {type(value).__name__}" for name, value in objects.items() if not isinstance(value, PLAIN))
    scheduled = re.search("sched|anneal|warm|noam", named.lower())
    later = (seen.behaviour.last_rates, seen.valid.rates)  # after real steps, and after the end of an epoch
    if plain and not scheduled and not codes_of(brain, "co_names", "co_consts") & {"param_groups", "lr", "initial_lr"}:
        level = "error" if len(plain) == len(groups) else "warning"
        what = "the learning rate is 0, and no scheduler changes it"
        yield Finding(level, "learning-rate-zero", what, some(plain), "set a learning rate, or freeze these parameters")
    elif zero and len(zero) == len(groups) and all(later) and not any(map(any, later)) and not _begins_late(brain):
        what = "all learning rates are 0, and still are after a step and when the next epoch starts"
        remedy = "check the rate that the scheduler or the script begins with: a multiple of 0 stays 0"
        yield Finding("warning", "learning-rate-zero", what, some(zero), remedy)


def _begins_late(brain):
    """Whether a scheduler of torch multiplies other rates than 0, so that its rate of 0 may be a delay."""
    return any(any(one.base_lrs) for one in held(brain, LRScheduler).values() if hasattr(one, "base_lrs"))


def clipping(seen):
    """Yield a max_grad_norm that leaves no gradient, or reverses it."""
    brain = seen.given.brain
    norm, plain = brain.max_grad_norm, type(brain).optimizers_step is Brain.optimizers_step and not seen.step.custom
    if plain and seen.step.optimizers and (norm == 0 or (norm < 0 and clips_first_group_only(brain))):
        what = "clipping multiplies every gradient by " + ("0" if norm == 0 else "a negative number")
        where, remedy = f"max_grad_norm: {norm:g}", "set a large value to turn clipping off"
        yield Finding("error", "gradient-clipped-to-zero", what, where, remedy)


def warm_up(seen):
    """Yield schedulers that are still warming up when training ends; one may count batches or steps."""
    batches, found = seen.plan.get("epochs", {}).get("batches_in_all"), {}
    for name, value in held(seen.given.brain, (Callable, LRScheduler)).items():
        if type(value).__module__ == schedulers.__name__ and not isinstance(value, schedulers.InverseSquareRootScheduler):
            found[name] = [getattr(value, key, 0) for key in WARM_UPS]
        for one in [value, *getattr(value, "_schedulers", ())] if isinstance(value, LRScheduler) else ():
            lambdas = [getattr(function, "keywords", {}) for function in getattr(one, "lr_lambdas", ())]
            rising = [one.total_iters] if isinstance(one, LinearLR) and one.start_factor < one.end_factor else []
            found.setdefault(name, []).extend(rising + [each.get(WARM_UPS[1], 0) for each in lambdas])
    for name, steps in found.items():
        longest = max((each for each in steps if isinstance(each, (int, float))), default=0)
        if batches and longest > batches:
            what = f"it warms up for {longest:g} steps, but the whole training has only {batches:,} batches"
            yield Finding("warning", "warm-up-too-long", what, name, "use a shorter warm-up, or train for more epochs")


def average(seen):
    """Yield moving averages of the weights that hardly move."""
    batches = seen.plan.get("epochs", {}).get("batches_in_all")
    for name, value in {**seen.given.hparams, **vars(seen.given.brain)}.items():
        decay = None
        if isinstance(value, AveragedModel) and getattr(value, "multi_avg_fn", None):
            decay = inspect.getclosurevars(inspect.unwrap(value.multi_avg_fn)).nonlocals.get("decay")
        elif re.search("EMA|MovingAverage", type(value).__name__) and getattr(value, "num_updates", None) is None:
            decay = getattr(value, "decay", None)  # that of one which counts its updates begins lower
        if batches and isinstance(decay, float) and 0 <= decay <= 1 and decay**batches > 0.5:
            what = f"with a decay of {decay:g}, {decay**batches:.0%} of it are the first weights even after {batches:,} batches"
            yield Finding("warning", "average-hardly-moves", what, name, "use a smaller decay")


def twice(seen):
    """Yield parameters that two optimizers train."""
    brain, names = seen.given.brain, seen.training.names
    usual = all(getattr(type(brain), name) is getattr(Brain, name) for name in ("freeze_optimizers", "optimizers_step"))
    optimizers = brain.optimizers_dict if usual and not seen.step.custom else None
    for (one, a), (other, b) in combinations((optimizers or {}).items(), 2):
        shared = {id(p) for p in parameters_of({one: a})} & {id(p) for p in parameters_of({other: b})}
        if shared and a is not b:
            what = f"both optimizers step after each batch, and both have {some(sorted(names[key] for key in shared))}"
            yield Finding("warning", "trained-twice", what, f"{one}, {other}", "give each parameter to one optimizer")


def debug(seen):
    """Yield a run that is only for debugging."""
    brain = seen.given.brain
    if brain.debug:
        what = f"training ends after {brain.debug_epochs} epochs of {brain.debug_batches} batches"
        yield Finding("note", "debug-is-on", what, "debug: True", "remove --debug for the real training")


def _better(name):
    """Whether "min" or "max" of a value is best, by its name; None if that is not certain."""
    words = {*re.findall("[a-z0-9]+", re.sub("([a-z])([A-Z])", r"\1 \2", name).lower())}
    if words & {"neg", "negative", "minus", "inv", "inverse", "1"} or (words & LOWER and words & HIGHER):
        return None
    return "min" if words & LOWER else "max" if words & HIGHER else None


def directions(seen):
    """Yield values whose worst counts as the best."""
    for kind, direction, where, line, saved in seen.valid.judged:
        named = VALUE.search(line)
        given = [(direction or "min", named[1] or named[2], kind)] if named else []
        if "num_to_keep" in saved:  # a negative loss or score may be one with its sign changed
            keys = [(which, key) for which in ("max", "min") for key in saved[f"{which}_keys"] or ()]
            given = [(which, key, f"{which}_keys") for which, key in keys if key not in saved["negative"]]
        for which, name, how in given:
            best = _better(name)
            if best not in (None, which):
                what = f"{how} takes the {'highest' if which == 'max' else 'lowest'} {name!r} for the best one"
                remedies = {"EpochCounterWithStopper": f"use direction: {best}", f"{which}_keys": f"use {best}_keys"}
                remedy = remedies.get(how, "give it a loss or an error, because it takes the lowest value")
                yield Finding("warning", "best-is-worst", what, where, remedy)


def averaged(seen):
    """Yield an average of more checkpoints than are kept."""
    saves = [saved for *_, saved in seen.valid.judged if "num_to_keep" in saved]
    kept = [save["num_to_keep"] * max(1, save["rankings"]) for save in saves]
    for name in AVERAGED:
        count = seen.given.hparams.get(name)
        if type(count) is int and kept and count > max(kept):
            what = f"the script averages {count} checkpoints, but keeps at most {max(kept)}"
            remedy = "pass this number as num_to_keep= when you save checkpoints"
            yield Finding("warning", "averages-more-than-kept", what, f"{name}: {count}", remedy)


def position(seen):
    """Yield a loader whose position checkpoints within epochs do not save."""
    brain, loader = seen.given.brain, seen.start.train_loader
    keys = [key for key in ("ckpt_interval_minutes", "ckpt_interval_steps") if getattr(brain, key, 0) > 0]
    if not keys or brain.checkpointer is None or loader is None or type(brain)._fit_train is not Brain._fit_train:
        return
    if not any(item is loader for item in brain.checkpointer.recoverables.values()):
        what = "checkpoints within an epoch do not save the position in the data: a resumed run starts the epoch again"
        remedy = "pass the dataset to fit(), or use a SaveableDataLoader, and add it to the checkpointer's recoverables"
        yield Finding("note", "loader-not-saved", what, f"{keys[0]}: {getattr(brain, keys[0])}", remedy)


RULES = (accumulation, rates, clipping, warm_up, average, twice, debug, directions, averaged, position)
