"""Reading the log of a training, during the training and afterwards, and flagging its problems."""

import datetime
import math
import os
import random
import signal
import subprocess
import sys
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st
from speechbrain.utils.train_logger import FileTrainLogger
from speechbrain.watch.__main__ import main
from speechbrain.watch.log import Divider, Log, Stamps, parse, tail
from speechbrain.watch.report import Printer, summary
from speechbrain.watch.run import Goal, Watch, find_goal
from speechbrain.watch.text import shown


def read(text):
    """The entries of a log that contains the text, and the log."""
    log = Log()
    return log.feed(text.encode()), log


def watched(text):
    """The judged runs of a log that contains the text."""
    watch = Watch()
    for entry in read(text)[0]:
        watch.feed(entry)
    watch.rest()
    return watch.runs


def flagged(text):
    """The flags of a log: a list of (level, code, line)."""
    return [(flag.level, flag.code, flag.line) for run in watched(text) for flag in run.found]


def printed(text, **options):
    """The lines of the table of a log."""
    lines = []
    printer, watch, known = Printer(lines.append, **options), Watch(), {}
    judged = [each for entry in read(text)[0] for each in watch.feed(entry)] + watch.rest()
    for run, row, _ in judged:
        printer.learn(run, row)
        known[run.n] = run.found
    goal = find_goal(watch.runs)
    for run, row, _ in judged:
        printer.row(run, row, [flag for flag in known[run.n] if flag.line == row.line], goal, len(watch.runs) > 1)
    printer.flush()
    return lines


@pytest.mark.parametrize(
    "line, items",
    [
        ("epoch: 1 - train loss: 2.05", {"epoch": "1", "train loss": "2.05"}),
        ("Epoch: 1, lr: 1.00e-03 - train loss: 2.05", {"Epoch": "1", "lr": "1.00e-03", "train loss": "2.05"}),
        ("step: 500 - valid loss: 2.05", {"step": "500", "valid loss": "2.05"}),
        (
            "Epoch loaded: 4 - test loss: 4.15e-01, test PER: 1.37e-01",
            {"Epoch loaded": "4", "test loss": "4.15e-01", "test PER": "1.37e-01"},
        ),
        (
            "epoch: 1 - train loss: nan - valid loss: inf, valid x: -inf",
            {"epoch": "1", "train loss": "nan", "valid loss": "inf", "valid x": "-inf"},
        ),
        # values may contain the separators of items
        ("epoch: 1 - valid a: [1, 2], valid b: (1, 2)", {"epoch": "1", "valid a": "[1, 2]", "valid b": "(1, 2)"}),
        ("epoch: 1, x: {'a': 1, 'b': ']'}, lr: 2", {"epoch": "1", "x": "{'a': 1, 'b': ']'}", "lr": "2"}),
        ("epoch: 1, x: [' - train loss: 3'] - train loss: 2", {"epoch": "1", "x": "[' - train loss: 3']", "train loss": "2"}),
        ("epoch: 1, name: a - b - c - train loss: 2", {"epoch": "1", "name": "a - b - c", "train loss": "2"}),
        ("epoch: 1, name: a, b - train loss: 2", {"epoch": "1", "name": "a, b", "train loss": "2"}),
        (
            "epoch: 1 - train m: tensor([[1.],\n        [nan]]) - valid loss: 2",
            {"epoch": "1", "train m": "tensor([[1.],\n        [nan]])", "valid loss": "2"},
        ),
        ("epoch: 1 - train loss: 0.12340000271797180", {"epoch": "1", "train loss": "0.12340000271797180"}),
        ("step: 1 - train Loss: : 0.5", {"step": "1", "train Loss": "0.5"}),
        ("epoch: None - valid loss: 2", {"epoch": "None", "valid loss": "2"}),
        # sections may be empty
        ("epoch: 1 - ", {"epoch": "1"}),
        ("epoch: 1 -  - valid loss: 2", {"epoch": "1", "valid loss": "2"}),
        ("epoch: 1 - train loss: 2 - ", {"epoch": "1", "train loss": "2"}),
        (" - train loss: 2", {"train loss": "2"}),
        # not entries
        ("", None),
        ("Traceback (most recent call last):", None),
        ("ValueError: math domain error", None),
        ("epoch: 1 - train loss", None),
        ("epoch: one - train loss: 2", None),
        ("epoch: 3epoch: 4 - train loss: 2", None),
        ("epoch: 3 - train loss: 5.epoch: 4 - train loss: 2", None),
        ("lr: 1.00e-03", None),
        (": 1 - train loss: 2", None),
    ],
)
def test_parse_returns_the_items_or_none(line, items):
    assert parse(line) == items


ROW = "epoch: {} - train loss: 1.00\n"


@pytest.mark.parametrize(
    "text, epochs, unread, unfinished",
    [
        (ROW.format(1) + ROW.format(2), [1, 2], 0, False),
        (ROW.format(1).replace("\n", "\r\n") + "\n\n" + ROW.format(2), [1, 2], 0, False),
        (ROW.format(1) + "epoch: 2 - train lo", [1], 0, True),
        (ROW.format(1) + "Traceback: x\nwhat?\n" + ROW.format(2), [1, 2], 2, False),
        ("epoch: 1 - valid m: [[1 2]\n\n [3 4]]\n" + ROW.format(2), [1, 2], 0, False),
        ("epoch: 1 - valid m: [[1 2]\n", [], 0, True),
        # the entries after an array that was cut off are still read
        ("epoch: 1 - valid m: [[1 2]\n [3\n" + ROW.format(2), [2], 2, False),
        ("\x00\ufffd\n" + ROW.format(1), [1], 1, False),
    ],
)
def test_entries_unread_lines_and_unfinished_lines(text, epochs, unread, unfinished):
    entries, log = read(text)
    assert [entry.epoch for entry in entries] == epochs
    assert (log.unread, log.unfinished) == (unread, unfinished)


def test_a_log_can_be_read_in_any_pieces():
    text = ("epoch: 1 - valid m: [[1 2]\n [3 4]]\nwhat?\r\nepoch: 2 - train µ: 1.00\n").encode()
    whole, pieces = Log(), Log()
    entries = whole.feed(text)
    assert [entry for byte in text for entry in pieces.feed(bytes([byte]))] == entries
    assert pieces.unread == whole.unread == 1 and pieces.first_unread == whole.first_unread == (3, "what?")


@pytest.mark.parametrize(
    "lines, divided",
    [
        (["epoch: 1", "epoch: 2", "epoch: 5"], [3]),
        (["epoch: 1", "epoch: 2", "epoch: 1", "epoch: 2"], [2, 2]),
        (["epoch: 1", "epoch: 2", "epoch: 2", "epoch: 3"], [2, 2]),
        (["step: 100", "step: 200", "step: 100"], [2, 1]),
        (["epoch: 1, step: 100", "epoch: 1, step: 200", "epoch: 2, step: 300"], [3]),
        (["epoch: 1, steps: 100", "epoch: 1, steps: 100"], [1, 1]),
        (["step: 50", "step: 100", "epoch: 1", "step: 50", "epoch: 2"], [5]),
        (["epoch: 1", "Epoch loaded: 1 - test loss: 2", "epoch: 2", "Epoch loaded: 1 - test loss: 2"], [2]),
        (["epoch: 1 - train loss: 2", "epoch: 1 - valid loss: 2", "epoch: 2 - train loss: 2", "epoch: 2 - valid loss: 2"], [2]),
        (["epoch: 1 - train loss: 2", "epoch: 1 - train loss: 2", "epoch: 1 - train loss: 2 - valid loss: 2"], [1, 1, 1]),
        ([" - train loss: 2", " - train loss: 1"], [2]),
    ],
)
def test_an_epoch_that_repeats_or_falls_begins_a_run(lines, divided):
    divider = Divider()
    rows = [each for entry in read("\n".join(lines) + "\n")[0] for each in divider.feed(entry)] + divider.rest()
    assert [sum(run == n and not row.is_test for run, row in rows) for n in range(divider.number + 1)] == divided


def test_the_log_of_the_real_logger_is_read_back(tmp_path):
    import numpy
    import torch

    path = tmp_path / "train_log.txt"
    logger = FileTrainLogger(path)
    valid = {"loss": math.nan, "matrix": torch.rand(9, 30), "array": numpy.eye(3), "dict": {"x": (1, 2)}}
    logger.log_stats({"epoch": 1, "lr": 1e-3}, {"loss": 0.917519}, valid)
    logger.log_stats({"epoch": 2}, {"loss": torch.tensor(0.5)}, {"loss": numpy.float64(12.3456), "n": numpy.float32(0.5)})
    logger.log_stats({"epoch": 3}, {}, {})
    logger.log_stats({"Epoch loaded": 2}, test_stats={"loss": 150.0, "names": ["a, b", " - train "]})
    entries, log = read(path.read_text())
    assert not log.unread and not log.unfinished
    first, second, third, test = entries
    assert (first.epoch, first.numbers.get("lr"), first.numbers.get("train loss")) == (1, 0.001, 0.918)
    assert math.isnan(first.numbers.get("valid loss"))
    assert all(first.items[f"valid {key}"] == str(value) for key, value in valid.items())
    assert [second.numbers.get(key) for key in ("train loss", "valid loss", "valid n")] == [0.5, 12.35, 0.5]
    assert third.items == {"epoch": "3"}
    assert (test.is_test, test.loaded, test.numbers.get("test loss")) == (True, "2", 150)
    assert test.items["test names"] == "['a, b', ' - train ']"


NAME = st.text("abcXYZ_09 ", min_size=1).map(str.strip).filter(bool)
VALUE = st.one_of(
    st.floats(-1e308, 1e308),  # larger floats are rounded to inf
    st.sampled_from([math.nan, math.inf, -math.inf]),
    st.integers(),
    st.none(),
    st.booleans(),
    st.lists(st.one_of(st.floats(), st.text())),
    st.dictionaries(st.text(), st.tuples(st.integers(), st.text())),
)
STATS = st.none() | st.dictionaries(NAME, VALUE, max_size=4)


@given(st.lists(st.tuples(st.dictionaries(NAME, VALUE, max_size=2), STATS, STATS, STATS), max_size=4), st.integers(0, 8))
def test_any_logged_value_is_read_back(tmp_path_factory, calls, precision):
    path = tmp_path_factory.getbasetemp() / f"random_{os.getpid()}.txt"
    path.unlink(missing_ok=True)
    for i, (meta, *stats) in enumerate(calls):
        FileTrainLogger(path, precision).log_stats(
            {"epoch": i, **{f"x{key}": value for key, value in meta.items()}}, *stats, verbose=False
        )
    entries, log = read(path.read_text() if calls else "")
    assert not log.unread and not log.unfinished
    assert [entry.epoch for entry in entries] == list(range(len(calls)))
    for entry, (meta, *stats) in zip(entries, calls):
        given = {f"x{key}": value for key, value in meta.items()}
        for dataset, values in zip(("train", "valid", "test"), stats):
            given |= {f"{dataset} {key}": value for key, value in (values or {}).items()}
        assert entry.items.keys() == given.keys() | {"epoch"}
        for key, value in given.items():
            if not isinstance(value, float):
                assert entry.items[key] == str(value)
            elif math.isfinite(value):
                assert math.isclose(entry.numbers.get(key), value, rel_tol=0.51 * 10**-precision, abs_tol=5e-324)
            else:
                assert str(entry.numbers.get(key)) == str(value)


PIECES = [
    "epoch: ",
    "Epoch loaded: ",
    "step: ",
    " - train ",
    " - valid loss: ",
    ", valid ",
    "loss: ",
    "1",
    "2.05",
    "nan",
    "\n",
    "\r\n",
]
TEXT = st.lists(
    st.one_of(st.sampled_from([*PIECES, "[", "]", "(", "{'", "'", "\\", ": ", ", ", " - "]), st.text(max_size=3))
).map("".join)


@given(TEXT)
def test_every_complete_line_is_read_or_counted(text):
    log = Log()
    data = text.encode("utf-8", "surrogatepass")
    entries = log.feed(data)
    *lines, _ = data.decode("utf-8", "replace").split("\n")
    inside = sum(bool(line.strip()) for entry in entries for line in entry.text.split("\n"))
    waiting = sum(bool(line.strip()) for _, line in log.waiting)
    assert inside + log.unread + waiting == sum(bool(line.strip()) for line in lines)
    runs = watched(text)
    assert all(line.isprintable() for line in [*printed(text, width=80), *summary(log, runs, find_goal(runs))])


def curves(**columns):
    """The flags of a log with these curves, which are named "train_loss" and so on: a list of (level, code, row)."""
    logger, lines = FileTrainLogger(""), []
    for i, values in enumerate(zip(*columns.values())):
        sections = [f"epoch: {i + 1}"]
        for dataset in ("train", "valid"):
            stats = {key[6:]: value for key, value in zip(columns, values) if key.startswith(dataset)}
            sections += [logger._stats_to_string(stats, dataset)] if stats else []
        lines.append(" - ".join(sections))
    return flagged("\n".join(lines) + "\n")


def falling(start, end, n, rate=0.7):
    return [end + (start - end) * rate**i for i in range(n)]


def noisy(values, size=0.05, seed=0):
    generator = random.Random(seed)
    return [value * (1 + generator.uniform(-size, size)) for value in values]


def zero(row):
    return "error", "zero-loss", row


HEALTHY = falling(2.3, 0.2, 12)
RISING = [0.9, 0.7, 0.6, 0.61, 0.64, 0.66, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]


@pytest.mark.parametrize(
    "columns, found",
    [
        # non-finite
        ({"train_loss": [2.0, math.nan, math.nan, 1.0]}, [("error", "nonfinite", 2)]),
        ({"train_loss": [2.0, 1.5], "valid_loss": [2.0, math.inf]}, [("error", "nonfinite", 2)]),
        ({"train_loss": [2.0, [1.0, math.nan]]}, [("error", "nonfinite", 2)]),
        ({"train_ctc_loss": [2.0, math.nan]}, [("error", "nonfinite", 2)]),
        ({"train_loss": [2.0, 1.5], "train_ctc_loss": [2.0, math.nan]}, [("warning", "nonfinite", 2)]),
        ({"train_loss": [2.0, 1.5], "valid_F1": [math.nan, 0.5]}, [("warning", "nonfinite", 1)]),
        ({"train_loss": [2.0, 1.5], "valid_of_classes": [[math.nan, 0.5], [0.5, 0.5]]}, []),
        ({"train_loss": [2.0, 1.5], "valid_names": [["nan", "inf"], ["nan", "inf"]]}, []),
        # a loss of exactly 0.0
        (
            {"train_loss": [2.0, 1.5, 1.0], "valid_loss": [2.0, 0.0, 0.0]},
            [("error", "zero-loss", 2), ("error", "zero-loss", 3)],
        ),
        ({"train_loss": [2.0], "valid_loss": [0.0]}, [zero(1)]),
        ({"train_loss": [0.0, 0.0, 0.0]}, [zero(1), zero(2), zero(3)]),
        ({"train_loss": [2.0, 1.5, 1.0], "valid_loss": [0.0, 0.0, 0.0]}, [("warning", "zero-loss", 1)]),
        ({"train_loss": [0.1, 1e-4, 0.0, 0.0]}, [("note", "zero-loss", 3)]),
        ({"train_loss": [2.0, 1.5, 1.0], "train_ctc_loss": [2.0, 0.0, 0.0], "valid_error": [0.5, 0.0, 0.0]}, []),
        # divergence
        ({"train_loss": [2.0, 1.0, 0.8, 5.3, 40.0]}, [("error", "divergence", 5)]),
        ({"train_loss": [2.0, 5.0, 9.0, 20.0, 50.0]}, [("error", "divergence", 3)]),
        ({"train_loss": [-1.0, -8.0, -12.0, 11.0, 30.0]}, [("error", "divergence", 5)]),
        ({"train_loss": [2.0, 1.0, 0.5, 2.3, 2.3, 2.3]}, [("error", "divergence", 6)]),
        ({"train_loss": [2.0, 1.0, 0.8, 900.0, 0.7, 0.6]}, []),
        ({"train_loss": [2.0, 5.0, 4.5, 6.0]}, []),
        ({"train_loss": [2.0, 1.0, 0.5, 3.0, 2.8, 2.5]}, []),
        ({"train_loss": [2.0, 1.5, 1.4, 2.1, 2.2, 2.3]}, []),
        ({"train_loss": falling(2.0, 0.1, 6), "valid_loss": [1.0, 0.9, 0.8, 5.0, 9.0, 20.0]}, []),
        # overfitting
        ({"train_loss": HEALTHY, "valid_loss": RISING}, [("warning", "overfitting", 12)]),
        ({"train_loss": HEALTHY, "valid_loss": RISING, "valid_error": RISING}, [("warning", "overfitting", 12)]),
        ({"train_loss": HEALTHY, "valid_loss": RISING, "valid_error": falling(0.5, 0.1, 12)}, []),
        ({"train_loss": HEALTHY, "valid_loss": RISING, "valid_ACC": [1 - value for value in falling(0.5, 0.1, 12)]}, []),
        ({"train_loss": [2.0] * 12, "valid_loss": RISING}, []),
        ({"train_loss": HEALTHY, "valid_loss": [0.9, 0.7, 0.6] + 3 * [0.62, 0.64, 0.61]}, []),
        ({"train_loss": HEALTHY[:10], "valid_loss": RISING[:10]}, []),
        # plateau: equal values for a few epochs are not flat yet; those that are equal from the start are stuck
        ({"train_loss": HEALTHY + [0.2] * 8}, []),
        ({"train_loss": [2.3] * 11, "valid_loss": [2.3] * 11}, [("warning", "stuck", 5)]),
        ({"train_loss": [2.3] * 10, "valid_loss": [2.3] * 10}, [("warning", "stuck", 5)]),
        ({"train_loss": [2.5] + [2.3] * 11, "valid_loss": [2.5] + [2.3] * 11}, [("warning", "plateau", 12)]),
        ({"train_loss": [2.5] + [2.3] * 10, "valid_loss": [2.5] + [2.3] * 10}, []),
        ({"train_loss": [2.3] * 12, "valid_loss": falling(2.3, 1.0, 12)}, []),
        ({"train_loss": [2.3] * 12, "valid_PER": falling(0.9, 0.2, 12)}, []),
        ({"train_loss": [0.912 - 0.0003 * i for i in range(60)]}, []),
        ({"train_loss": falling(2.0, 0.5, 100, 0.96)}, []),
        ({"train_loss": [3 - 0.05 * i for i in range(48)] + [0.65] * 12}, []),
        ({"train_loss": falling(2.0, 0.5, 60, 0.5)}, [("warning", "plateau", 21)]),
        ({"train_d_loss": [0.69] * 12, "train_g_loss": [0.69] * 12}, []),
        ({"train_loss": [2.3] * 12, "valid_si-snr": [float(i) for i in range(12)]}, []),
        # healthy
        ({"train_loss": noisy(HEALTHY), "valid_loss": noisy(HEALTHY, 0.1, 1), "valid_error": noisy(HEALTHY, 0.1, 2)}, []),
    ],
)
def test_bad_curves_are_flagged_and_similar_healthy_ones_are_not(columns, found):
    assert curves(**columns) == found


@pytest.mark.parametrize("length, noise", [(12, 0.01), (12, 0.2), (60, 0.05), (60, 0.15)])
def test_noise_is_not_flagged(length, noise):
    for seed in range(25):
        train = noisy(falling(2.3, 0.2, length, 0.05 ** (1 / length)), noise / 9, seed)
        valid = noisy(falling(2.3, 0.3, length, 0.001 ** (1 / length)), noise, seed + 99)
        assert curves(train_loss=train, valid_loss=valid) == []


def test_coarsely_printed_values_are_not_flagged_as_a_plateau():
    assert flagged("".join(f"epoch: {i + 1} - train loss: 2e+00\n" for i in range(30))) == []


RISEN = [2.0, 1.0, 0.8, 0.7, 0.6, 0.62, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.1, 1.2]
WALK = noisy([2.302] * 12, 0.002)
LATE = falling(0.99, 0.05, 12)


def shape(lr=None, start=1, **columns):
    """The text of a log with these curves, which are named "train_loss" and so on."""
    logger, lines = FileTrainLogger(""), []
    rates = lr or [1e-3] * 999
    for i, (rate, values) in enumerate(zip(rates, zip(*columns.values()))):
        sections = [f"epoch: {i + start}, {logger._item_to_string('lr', rate)}"]
        for dataset in ("train", "valid"):
            stats = {key[6:]: value for key, value in zip(columns, values) if key.startswith(dataset)}
            sections += [logger._stats_to_string(stats, dataset)] if stats else []
        lines.append(" - ".join(sections) + "\n")
    return "".join(lines)


def both(values, **others):
    return shape(train_loss=values, valid_loss=[1.1 * value for value in values], **others)


def separation(values, name="si-snr"):
    return shape(**{f"train_{name}": values, f"valid_{name}": [value + 0.1 for value in values]})


SHAPES = [
    # recipe family, trouble, the log, its flags, its exit status
    ("recognition", None, both(HEALTHY, valid_WER=[100 * x for x in LATE]), [], 0),
    ("recognition", "no error rate below 90", both(HEALTHY, valid_WER=[99.0] * 12), ["high-error 10"], 0),
    (
        "recognition",
        "no error rate below 90",
        both(HEALTHY, valid_CER=[91.0] * 12, valid_WER=[99.0] * 12),
        ["high-error 10"],
        0,
    ),
    ("recognition", None, both(HEALTHY + [0.2], valid_WER=[99.0] * 12 + [80.0]), [], 0),
    ("recognition", "without spaces", both(HEALTHY, valid_CER=[100 * x for x in LATE], valid_WER=[99.0] * 12), [], 0),
    ("recognition", "sentence errors", both(HEALTHY, valid_SER=[99.0] * 12), [], 0),
    ("recognition", "9 epochs", both(HEALTHY[:9], valid_WER=[99.0] * 9), [], 0),
    ("recognition", "targets too long for CTC", shape(train_loss=[9.0, 8, 7], valid_loss=[8.0, 0.0, 7.0]), ["zero-loss 2"], 1),
    ("recognition", "a bump", shape(train_loss=falling(2, 0.1, 16), valid_loss=[*RISEN, 0.5], valid_WER=[50.0] * 16), [], 0),
    ("recognition", "no end of a bump", shape(train_loss=falling(2, 0.1, 15), valid_loss=RISEN), ["overfitting 13"], 0),
    (
        "recognition",
        "a later best error rate",
        shape(train_loss=falling(2, 0.1, 15), valid_loss=RISEN, valid_WER=[*[50.0] * 14, 40.0]),
        [],
        0,
    ),
    ("speaker", "stuck", both(WALK, valid_error=noisy([0.9] * 12, 0.01, 1)), ["stuck 5"], 0),
    ("speaker", "stuck for 4 epochs", both(WALK[:4]), [], 0),
    ("speaker", "late", both(WALK + falling(2.3, 0.5, 8)), [], 0),
    ("speaker", "only the error moves", both(WALK, valid_error=falling(0.9, 0.2, 12)), [], 0),
    ("speaker", "no step", both([2.302] * 6, valid_error=[0.9] * 6), ["stuck 5"], 0),
    (
        "speaker",
        "no step",
        shape(train_loss=noisy([2.3] * 6, 0.01), valid_loss=[2.3] * 6, valid_error=[0.9] * 6),
        ["stuck 5"],
        0,
    ),
    ("speaker", "margin reached", shape(train_loss=[0.5, 0.1, 0.02, 0.004, 0, 0, 0, 0.0]), ["zero-loss 5"], 0),
    ("speaker", "collapse", both([2.0, 1.5, 2e-5, 3e-5, 1e-5, 4e-5]), ["collapse 5", "collapse 5"], 0),
    ("speaker", "one lucky epoch", both([2.0, 1.5, 2e-5, 1.2, 1.1, 1.0]), [], 0),
    ("speaker", "fast, but in steps", both([2.0, 0.02, 2e-4, 2e-6, 2e-8, 1e-8]), [], 0),
    ("regression", "unscaled at first", both([1e6, 5.0, 4.0, 3.0, 2.5, 2.0]), [], 0),
    ("regression", "one bad batch", both([2.0, 1.5, 5e4, 1.4, 1.3, 1.2]), [], 0),
    ("fine-tuning", None, both([0.31, 0.309, 0.31, 0.308, 0.309, 0.308], valid_WER=[5.1, 5.2, 5.1, 5.1, 5.0, 5.1]), [], 0),
    (
        "fine-tuning",
        None,
        both([1.31, 1.309, 1.31, 1.308, 1.309, 1.308], valid_error=[0.21, 0.2, 0.21, 0.21, 0.21, 0.21]),
        [],
        0,
    ),
    ("fine-tuning", None, shape(start=21, train_loss=[2.31, 2.309, 2.31, 2.308, 2.309, 2.308]), [], 0),
    ("pretraining", None, both([6.6 - 0.02 * i for i in range(30)]), [], 0),
    ("pretraining", None, both([6.6 - 0.004 * i for i in range(60)], valid_acc=[0.1 + 0.01 * i for i in range(60)]), [], 0),
    ("language model", "a long plateau", both([6.0] * 30 + falling(5.9, 4.0, 40, 0.9)), [], 0),
    ("language model", "no end of a plateau", both(falling(6.0, 4.0, 20, 0.3) + [4.0] * 20), ["plateau 17"], 0),
    ("speech synthesis", None, both(HEALTHY, train_mel=HEALTHY, train_gate=[0.01] * 12, train_attn=noisy(LATE)), [], 0),
    ("GAN", None, shape(train_G_loss=[20.0 + 5 * i for i in range(12)], train_D_loss=[2.0] * 12), [], 0),
    ("GAN", None, shape(train_G_loss=[2.0] * 12, train_D_loss=[0.7] * 12, valid_G_loss=[2.0] * 12), [], 0),
    ("GAN", "nan", shape(train_G_loss=[20.0, math.nan], train_D_loss=[2.0, 1.0]), ["nonfinite 2"], 1),
    ("separation", None, separation([-x for x in falling(-2.0, 14.0, 12)]), [], 0),
    ("separation", "above zero at first", separation([3.0, -1.0, -4.0, -6.0, -8.0, -9.0]), [], 0),
    ("separation", "nan", separation([-2.0, -5.0, math.nan]), ["nonfinite 3", "nonfinite 3"], 1),
    ("separation", "no finite loss", separation([-2.0, -5.0, 0.0, -6.0]), ["zero-loss 3"], 1),
    ("separation", "divergence", separation([-2.0, -8.0, -12.0, 6.0, 30.0, 90.0]), ["divergence 6"], 1),
    ("enhancement", None, separation([2.0, 5.0, 8.0, 9.0, 9.5, 10.0], "snr"), [], 0),
    ("enhancement", "divergence", separation([2.0, 5.0, 8.0, -9.0, -30.0, -90.0], "snr"), ["divergence 5"], 1),
    ("enhancement", "no loss", shape(train_pesq=[2.0, 2.5], train_stoi=[0.8, 0.9], valid_pesq=[2.0, 2.5]), [], 0),
    ("any", "nan in a score", shape(train_F1=[math.nan, 0.5], valid_F1=[0.5, 0.6]), ["nonfinite 1"], 0),
    ("any", "validation within an epoch", both(WALK).replace("epoch: ", "epoch: 1, step: "), [], 0),
    ("any", "validation within an epoch", both(WALK, valid_WER=[99.0] * 12).replace("epoch: ", "epoch: 1, step: "), [], 0),
    ("any", "from epoch 0", both(WALK, start=0), ["stuck 5"], 0),
    ("any", "divergence that ends", both([2.0, 1.0, 0.8, 5.3, 40.0, 0.7, 0.6, 0.5]), [], 0),
    ("any", "resumed", both([2.0, 1.5, 1.2]) + shape(start=4, train_loss=[1.0, 0.9]), [], 0),
    (
        "any",
        "learning rate reset",
        both([2, 1.5, 1.2], lr=[1e-3, 5e-4, 2e-4]) + both([1.3, 1], lr=[1e-3, 5e-4], start=3),
        ["lr-reset 4"],
        0,
    ),
    ("any", "resumed rightly", both([2, 1.5, 1.2], lr=[1e-3, 5e-4, 2e-4]) + both([1.3, 1], lr=[2e-4] * 2, start=3), [], 0),
    ("any", "another training", both([2, 1.5, 1.2], lr=[1e-3, 5e-4, 2e-4]) + both([2, 1], lr=[1e-3, 5e-4]), [], 0),
    ("any", "a cyclic schedule", both([2, 1.5, 1.2, 1.1], lr=[1e-3, 5e-4, 2e-4, 1e-3]), [], 0),
]


@pytest.mark.parametrize("family, trouble, text, found, status", SHAPES)
def test_the_shapes_of_logs(tmp_path, capsys, family, trouble, text, found, status):
    (tmp_path / "train_log.txt").write_text(text)
    assert [f"{code} {line}" for _, code, line in flagged(text)] == found
    assert main([str(tmp_path / "train_log.txt")]) == status
    out = capsys.readouterr().out
    assert [line.split()[1] for line in out.splitlines() if line.startswith("      ") and line.split()[0] in LEVELS] == [
        each.split()[0] for each in found
    ]


LEVELS = ("error", "warning", "note")


def test_the_best_epoch_is_not_one_that_is_flagged_as_an_error():
    (run,) = watched(shape(train_loss=[2.0, 1.5, math.nan, 1.0], valid_WER=[50.0, 40.0, 10.0, 30.0]))
    assert run.best(Goal("valid WER")).epochs == [4]


@pytest.mark.parametrize(
    "text, loaded, said",
    [
        (separation([-2.0, -5.0, -4.0]), 2, "lowest valid si-snr -4.90"),
        (separation([2.0, 5.0, 4.0], "snr"), 2, "highest valid snr 5.1"),
        (separation([5.0, 2.0, 3.0], "snr"), 1, "highest valid snr 5.1"),
        (separation([5.0, 2.0, 3.0], "snr"), 2, "lowest valid snr 2.1"),
        (both([2.0, 1.0, 1.5], valid_WER=[30.0, 20.0, 10.0]), 3, "which has the lowest valid WER"),
        (both([2.0, 1.0, 1.5], valid_WER=[30.0, 20.0, 10.0]), 3, "But: epoch 3 has the lowest valid WER 10"),
        (both([2.0, 1.0, 1.5], valid_WER=[30.0, 20.0, 10.0]), 2, "which has the lowest valid loss"),
        (both([2.0, 1.0, 1.5], valid_WER=[30.0, 20.0, 10.0]), 1, "which is not the best by any value of the validation"),
        (both([2.0, 1.0, 1.5], start=7), 3, "which is not in this run"),
    ],
)
def test_the_tested_epoch(tmp_path, capsys, text, loaded, said):
    (tmp_path / "train_log.txt").write_text(f"{text}Epoch loaded: {loaded} - test loss: 1.00\n")
    main([str(tmp_path / "train_log.txt")])
    assert said in capsys.readouterr().out


def test_many_tests_of_one_epoch_are_one_line():
    test = "Epoch loaded: 1 - test loss: {}, test m: [[1 2]\n [3 4]]\n"
    few = printed(LOG.splitlines()[0] + "\n" + test.format(2) * 3)
    assert few[2:] == ["  test of epoch 1: loss 2, m [[1 2] [3 4]]"] * 3
    many = printed(LOG.splitlines()[0] + "\n" + "".join(test.format(i) for i in range(2, 60)))
    assert many[2:] == ["  58 tests of epoch 1: loss 2 to 59"]


def test_steps_between_epochs_are_not_judged_as_epochs():
    generator = random.Random(0)
    lines, step = [], 0
    for epoch in range(1, 9):
        for _ in range(50):
            step += 10
            lines.append(f"step: {step} - train loss: {generator.uniform(0.1, 9):.2f}")
        lines.append(f"epoch: {epoch} - train loss: {2 / epoch:.2f} - valid loss: {2 / epoch:.2f}")
    assert flagged("\n".join(lines) + "\n") == []


def test_a_test_loss_is_judged_too():
    def judge(valid, test):
        return flagged(f"epoch: 1 - valid loss: {valid}\nEpoch loaded: 1 - test loss: {test}\n")

    assert judge("0.5", "nan") == [("error", "nonfinite", 2)]
    assert judge("0.5", "0.00e+00") == [("warning", "zero-loss", 2)]
    assert judge("1.00e-05", "0.00e+00") == judge("0.5", "0.4") == []


EPOCH = datetime.datetime(2026, 11, 22, 23, 59, 1, 250000)


def timed(tmp_path, seconds, keys=("loss",) * 99, starts=()):
    """The epochs flagged as slow: epochs of these durations, with a log.txt; the script is restarted before those in starts."""
    lines, stamped, now = [], [], EPOCH
    for i, (each, key) in enumerate(zip(seconds, keys)):
        if i in starts:
            now += datetime.timedelta(hours=9)
            stamped.append(f"{now:%Y-%m-%d %H:%M:%S},000 - speechbrain.core - INFO - Beginning experiment!")
        now += datetime.timedelta(seconds=each)
        lines.append(f"epoch: {i + 1} - valid {key}: {1 - i / 99:.3f}")
        stamped.append(
            f"{now:%Y-%m-%d %H:%M:%S},{now.microsecond // 1000:03} - speechbrain.utils.train_logger - INFO - {lines[-1]}"
        )
        stamped.append("something else, with no time\n2026-99-99 00:00:00,000 - a - INFO - b")
    (tmp_path / "log.txt").write_text("\n".join(stamped))
    watch, stamps = Watch(), Stamps(tmp_path / "log.txt")
    for entry in read("\n".join(lines) + "\n")[0]:
        watch.feed(stamps.give(entry))
    return [flag.line for run in watch.runs for flag in run.found if flag.code == "slow"]


@pytest.mark.parametrize(
    "seconds, options, slow",
    [
        ([60] * 5 + [150] + [60] * 3, {}, [6]),
        ([60] * 5 + [110] + [60] * 3, {}, []),
        ([1] * 5 + [9] + [1] * 3, {}, []),
        ([60, 60, 60, 150, 60], {}, []),
        ([600] + [60] * 8, {}, []),  # nothing says when the first epoch began
        ([60] * 8, {"starts": (0, 5)}, []),  # the pause before a run is resumed
        ([60, 60, 60, 150] * 4, {"keys": ("loss", "loss", "loss", "WER") * 4}, []),
        ([60, 60, 60, 60] * 4 + [150], {"keys": ("loss", "loss", "loss", "WER") * 4 + ("loss",)}, [17]),
    ],
)
def test_slow_epochs(tmp_path, seconds, options, slow):
    assert timed(tmp_path, seconds, **options) == slow


LOG = """epoch: 1, lr: 1.00e-03 - train loss: 2.05 - valid loss: 1.69, valid ACC: 4.34e-01, valid PER: 90.50
epoch: 2, lr: 1.00e-03 - train loss: 9.18e-01 - valid loss: 9.00e-01, valid ACC: 7.44e-01, valid PER: 20.50
epoch: 3, lr: 5.00e-04 - train loss: 5.36e-01 - valid loss: 9.06e-01, valid ACC: 9.47e-01, valid PER: 9.75
epoch: 4, lr: 5.00e-04 - train loss: 3.79e-01 - valid loss: 9.67e-01, valid ACC: 6.34e-01, valid PER: 10.25
Epoch loaded: 3 - test loss: 4.15e-01, test ACC: 9.37e-01
"""


@pytest.mark.parametrize(
    "option, goal, epoch",
    [
        (None, Goal("valid loss"), 2),
        ("PER", Goal("valid PER"), 3),
        ("valid per", Goal("valid PER"), 3),
        ("ACC", Goal("valid ACC", -1), 3),
        ("ACC:min", Goal("valid ACC"), 1),
        ("train loss:max", Goal("train loss", -1), 1),
        ("lr", Goal("lr"), 3),
        ("WER", None, None),
        (":min", None, None),
    ],
)
def test_best_epoch(option, goal, epoch):
    (run,) = runs = watched(LOG)
    assert find_goal(runs, option) == goal
    best = run.best(goal)
    assert (best and best.epochs[0]) == epoch


def test_nan_and_a_loss_of_0_are_never_best():
    (run,) = watched("".join(f"epoch: {i} - valid loss: {x}\n" for i, x in enumerate(["nan", "2.0", "0.00e+00", "-inf"])))
    assert run.best(Goal("valid loss")).epochs == [1]
    assert run.best(Goal("valid nothing")) is None


@pytest.mark.parametrize(
    "text, expected",
    [
        ("9.18e-01", "0.918"),
        ("2.05", "2.05"),
        ("5.00e-04", "0.000500"),
        ("1.00e-07", "1.00e-07"),
        ("1.50e+02", "150"),
        ("0.00e+00", "0.0"),
        ("0e400", "0.0"),
        ("1335909", "1335909"),
        ("1234567.5", "1234568"),
        ("0.12340000271797180", "0.1234"),
        ("nan", "nan"),
        ("-inf", "-inf"),
        ("None", "None"),
        (None, ""),
    ],
)
def test_values_are_shown_in_plain_notation(text, expected):
    assert shown(text) == expected


@pytest.fixture
def log(tmp_path):
    """pathlib.Path: A log of four epochs and a test."""
    path = tmp_path / "train_log.txt"
    path.write_text(LOG)
    return path


TABLE = """  epoch         lr   train loss   valid loss   valid ACC   valid PER
      1   0.00100         2.05         1.69        0.434       90.50
*     2   0.00100         0.918        0.900       0.744       20.50   lowest valid loss
      3   0.000500        0.536        0.906       0.947        9.75
      4   0.000500        0.379        0.967       0.634       10.25
  test of epoch 3: loss 0.415, ACC 0.937

Best: epoch 2, lowest valid loss 0.900
But: epoch 3 has the highest valid ACC 0.947 and the lowest valid PER 9.75
Tested: epoch 3, which has the highest valid ACC and the lowest valid PER
"""


def test_the_table(log, capsys):
    assert main([str(log)]) == 0
    assert "".join(line.rstrip() + "\n" for line in capsys.readouterr().out.splitlines()) == TABLE


def test_columns_that_do_not_fit_are_named():
    lines = printed(LOG, width=40)
    assert lines[0].split() == ["epoch", "lr", "train", "loss"]
    assert lines[1] == "  (not shown: valid loss, valid ACC, valid PER)"


def test_a_log_cannot_control_the_terminal(tmp_path, capsys):
    (tmp_path / "log").write_text(
        "epoch: 1 - valid loss\x1b7\u2028: 1.00\nepoch: 2 - valid loss\x1b7\u2028: \x1b8, valid \x9bx: nan\n\x1bc\n"
    )
    main([str(tmp_path / "log")])
    assert "".join(capsys.readouterr().out.split("\n")).isprintable()


def test_colour_marks_the_best_and_the_flags():
    text = "epoch: 1 - valid loss: 2.00\nepoch: 2 - valid loss: nan, valid \x1b7x: 1.00\n"
    plain, coloured = (printed(text, colour=colour) for colour in (False, True))
    assert not any("\x1b" in line for line in plain)
    assert coloured[1].startswith("\x1b[32;1m* ") and "\x1b[31;1merror" in coloured[3] and "\x1b7" not in "".join(coloured)


@pytest.mark.parametrize(
    "text, arguments, status, message",
    [
        (LOG, [], 0, "Best: epoch 2"),
        (LOG, ["--best", "PER"], 0, "Best: epoch 3, lowest valid PER 9.75"),
        (LOG.replace("9.06e-01", "nan"), [], 1, "error    nonfinite    epoch 3: valid loss is nan"),
        (LOG.replace("9.47e-01", "nan"), [], 0, "warning  nonfinite    epoch 3: valid ACC is nan"),
        (LOG + LOG, [], 0, "Best of run 2: epoch 2"),
        (LOG + "Killed\n", [], 0, "Lines that are not entries: 1, the first is line 6: 'Killed'"),
        (LOG + "epoch: 5 - tra", [], 0, "The last line is incomplete, and is left out"),
        (
            "epoch: 1 - train a: 1, train b: 2\n",
            [],
            0,
            "No best epoch yet: the log has no value to choose it by; name one with",
        ),
        ("epoch: 1 - train a: 1, train b: 2\n", [], 0, "--best: epoch, train a, train b"),
        ("", [], 2, "train_log.txt is empty, or has only zero bytes"),
        ("\0" * 70000, [], 2, "train_log.txt is empty, or has only zero bytes"),
        ("\0" * 9 + LOG + "\0" * 9, [], 0, "Best: epoch 2"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:1\n", [], 2, "is a pointer of git-LFS, not the log itself"),
        (LOG, ["--best", "WER"], 2, "has no WER; it has epoch, lr, train loss, valid loss, valid ACC, valid PER"),
        ("Dear reader,\n", [], 2, "is not a log of FileTrainLogger: line 1 is 'Dear reader,'"),
        (None, [], 2, "there is no file"),
        (LOG, ["--plot", "/no/such/folder/curves.png"], 2, "/no/such/folder/curves.png: No such file"),
        (LOG, ["--every", "soon"], 2, "invalid float value"),
    ],
)
def test_exit_status_and_message(tmp_path, capsys, text, arguments, status, message):
    if text is not None:
        (tmp_path / "train_log.txt").write_text(text)
    try:
        found = main([str(tmp_path / "train_log.txt"), *arguments])
    except SystemExit as error:
        found = error.code
    out, err = capsys.readouterr()
    assert found == status and message in (err if status == 2 else out)


def test_a_folder_is_refused_and_the_log_in_it_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path)])
    assert "train_log.txt" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        LOG,
        LOG + LOG,
        "".join(f"epoch: {i} - train loss: {1 / i}\n" for i in range(1, 9000)),
        "epoch: 1 - train $x$: 1e308, train loss: nan\nepoch: 2 - train $x$: -1e308, train loss: inf\n",
        "".join(f"step: {i} - train loss: {10.0**-i}\n" for i in range(9)),
        "epoch: 1 - " + ", ".join(f"train a{i}: {i}" for i in range(99)) + "\n",
    ],
)
def test_the_picture_is_a_png(tmp_path, text):
    from matplotlib.image import imread

    (tmp_path / "train_log.txt").write_text(text)
    main([str(tmp_path / "train_log.txt"), "--plot", str(tmp_path / "curves.png")])
    pixels = imread(tmp_path / "curves.png")
    assert pixels.ndim == 3 and pixels.std() > 0


def test_without_matplotlib_only_plot_is_refused(log, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main([str(log)]) == 0
    with pytest.raises(SystemExit, match="2"):
        main([str(log), "--plot", str(tmp_path / "curves.png")])
    assert "pip install matplotlib" in capsys.readouterr().err


def follow(path, capsys, *changes, arguments=()):
    """Follow a log while the functions in changes run, then Ctrl-C; returns the output after each, and the exit status."""
    changes, printed = iter(changes), []

    def wait(seconds):
        printed.append(capsys.readouterr().out)
        change = next(changes, None)
        if change is None:
            raise KeyboardInterrupt
        change()

    status = main([str(path), "--follow", *arguments], wait)
    return [*printed, capsys.readouterr().out], status


def append(path, text):
    def change():
        with open(path, "a") as file:
            file.write(text)

    return change


def test_follow_waits_for_the_file_and_for_complete_lines(tmp_path, capsys):
    path, lines = tmp_path / "train_log.txt", LOG.splitlines(keepends=True)
    printed, status = follow(
        path,
        capsys,
        append(path, lines[0] + lines[1][:9]),
        append(path, lines[1][9:]),
        lambda: None,
        append(path, "".join(lines[2:])),
    )
    waiting, first, second, nothing, rest, end = printed
    assert waiting == f"Waiting for {path}\n" and nothing == "" and status == 0
    assert "lowest valid loss so far" in first and "0.918" not in first
    assert "0.918" in second and "2.05" not in second
    assert "0.536" in rest and "0.379" in rest and "test of epoch 3" in rest
    assert end.strip() == TABLE.partition("\n\n")[2].strip()


def test_follow_flags_new_lines_once(log, capsys):
    printed, status = follow(
        log, capsys, append(log, "epoch: 5 - train loss: nan\n"), append(log, "epoch: 6 - train loss: 1.00\n")
    )
    assert status == 1 and [text.count("nonfinite") for text in printed] == [0, 1, 0, 0]


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_text(LOG.splitlines(keepends=True)[3]),
        lambda path: path.write_text(LOG.replace("2.05", "3.05") + LOG),
        lambda path: (
            path.with_name("new").write_text(LOG.replace("epoch: 1", "epoch: 0")),
            os.replace(path.with_name("new"), path),
        ),
        lambda path: (path.unlink(), path.write_text("epoch: 4 - train loss: 3.79e-01\n")),
    ],
    ids=["truncated", "rewritten", "replaced", "deleted"],
)
def test_follow_starts_again_with_another_log(log, capsys, change):
    printed, _ = follow(log, capsys, lambda: change(log), append(log, "epoch: 9 - train loss: 1.23\n"))
    assert printed[1].startswith("\nThe log was replaced.\n") and "0.379" in printed[1]
    assert "1.23" in printed[2] and "replaced" not in printed[2]


def test_follow_times_epochs_by_the_arrival_of_their_lines(log, capsys, monkeypatch):
    times = iter([100, 160, 220, 280, 340, 800])
    monkeypatch.setattr("speechbrain.watch.__main__.time", types.SimpleNamespace(monotonic=lambda: next(times)))
    rows = [append(log, f"epoch: {i} - valid loss: {1 / i}\n") for i in range(5, 11)]
    printed, _ = follow(log, capsys, *rows, append(log, "epoch: 11 - valid loss: 0.01\nepoch: 12 - valid loss: 0.01\n"))
    assert "0:01:00" in printed[2] and "slow" not in printed[5]
    assert "slow         epoch 10: took 0:07:40, usual is 0:01:00" in printed[6]


def test_follow_draws_the_picture_again(log, tmp_path, capsys):
    picture, drawn = tmp_path / "curves.png", []

    def look():
        drawn.append(picture.read_bytes())

    follow(log, capsys, look, append(log, "epoch: 5 - train loss: 1.23\n"), look, arguments=["--plot", str(picture)])
    assert drawn[0] != drawn[1]


def test_follow_says_that_a_training_recovers(tmp_path, capsys):
    path = tmp_path / "train_log.txt"
    lines = shape(train_loss=falling(2, 0.1, 16), valid_loss=[*RISEN, 0.5]).splitlines(keepends=True)
    path.write_text("".join(lines[:12]))
    printed, status = follow(path, capsys, *(append(path, line) for line in lines[12:]))
    assert status == 0 and "warning  overfitting  epoch 13" in printed[1]
    assert "note     overfitting  recovered at epoch 16: valid loss is 0.500" in printed[4]
    assert [text.count("overfitting") for text in printed] == [0, 1, 0, 0, 1, 0]


def test_follow_prints_a_training_and_its_validation_as_they_come(tmp_path, capsys):
    path = tmp_path / "train_log.txt"
    path.write_text("epoch: 1 - train loss: 2.00\n")
    printed, _ = follow(
        path,
        capsys,
        append(path, "epoch: 1 - valid loss: 3.00\n"),
        append(path, "epoch: 2 - train loss: 1.00\n"),
        append(path, "epoch: 2 - valid loss: nan\n"),
    )
    assert "epoch 1: train loss 2.00" in printed[0] and "epoch 2: train loss 1.00" in printed[2]
    assert "2.00         3.00" in printed[1] and "epoch 2: valid loss is nan" in printed[3]


@pytest.mark.parametrize("arguments", [[], ["--follow"]])
def test_a_pipe_is_refused(tmp_path, capsys, arguments):
    os.mkfifo(tmp_path / "train_log.txt")
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "train_log.txt"), *arguments], pytest.fail)
    assert "train_log.txt: a pipe or device cannot be watched" in capsys.readouterr().err


STAMP = "2026-11-22 10:00:0{},000 - speechbrain.{} - INFO - {}\n"


def test_log_txt_is_read_like_train_log_txt(tmp_path, capsys):
    lines = [STAMP.format(0, "core", "Beginning experiment!"), "Traceback:\n"]
    lines += [STAMP.format(i, "utils.train_logger", line) for i, line in enumerate(LOG.splitlines())]
    (tmp_path / "log.txt").write_text("".join(lines))
    assert main([str(tmp_path / "log.txt")]) == 0
    out = capsys.readouterr().out
    assert out.partition("\n\n")[2] == TABLE.partition("\n\n")[2] and "0:00:01" in out


def test_log_txt_without_epochs_names_the_log_beside_it(log, capsys):
    log.with_name("log.txt").write_text(STAMP.format(0, "core", "Beginning experiment!"))
    with pytest.raises(SystemExit, match="2"):
        main([str(log.with_name("log.txt"))])
    assert f"has no line of FileTrainLogger; give {log}" in capsys.readouterr().err


def test_the_learning_rate_after_a_restart_that_only_log_txt_shows(tmp_path):
    lines = both([2, 1.5, 1.2, 1.1], lr=[1e-3, 5e-4, 2e-4, 1e-3]).splitlines()
    stamped = [STAMP.format(i, "utils.train_logger", line) for i, line in enumerate(lines)]
    stamped.insert(3, STAMP.format(3, "core", "Beginning experiment!"))
    assert flagged("".join(stamped)) == [("warning", "lr-reset", 5)]


@pytest.mark.parametrize("output", ["closed", "full", "head"])
def test_an_output_that_cannot_be_written_ends_the_command_quietly(log, output):
    log.write_text("".join(f"epoch: {i} - train loss: nan\n" for i in range(20000)))
    redirected = {"closed": ">&-", "full": ">/dev/full", "head": "| head -1; exit ${PIPESTATUS[0]}"}[output]
    command = f"{sys.executable} -m speechbrain.watch {log} {redirected}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=log.parent)
    assert (done.returncode, done.stderr) == (1, "")


def test_tail_returns_every_byte_once(tmp_path):
    path, text = tmp_path / "log", os.urandom(5000)
    path.touch()
    pieces = tail(path)
    read = next(pieces)
    for start in range(0, 5000, 700):
        with open(path, "ab") as file:
            file.write(text[start : start + 700])
        read += next(pieces)
    assert read == text and next(pieces) == b""


def test_ctrl_c_ends_the_command(log):
    command = [sys.executable, "-m", "speechbrain.watch", str(log), "--follow", "--every", "0.01"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=log.parent,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background processes ignore SIGINT
    )
    for line in process.stdout:
        if "test of epoch 3" in line:
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "") and "Best: epoch 2" in out and "\x1b" not in out
