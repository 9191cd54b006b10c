"""Does what only options ask for: learns one batch, and takes the step on the longest one."""

import math
import os
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from statistics import median

import torch
from speechbrain.preflight.observe.first_step import peak
from speechbrain.preflight.observe.given import unwrapped
from speechbrain.preflight.observe.start import nothing_changes
from speechbrain.preflight.observe.steps import whole_steps
from speechbrain.preflight.quiet import replaced, writes_nothing
from torch.utils.data import BatchSampler, SequentialSampler
from tqdm import tqdm

DAY = 86400.0
BARS = "▁▂▃▄▅▆▇█"
COLUMNS = 50
NO_MEMORY = ("out of memory", "can't allocate memory", "signal 9")


@dataclass(frozen=True)
class Asked:
    """What options ask for."""

    losses: tuple = ()  # the losses of the first batch that ``--overfit`` learns
    longest: str = ""  # the size of the longest batch, in words; "" without ``--longest``
    failed: str = ""  # why that batch does not fit into memory


def asked(given, start, step, clips, log):
    """Learn the first batch, and take a step on the longest one."""
    brain, losses, longest = given.brain, (), ("", "")
    if log.ranks.size > 1 or not step.taken or start.spare is None:
        if given.overfit or given.longest:
            log.said.append("--overfit and --longest need a first step that succeeds, and one process.")
        return Asked()
    with nothing_changes(log.said) as stepped, replaced(stepped, "real", True):
        if given.overfit:
            losses = log.apart("--overfit", brain, DAY, _overfit, brain, start.spare, given.overfit) or ()
            log.said += [_curve(losses) + "\n  It still falls: try more steps." * still_falls(losses)] if losses else []
        if given.longest:
            longest = _step_on(brain, *_longest(given, unwrapped(start.train_loader), clips), step.memory, log)
    return Asked(losses, *longest)


def _overfit(brain, batch, steps, log):
    losses, taken = [], islice(whole_steps(brain, batch), steps)
    with writes_nothing([]):
        for loss in tqdm(taken, "overfit", steps, unit="step", disable=None, leave=False):
            losses.append(loss)
            if not math.isfinite(loss):
                break
    return tuple(losses)


def still_falls(losses):
    """Whether the medians of the quarters of the steps fall, in the last one by more than a seventh of the whole."""
    part = len(losses) // 4
    medians = [median(losses[i * part :][:part]) for i in range(4)] if part else [0.0]
    falls = all(one > other for one, other in pairwise(medians)) and min(losses) > losses[0] / 10
    return falls and medians[-2:][0] - medians[-1] > (medians[0] - medians[-1]) / 7


def _curve(losses):
    """The losses as a line of bars, and a few as numbers."""
    at = sorted({round(i * (len(losses) - 1) / (COLUMNS - 1)) for i in range(COLUMNS)})
    low, high = (pick(filter(math.isfinite, losses), default=0.0) for pick in (min, max))
    bars = [BARS[int((losses[i] - low) / max(high - low, 1e-12) * 7)] if math.isfinite(losses[i]) else "?" for i in at]
    named = ", ".join(f"step {i + 1}: {losses[i]:.3g}" for i in sorted({round(k * (len(losses) - 1) / 5) for k in range(6)}))
    what = f"--overfit: the loss of the first batch in {len(losses)} steps, with dropout and augmentation as in training:"
    return f"{what}\n  {''.join(bars)}\n  {named}"


def _longest(given, loader, clips):
    """The longest batch that the loader would ever make, and its size in words; None if that is unknown."""
    seconds, _ = clips.seconds(given.sets["train"]) if "train" in given.sets else ({}, "")
    sampler = getattr(loader, "batch_sampler", None)
    if not seconds or sampler is None:
        return None, ""
    if type(sampler) is BatchSampler and not isinstance(sampler.sampler, SequentialSampler):
        batches = [sorted(seconds, key=seconds.get, reverse=True)[: sampler.batch_size]]  # they may meet by chance
    else:
        batches = list(sampler)
    batch = max(batches, key=lambda batch: len(batch) * max(seconds.get(i, 0.0) for i in batch))
    most = max(seconds.get(i, 0.0) for i in batch)
    size = f"{len(batch)} items of up to {most:.1f} s, {len(batch) * most:.1f} s with padding"
    return lambda: loader.collate_fn([loader.dataset[i] for i in batch]), size


def _step_on(brain, make, size, before, log):
    """Take two steps on a batch, because the first one makes the optimizer's state; measure the peak memory."""
    if make is None:
        log.said.append("--longest: the durations of the training items are not known: give the manifest a duration.")
        return "", ""
    remarks, statm = len(log.said), Path("/proc/self/statm")
    resident = int(statm.read_text().split()[1]) * os.sysconf("SC_PAGESIZE") if statm.exists() else 0
    most = log.apart("--longest", brain, DAY, _peak, brain, make, before, resident)
    failed = "".join(said for said in log.said[remarks:] if any(sign in said for sign in NO_MEMORY))
    if most:
        log.said.append(f"--longest: a step on the longest batch ({size}) takes {most[0] / 1e9:.2g} GB {most[1]}.")
    return size, failed


def _peak(brain, make, before, resident, log):
    """The peak of the memory: at least the one before, to which also files count that a forked process did not read yet."""
    on_gpu = torch.device(brain.device).type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    first = peak(brain.device)
    with writes_nothing([]):
        list(islice(whole_steps(brain, make()), 2))
    last = peak(brain.device)
    return (last, "allocated on the GPU") if on_gpu else (max(before, last, resident + last - first), "of resident memory")
