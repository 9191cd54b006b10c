"""Read the log that FileTrainLogger writes: its entries, and the runs they belong to."""

import contextlib
import math
import re
from collections import defaultdict, deque
from dataclasses import dataclass, field, replace
from datetime import datetime

DATASETS = ("train", "valid", "test")
SECTION = re.compile(r" - (?=(?:train|valid|test) )")
ITEM = re.compile(r", (?=[^,]+: )")
ITEM_OF = {dataset: re.compile(f", (?={dataset} )") for dataset in DATASETS}
BRACKET = re.compile(r"\\.|['\"\[\](){}]")
START = re.compile(r"(?:epoch|steps?|optimizer_step|epoch loaded): ", re.I)
STAMPED = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3}) - \S+ - \w+ - (.*)")


def number(text):
    """The value as a number; None if it is not a number but, for example, a list or a name."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def dataset_of(key):
    """The dataset of a key such as ``valid loss``, or an empty string."""
    return next((dataset for dataset in DATASETS if key.startswith(f"{dataset} ")), "")


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
    """

    items: dict
    line: int = 0
    text: str = ""
    time: tuple = (None, 0.0)

    def number(self, key):
        """The value of a key as a number, or None."""
        return number(self.items.get(key))

    def _first(self, *names):
        numbers = (number(value) for key, value in self.items.items() if key.lower() in names)
        return next((value for value in numbers if value is not None and math.isfinite(value)), None)

    @property
    def epoch(self):
        """The number of the epoch, or None."""
        return self._first("epoch")

    @property
    def step(self):
        """The number of the step, or None."""
        return self._first("step", "steps", "optimizer_step")

    @property
    def loaded(self):
        """The epoch of the tested checkpoint, as it was printed, or None."""
        return next((value for key, value in self.items.items() if key.lower() == "epoch loaded"), None)

    @property
    def datasets(self):
        """The datasets that have values in this entry."""
        return {dataset_of(key) for key in self.items} - {""}

    @property
    def is_test(self):
        """Whether this is an evaluation rather than an epoch."""
        return self.loaded is not None or self.datasets == {"test"}

    @property
    def place(self):
        """The position in the training, in words."""
        if self.is_test:
            return "test"
        places = (("epoch", self.epoch), ("step", self.step), ("line", self.line))
        return next(f"{name} {value:.10g}" for name, value in places if value is not None)


def _masked(text, depth=0):
    """Blank out brackets, whose commas do not separate items; returns the text, and the number of brackets still open."""
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
    entry = Entry(items)
    if entry.epoch is None and {value for key, value in items.items() if key.lower() == "epoch"} - {"None"}:
        return None
    valid = entry.datasets or entry.is_test or entry.epoch is not None or entry.step is not None
    return items if valid else None


class Log:
    r"""The part of a log that was read so far.

    Attributes
    ----------
    entries : list of Entry
        The entries.
    unread : list of tuple
        The lines that are not part of an entry, as (number, text), except blank lines.
    waiting : list of tuple
        The lines of an entry whose array is not complete yet.

    Example
    -------
    >>> log = Log()
    >>> log.feed(b"epoch: 1 - train loss: 2.05\nepoch: 2 - tra")
    [Entry(items={'epoch': '1', 'train loss': '2.05'}, line=1, text='epoch: 1 - train loss: 2.05', time=(None, 0.0))]
    >>> log.unfinished
    True
    """

    def __init__(self):
        self.entries, self.unread, self.waiting = [], [], []
        self._line, self._half, self._depth = 0, b"", 0

    @property
    def unfinished(self):
        """Whether the last line, or an array in the last entry, is incomplete."""
        return bool(self._half or self.waiting)

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
        known = len(self.entries)
        *lines, self._half = (self._half + data).split(b"\n")
        for line in lines:
            line = line.decode("utf-8", "replace").rstrip("\r")
            self._line += 1
            if self.waiting and START.match(line):  # the previous entry was cut off in an array
                self._give_up()
            self._depth = _masked(line, self._depth)[1]
            self.waiting.append((self._line, line))
            if not self._depth:
                self._close()
        return self.entries[known:]

    def _close(self):
        text = "\n".join(line for _, line in self.waiting)
        items = parse(text)
        if items is None:
            self._give_up()
        else:
            self.entries.append(Entry(items, self.waiting[0][0], text))
            self.waiting = []

    def _give_up(self):
        self.unread += [(number, line) for number, line in self.waiting if line.strip()]
        self.waiting, self._depth = [], 0


@dataclass
class Run:
    """One run of a training: its epochs, ``rows``, and its evaluations, ``tests``."""

    rows: list = field(default_factory=list)
    tests: list = field(default_factory=list)

    def numeric_keys(self):
        """The keys that have a number in any row: first those without a dataset, then training, validation, and test."""
        keys = dict.fromkeys(key for row in self.rows for key in row.items if row.number(key) is not None)
        return sorted(keys, key=lambda key: ("", *DATASETS).index(dataset_of(key)))


def runs(entries):
    """Divide a log into runs: a new one begins where the epoch, or the step within the epoch, repeats or falls.

    Arguments
    ---------
    entries : list of Entry
        The entries of a log.

    Returns
    -------
    list of Run
        At least one run. If the training and the validation of an epoch were logged in two entries, they become one row.
    """
    found = [Run()]
    epoch = step = None
    for entry in entries:
        rows = found[-1].rows
        if entry.is_test:
            found[-1].tests.append(entry)
            continue
        same = rows and entry.epoch is not None and entry.epoch == rows[-1].epoch
        if same and (rows[-1].datasets, entry.datasets) == ({"train"}, {"valid"}):
            rows[-1] = replace(rows[-1], items=rows[-1].items | entry.items, time=entry.time)
            continue
        advances = entry.step is not None and (step is None or entry.step > step)
        if entry.epoch is None:
            again = entry.step is not None and not advances
        else:
            again = epoch is not None and (entry.epoch < epoch or (entry.epoch == epoch and not advances))
        if again:
            found.append(Run())
            epoch = step = None
        if entry.epoch is not None:
            epoch, step = entry.epoch, entry.step
        elif entry.step is not None:
            step = entry.step
        found[-1].rows.append(entry)
    return found


def stamp(entries, path):
    """Give entries the times that log.txt has for the same lines.

    Each start of the script is a separate clock, so that the pause before a training is resumed does not count as part of an
    epoch.

    Arguments
    ---------
    entries : list of Entry
        The entries of a log.
    path : pathlib.Path
        The log.txt in the same folder. If there is none, the times stay unknown.
    """
    waiting = defaultdict(deque)
    for entry in entries:
        waiting[entry.text.partition("\n")[0]].append(entry)
    starts = 0
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace", newline="\n") as file:
        for match in filter(None, map(STAMPED.match, file)):
            moment, milliseconds, line = match.groups()
            line = line.rstrip("\r")
            starts += line == "Beginning experiment!"
            if waiting.get(line):
                with contextlib.suppress(ValueError):  # not a valid date
                    seconds = (datetime.fromisoformat(moment) - datetime.min).total_seconds() + int(milliseconds) / 1000
                    waiting[line].popleft().time = (starts, seconds)


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
        The new bytes, which may be empty. After a None, the file is read from its beginning.
    """
    offset, last = 0, b""
    while True:
        data = b""
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
            file.seek(offset - len(last))
            if file.read(len(last)) != last:
                yield None
                offset, last = 0, b""
                file.seek(0)
            data = file.read()
        offset += len(data)
        last = (last + data)[-4096:]
        yield data
