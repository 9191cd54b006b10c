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
from speechbrain.watch.flags import Goal, find_best, find_goal, flags
from speechbrain.watch.log import Log, parse, runs, stamp, tail
from speechbrain.watch.report import table
from speechbrain.watch.text import shown


def read(text):
    """A log that contains the text."""
    log = Log()
    log.feed(text.encode())
    return log


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
    log = read(text)
    assert [entry.epoch for entry in log.entries] == epochs
    assert (len(log.unread), log.unfinished) == (unread, unfinished)


def test_a_log_can_be_read_in_any_pieces():
    text = ("epoch: 1 - valid m: [[1 2]\n [3 4]]\nwhat?\r\nepoch: 2 - train µ: 1.00\n").encode()
    whole, pieces = Log(), Log()
    whole.feed(text)
    assert [entry for byte in text for entry in pieces.feed(bytes([byte]))] == whole.entries
    assert pieces.unread == whole.unread == [(3, "what?")]


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
    assert [len(run.rows) for run in runs(read("\n".join(lines) + "\n").entries)] == divided


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
    log = read(path.read_text())
    assert not log.unread and not log.unfinished
    first, second, third, test = log.entries
    assert (first.epoch, first.number("lr"), first.number("train loss")) == (1, 0.001, 0.918)
    assert math.isnan(first.number("valid loss"))
    assert all(first.items[f"valid {key}"] == str(value) for key, value in valid.items())
    assert [second.number(key) for key in ("train loss", "valid loss", "valid n")] == [0.5, 12.35, 0.5]
    assert third.items == {"epoch": "3"}
    assert (test.is_test, test.loaded, test.number("test loss")) == (True, "2", 150)
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
    log = read(path.read_text() if calls else "")
    assert not log.unread and not log.unfinished
    assert [entry.epoch for entry in log.entries] == list(range(len(calls)))
    for entry, (meta, *stats) in zip(log.entries, calls):
        given = {f"x{key}": value for key, value in meta.items()}
        for dataset, values in zip(("train", "valid", "test"), stats):
            given |= {f"{dataset} {key}": value for key, value in (values or {}).items()}
        assert entry.items.keys() == given.keys() | {"epoch"}
        for key, value in given.items():
            if not isinstance(value, float):
                assert entry.items[key] == str(value)
            elif math.isfinite(value):
                assert math.isclose(entry.number(key), value, rel_tol=0.51 * 10**-precision, abs_tol=5e-324)
            else:
                assert str(entry.number(key)) == str(value)


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
    log.feed(text.encode("utf-8", "surrogatepass"))
    *lines, _ = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace").split("\n")
    inside = sum(bool(line.strip()) for entry in log.entries for line in entry.text.split("\n"))
    waiting = sum(bool(line.strip()) for _, line in log.waiting)
    assert inside + len(log.unread) + waiting == sum(bool(line.strip()) for line in lines)
    found = runs(log.entries)
    list(table(found, find_goal(found), width=80))


def curves(**columns):
    """The flags of a log with these curves, which are named "train_loss" and so on: a list of (level, code, row)."""
    logger, lines = FileTrainLogger(""), []
    for i, values in enumerate(zip(*columns.values())):
        sections = [f"epoch: {i + 1}"]
        for dataset in ("train", "valid"):
            stats = {key[6:]: value for key, value in zip(columns, values) if key.startswith(dataset)}
            sections += [logger._stats_to_string(stats, dataset)] if stats else []
        lines.append(" - ".join(sections))
    (run,) = runs(read("\n".join(lines) + "\n").entries)
    return [(flag.level, flag.code, flag.line) for flag in flags(run)]


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
        ({"train_loss": [0.1, 1e-4, 0.0, 0.0]}, []),
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
        # plateau: equal values for a few epochs are not flat yet
        ({"train_loss": HEALTHY + [0.2] * 8}, []),
        ({"train_loss": [2.3] * 11, "valid_loss": [2.3] * 11}, [("warning", "plateau", 11)]),
        ({"train_loss": [2.3] * 10, "valid_loss": [2.3] * 10}, []),
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
    lines = "".join(f"epoch: {i + 1} - train loss: 2e+00\n" for i in range(30))
    assert flags(runs(read(lines).entries)[0]) == []


def test_steps_between_epochs_are_not_judged_as_epochs():
    generator = random.Random(0)
    lines, step = [], 0
    for epoch in range(1, 9):
        for _ in range(50):
            step += 10
            lines.append(f"step: {step} - train loss: {generator.uniform(0.1, 9):.2f}")
        lines.append(f"epoch: {epoch} - train loss: {2 / epoch:.2f} - valid loss: {2 / epoch:.2f}")
    (run,) = runs(read("\n".join(lines) + "\n").entries)
    assert flags(run) == []


def test_a_test_loss_is_judged_too():
    def judge(valid, test):
        (run,) = runs(read(f"epoch: 1 - valid loss: {valid}\nEpoch loaded: 1 - test loss: {test}\n").entries)
        return [(flag.level, flag.code, flag.line) for flag in flags(run)]

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
    entries = read("\n".join(lines) + "\n").entries
    stamp(entries, tmp_path / "log.txt")
    return [flag.line for run in runs(entries) for flag in flags(run) if flag.code == "slow"]


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
    (run,) = found = runs(read(LOG).entries)
    assert find_goal(found, option) == goal
    best = find_best(run, goal)
    assert (best and best.epoch) == epoch


def test_nan_and_a_loss_of_0_are_never_best():
    (run,) = runs(
        read("".join(f"epoch: {i} - valid loss: {x}\n" for i, x in enumerate(["nan", "2.0", "0.00e+00", "-inf"]))).entries
    )
    assert find_best(run, Goal("valid loss")).epoch == 1
    assert find_best(run, Goal("valid nothing")) is None


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
        ("1234567", "1.23457e+06"),
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
"""


def test_the_table(log, capsys):
    assert main([str(log)]) == 0
    assert "".join(line.rstrip() + "\n" for line in capsys.readouterr().out.splitlines()) == TABLE


def test_columns_that_do_not_fit_are_named():
    found = runs(read(LOG).entries)
    lines = [line for _, line in table(found, find_goal(found), width=40)]
    assert lines[0].split() == ["epoch", "lr", "train", "loss"]
    assert lines[1] == "  (not shown: valid loss, valid ACC, valid PER)"


def test_a_log_cannot_control_the_terminal(tmp_path, capsys):
    (tmp_path / "log").write_text(
        "epoch: 1 - valid loss\x1b7\u2028: 1.00\nepoch: 2 - valid loss\x1b7\u2028: \x1b8, valid \x9bx: nan\n\x1bc\n"
    )
    main([str(tmp_path / "log")])
    assert "".join(capsys.readouterr().out.split("\n")).isprintable()


def test_colour_marks_the_best_and_the_flags():
    found = runs(read("epoch: 1 - valid loss: 2.00\nepoch: 2 - valid loss: nan, valid \x1b7x: 1.00\n").entries)
    plain, coloured = ([line for _, line in table(found, find_goal(found), colour)] for colour in (False, True))
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
        ("", [], 0, "No best epoch yet: the log has no value to choose it by"),
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
        "",
        "epoch: 1 - train $x$: 1e308, train loss: nan\nepoch: 2 - train $x$: -1e308, train loss: inf\n",
        "".join(f"step: {i} - train loss: {10.0**-i}\n" for i in range(9)),
        "epoch: 1 - " + ", ".join(f"train a{i}: {i}" for i in range(99)) + "\n",
    ],
)
def test_the_picture_is_a_png(tmp_path, text):
    from matplotlib.image import imread

    (tmp_path / "train_log.txt").write_text(text)
    main([str(tmp_path / "train_log.txt"), "--plot", str(tmp_path / "curves.png")])
    assert (tmp_path / "curves.png").exists() == bool(text)
    if text:
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
    assert end.strip() == "Best: epoch 2, lowest valid loss 0.900"


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
