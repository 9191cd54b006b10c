"""What is wrong with a training, judged by its curves. Each function says when it speaks, and why not earlier."""

import math
import re
import statistics
from collections import defaultdict
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise

from speechbrain.watch.log import dataset_of, name_of
from speechbrain.watch.text import clock, shown

LOWER = re.compile(r"loss|err|\b[cdpstw]er\b|mse|mae|ppl|perplexity|dcf|mcd", re.I)
HIGHER = re.compile(r"acc|f-?1|f-?score|bleu|precision|recall|auc|pesq|stoi", re.I)
NONFINITE = re.compile(r"(?<![\w.'\"])-?(?:nan|inf)(?![\w.'\"])")


@dataclass(frozen=True)
class Flag:
    """Something wrong: ``error`` or ``warning``, a code, the line of the entry, and what it is."""

    level: str
    code: str
    line: int
    what: str


@dataclass(frozen=True)
class Goal:
    """What the best epoch is found by: a key, whose value shall be low (``sign`` 1) or high (-1)."""

    key: str
    sign: int = 1

    def __str__(self):
        return f"{'lowest' if self.sign > 0 else 'highest'} {self.key}"


def direction(key):
    """1 if a value is better the lower it is, -1 if the higher, 0 if its name does not tell."""
    return 1 if LOWER.search(name_of(key)) else -1 if HIGHER.search(name_of(key)) else 0


def find_goal(found, wanted=None):
    """Find what the best epoch is to be found by.

    Arguments
    ---------
    found : list of Run
        The trainings of a log.
    wanted : str or None
        A key, with its dataset or without, and ``:min``, ``:max`` or what is usual for that name. By default the
        validation loss, or the first of validation whose name contains "loss".

    Returns
    -------
    Goal or None
        None where there is no such key with a number.
    """
    keys = [key for run in found for key in run.numeric_keys()]
    if wanted is None:
        losses = [key for key in keys if dataset_of(key) == "valid" and "loss" in key.lower()]
        return Goal(min(losses, key=lambda key: name_of(key).lower() != "loss")) if losses else None
    name, _, way = wanted.rpartition(":")
    if not name or way not in ("min", "max"):
        name, way = wanted, None
    keys = [key for key in keys if name.lower() in (key.lower(), name_of(key).lower())]
    if not keys:
        return None
    key = min(keys, key=lambda key: ("valid", "train", "", "test").index(dataset_of(key)))
    return Goal(key, -1 if way == "max" or (way is None and direction(key) < 0) else 1)


def find_best(run, goal):
    """The best row of a run, the first of equals; None where no value can be compared."""
    points = curve(run.rows, goal.key, goal.sign) if goal else []
    return run.rows[min(points, key=lambda point: point[1])[0]] if points else None


def lost(rows, key):
    """Where a loss is 0.0 because there was nothing finite to average, as indices of rows.

    A loss that was below 1e-3 may have come down to it.
    """
    found, before = set(), 1.0
    for i, value in enumerate(row.number(key) for row in rows):
        if value == 0 and abs(before) >= 1e-3:
            found.add(i)
        elif value is not None and math.isfinite(value):
            before = value
    return found


def curve(rows, key, sign=1):
    """The values of a key that can be compared.

    Arguments
    ---------
    rows : list of Entry
        The rows.
    key : str
        The key.
    sign : int
        -1 to turn the curve over.

    Returns
    -------
    list of tuple
        The index of the row, sign * value, and the least difference that is one: a unit of the last digit that was
        printed, and no less than a thousandth of the value, which is what three digits tell.
    """
    without = lost(rows, key) if name_of(key).lower() == "loss" else ()
    points = []
    for i, row in enumerate(rows):
        value = row.number(key)
        if value is not None and math.isfinite(value) and i not in without:
            unit = float(f"1e{Decimal(row.items[key]).as_tuple().exponent}")
            points.append((i, sign * value, max(unit, abs(value) / 1000) * (1 + 1e-9)))
    return points


def flags(run, goal=None):
    r"""Judge a training.

    Arguments
    ---------
    run : Run
        The training.
    goal : Goal or None
        Its name is judged where nothing is named ``loss``.

    Returns
    -------
    list of Flag
        In the order of the log.

    Example
    -------
    >>> from speechbrain.watch.log import Log, runs
    >>> entries = Log().feed(b"epoch: 1 - train loss: 2.05 - valid loss: nan\n")
    >>> for flag in flags(runs(entries)[0]):
    ...     print(flag.level, flag.code, flag.what)
    error nonfinite epoch 1: valid loss is nan
    """
    found = [*_nonfinite(run), *_zero_loss(run), *_slow(run.rows)]
    # Between validations recipes may log single steps, whose noise says nothing about an epoch.
    rows = [row for row in run.rows if "valid" in row.datasets] or [row for row in run.rows if row.epoch is not None]
    losses = [key for key in run.numeric_keys() if key.lower() in ("train loss", "valid loss")]
    if losses or goal:
        name, sign = (name_of(losses[0]), 1) if losses else (name_of(goal.key), goal.sign)
        for check in (_divergence, _overfitting, _plateau):
            found += check(rows, f"train {name}", f"valid {name}", sign)
    return sorted(found, key=lambda flag: flag.line)


def _flag(level, code, row, what):
    return Flag(level, code, row.line, f"{row.place}: {what}")


def _nonfinite(run):
    """Flag what is nan or inf, once for each stretch of it.

    Only the loss is an error: an F-score of no positives is nan in health, and so is a part of a loss that is not in
    use yet. Lists are searched only where they are of the loss, since of many classes one is often absent.
    """
    entries = [*run.rows, *run.tests]
    keys = dict.fromkeys(key for entry in entries for key in entry.items)
    plain = any(name_of(key).lower() == "loss" for key in keys)
    for key in keys:
        name = name_of(key).lower()
        is_loss = bool(dataset_of(key)) and (name == "loss" or (not plain and "loss" in name))
        before = False
        for entry in entries:
            value = entry.number(key)
            if value is not None or is_loss:
                text = entry.items.get(key, "")
                now = not math.isfinite(value) if value is not None else bool(NONFINITE.search(text))
                if now and not before:
                    yield _flag(
                        "error" if is_loss else "warning", "nonfinite", entry, f"{key} is {' '.join(text.split())[:80]}"
                    )
                before = now if text else before


def _zero_loss(run):
    """Flag a loss of exactly 0.0 that it did not come down to.

    The average of no finite loss is reported so, and would rank as the best of all. Parts of a loss, of another name, may
    be switched off. A recipe need not compute it for validation, where it is 0.0 from the first epoch on, or for the test.
    """
    for key in [key for key in run.numeric_keys() if dataset_of(key) and name_of(key).lower() == "loss"]:
        found = sorted(lost(run.rows, key))
        if dataset_of(key) == "valid" and 3 <= len(found) == sum(row.number(key) is not None for row in run.rows):
            yield _flag(
                "warning", "zero-loss", run.rows[found[0]], f"{key} is exactly 0.0, always: not computed, or never finite"
            )
        else:
            for i in found:
                yield _flag("error", "zero-loss", run.rows[i], f"{key} is exactly 0.0: was no loss finite?")
    for test in run.tests:
        before = [abs(value) for _, value, _ in curve(run.rows, "valid loss")]
        if test.number("test loss") == 0 and not (before and before[-1] < 1e-3):
            yield _flag("warning", "zero-loss", test, "test loss is exactly 0.0: not computed, or never finite")


def _divergence(rows, key, _, sign):
    """Flag, once, a training loss that is worse than the first epoch's and does not come back.

    Either it rose in two epochs, from above twice the first epoch's (further above than its size and than what was gained):
    one bad batch spoils one epoch, not two, the second one more. Or it had halved, is back where it began for three epochs,
    and fell in none of them: where a loss is added or layers are unfrozen it jumps as high, and falls again. The validation
    loss is not asked, which multiplies where a training overfits.
    """
    points = curve(rows, key, sign)
    best = math.inf
    for n in range(2, len(points)):
        (_, first, unit), (_, a, _), (_, b, _), (i, c, _) = points[0], *points[n - 2 : n + 1]
        best = min(best, points[n - 2][1])
        gained = first - best
        if a < b < c and b > first + max(abs(first), gained):
            what = "rises"
        elif gained > 0 and gained >= abs(first) / 2 and first - unit <= a <= b <= c:
            what = "is back"
        else:
            continue
        start = rows[points[0][0]]
        had = f"{start.place} had {shown(start.items[key])}"
        yield _flag("error", "divergence", rows[i], f"{key} {what} to {shown(rows[i].items[key])}, {had}")
        return


def _last_improvements(rows, key, sign):
    """For each row, where the value was last better than before by more than its resolution; changed, if ``sign`` is 0."""
    points = {i: (value, unit) for i, value, unit in curve(rows, key)}
    found, last, low, high = [], -1, math.inf, -math.inf
    for i in range(len(rows)):
        value, unit = points.get(i, (math.nan, 0))  # which compares as False
        if (sign >= 0 and value < low - unit) or (sign <= 0 and value > high + unit):
            last = i
            low, high = min(low, value), max(high, value)
        found.append(last)
    return found


def _overfitting(rows, train, valid, sign):
    """Flag a validation loss that has left its best while the training loss fell.

    Single epochs prove nothing: on a few hundred clips the loss moves by a tenth from one to the next, and the best of many
    is a lucky one. So the last 5 are compared with the best 5 in a row before them. On average they are higher by a tenth,
    and by four times what separates neighbours among the last 20, or else curves that have converged would be flagged.
    Silent as long as another validation value improves: error rates often do while the loss rises.
    """
    losses = {i: value for i, value, _ in curve(rows, train, sign)}
    points = [(i, value, losses[i]) for i, value, _ in curve(rows, valid, sign) if i in losses]
    keys = {key for row in rows for key in row.items if dataset_of(key) == "valid"} - {valid}
    others = [_last_improvements(rows, key, direction(key)) for key in keys]
    means = [[sum(each) / 5 for each in zip(*points[n : n + 5])][1:] for n in range(len(points) - 4)]
    best, flagged = 0, None
    for n in range(5, len(means)):
        if means[n - 5][0] < means[best][0]:
            best = n - 5
        steps = list(pairwise(points[max(0, n - 15) : n + 5]))
        noise, train_noise = (statistics.median(abs(b[k] - a[k]) for a, b in steps) for k in (1, 2))
        risen = means[n][0] - means[best][0] > max(abs(means[best][0]) / 10, 4 * noise)
        fell = means[best][1] - means[n][1] > max(abs(means[best][1]) / 1000, 2 * train_noise)
        i = points[n + 4][0]
        if risen and fell and best != flagged and all(i - improved[i] >= 5 for improved in others):
            flagged = best
            low = rows[min(points[best : best + 5], key=lambda point: point[1])[0]]
            had = f"{low.place} had {shown(low.items[valid])}"
            yield _flag("warning", "overfitting", rows[i], f"{valid} is {shown(rows[i].items[valid])}, {had}; {train} fell")


def _plateau(rows, train, valid, sign):
    """Flag, once a stretch, that nothing improves any more.

    Values have three digits: one that falls by 0.05 % an epoch is printed equal for twenty epochs, and is not flat. So an
    improvement is whatever leaves the last one by more than a unit, however long it takes, and flat is what has had none for
    10 epochs and a quarter of the run: long trainings end in small steps. All values must be flat, and those of unknown
    direction unchanged: the losses of two adversaries are flat in health. Silent where a unit is over 2 % of the loss.
    """
    keys = {key for row in rows for key in row.items if dataset_of(key) in ("train", "valid")}
    improved = [_last_improvements(rows, key, sign if key in (train, valid) else direction(key)) for key in keys]
    points = {i: unit / abs(value) if value else math.inf for key in (train, valid) for i, value, unit in curve(rows, key)}
    flagged = None
    for i, coarse in sorted(points.items()):
        last = max(each[i] for each in improved)
        if last != flagged and i - last >= max(10, (i + 1) / 4) and coarse <= 0.02:
            flagged = last
            yield _flag("warning", "plateau", rows[i], f"nothing has improved since {rows[max(last, 0)].place}")


def took(rows):
    """The seconds that each row took; None where no clock saw the row before it."""
    seconds = [b.time[1] - a.time[1] if a.time[0] is not None and a.time[0] == b.time[0] else 0 for a, b in pairwise(rows)]
    return [None, *(each if each > 0 else None for each in seconds)][: len(rows)]


def _slow(rows):
    """Flag an epoch that took over twice the median of at least 5, and 10 seconds more: less is the machine's noise.

    Of those with the same keys: every fifth epoch may search for an error rate, which takes its time.
    """
    alike = defaultdict(list)
    for row, seconds in zip(rows, took(rows)):
        if seconds is not None:
            alike[frozenset(row.items)].append((row, seconds))
    for group in alike.values():
        usual = statistics.median(seconds for _, seconds in group)
        for row, seconds in group:
            if len(group) >= 5 and seconds > usual + max(10, usual):
                yield _flag("warning", "slow", row, f"took {clock(seconds)}, usual are {clock(usual)}")
