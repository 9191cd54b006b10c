"""Judge a training by its curves. Each check says when it raises its flag, and why not earlier."""

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
    """A problem: its level (``error`` or ``warning``), a code, the line of the entry, and the message."""

    level: str
    code: str
    line: int
    what: str


@dataclass(frozen=True)
class Goal:
    """What decides which epoch is best: a key, and whether a low value (``sign`` 1) or a high one (-1) is good."""

    key: str
    sign: int = 1

    def __str__(self):
        return f"{'lowest' if self.sign > 0 else 'highest'} {self.key}"


def direction(key):
    """1 if a low value is good, -1 if a high one is, 0 if the name of the key does not say."""
    return 1 if LOWER.search(name_of(key)) else -1 if HIGHER.search(name_of(key)) else 0


def find_goal(found, best=None):
    """Choose the value that decides which epoch is best.

    Arguments
    ---------
    found : list of Run
        The runs of a log.
    best : str or None
        A key, with or without its dataset. ``:min`` or ``:max`` may follow; otherwise the name decides. By default, the
        validation loss, or else the first validation value whose name contains "loss".

    Returns
    -------
    Goal or None
        None if no such key has a number.
    """
    keys = [key for run in found for key in run.numeric_keys()]
    if best is None:
        losses = [key for key in keys if dataset_of(key) == "valid" and "loss" in key.lower()]
        return Goal(min(losses, key=lambda key: name_of(key).lower() != "loss")) if losses else None
    name, _, way = best.rpartition(":")
    if not name or way not in ("min", "max"):
        name, way = best, None
    keys = [key for key in keys if name.lower() in (key.lower(), name_of(key).lower())]
    if not keys:
        return None
    key = min(keys, key=lambda key: ("valid", "train", "", "test").index(dataset_of(key)))
    return Goal(key, -1 if way == "max" or (way is None and direction(key) < 0) else 1)


def find_best(run, goal):
    """The best row of a run, the earliest if several are equal; None if no row has a finite value."""
    points = curve(run.rows, goal.key, goal.sign) if goal else []
    return run.rows[min(points, key=lambda point: point[1])[0]] if points else None


def lost(rows, key):
    """The indices of the rows whose loss is 0.0 because no loss was finite.

    Rows that follow a loss below 1e-3 are left out: there, the loss may simply have fallen to 0.0.
    """
    found, before = set(), 1.0
    for i, value in enumerate(row.number(key) for row in rows):
        if value == 0 and abs(before) >= 1e-3:
            found.add(i)
        elif value is not None and math.isfinite(value):
            before = value
    return found


def curve(rows, key, sign=1):
    """The finite values of a key.

    Arguments
    ---------
    rows : list of Entry
        The rows.
    key : str
        The key.
    sign : int
        -1 to flip the curve, so that low is always good.

    Returns
    -------
    list of tuple
        The index of the row, sign * value, and the resolution: differences up to it may come from rounding. It is one unit
        of the last printed digit, and at least a thousandth of the value, since the logger prints three digits.
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
    r"""Judge one run.

    Arguments
    ---------
    run : Run
        The run.
    goal : Goal or None
        The value whose curves are judged if the run logs no value named ``loss``.

    Returns
    -------
    list of Flag
        The problems found, in the order of the log.

    Example
    -------
    >>> from speechbrain.watch.log import Log, runs
    >>> entries = Log().feed(b"epoch: 1 - train loss: 2.05 - valid loss: nan\n")
    >>> for flag in flags(runs(entries)[0]):
    ...     print(flag.level, flag.code, flag.what)
    error nonfinite epoch 1: valid loss is nan
    """
    found = [*_nonfinite(run), *_zero_loss(run), *_slow(run.rows)]
    # Some recipes also log single steps between validations; these are too noisy to be judged like epochs.
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
    """Flag a value that is nan or inf, once for each series of these entries.

    Only the loss is an error. Other values may be nan in a healthy training: an F-score without positives, or a part of the
    loss that is not used yet. Lists are searched only if they belong to the loss; in a list with a value for each class,
    nan often means that a class is absent.
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
    """Flag a loss that is exactly 0.0 without having fallen to it.

    Stock reports 0.0 if no loss of a stage was finite, and would rank that epoch best. Values with other names are not
    judged: a part of the loss may be switched off. If the validation loss is 0.0 in every epoch, or the test loss is 0.0,
    the recipe may just not compute it: that is a warning.
    """
    for key in [key for key in run.numeric_keys() if dataset_of(key) and name_of(key).lower() == "loss"]:
        found = sorted(lost(run.rows, key))
        if dataset_of(key) == "valid" and 3 <= len(found) == sum(row.number(key) is not None for row in run.rows):
            yield _flag(
                "warning", "zero-loss", run.rows[found[0]], f"{key} is exactly 0.0 in all epochs: not computed, or never finite"
            )
        else:
            for i in found:
                yield _flag("error", "zero-loss", run.rows[i], f"{key} is exactly 0.0: perhaps no loss was finite")
    for test in run.tests:
        before = [abs(value) for _, value, _ in curve(run.rows, "valid loss")]
        if test.number("test loss") == 0 and not (before and before[-1] < 1e-3):
            yield _flag("warning", "zero-loss", test, "test loss is exactly 0.0: not computed, or never finite")


def _divergence(rows, key, _, sign):
    """Flag a training loss that is worse than in the first epoch and does not recover; once for each run.

    There are two cases. First, the loss rises in two epochs in a row, and before the second rise it was already above twice
    its first value (more exactly: its rise above the first value exceeds both the size of that value and the best
    improvement so far). A single bad batch spoils one epoch, but does not make the next one even worse. Second, the loss had
    halved, is back at its first value for three epochs, and falls in none of them. A new loss term or unfrozen layers also
    make it jump that high, but then it falls again. The validation loss is not used: it multiplies in a training that
    overfits.
    """
    points = curve(rows, key, sign)
    best = math.inf
    for n in range(2, len(points)):
        (_, first, unit), (_, a, _), (_, b, _), (i, c, _) = points[0], *points[n - 2 : n + 1]
        best = min(best, points[n - 2][1])
        gained = first - best
        if a < b < c and b > first + max(abs(first), gained):
            how = "rose" if sign > 0 else "fell"
        elif gained > 0 and gained >= abs(first) / 2 and first - unit <= a <= b <= c:
            how = "went back"
        else:
            continue
        start = rows[points[0][0]]
        before = f"{start.place}: {shown(start.items[key])}"
        yield _flag("error", "divergence", rows[i], f"{key} {how} to {shown(rows[i].items[key])} ({before})")
        return


def _last_improvements(rows, key, sign):
    """For each row, the index of the last row that improved the value by more than its resolution; -1 if none did.

    With ``sign`` 0, any new extreme counts as an improvement.
    """
    points = {i: (value, unit) for i, value, unit in curve(rows, key)}
    found, last, low, high = [], -1, math.inf, -math.inf
    for i in range(len(rows)):
        value, unit = points.get(i, (math.nan, 0))  # comparisons with nan are False
        if (sign >= 0 and value < low - unit) or (sign <= 0 and value > high + unit):
            last = i
            low, high = min(low, value), max(high, value)
        found.append(last)
    return found


def _overfitting(rows, train, valid, sign):
    """Flag a validation loss that rises from its minimum while the training loss falls.

    Single epochs prove nothing: on a few hundred clips the loss changes by 10 % from one epoch to the next, and the best of
    many epochs is a lucky one. So the average of the last 5 epochs is compared with that of the best 5 in a row before them.
    It must be higher by 10 %, and by four times the median difference between neighbours among the last 20 epochs; otherwise
    curves that have converged would be flagged. No flag is raised while another validation value improves: error rates often
    do while the loss rises.
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
            now, before = shown(rows[i].items[valid]), f"{low.place}: {shown(low.items[valid])}"
            yield _flag("warning", "overfitting", rows[i], f"{valid} is {now} ({before}) while {train} improved")


def _plateau(rows, train, valid, sign):
    """Flag that no value improves any more, once for each series of flat epochs.

    Values are printed with three digits: a loss that falls by 0.05 % in each epoch can look the same for twenty epochs, but
    is not flat. So each value is compared with its last improvement, however long ago that was: it improves if it differs by
    more than a unit of its last digit. It is flat after 10 epochs without an improvement, and at least a quarter of the run,
    since long trainings end in small steps. All values must be flat, as the losses of two adversaries are flat in a healthy
    training, too. A value whose name does not say whether low or high is good must stay the same. No flag is raised if a unit
    of the last digit is more than 2 % of the loss.
    """
    keys = {key for row in rows for key in row.items if dataset_of(key) in ("train", "valid")}
    improved = [_last_improvements(rows, key, sign if key in (train, valid) else direction(key)) for key in keys]
    points = {i: unit / abs(value) if value else math.inf for key in (train, valid) for i, value, unit in curve(rows, key)}
    flagged = None
    for i, coarse in sorted(points.items()):
        last = max(each[i] for each in improved)
        if last != flagged and i - last >= max(10, (i + 1) / 4) and coarse <= 0.02:
            flagged = last
            yield _flag("warning", "plateau", rows[i], f"no value has improved since {rows[max(last, 0)].place}")


def took(rows):
    """The seconds that each row took; None if the time of the row before it is unknown, or from another clock."""
    seconds = [b.time[1] - a.time[1] if a.time[0] is not None and a.time[0] == b.time[0] else 0 for a, b in pairwise(rows)]
    return [None, *(each if each > 0 else None for each in seconds)][: len(rows)]


def _slow(rows):
    """Flag an epoch that took over twice the median of at least 5 epochs, and over 10 seconds longer: less is noise.

    Only epochs with the same keys are compared: a recipe may compute an error rate in every fifth epoch, which takes longer.
    """
    groups = defaultdict(list)
    for row, seconds in zip(rows, took(rows)):
        if seconds is not None:
            groups[frozenset(row.items)].append((row, seconds))
    for group in groups.values():
        usual = statistics.median(seconds for _, seconds in group)
        for row, seconds in group:
            if len(group) >= 5 and seconds > usual + max(10, usual):
                yield _flag("warning", "slow", row, f"took {clock(seconds)}, usual is {clock(usual)}")
