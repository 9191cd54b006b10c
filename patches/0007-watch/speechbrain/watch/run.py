"""The runs of a log: their values, their best epochs, and their flags."""

import math
from dataclasses import dataclass, field

from speechbrain.watch.flags import Curves, LearningRate, Nonfinite, Slow, ZeroLoss, direction, find_loss
from speechbrain.watch.log import DATASETS, Divider, dataset_of, name_of, number


@dataclass(frozen=True)
class Goal:
    """What decides which epoch is best: a key, and whether a low value (``sign`` 1) or a high one (-1) is good."""

    key: str
    sign: int = 1

    def __str__(self):
        return f"{'lowest' if self.sign > 0 else 'highest'} {self.key}"


@dataclass
class Extreme:
    """The lowest or highest value of a key: the value as printed, the row where it was first, and the epochs that have it."""

    value: float
    text: str
    line: int
    place: str
    epochs: list = field(default_factory=list)


class Run:
    """One run of a training, judged row by row.

    Attributes
    ----------
    n : int
        Its number, from 0.
    keys : dict
        For each key that has numbers, its extremes: Extreme or None, by sign. Rows that are flagged as errors do not count.
    flags : list of Flag
        What was flagged so far, and not refuted.
    first, last : Entry or None
        The first and the last row.
    loss, tested : str or None
        What the loss is called; the epoch of the last checkpoint that was tested, as it was printed.
    timed : bool
        Whether the duration of a row is known.
    """

    def __init__(self, number=0):
        self.n, self.keys, self.flags, self.tested, self.timed = number, {}, [], None, False
        self.first = self.last = self.loss = None
        self._nonfinite, self._zero, self._slow = Nonfinite(), ZeroLoss(), Slow()
        self._signs, self._trend, self._curves, self._rows, self._validated = (1,), 1, None, [], False

    def feed(self, entry):
        """Judge the next row or test; returns what the judges say. The flags are also in ``flags``."""
        new = [key for key in entry.numbers if key not in self.keys]
        if new and not entry.is_test:
            self.keys.update((key, {1: None, -1: None}) for key in new)
            name, signs = find_loss(self.keys)
            if (name, signs) != (self.loss, self._signs):
                self.loss, self._signs = name, signs
                self._restart()
        plain = len(self._signs) == 2 or (self.loss or "").lower() == "loss"
        zero = (f"train {self.loss}", f"valid {self.loss}") if plain else ()
        said = [*self._nonfinite.feed(entry, "" if self._signs == (-1,) else self.loss), *self._zero.feed(entry, zero)]
        if entry.is_test:
            self.tested = entry.loaded or self.tested
            if self._curves and self._curves.sign != self.sign:  # the trend misled them
                self._restart()
        else:
            values = {key: v for key, v in entry.numbers.items() if math.isfinite(v) and key not in self._zero.lost}
            said += [*self._slow.feed(entry), *self._judge(entry, values)]
            if not any(flag.level == "error" for flag in said):
                self._rank(entry, values)
            self.first, self.last = self.first or entry, entry
            self.timed = self.timed or entry.seconds is not None
        return self.note(said)

    def close(self):
        """Forget what only judges need: another run begins."""
        self._nonfinite = self._zero = self._slow = self._curves = None

    def note(self, said):
        """Take over what judges say, and return it."""
        for flag in said:
            self.flags = [each for each in self.flags if each not in flag.refuted] if flag.refuted else self.flags
            if flag.level != "note" or not flag.refuted:
                self.flags.append(flag)
        return said

    @property
    def found(self):
        """The flags in the order of the log."""
        return sorted(self.flags, key=lambda flag: flag.line)

    def best(self, goal):
        """The best row, the earliest if several are equal: an Extreme; None if no row has a finite value."""
        return self.keys[goal.key][goal.sign] if goal and goal.key in self.keys else None

    def numeric_keys(self):
        """The keys that have a number in any row: first those without a dataset, then training, validation, and test."""
        return sorted(self.keys, key=lambda key: ("", *DATASETS).index(dataset_of(key)))

    def way(self, key):
        """1 if a low value is good, -1 if a high one is, 0 if nothing says so."""
        return self.sign if self.loss and name_of(key) == self.loss else direction(key)

    @property
    def sign(self):
        """1 if low losses are good, -1 if high ones are: by the name, or the tested epoch, or the trend of three epochs."""
        ways = [sign for sign in (1, -1) if self._is_tested(f"valid {self.loss}", sign)]
        if len(self._signs) == 1 or len(ways) == 1:
            return self._signs[0] if len(self._signs) == 1 else ways[0]
        return self._trend

    def tested_as(self):
        """Say by which values of the validation the tested epoch is the best."""
        keys = [(key, sign) for key in self.numeric_keys() if dataset_of(key) == "valid" for sign in (1, -1)]
        goals = [Goal(*each) for each in keys if self._is_tested(*each)]
        goals = [g for g in goals if self.way(g.key) == g.sign] or [g for g in goals if not self.way(g.key)]
        if goals:
            return f"which has the {' and the '.join(map(str, goals))}"
        epoch, rows = number(self.tested), [row.epoch for row in (self.first, self.last) if row and row.epoch is not None]
        inside = epoch is not None and len(rows) == 2 and rows[0] <= epoch <= rows[1]
        return "which is not the best by any value of the validation" if inside else "which is not in this run"

    def _is_tested(self, key, sign):
        best = self.keys.get(key, {}).get(sign)
        epoch = number(self.tested)
        return best is not None and epoch is not None and epoch in best.epochs

    def _restart(self):
        """Start new curves, and drop the flags of the old ones."""
        self.flags = [flag for flag in self.flags if not self._curves or flag not in self._curves.said]
        self._curves, self._rows = None, []

    def _judge(self, row, values):
        """Judge the curves. Some recipes also log single steps between validations; these are too noisy to be judged."""
        validated = "valid" in row.datasets
        if validated and not self._validated:
            self._validated = True
            self._restart()
        again = self.last is not None and row.epoch == self.last.epoch
        if self.loss is None or (not validated and (self._validated or row.epoch is None or again)):
            return
        self._rows.append((row, values))
        if not self._curves:
            trend = [each[f"train {self.loss}"] for _, each in self._rows if f"train {self.loss}" in each]
            if len(self._signs) == 2 and len(trend) < 3:
                self._rows = self._rows[-100:]
                return
            self._trend = self._signs[0] if len(self._signs) == 1 else -1 if trend[-1] > trend[0] else 1
            self._curves = Curves(self.loss, self.sign)
        for each in self._rows:
            yield from self._curves.feed(*each)
        self._rows = []

    def _rank(self, row, values):
        for key, value in values.items():
            extremes = self.keys[key]
            for sign in (1, -1):
                best = extremes[sign]
                if best is None or sign * value < sign * best.value:
                    extremes[sign] = Extreme(value, row.items[key], row.line, row.place, [row.epoch])
                elif value == best.value and len(best.epochs) < 100:
                    best.epochs.append(row.epoch)


class Watch:
    r"""Judges the entries of a log, one at a time; ``runs`` are the runs so far, at least one.

    Example
    -------
    >>> from speechbrain.watch.log import Log
    >>> watch = Watch()
    >>> for entry in Log().feed(b"epoch: 1 - train loss: 2.05 - valid loss: nan\n"):
    ...     for run, row, said in watch.feed(entry):
    ...         print(said[0].level, said[0].code, said[0].what)
    error nonfinite epoch 1: valid loss is nan
    """

    def __init__(self):
        self.runs, self.divider, self._rates = [Run()], Divider(), LearningRate()

    def feed(self, entry):
        """Take the next entry; returns (run, entry, flags) for each row or test that is now complete."""
        return [self._take(*each) for each in self.divider.feed(entry)]

    def rest(self):
        """Take the row that waits for its validation, if any, as ``feed`` does."""
        return [self._take(*each) for each in self.divider.rest()]

    def _take(self, number, entry):
        if number == len(self.runs):
            self.runs[-1].close()
            self.runs.append(Run(number))
        run = self.runs[number]
        said = run.feed(entry)
        return run, entry, said if entry.is_test else said + run.note([*self._rates.feed(entry, number)])


def find_goal(runs, best=None):
    """Choose the value that decides which epoch is best.

    Arguments
    ---------
    runs : list of Run
        The runs of a log.
    best : str or None
        A key, with or without its dataset. ``:min`` or ``:max`` may follow; otherwise the name decides. By default, the
        validation loss, or else the first validation value whose name contains "loss", or else the only name that both the
        training and the validation have.

    Returns
    -------
    Goal or None
        None if no such key has a number.
    """
    keys = dict.fromkeys(key for run in runs for key in run.numeric_keys())
    ways = {key: run.way(key) for run in runs for key in run.keys}
    if best is None:
        losses = [key for key in keys if dataset_of(key) == "valid" and "loss" in key.lower()]
        losses = losses or [key for run in runs if (key := f"valid {run.loss}") in keys]
        return _goal(min(losses, key=lambda key: name_of(key).lower() != "loss"), ways) if losses else None
    name, _, way = best.rpartition(":")
    if not name or way not in ("min", "max"):
        name, way = best, None
    keys = [key for key in keys if name.lower() in (key.lower(), name_of(key).lower())]
    if not keys:
        return None
    key = min(keys, key=lambda key: ("valid", "train", "", "test").index(dataset_of(key)))
    return Goal(key, {"min": 1, "max": -1}[way]) if way else _goal(key, ways)


def _goal(key, ways):
    return Goal(key, -1 if ways[key] < 0 else 1)
