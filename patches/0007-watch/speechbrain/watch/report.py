"""Show a log: as a table, a summary and a picture."""

import math

from speechbrain.watch.flags import direction
from speechbrain.watch.log import dataset_of, name_of
from speechbrain.watch.run import Goal
from speechbrain.watch.text import clean, clock, shown, whole

STYLES = {"error": "31;1", "warning": "33", "note": "36", "best": "32;1", "head": "1"}
FEW = 3  # tests of one epoch that are printed one by one


class Columns:
    """The columns of a run: their keys, and how wide their values are before and after the decimal point.

    Columns that do not fit into ``width`` are left out, and their names are listed; ``timed`` asks for a column of durations
    even if no duration is known yet.
    """

    def __init__(self, width=None, timed=False):
        self._width, self._timed, self._sizes, self._keys, self._fitting = width, timed, {}, (), None

    def see(self, run, row):
        """Make room for the values of a row; returns whether there is a new column."""
        for key in row.numbers:
            self._make_room(key, shown(row.items[key]))
        if row.seconds is not None:
            self._make_room("took", clock(row.seconds))
        timed = bool(run.keys) and (self._timed or run.timed)
        if len(run.keys) + timed == len(self._keys):
            return False
        self._keys, self._fitting = (*run.numeric_keys(), *["took"] * timed), None
        return True

    def head(self):
        """The names of the columns, and in a second line the names of those that do not fit, if any."""
        names = "   ".join(f"{clean(key):>{size}}" for key, _, _, size in self._fit())
        others = ", ".join(map(clean, self._keys[len(self._fit()) :]))
        return [f"  {names}"] * bool(names) + [f"  (not shown: {others})"] * bool(others)

    def line(self, row):
        """The values of a row, aligned at the decimal point."""
        cells = []
        for key, before, after, size in self._fit():
            text = shown(row.items.get(key)) if key != "took" else "" if row.seconds is None else clock(row.seconds)
            number, point, digits = text.partition(".")
            cells.append(f"{f'{number:>{before}}{point + digits:<{after}}':>{size}}")
        return f"  {'   '.join(cells)}".rstrip()

    def _make_room(self, key, text):
        before, point, after = text.partition(".")
        most = self._sizes.get(key, (0, 0))
        if len(before) > most[0] or len(point + after) > most[1]:
            self._sizes[key] = max(most[0], len(before)), max(most[1], len(point + after))
            self._fitting = None

    def _fit(self):
        """For each column that fits, its key, and the widths before the point, after it, and of the column."""
        if self._fitting is None:
            sizes = [(key, *self._sizes.get(key, (0, 0))) for key in self._keys]
            self._fitting = [(key, before, after, max(len(clean(key)), before + after)) for key, before, after in sizes]
            while self._width and len(self._fitting) > 1 and sum(each[3] + 3 for each in self._fitting) > self._width:
                self._fitting.pop()
        return self._fitting


class Printer:
    """Prints a log row by row, with each flag below its row.

    Arguments
    ---------
    out : callable
        Prints a line.
    colour : bool
        Whether to color the lines.
    width : int or None
        The width of the terminal.
    follow : bool
        Whether the training may go on: then each row that is the best so far is marked. Otherwise ``learn`` must have seen all
        rows, and many tests of one epoch become one line.
    """

    def __init__(self, out, colour=False, width=None, follow=False):
        self._out, self._colour, self._width, self._follow = out, colour, width, follow
        self._columns, self._run, self._tests, self._said = {}, None, [], []

    def learn(self, run, row):
        """Make room for the values of a row; returns whether the run has a new column."""
        if run.n not in self._columns:
            self._columns[run.n] = Columns(self._width, self._follow)
        return not row.is_test and self._columns[run.n].see(run, row)

    def row(self, run, row, said, goal, several=False):
        """Print a row or test, and what judges say below it; ``several`` says that the log has more than one run."""
        if not (self._tests and row.is_test and run is self._run and row.loaded == self._tests[0].loaded):
            self.flush()
        new = self._follow and self.learn(run, row)
        if run is not self._run:
            if several or run.n:
                line = f", from line {run.first.line}" if run.first else ""
                self._out(f"{self._paint(f'Run {run.n + 1}', 'head')}{line}")
            new, self._run = True, run
        self._said += said
        if row.is_test:
            self._tests.append(row)
        else:
            for n, line in enumerate(self._columns[run.n].head() if new else ()):
                self._out(line if n else self._paint(line, "head"))
            best, line = run.best(goal), self._columns[run.n].line(row) or f"  {clean(row.place)}"
            if best and best.line == row.line:
                line = self._paint(f"* {line[2:]}   {clean(str(goal))}{' so far' if self._follow else ''}", "best")
            self._out(line)
        if self._follow or not row.is_test:
            self.flush()

    def early(self, row):
        """Print a row that may wait for its validation."""
        values = ", ".join(f"{key} {shown(row.items[key])}" for key in row.numbers if dataset_of(key))
        self._out(clean(f"  {row.place}: {values}"))

    def flush(self):
        """Print the tests and flags that were put aside."""
        for line in _tests(self._tests):
            self._out(clean(line))
        for flag in self._said:
            self._out(f"      {self._paint(f'{flag.level:7}  {flag.code:11}  {clean(flag.what)}', flag.level)}")
        self._tests, self._said = [], []

    def _paint(self, text, style):
        return f"\033[{STYLES[style]}m{text}\033[0m" if self._colour else text


def _tests(tests):
    """The lines of the tests of one epoch: a few are printed one by one, many become one line with a count."""
    which = f" of epoch {tests[0].loaded}" if tests and tests[0].loaded else ""
    if len(tests) > FEW:
        spread = []
        for key in tests[0].numbers:
            values = sorted((test.numbers[key], shown(test.items[key])) for test in tests if key in test.numbers)
            low, high = values[0][1], values[-1][1]
            spread += [f"{name_of(key)} {low}{f' to {high}' if high != low else ''}"] * (dataset_of(key) == "test")
        return [f"  {len(tests)} tests{which}: {', '.join(spread)}"]
    lines = []
    for test in tests:
        items = [(key, text) for key, text in test.items.items() if dataset_of(key) == "test"]
        values = ", ".join(f"{name_of(key)} {shown(text) if key in test.numbers else whole(text)}" for key, text in items)
        lines.append(f"  test{which}: {values}".rstrip())
    return lines


def summary(log, runs, goal):
    """Yield the last lines: the best epochs, the tested ones, the number of flags, and the lines that could not be read."""
    for run in runs:
        best = run.best(goal)
        which = f" of run {run.n + 1}" if len(runs) > 1 else ""
        if best:
            yield clean(f"Best{which}: {best.place}, {goal} {shown(best.text)}")
            others = {}
            for key in run.numeric_keys():
                other = Goal(key, direction(key))
                if dataset_of(key) == "valid" and other.sign and "loss" not in key.lower() and key != goal.key:
                    value = run.best(other)
                    if value and set(value.epochs).isdisjoint(best.epochs):
                        others.setdefault(value.place, []).append(f"the {other} {shown(value.text)}")
            if others:
                said = (f"{place} has {' and '.join(values)}" for place, values in others.items())
                yield clean(f"But{which}: {'; '.join(said)}")
        if run.tested:
            yield clean(f"Tested{which}: epoch {run.tested}, {run.tested_as()}")
    if not goal:
        keys = ", ".join(dict.fromkeys(clean(key) for run in runs for key in run.numeric_keys()))
        yield "No best epoch yet: the log has no value to choose it by" + (f"; name one with --best: {keys}" if keys else "")
    levels = [flag.level for run in runs for flag in run.found]
    if levels:
        counts = [f"{levels.count(level)} {level}{'s' * (levels.count(level) > 1)}" for level in sorted(set(levels))]
        yield f"Flags: {', '.join(counts)}"
    if log.unread:
        line, text = log.first_unread
        yield clean(f"Lines that are not entries: {log.unread}, the first is line {line}: {text[:80]!r}")
    if log.unfinished:
        yield "The last line is incomplete, and is left out."


class Picture:
    """Draws the curves of a log, one panel for each name. Earlier runs are pale; red lines mark nan and inf."""

    def __init__(self, most=4000):
        self._most, self._rows, self._seen = most, {}, 0

    def add(self, run, row):
        """Remember a row; if a run has more than ``most``, every second row is forgotten."""
        rows = self._rows.setdefault(run.n, [])
        numbers = {key: value for key, value in row.numbers.items() if dataset_of(key) in ("train", "valid")}
        rows.append((self._seen, row.line, row.epoch if row.epoch is not None else row.step, numbers))
        self._seen += 1
        if len(rows) > self._most:
            del rows[1::2]

    def draw(self, path, runs, goal):
        """Write the picture, a PNG."""
        from matplotlib.figure import Figure

        keys = [key for run in runs for key in run.numeric_keys() if dataset_of(key) in ("train", "valid")]
        names = list(dict.fromkeys(map(name_of, keys)))[:24]
        across = max(1, min(3, len(names)))
        down = max(1, math.ceil(len(names) / across))
        figure = Figure(figsize=(5 * across, 3.2 * down), layout="constrained")
        panels = figure.subplots(down, across, squeeze=False).ravel()
        for panel in panels[len(names) :]:
            panel.set_visible(False)
        for panel, name in zip(panels, names):
            panel.set_title(clean(name), parse_math=False)
            for run in runs:
                self._draw(panel, name, run, run.best(goal), 1 if run is runs[-1] else 0.25)
            heights = [y for line in panel.get_lines() for y in line.get_ydata() if not math.isnan(y)]
            if heights and min(heights) > 0 and max(heights) > 100 * min(heights):
                panel.set_yscale("log")
            if panel.get_legend_handles_labels()[0]:
                panel.legend()
        figure.savefig(path, format="png", dpi=120)

    def _draw(self, panel, name, run, best, alpha):
        """Draw the training and validation curve of one run."""
        rows = self._rows.get(run.n, [])
        places = [place for _, _, place, _ in rows]
        if None in places or len(set(places)) < len(places):  # the run also has rows of single steps
            places = [n - rows[0][0] + 1 for n, *_ in rows]
        for dataset, colour in (("train", "tab:blue"), ("valid", "tab:orange")):
            points = [(x, numbers.get(f"{dataset} {name}")) for x, (*_, numbers) in zip(places, rows)]
            points = [(x, y) for x, y in points if y is not None]
            if points:
                ys = [y if abs(y) < 1e30 else math.nan for _, y in points]  # larger values overflow the axes
                label = dataset if alpha == 1 else None
                panel.plot([x for x, _ in points], ys, ".-", color=colour, alpha=alpha, label=label)
            for x in (x for x, y in points if not math.isfinite(y)):
                panel.axvline(x, color="tab:red", alpha=alpha, linewidth=0.8)
        lines = [line for _, line, *_ in rows]
        if best and alpha == 1 and best.line in lines:
            panel.axvline(places[lines.index(best.line)], color="tab:green", linestyle=":", label="best")
