"""Show a log: as a table, a summary and a picture."""

import math
from collections import defaultdict

from speechbrain.watch.flags import find_best, flags, took
from speechbrain.watch.log import dataset_of, name_of
from speechbrain.watch.text import clean, clock, shown

STYLES = {"error": "31;1", "warning": "33", "best": "32;1", "head": "1"}


def table(found, goal, colour=False, width=None, so_far=False):
    """Format the runs of a log as a table, with each flag below its row.

    Arguments
    ---------
    found : list of Run
        The runs.
    goal : Goal or None
        The value that decides which epoch is best.
    colour : bool
        Whether to color the lines.
    width : int or None
        The width of the terminal. Columns that do not fit are left out, and their names are listed.
    so_far : bool
        Whether the training may go on: then a better epoch may follow.

    Yields
    ------
    tuple
        An identity, which stays the same when the table is made again from a longer log, and the line.
    """

    def paint(text, style):
        return f"\033[{STYLES[style]}m{text}\033[0m" if colour else text

    for n, run in enumerate(found):
        if len(found) > 1:
            yield (n, "run"), f"{paint(f'Run {n + 1}', 'head')}{f', from line {run.rows[0].line}' if run.rows else ''}"
        keys, seconds, best = run.numeric_keys(), took(run.rows), find_best(run, goal)
        columns = [_column(clean(key), [shown(row.items.get(key)) for row in run.rows]) for key in keys]
        if columns and (any(seconds) or so_far):
            keys, columns = [*keys, "took"], [*columns, _column("took", [clock(each) if each else "" for each in seconds])]
        while width and len(columns) > 1 and sum(len(head) + 3 for head, *_ in columns) > width:
            columns.pop()
        head, *lines = map("   ".join, zip(*columns)) if columns else [""] * (len(run.rows) + 1)
        if head:
            yield (n, *keys), paint(f"  {head}", "head")
        if keys[len(columns) :]:
            yield (n, len(columns), *keys), f"  (not shown: {', '.join(map(clean, keys[len(columns) :]))})"
        flagged = defaultdict(list)
        for flag in flags(run, goal):
            text = paint(f"{flag.level:7}  {flag.code:11}  {clean(flag.what)}", flag.level)
            flagged[flag.line].append(((n, flag), f"      {text}"))
        lines = {row.line: line for row, line in zip(run.rows, lines)}
        for entry in sorted([*run.rows, *run.tests], key=lambda entry: entry.line):
            line = f"  {lines.get(entry.line) or _evaluation(entry)}".rstrip()
            if entry is best:
                line = paint(f"* {line[2:]}   {clean(str(goal))}{' so far' if so_far else ''}", "best")
            yield (n, entry.line, len(entry.items)), line
            yield from flagged[entry.line]


def _evaluation(test):
    """The results of a test, in one line."""
    values = ", ".join(f"{name_of(key)} {shown(test.items[key])}" for key in test.items if dataset_of(key) == "test")
    return clean(f"test{f' of epoch {test.loaded}' if test.loaded else ''}: {values}")


def _column(head, texts):
    """Align the texts of a column at the decimal point."""
    parts = [text.partition(".") for text in texts]
    whole = max((len(before) for before, _, _ in parts), default=0)
    rest = max((len(point + after) for _, point, after in parts), default=0)
    cells = [head, *(f"{before:>{whole}}{point + after:<{rest}}" for before, point, after in parts)]
    width = max(map(len, cells))
    return [f"{cell:>{width}}" for cell in cells]


def summary(log, found, goal):
    """Yield the last lines: the best epochs, the number of flags, and the lines that could not be read."""
    for n, run in enumerate(found):
        best = find_best(run, goal)
        if best:
            which = f" of run {n + 1}" if len(found) > 1 else ""
            yield clean(f"Best{which}: {best.place}, {goal} {shown(best.items[goal.key])}")
    if not goal:
        yield "No best epoch yet: the log has no value to choose it by; name one with --best KEY"
    levels = [flag.level for run in found for flag in flags(run, goal)]
    if levels:
        counts = [f"{levels.count(level)} {level}{'s' * (levels.count(level) > 1)}" for level in sorted(set(levels))]
        yield f"Flags: {', '.join(counts)}"
    if log.unread:
        line, text = log.unread[0]
        yield clean(f"Lines that are not entries: {len(log.unread)}, the first is line {line}: {text[:80]!r}")
    if log.unfinished:
        yield "The last line is incomplete, and is left out."


def plot(path, found, goal):
    """Draw the curves, one panel for each name. Earlier runs are pale; red lines mark nan and inf.

    Arguments
    ---------
    path : str
        The PNG to write.
    found : list of Run
        The runs of a log.
    goal : Goal or None
        The value that decides which epoch is best.
    """
    from matplotlib.figure import Figure

    keys = [key for run in found for key in run.numeric_keys() if dataset_of(key) in ("train", "valid")]
    names = list(dict.fromkeys(map(name_of, keys)))[:24]
    across = max(1, min(3, len(names)))
    down = max(1, math.ceil(len(names) / across))
    figure = Figure(figsize=(5 * across, 3.2 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    for panel, name in zip(panels, names):
        panel.set_title(clean(name), parse_math=False)
        for run in found:
            _draw(panel, name, run, find_best(run, goal), 1 if run is found[-1] else 0.25)
        heights = [y for line in panel.get_lines() for y in line.get_ydata() if not math.isnan(y)]
        if heights and min(heights) > 0 and max(heights) > 100 * min(heights):
            panel.set_yscale("log")
        if panel.get_legend_handles_labels()[0]:
            panel.legend()
    figure.savefig(path, format="png", dpi=120)


def _draw(panel, name, run, best, alpha):
    """Draw the training and validation curve of one run."""
    places = [row.epoch if row.epoch is not None else row.step for row in run.rows]
    if None in places or len(set(places)) < len(places):  # the run also has rows of single steps
        places = list(range(1, len(places) + 1))
    for dataset, colour in (("train", "tab:blue"), ("valid", "tab:orange")):
        points = [(x, row.number(f"{dataset} {name}")) for x, row in zip(places, run.rows)]
        points = [(x, y) for x, y in points if y is not None]
        if points:
            ys = [y if abs(y) < 1e30 else math.nan for _, y in points]  # larger values overflow the axes
            panel.plot([x for x, _ in points], ys, ".-", color=colour, alpha=alpha, label=dataset if alpha == 1 else None)
        for x in (x for x, y in points if not math.isfinite(y)):
            panel.axvline(x, color="tab:red", alpha=alpha, linewidth=0.8)
    if best and alpha == 1:
        panel.axvline(places[run.rows.index(best)], color="tab:green", linestyle=":", label="best")
