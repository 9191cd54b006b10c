"""Which item, key and file an exception names."""

import csv
import json
import logging
import pickle
import sys

import pytest
from speechbrain.dataio.dataio import read_audio
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.data_pipeline import DataPipeline
from torch.utils.data import DataLoader

regression = pytest.mark.regression


def broken(wav):
    if wav == "b.wav":
        raise OSError(2, "No such file", wav)
    return wav


def steps(wav):
    yield wav
    if wav == "b.wav":
        raise ValueError("bad")
    yield wav, wav


def too_few(wav):
    return (wav,) if wav == "b.wav" else (wav, wav)


def not_two(wav):
    return None if wav == "b.wav" else (wav, wav)


def stops(wav):
    yield wav
    if wav != "b.wav":
        yield wav


def mistyped(speaker):
    return speaker


def own_key_error(wav):
    return {"a.wav": 0, "c.wav": 1}[wav]


TAKES = {mistyped: "speaker"}
PROVIDES = {broken: ["sig"], steps: ["first", ["second", "third"]], mistyped: ["label"], own_key_error: ["label"]}
ITEMS = {name: {"wav": f"{name}.wav", "length": length} for name, length in zip("abc", (3, 1, 2))}
LACKING = {**ITEMS, "b": {"length": 1}}
COMPUTING = "This happened while computing {} from wav, for item 'b' of {{}}."


def dynamic_items(*functions):
    """Returns dynamic items that no other dataset has: one of a generator has a state."""
    two = ["first", "second"]
    return [{"func": f, "takes": TAKES.get(f, "wav"), "provides": PROVIDES.get(f, two)} for f in functions]


@pytest.fixture
def failing(tmp_path):
    """callable: Makes a dataset from a file, evaluates its items, and returns the exception, its notes and the file."""

    def fail(items, functions, keys, change=lambda dataset: dataset):
        path = tmp_path / "train.json"
        path.write_text(json.dumps(items))
        with pytest.raises(Exception) as caught:
            dataset = change(DynamicItemDataset.from_json(path, {}, dynamic_items(*functions), keys))
            [dataset[place] for place in range(len(dataset))] if isinstance(dataset, DynamicItemDataset) else list(dataset)
        return caught.value, getattr(caught.value, "__notes__", []), path

    return fail


needs_notes = pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no notes")


@needs_notes
@regression
@pytest.mark.parametrize(
    "items, dynamic, keys, error, note",
    [
        (ITEMS, [broken], ["sig"], OSError(2, "No such file", "b.wav"), COMPUTING.format("sig")),
        (ITEMS, [steps], ["third"], ValueError("bad"), COMPUTING.format("second, third")),
        (ITEMS, [own_key_error], ["label"], KeyError("b.wav"), COMPUTING.format("label")),
        (ITEMS, [stops], ["second"], StopIteration(), COMPUTING.format("second")),
        (ITEMS, [not_two], ["first"], TypeError, COMPUTING.format("first, second")),
        (ITEMS, [too_few], ["second"], KeyError("second"), "This is item 'b' of {}, with the keys id, wav, length, first."),
        (
            LACKING,
            [broken],
            ["sig"],
            KeyError("Expected key wav in data!"),
            "This is item 'b' of {}, with the keys id, length.",
        ),
        (
            ITEMS,
            [mistyped, broken],
            ["label"],
            RuntimeError("These keys are still unaccounted for in the data pipeline: speaker"),
            "This is item 'a' of {}, with the keys id, wav, length, label, sig.",
        ),
        (
            ITEMS,
            [broken],
            ["text"],
            KeyError("text"),
            "'text' is not a key of the first item of {}, and no dynamic item provides it. The keys that there are: wav, "
            "length, id, sig.",
        ),
        ({}, [], [], IndexError("list index out of range"), "{} has no items."),
    ],
)
@pytest.mark.filterwarnings("error")
def test_an_exception_has_a_note_and_is_the_same_otherwise(failing, items, dynamic, keys, error, note):
    raised, notes, path = failing(items, dynamic, keys)
    assert type(raised) is (error if isinstance(error, type) else type(error))
    assert isinstance(error, type) or (raised.args == error.args and str(raised) == str(error))
    assert notes == [note.format(path)]


def in_worker(dataset):
    return DataLoader(dataset, batch_size=None, num_workers=1)


@needs_notes
@regression
@pytest.mark.parametrize(
    "change",
    [
        lambda dataset: dataset.filtered_sorted(sort_key="length"),
        lambda dataset: dataset.filtered_sorted(sort_key="sig"),
        lambda dataset: dataset.overfit_test(2, 4),
        lambda dataset: pickle.loads(pickle.dumps(dataset)),
    ],
)
def test_a_view_names_the_file(failing, change):
    raised, notes, path = failing(ITEMS, [broken], ["sig"], change)
    assert raised.filename == "b.wav" and notes == [COMPUTING.format("sig").format(path)]


@needs_notes
@regression
def test_a_worker_forwards_the_note(failing):
    raised, _, path = failing(ITEMS, [own_key_error], ["label"], in_worker)
    assert type(raised) is KeyError and COMPUTING.format("label").format(path) in str(raised)


@needs_notes
@regression
def test_a_csv_file_is_named(tmp_path):
    path = tmp_path / "train.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("ID", "wav"), ("a", tmp_path / "absent.wav")])
    dataset = DynamicItemDataset.from_csv(str(path), {}, output_keys=["sig"])
    dataset.add_dynamic_item(read_audio, takes="wav", provides="sig")
    with pytest.raises(Exception) as caught:
        dataset[0]
    assert caught.value.__notes__ == [f"This happened while computing sig from wav, for item 'a' of {path}."]


@needs_notes
@regression
def test_without_a_file_or_an_id_there_is_less_to_name():
    with pytest.raises(OSError) as caught:
        DynamicItemDataset(ITEMS, dynamic_items(broken), ["sig"])[1]
    assert caught.value.__notes__ == ["This happened while computing sig from wav, for item 'b'."]
    with pytest.raises(OSError) as caught:
        DataPipeline(["wav"], dynamic_items(broken), ["sig"])({"wav": "b.wav"})
    assert caught.value.__notes__ == ["This happened while computing sig from wav, for an item."]


class OldError(Exception):
    """Has no notes, like all exceptions of Python 3.10."""

    add_note = property()


def old(wav):
    raise OldError("bad")


PROVIDES[old] = ["sig"]


@regression
def test_without_notes_the_line_is_logged(failing, caplog):
    raised, _, path = failing(ITEMS, [old], ["sig"])
    assert raised.args == ("bad",)
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.ERROR, f"OldError: This happened while computing sig from wav, for item 'a' of {path}.")
    ]


@pytest.mark.parametrize("loader", [list, in_worker], ids=["here", "worker"])
def test_healthy_items_are_as_on_stock(tmp_path, loader, caplog):
    path = tmp_path / "train.json"
    path.write_text(json.dumps({name: item for name, item in ITEMS.items() if name != "b"}))
    dataset = DynamicItemDataset.from_json(
        json_path=path, dynamic_items=dynamic_items(broken, steps), output_keys=["id", "sig", "third"]
    )
    assert [dict(item) for item in loader(dataset)] == [{"id": x, "sig": f"{x}.wav", "third": f"{x}.wav"} for x in "ac"]
    assert [item["id"] for item in dataset.filtered_sorted(sort_key="length")] == ["c", "a"]
    with pytest.raises(TypeError, match="Cannot create SubsetDynamicItemDataset directly"):
        dataset.filtered_sorted().from_json(path)
    assert not caplog.records
