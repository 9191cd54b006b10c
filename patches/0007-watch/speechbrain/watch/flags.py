"""Judge a training by its curves, row by row. Each judge says when it raises its flag, and why not earlier."""

import math
import re
import statistics
from collections import deque
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from itertools import pairwise

from speechbrain.watch.log import dataset_of, name_of
from speechbrain.watch.text import clock, shown, whole

LOWER = re.compile(r"loss|err|\b[cdpstw]er\b|mse|mae|ppl|perplexity|dcf|mcd", re.I)
HIGHER = re.compile(r"acc|f-?1|f-?score|bleu|precision|recall|auc|pesq|stoi", re.I)
PERCENT = re.compile(r"(?<![a-z])[cdptw]er(?![a-z])", re.I)  # the sentence error rate may well be above 90
RATE = re.compile(r"(?<![a-z])lr(?![a-z])|learning.?rate", re.I)
NONFINITE = re.compile(r"(?<![\w.'\"])-?(?:nan|inf)(?![\w.'\"])")


@dataclass(frozen=True)
class Flag:
    """What a judge says of the entry in a line.

    The level is ``error``, ``warning`` or ``note``; ``refuted`` are the earlier flags that this one withdraws.
    """

    level: str
    code: str
    line: int
    what: str
    refuted: tuple = ()


def _flag(level, code, row, what):
    return Flag(level, code, row.line, f"{row.place}: {what}")


@lru_cache(maxsize=4096)
def direction(key):
    """1 if a low value is good, -1 if a high one is, 0 if the name of the key does not say."""
    return 1 if LOWER.search(name_of(key)) else -1 if HIGHER.search(name_of(key)) else 0


def resolution(text, value):
    """How far two values may differ because they are rounded.

    It is one unit of the last printed digit, and at least a thousandth of the value, since the logger prints three digits.
    """
    return max(float(f"1e{Decimal(text).as_tuple().exponent}"), abs(value) / 1000) * (1 + 1e-9)


def find_loss(keys):
    """Find what the loss is called.

    Arguments
    ---------
    keys : iterable of str
        The keys that have numbers.

    Returns
    -------
    tuple
        The name, or None, and the signs that it may have: 1 if low values are good, -1 if high ones are. The name is "loss", or
        else the only name that contains "loss", or else the only name that both the training and the validation have. Two
        losses that add up to no "loss" may be those of adversaries, which rise in a healthy training.

    Example
    -------
    >>> find_loss(["train si-snr", "valid si-snr", "valid pesq"])
    ('si-snr', (1, -1))
    """
    names = dict.fromkeys(name_of(key) for key in keys if dataset_of(key) in ("train", "valid"))
    losses = [name for name in names if "loss" in name.lower()]
    plain = [name for name in losses if name.lower() == "loss"]
    if losses:
        return (plain or losses)[0] if plain or len(losses) == 1 else None, (1,)
    both = [name for name in names if {f"train {name}", f"valid {name}"} <= set(keys)]
    if len(both) != 1:
        return None, (1,)
    return both[0], (direction(both[0]),) if direction(both[0]) else (1, -1)


class Nonfinite:
    """Flags a value that is nan or inf, once for each series of these entries.

    Only the loss is an error. Other values may be nan in a healthy training: an F-score without positives, or a part of the
    loss that is not used yet. Lists are searched only if they belong to the loss; in a list with a value for each class,
    nan often means that a class is absent.
    """

    def __init__(self):
        self._bad = set()

    def feed(self, entry, name):
        """Judge an entry; ``name`` is what the loss is called, or None."""
        for key, text in entry.items.items():
            value = entry.numbers.get(key)
            bad = not math.isfinite(value) if value is not None else self._is_loss(key, name) and bool(NONFINITE.search(text))
            if bad and key not in self._bad:
                what = f"is {whole(text)}" if value is not None or len(text) <= 80 else "contains nan or inf"
                yield _flag("error" if self._is_loss(key, name) else "warning", "nonfinite", entry, f"{key} {what}")
            (self._bad.add if bad else self._bad.discard)(key)

    def _is_loss(self, key, name):
        this = name_of(key).lower()
        return bool(dataset_of(key)) and (this == (name or "").lower() or (name is None and "loss" in this))


class ZeroLoss:
    """Flags a loss that is exactly 0.0 without having fallen to it.

    Stock reports 0.0 if no loss of a stage was finite, and would rank that epoch best. CTC losses with ``zero_infinity`` are
    0.0, too, if each target is longer than its input. A loss that had fallen below 1e-3, or below a hundredth of its largest
    value, may truly reach 0.0, as one with a margin does: that is a note. Values with other names are not judged: a part of the
    loss may be switched off. If the validation loss is 0.0 in each of the first three epochs, or the test loss is 0.0, the
    recipe may just not compute it: then one warning replaces the errors.
    """

    def __init__(self):
        self.lost = set()  # the keys whose 0.0 in the last entry is not a loss
        self._before, self._largest, self._flags, self._noted, self._test = {}, {}, {}, set(), False

    def feed(self, entry, keys):
        """Judge an entry; ``keys`` are those of the loss."""
        self.lost.clear()
        for key in keys:
            value = entry.numbers.get(key)
            if entry.is_test or value is None or not math.isfinite(value):
                continue
            if value:
                self._before[key] = abs(value)
                self._largest[key] = max(abs(value), self._largest.get(key, 0))
                continue
            before = self._before.get(key)
            if before is not None and before < max(1e-3, self._largest[key] / 100):
                if key not in self._noted:
                    self._noted.add(key)
                    what = f"{key} is exactly 0.0 from here on: it had fallen to {shown(str(before))}"
                    yield _flag("note", "zero-loss", entry, what)
                continue
            self.lost.add(key)
            first = self._flags.setdefault(key, [])
            if before is not None or dataset_of(key) != "valid" or len(first) < 2:
                what = f"{key} is exactly 0.0: perhaps no loss was finite, or each CTC target was longer than its input"
                first.append(_flag("error", "zero-loss", entry, what))
                yield first[-1]
            elif len(first) == 2:
                what = f"{key} is exactly 0.0 in all epochs: not computed, or never finite"
                first.append(Flag("warning", "zero-loss", first[0].line, what, tuple(first)))
                yield first[-1]
            del first[3:]
        test = entry.is_test and entry.numbers.get("test loss") == 0 and not self._before.get("valid loss", 1) < 1e-3
        if test and not self._test:
            yield _flag("warning", "zero-loss", entry, "test loss is exactly 0.0: not computed, or never finite")
        self._test = test if entry.is_test else self._test


class Slow:
    """Flags an epoch that took over twice the median of at least 5 epochs, and over 10 seconds longer: less is noise.

    Only epochs with the same keys are compared: a recipe may compute an error rate in every fifth epoch, which takes longer.
    The last 21 of them count, so that a training whose epochs become longer is flagged once.
    """

    def __init__(self):
        self._usual, self._slow = {}, False

    def feed(self, row):
        """Judge a row."""
        if row.seconds is None:
            return
        group = self._usual.setdefault(tuple(row.items), deque(maxlen=21))
        group.append(row.seconds)
        slow = len(group) >= 5 and row.seconds > (usual := statistics.median(group)) + max(10, usual)
        if slow and not self._slow:
            yield _flag("warning", "slow", row, f"took {clock(row.seconds)}, usual is {clock(usual)}")
        self._slow = slow


class LearningRate:
    """Flags a learning rate that is back at its first value after a restart: its scheduler was not restored.

    A restart shows in log.txt, or in an epoch that repeats. Without one, nothing is flagged, since a cyclic schedule also
    returns to its first value; nor if the new run begins with its first epoch, since that is another training.
    """

    def __init__(self):
        self._first, self._last, self._run, self._clock = {}, {}, 0, None

    def feed(self, row, run):
        """Judge a row of a run with this number."""
        clock_now = row.time[0] if row.time[0] != "arrival" else None
        restart = run != self._run or (None not in (clock_now, self._clock) and clock_now != self._clock)
        if run != self._run and (row.epoch is None or row.epoch <= 1):
            self._first, self._last = {}, {}
        for key in row.numbers:
            if dataset_of(key) or not RATE.search(key):
                continue
            text = row.items[key]
            before = self._last.get(key, text)
            if restart and before != text == self._first.get(key):
                what = f"{key} is back at its first value {shown(text)}, after {shown(before)}: was its scheduler restored?"
                yield _flag("warning", "lr-reset", row, what)
            self._first.setdefault(key, text)
            self._last[key] = text
        self._run, self._clock = run, clock_now if clock_now is not None else self._clock


class Curves:
    """The curves of a run, and the judges of them.

    The row that is judged is ``row``, number ``n`` from 0, ``epochs`` after the first one, with these ``values``; ``sign`` is 1
    if a low loss is good, -1 if a high one is.
    """

    def __init__(self, name, sign):
        self.train, self.valid, self.sign = f"train {name}", f"valid {name}", sign
        self.n, self.row, self.values, self.epochs = -1, None, {}, None
        self._first = None  # row
        self.better = {}  # for each key, the last row that improved it, as (number, row)
        self.said = []  # all flags that the judges raised
        self._low, self._high = {}, {}
        self.stuck = Stuck()
        self._judges = [Divergence(), self.stuck, Collapse(), HighError(), Overfitting(), Plateau()]

    def feed(self, row, values):
        """Judge a row by its finite values, without those that are 0.0 because no loss was finite; yields flags."""
        self.n, self.row, self.values, self._first = self.n + 1, row, values, self._first or row
        self.epochs = None if None in (row.epoch, self._first.epoch) else row.epoch - self._first.epoch
        for key, value in values.items():
            sign = self.way(key)
            low, high = self._low.get(key, math.inf), self._high.get(key, -math.inf)
            if (sign >= 0 and value < low) or (sign <= 0 and value > high):
                unit = self.unit(key)
                if (sign >= 0 and value < low - unit) or (sign <= 0 and value > high + unit):
                    self.better[key] = (self.n, row)
                    self._low[key], self._high[key] = min(low, value), max(high, value)
        for judge in self._judges:
            for flag in judge.feed(self):
                self.said.append(flag)
                yield flag

    def way(self, key):
        """1 if a low value of the key is good, -1 if a high one is, 0 if nothing says so."""
        return self.sign if key in (self.train, self.valid) else direction(key)

    def unit(self, key):
        """The resolution of a value of this row."""
        return resolution(self.row.items[key], self.values[key])

    def good(self, key):
        """The loss, or another value, flipped if needed so that low is good; None if this row has no such value."""
        value = self.values.get(key)
        return None if value is None else self.way(key) * value

    def shown(self, key):
        """The value of a key in this row, for people."""
        return shown(self.row.items[key])

    def flag(self, level, code, what):
        """Flag this row."""
        return _flag(level, code, self.row, what)

    def recovery(self, flag, key):
        """Say that a value of this row refutes a flag."""
        what = f"recovered at {self.row.place}: {key} is {self.shown(key)}"
        return Flag("note", flag.code, self.row.line, what, (flag,))


class Divergence:
    """Flags a training loss that is worse than in the first epoch and does not recover.

    There are two cases. First, the loss rises in two epochs in a row, and before the second rise it was already above twice
    its first value (more exactly: its rise above the first value exceeds both the size of that value and the best
    improvement so far). A single bad batch spoils one epoch, but does not make the next one even worse. Second, the loss had
    halved, is back at its first value for three epochs, and falls in none of them. A new loss term or unfrozen layers also
    make it jump that high, but then it falls again. The validation loss is not used: it multiplies in a training that
    overfits. The flag is refuted if the training loss becomes the lowest of the run.
    """

    def __init__(self):
        self._open = self._first = None
        self._last, self._best, self._lowest = deque(maxlen=2), math.inf, math.inf

    def feed(self, curves):
        """Judge the newest row."""
        key, c = curves.train, curves.good(curves.train)
        if c is None:
            return
        if self._first is None:
            self._first = (c, curves.unit(key), f"{curves.row.place}: {curves.shown(key)}")
        first, unit, before = self._first
        if self._open and c < self._lowest - curves.unit(key):
            yield curves.recovery(self._open, key)
            self._open = None
        if len(self._last) == 2:
            a, b = self._last
            self._best = min(self._best, a)
            gained = first - self._best
            how = None
            if a < b < c and b > first + max(abs(first), gained):
                how = "rose" if curves.sign > 0 else "fell"
            elif gained > 0 and gained >= abs(first) / 2 and first - unit <= a <= b <= c:
                how = "went back"
            if how and not self._open:
                self._open = curves.flag("error", "divergence", f"{key} {how} to {curves.shown(key)} ({before})")
                yield self._open
        self._last.append(c)
        self._lowest = min(self._lowest, c)


class Overfitting:
    """Flags a validation loss that rises from its minimum while the training loss falls.

    Single epochs prove nothing: on a few hundred clips the loss changes by 10 % from one epoch to the next, and the best of
    many epochs is a lucky one. So the average of the last 5 epochs is compared with that of the best 5 in a row before them.
    It must be higher by 10 %, and by four times the median difference between neighbours among the last 20 epochs; otherwise
    curves that have converged would be flagged. No flag is raised while another validation value improves: error rates often
    do while the loss rises. The flag is refuted if the validation loss, or another validation value, has a new best.
    """

    def __init__(self):
        self._open = self._best = self._flagged = None
        self._points, self._means = deque(maxlen=20), deque(maxlen=6)

    def feed(self, curves):
        """Judge the newest row."""
        new = [key for key, (n, _) in curves.better.items() if n == curves.n and dataset_of(key) == "valid"]
        for key in new if self._open else ():
            if curves.way(key):
                yield curves.recovery(self._open, key)
                self._open = None
                break
        valid, train = curves.good(curves.valid), curves.good(curves.train)
        if valid is None or train is None:
            return
        points = self._points
        points.append((valid, train, f"{curves.row.place}: {curves.shown(curves.valid)}"))
        if len(points) < 5:
            return
        last = list(points)[-5:]
        self._means.append((sum(p[0] for p in last) / 5, sum(p[1] for p in last) / 5, min(last)[2]))
        if len(self._means) < 6:
            return
        if self._best is None or self._means[0][0] < self._best[0]:
            self._best = self._means[0]
        (best, best_train, low), (now, now_train, _) = self._best, self._means[-1]
        if self._best is self._flagged or now - best <= abs(best) / 10 or best_train - now_train <= abs(best_train) / 1000:
            return
        noise, train_noise = (statistics.median(abs(b[k] - a[k]) for a, b in pairwise(points)) for k in (0, 1))
        others = (n for key, (n, _) in curves.better.items() if dataset_of(key) == "valid" and key != curves.valid)
        settled = all(curves.n - n >= 5 for n in others)
        if settled and now - best > 4 * noise and best_train - now_train > 2 * train_noise:
            what = f"{curves.valid} is {curves.shown(curves.valid)} ({low}) while {curves.train} improved"
            self._open, self._flagged = curves.flag("warning", "overfitting", what), self._best
            yield self._open


class Plateau:
    """Flags that no value improves any more, once for each series of flat epochs.

    Values are printed with three digits: a loss that falls by 0.05 % in each epoch can look the same for twenty epochs, but
    is not flat. So each value is compared with its last improvement, however long ago that was: it improves if it differs by
    more than a unit of its last digit. It is flat after 10 epochs without an improvement, and at least a quarter of the run,
    since long trainings end in small steps. All values must be flat, as the losses of two adversaries are flat in a healthy
    training, too. A value whose name does not say whether low or high is good must stay the same. No flag is raised if a unit
    of the last digit is more than 2 % of the loss, or while the loss is stuck. The flag is refuted if a value improves.
    """

    def __init__(self):
        self._open, self._flagged = None, None

    def feed(self, curves):
        """Judge the newest row."""
        better = [(*last, key) for key, last in curves.better.items() if dataset_of(key) in ("train", "valid")]
        last, row, newest = max(better, key=lambda each: each[0], default=(-1, None, ""))
        flat = curves.n - last
        if row and None not in (row.epoch, curves.row.epoch):  # there may be several rows in an epoch
            flat = min(flat, curves.row.epoch - row.epoch)
        if self._open and last == curves.n:
            yield curves.recovery(self._open, newest)
            self._open = None
        key = curves.valid if curves.valid in curves.values else curves.train
        if key not in curves.values or last == self._flagged or flat < max(10, (curves.n + 1) / 4):
            return
        if not curves.stuck.open and curves.unit(key) <= 0.02 * abs(curves.values[key]):
            self._flagged = last
            self._open = curves.flag("warning", "plateau", f"no value has improved since {row.place if row else 'the start'}")
            yield self._open


class Stuck:
    """Flags a loss that has not left its start by the fifth epoch.

    It must stay within 3 % of its first value, in the training and in the validation, and fall by less than 0.5 % from the
    second to the fifth epoch, since pretraining is slow. A loss below 0.5, an error rate below one half or an accuracy above it
    are not those of a guess: fine-tuning may begin near its end. Nothing is flagged if another validation value improves by
    3 %, or if the run does not begin with its first epoch. If the validation is printed the same in each of these epochs, no
    step is taken: then small losses count, too. The flag is refuted if a loss falls by another 1 %, if another value improves,
    or if what was the same changes.
    """

    def __init__(self):
        self.open, self._rows, self._done, self._same = None, [], False, False

    def feed(self, curves):
        """Judge the newest row."""
        if self.open and (key := next(filter(lambda key: self._refutes(curves, key), curves.values), None)):
            yield curves.recovery(self.open, key)
            self.open = None
        if not self._done:
            self._rows.append((curves.values, curves.row.items))
            self._done = curves.epochs is None or curves.row.epoch - curves.epochs > 1 or curves.epochs < curves.n
            if not self._done and len(self._rows) == 5 and (flag := self._judge(curves)):
                self.open = flag
                yield flag
            self._done |= len(self._rows) == 5

    def _judge(self, curves):
        first = self._rows[0][0]
        losses = {key: [values.get(key) for values, _ in self._rows] for key in (curves.valid, curves.train)}
        losses = {key: values for key, values in losses.items() if None not in values}
        others = [key for key in first if dataset_of(key) == "valid" and key not in losses]
        for key, values in losses.items():
            size = abs(values[0])
            near = max(values) - values[0] <= 0.03 * size and values[0] - min(values) <= 0.03 * size
            if not near or curves.sign * (values[1] - values[4]) > 0.005 * size or curves.unit(key) > 0.02 * size:
                return None
        if not losses or any(self._improved(curves, key, values) for values, _ in self._rows for key in others):
            return None
        self._lowest = {key: min(curves.sign * value for value in values) for key, values in losses.items()}
        key = next(iter(losses))
        self._same = all(len({items.get(key) for _, items in self._rows}) == 1 for key in [key, *others])
        if self._same:
            what = f"{key} is {curves.shown(key)} in each of 5 epochs: perhaps no step is taken"
        elif curves.sign < 0 or min(first[key] for key in losses) < 0.5 or any(_decent(key, first[key]) for key in others):
            return None
        else:
            what = f"{key} is {curves.shown(key)}, within 3 % of its start: nothing is learned yet"
        return curves.flag("warning", "stuck", what)

    def _improved(self, curves, key, values):
        """Whether a value is better than in the first epoch by more than 3 %; any change counts if its direction is unknown."""
        before, now, way = self._rows[0][0].get(key), values.get(key), curves.way(key)
        gain = 0 if None in (before, now) else way * (before - now) if way else abs(before - now)
        return gain > 0.03 * abs(before or 0)

    def _refutes(self, curves, key):
        if key not in self._lowest:
            return dataset_of(key) == "valid" and self._improved(curves, key, curves.values)
        first = self._rows[0][0][key]
        changed = self._same and key == curves.valid and abs(curves.values[key] - first) > curves.unit(key)
        return changed or curves.good(key) < self._lowest[key] - 0.01 * abs(first)


def _decent(key, value):
    """Whether an error rate or accuracy, as a fraction or in percent, is better than one half."""
    return direction(key) * (value - (50 if abs(value) > 1 else 0.5)) < 0


class Collapse:
    """Flags a loss that falls in one epoch to a ten-thousandth of its lowest value, and below 1e-3, and stays there.

    Two more epochs must confirm it. The lowest value counts, since a bad epoch may raise a loss ten-thousandfold; and a loss
    that begins at 1e6 because the model is not scaled falls as far in a healthy training, but not below 1e-3.
    """

    def __init__(self):
        self._lowest, self._fall = {}, {}

    def feed(self, curves):
        """Judge the newest row."""
        for key in (curves.train, curves.valid):
            value = curves.values.get(key)
            if value is None:
                continue
            lowest = self._lowest.get(key, 0)
            limit, what, count = self._fall.get(key, (min(1e-3, lowest / 10_000), "", 0))
            if 0 < value < limit or (count and value < 10 * limit):
                what = what or f"{key} fell from {lowest:.3g} to {curves.shown(key)} at {curves.row.place}"
                self._fall[key] = (limit, what, count + 1)
                if count == 2:
                    yield curves.flag("warning", "collapse", f"{what}: does the input contain the target?")
            elif count:
                del self._fall[key]
            self._lowest[key] = min(value, self._lowest.get(key, value))


class HighError:
    """Flags error rates in percent that were never below 90, from the tenth epoch on, once for each run.

    All of them must be that high, since the word error rate of a language without spaces always is; and one must have three
    values, since some recipes compute them in every tenth epoch. The flag is refuted if one falls below 90.
    """

    def __init__(self):
        self._open, self._done, self._lowest, self._count = None, False, {}, {}

    def feed(self, curves):
        """Judge the newest row."""
        keys = [key for key in curves.values if dataset_of(key) == "valid" and PERCENT.search(name_of(key))]
        for key in keys:
            self._lowest[key] = min(curves.values[key], self._lowest.get(key, math.inf))
            self._count[key] = self._count.get(key, 0) + 1
            if self._open and self._lowest[key] < 90:
                yield curves.recovery(self._open, key)
                self._open = None
        if (
            keys
            and not self._done
            and (curves.epochs or 0) >= 9
            and min(self._lowest.values()) >= 90
            and max(self._count.values()) >= 3
        ):
            self._done = True
            what = f"{keys[0]} is {curves.shown(keys[0])} and was never below 90"
            self._open = curves.flag("warning", "high-error", what)
            yield self._open
