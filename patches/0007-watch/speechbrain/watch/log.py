"""Read the log that FileTrainLogger writes: its entries, and the runs they belong to, one at a time."""

import contextlib
import errno
import math
import os
import re
import stat
from collections import deque
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache

DATASETS = ("train", "valid", "test")
SECTION = re.compile(r" - (?=(?:train|valid|test) )")
ITEM = re.compile(r", (?=[^,]+: )")
ITEM_OF = {dataset: re.compile(f", (?={dataset} )") for dataset in DATASETS}
OPENING = re.compile(r"[\[({]")
BRACKET = re.compile(r"\\.|['\"\[\](){}]")
START = re.compile(r"(?:epoch|steps?|optimizer_step|epoch loaded): ", re.I)
STAMPED = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) - (\S+) - \w+ - (.*)")
CHUNK = 2**16  # bytes that are read at once
LONGEST = 2**20  # bytes of a line
ARRAY = 10_000  # lines of an entry


def number(text):
    """The value as a number; None if it is not a number but, for example, a list or a name."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


@lru_cache(maxsize=4096)
def dataset_of(key):
    """The dataset of a key such as ``valid loss``, or an empty string."""
    return next((dataset for dataset in DATASETS if key.startswith(f"{dataset} ")), "")


@lru_cache(maxsize=4096)
def name_of(key):
    """The key without its dataset: ``loss`` for ``valid loss``."""
    return key.removeprefix(f"{dataset_of(key)} ")


@dataclass
class Entry:
    """What one call of ``log_stats`` wrote.

    Arguments
    ---------
    items : dict of str: str
        The values as they were printed. Each key starts with its dataset.
    line : int
        The number of its first line.
    text : str
        The whole entry, without the last end of line.
    time : tuple
        The clock that gave the time, or None, and the seconds on that clock.
    seconds : float or None
        How long the epoch took; None if the time of the row before it is unknown, or from another clock.

    Attributes
    ----------
    numbers : dict of str: float
        The values that are numbers.
    datasets : set of str
        The datasets that have values in this entry.
    epoch, step, loaded : float, float and str, or None
        The epoch, the step, and the epoch of the tested checkpoint as it was printed.
    is_test : bool
        Whether this is an evaluation rather than an epoch.
    """

    items: dict
    line: int = 0
    text: str = ""
    time: tuple = (None, 0.0)
    seconds: float | None = field(default=None, repr=False, compare=False)

    def __post_init__(self):
        self.numbers, self.datasets, self.epoch, self.step, self.loaded = {}, set(), None, None, None
        for key, text in self.items.items():
            value = number(text)
            if value is not None:
                self.numbers[key] = value
            if dataset := dataset_of(key):
                self.datasets.add(dataset)
            elif key.lower() == "epoch loaded":
                self.loaded = self.loaded or text
            elif value is not None and math.isfinite(value):
                if key.lower() == "epoch" and self.epoch is None:
                    self.epoch = value
                elif key.lower() in ("step", "steps", "optimizer_step") and self.step is None:
                    self.step = value
        self.is_test = self.loaded is not None or self.datasets == {"test"}

    @property
    def place(self):
        """The position in the training, in words."""
        if self.is_test:
            return "test"
        places = (("epoch", self.epoch), ("step", self.step), ("line", self.line))
        return next(f"{name} {value:.10g}" for name, value in places if value is not None)


def _masked(text, depth=0):
    """Blank out brackets, whose commas do not separate items; returns the text, and the number of brackets still open."""
    if not depth and not OPENING.search(text):
        return text, 0
    parts, quote, start = [], "", 0

    def take(end):
        parts.append("_" * (end - start) if depth else text[start:end])
        return end

    for match in BRACKET.finditer(text):
        token = match.group()
        if quote:
            quote = "" if token == quote else quote
        elif token in "[({":
            start = take(match.start())
            depth += 1
        elif token in "])}" and depth:
            start = take(match.end())
            depth -= 1
        elif token in "'\"" and depth:
            quote = token
    take(len(text))
    return "".join(parts), depth


def _cut(text, masked, pattern):
    """Cut a text and its masked copy where the masked copy matches the pattern."""
    start = 0
    for match in pattern.finditer(masked):
        yield text[start : match.start()], masked[start : match.start()]
        start = match.end()
    yield text[start:], masked[start:]


def parse(text):
    """Read one entry of a log.

    Arguments
    ---------
    text : str
        The text that one call of ``FileTrainLogger.log_stats`` wrote, without the last end of line.

    Returns
    -------
    dict of str: str, or None
        The values as they were printed. Each key starts with its dataset. None if the text is not an entry: it has
        neither an epoch, a step nor a dataset, or a part of it is not an item, or a key occurs twice, which happens if two
        lines were merged into one.

    Example
    -------
    >>> parse("epoch: 3, lr: 1.00e-03 - train loss: 9.18e-01 - valid loss: nan, valid F1: [0.5, 0.7]")
    {'epoch': '3', 'lr': '1.00e-03', 'train loss': '9.18e-01', 'valid loss': 'nan', 'valid F1': '[0.5, 0.7]'}
    >>> parse("Traceback (most recent call last):")
    """
    entry = _entry(text)
    return entry and entry.items


def _entry(text, line=0, time=(None, 0.0)):
    items = {}
    for section, mask in _cut(text, _masked(text)[0], SECTION):
        while mask.endswith(" - "):  # a section with nothing in it
            mask = mask[:-3]
        separator = ITEM_OF.get(dataset_of(section), ITEM)
        for item, _ in _cut(section[: len(mask)], mask, separator) if mask else ():
            key, colon, value = item.partition(": ")
            key = key.rstrip(" :")
            if not colon or not key or key in items:
                return None
            items[key] = value.removeprefix(": ")  # some recipes name a key "Loss: "
    entry = Entry(items, line, text, time)
    if entry.epoch is None and {value for key, value in items.items() if key.lower() == "epoch"} - {"None"}:
        return None
    return entry if entry.datasets or entry.is_test or (entry.epoch, entry.step) != (None, None) else None


class Log:
    r"""Reads a log piece by piece, and keeps only what is incomplete.

    A log.txt is read, too: the lines of FileTrainLogger in it give entries with times, and its other lines are passed over.
    Lines of zero bytes, which a crash of the machine can leave, count as blank.

    Attributes
    ----------
    entries, unread : int
        The number of entries so far, and of lines that are not part of an entry, except blank lines.
    first_unread : tuple or None
        The first of these lines, as (number, text).
    waiting : list of tuple
        The lines of an entry whose array is not complete yet, as (number, text).
    stamped : bool
        Whether this is a log.txt: its lines start with times.

    Example
    -------
    >>> log = Log()
    >>> log.feed(b"epoch: 1 - train loss: 2.05\nepoch: 2 - tra")
    [Entry(items={'epoch': '1', 'train loss': '2.05'}, line=1, text='epoch: 1 - train loss: 2.05', time=(None, 0.0))]
    >>> log.unfinished
    True
    """

    def __init__(self):
        self.entries, self.unread, self.first_unread, self.waiting, self.stamped = 0, 0, None, [], False
        self._line, self._half, self._depth, self._starts, self._time = 0, b"", 0, 0, (None, 0.0)

    @property
    def unfinished(self):
        """Whether the last line, or an array in the last entry, is incomplete."""
        return bool(self._half or self.waiting)

    @property
    def half(self):
        """The beginning of the last line, if that is incomplete."""
        return self._half[:200].decode("utf-8", "replace")

    @property
    def started(self):
        """Whether the file can be a log: it has an entry, or the beginning of one."""
        return bool(self.entries or self.waiting or START.match(self.half))

    def feed(self, data):
        """Read the next part of the log.

        Arguments
        ---------
        data : bytes
            The bytes written since the last call. An incomplete line is kept until its rest arrives.

        Returns
        -------
        list of Entry
            The new entries.
        """
        found = []
        *lines, self._half = (self._half + data).split(b"\n")
        for line in lines:
            self._line += 1
            found += self._read(line.decode("utf-8", "replace").strip("\r\0"))
        self._half = self._half.lstrip(b"\0")
        if len(self._half) > LONGEST:
            self._give_up()
            self._skip(self._line + 1, self._half[:200].decode("utf-8", "replace"))
            self._half = b""
        self.entries += len(found)
        return found

    def _read(self, line):
        """Read a line; returns the entry that it completes, if any, in a list."""
        match = STAMPED.match(line)
        if match:
            moment, logger, line = match.groups()
            self.stamped = True
            self._starts += line == "Beginning experiment!"
            if not logger.endswith("train_logger"):
                self._give_up()
                return []
            with contextlib.suppress(ValueError):  # not a valid date
                self._time = (self._starts, (datetime.fromisoformat(moment.replace(",", ".")) - datetime.min).total_seconds())
        elif self.stamped and not self.waiting:
            return []
        if self.waiting and (match or START.match(line) or len(self.waiting) > ARRAY):  # an array was cut off
            self._give_up()
        self._depth = _masked(line, self._depth)[1]
        self.waiting.append((self._line, line))
        if self._depth:
            return []
        text = "\n".join(line for _, line in self.waiting)
        entry = _entry(text, self.waiting[0][0], self._time if self.stamped else (None, 0.0))
        if entry is None:
            self._give_up()
        self.waiting = []
        return [entry] if entry else []

    def _give_up(self):
        for number, line in self.waiting:
            if line.strip():
                self._skip(number, line)
        self.waiting, self._depth = [], 0

    def _skip(self, number, line):
        self.unread += 1
        self.first_unread = self.first_unread or (number, line[:200])


class Divider:
    r"""Divides a log into runs: a new one begins where the epoch, or the step within the epoch, repeats or falls.

    Some recipes log the training and the validation of an epoch in two entries: these become one row. So the first row without
    validation waits for the next entry, and so do later ones if a row of this log was completed in this way.

    Example
    -------
    >>> divider = Divider()
    >>> entries = Log().feed(b"epoch: 1 - valid loss: 2.05\nepoch: 1 - valid loss: 2.06\n")
    >>> [number for entry in entries for number, row in divider.feed(entry)]
    [0, 1]
    """

    def __init__(self):
        self.number, self.held = 0, None  # the run that was reached; the row that waits
        self._last, self._step, self._split, self._row = None, None, None, None

    def feed(self, entry):
        """Take the next entry; returns the rows and tests that are now complete, each as (number of the run, entry)."""
        if entry.is_test:
            return [*self.rest(), (self.number, entry)]
        last = self._last
        same = last and entry.epoch is not None and entry.epoch == last.epoch
        if same and (last.datasets, entry.datasets) == ({"train"}, {"valid"}):
            held, self.held, self._last, self._split = self.held, None, entry, True
            return self._take(replace(held, items=held.items | entry.items, time=entry.time) if held else entry)
        found = self.rest()
        advances = entry.step is not None and (self._step is None or entry.step > self._step)
        if entry.epoch is None:
            again = entry.step is not None and not advances
        else:
            again = last and last.epoch is not None and (entry.epoch < last.epoch or (same and not advances))
        if again:
            self.number += 1
            self._step = self._row = None
        if entry.epoch is not None or entry.step is not None:
            self._step = entry.step
        if entry.epoch is not None or again or not last:
            self._last = entry
        if entry.epoch is not None and entry.datasets == {"train"} and self._split is not False:
            self.held = entry
            return found
        self._split = self._split or False
        return [*found, *self._take(entry)]

    def rest(self):
        """Return the row that waits, if any, as ``feed`` does: it is complete after all."""
        held, self.held = self.held, None
        if not held:
            return []
        self._split = self._split or False
        return self._take(held)

    def _take(self, row):
        before, self._row = self._row, row
        if before and before.time[0] is not None and before.time[0] == row.time[0] and row.time[1] > before.time[1]:
            epochs = row.epoch - before.epoch if None not in (row.epoch, before.epoch) else 1
            row.seconds = (row.time[1] - before.time[1]) / max(1, epochs)
        return [(self.number, row)]


class Stamps:
    """The times that the log.txt in the same folder has for the lines of a log; if there is none, the times stay unknown.

    Each start of the script is a separate clock, so that the pause before a training is resumed does not count as part of an
    epoch.
    """

    def __init__(self, path):
        log, self._ahead = Log(), deque()
        self._entries = (entry for data in chunks(path) for entry in log.feed(data) if entry.time[0] is not None)

    def give(self, entry):
        """Give an entry its time, if it is among the next 100 of log.txt; returns the entry."""
        ahead = self._ahead
        with contextlib.suppress(OSError):
            while len(ahead) < 100 and (other := next(self._entries, None)):
                ahead.append((other.text, other.time))
        place = next((n for n, (text, _) in enumerate(ahead) if text == entry.text), None)
        for _ in range(0 if place is None else place + 1):
            entry.time = ahead.popleft()[1]
        return entry


def _open(path):
    """Open a file; a pipe or device is refused, since it cannot be read twice."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "a pipe or device cannot be watched; give a file", str(path))
    return open(path, "rb")


def chunks(path, size=math.inf):
    """Yield the first ``size`` bytes of a file, in pieces."""
    with _open(path) as file:
        while size > 0 and (data := file.read(min(size, CHUNK))):
            size -= len(data)
            yield data


def tail(path):
    """Yield the new bytes of a file, again and again; None if the file was truncated or replaced.

    The file is opened again each time. It counts as the same file if the last bytes read before are still in their place.

    Arguments
    ---------
    path : pathlib.Path
        The file, which need not exist all the time.

    Yields
    ------
    bytes or None
        The new bytes, which may be empty, and at most ``CHUNK``. After a None, the file is read from its beginning.
    """
    offset, last = 0, b""
    while True:
        data = b""
        with contextlib.suppress(FileNotFoundError), _open(path) as file:
            file.seek(offset - len(last))
            if file.read(len(last)) != last:
                yield None
                offset, last = 0, b""
                file.seek(0)
            data = file.read(CHUNK)
        offset += len(data)
        last = (last + data)[-4096:]
        yield data
