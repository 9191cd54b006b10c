"""Mistakes in manifests, in their items and in the keys of the YAML file are reported."""

import json
import shutil
import sys

import numpy as np
import pytest
import soundfile
import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.dataio.sampler import DynamicBatchSampler
from speechbrain.preflight.__main__ import Takeover
from speechbrain.preflight.checks import hparams, manifests
from torch.nn.functional import cross_entropy

from brains import Classifier, registering, sgd

CASES = []
case = registering(CASES)  # functions that break a run


class Run:
    """A classifier of clips: its items, which a change may break, and how the script handles them."""

    def __init__(self, folder):
        self.folder, self.form, self.raw, self.remedy = folder, "json", None, ""
        self.replacements = {"root": str(folder)}
        self.train, self.valid = ({f"{split}{i}": self.item(f"{split}{i}", i) for i in range(8)} for split in ("t", "v"))
        self.pick = lambda dataset: dataset
        self.label = lambda label: torch.LongTensor([int(label)])
        self.sampler = lambda dataset: {"batch_size": 4}
        self.keys = ["id", "sig", "target"]
        self.clean = {"func": lambda sig: sig, "takes": ["sig"]}
        self.sig = {"func": sb.dataio.dataio.read_audio, "takes": ["wav"], "provides": "sig"}

    def item(self, name, i, frames=None):
        frames = frames or 800 + 80 * i
        sound = np.random.default_rng(sum(map(ord, name)) + i).uniform(-0.5, 0.5, frames)
        soundfile.write(self.folder / f"{name}.wav", sound, 8000)
        return {"wav": f"{{root}}/{name}.wav", "label": str(i % 2), "duration": frames / 8000}

    def dataset(self, split, items):
        path = self.folder / f"{split}.{self.form}"
        if self.form == "csv":
            lines = [",".join(["ID", *next(iter(items.values()))])]
            lines += [",".join([name, *map(str, item.values())]).replace("{root}", "$root") for name, item in items.items()]
            path.write_text("\n".join(lines))
        else:
            path.write_text(json.dumps(items, indent=1))
        if self.raw and split == "train":
            path.write_bytes(self.raw(path.read_bytes()))
        made = getattr(DynamicItemDataset, f"from_{self.form}")(path, self.replacements)
        made.add_dynamic_item(**self.sig)
        made.add_dynamic_item(lambda label: self.label(label), takes="label", provides="target")
        made.add_dynamic_item(**self.clean, provides="clean")
        made = self.pick(made) if split == "train" else made
        made.set_output_keys(self.keys)
        return made

    def start(self):
        class Brain(Classifier):
            def compute_forward(self, batch, stage):
                return self.modules.head(batch.sig.data.std(1, keepdim=True))

            def compute_objectives(self, predictions, batch, stage):
                return cross_entropy(predictions, batch.target.data[:, 0])

        torch.manual_seed(0)
        train, valid = self.dataset("train", self.train), self.dataset("valid", self.valid)
        brain = Brain({"head": torch.nn.Linear(1, 2)}, sgd)
        brain.fit(range(1, 2), train, valid, train_loader_kwargs=self.sampler(train), valid_loader_kwargs={"batch_size": 4})


# Items


@case("item-lacks-key", "error", "'label' is missing in 2 of 8 items", "train: t5, t6")
def no_label(run):
    del run.train["t5"]["label"], run.train["t6"]["label"]


@case("item-lacks-key", "error", "'wav' is missing in 1 of 8 items", "valid: v1")
def no_file_in_the_first_validation_batch(run):
    del run.valid["v1"]["wav"]


@case("item-failed", "error", "invalid literal for int() with base 10: 'x' (1 of 8 items: t6)", "in <lambda>")
def value_that_cannot_be_read(run):
    run.train["t6"]["label"] = "x"


@case("item-failed", "error", "'x' (1 of 8 items: t0)", "in <lambda>")
def value_that_the_first_batch_meets_too(run):
    run.train["t0"]["label"] = "x"


@case("id-twice", "warning", "8 items have only 7 ids, and the last item with an id replaces the others: t3", "train.json")
def same_id_in_json(run):
    run.raw = lambda data: data.replace(b'"t4"', b'"t3"')


@case("audio-missing", "error", "8 of 16 files do not exist", "{root}/t5.wav")
def placeholder_of_json_in_csv(run):
    run.remedy = "pass replacements= with 'root'; a CSV manifest takes $name"
    run.form = "csv"
    run.raw = lambda data: data.replace(b"$root", b"{root}")


@case("audio-missing", "error", "8 of 16 files do not exist", "\\t5.wav")
def path_of_another_system(run):
    run.remedy = "as this system does"
    for item in run.train.values():
        item["wav"] = item["wav"].replace("/", "\\")
    run.replacements = {"root": str(run.folder).replace("/", "\\")}
    run.valid = {name: {**item, "wav": item["wav"].replace("{root}", str(run.folder))} for name, item in run.valid.items()}


@case("audio-constant", "warning", "all 8 items have the same audio", "train")
def one_file_for_all(run):
    for item in run.train.values():
        item["wav"] = run.train["t0"]["wav"]


@case(
    "label-contradicts", "warning", "1 of 7 clips have items with different labels, for example t0 (0), t1 (1)", "train target"
)
def one_file_with_two_labels(run):
    run.train["t1"]["wav"] = run.train["t0"]["wav"]


@case("audio-twice", "note", "1 of 8 items have the audio of another item", "train: t0, t2")
def one_file_for_two(run):
    run.train["t2"]["wav"] = run.train["t0"]["wav"]


def clean_and_noisy(run, cuts=False):
    """Give each item two files; in one item, the second file is longer."""
    for split, items in (("t", run.train), ("v", run.valid)):
        items |= {f"{split}{i}": run.item(f"{split}{i}", i) for i in range(8, 12)}
        for i, (name, item) in enumerate([*items.items()]):
            item["clean_wav"] = run.item(f"clean_{name}", i, 800 + 80 * i + 40 * (name == "t7"))["wav"]
    read = sb.dataio.dataio.read_audio
    run.clean = {"func": lambda wav: read(wav)[: -40 if cuts and "_t7" in wav else None], "takes": ["clean_wav"]}
    run.keys = [*run.keys, "clean"]


@case("signals-unlike", "warning", "1 of 24 items have signals that differ in length: sig 1360, clean 1400", "train t7")
def one_item_of_two_lengths(run):
    clean_and_noisy(run)


@case("signals-equal", "warning", "wav and clean_wav have the same signal in all 12 items", "train")
def clean_is_the_noisy(run, copied="t3"):
    clean_and_noisy(run, cuts=True)
    shutil.copy(run.folder / f"{copied}.wav", run.folder / "copy.wav")
    for name, item in run.train.items():
        item["clean_wav"] = "{root}/copy.wav" if name == "t3" else item["wav"]


@case("label-constant", "warning", "all 8 items have the label 0, but the classifier has 2 outputs", "train target")
def one_label(run):
    run.label = lambda label: torch.LongTensor([0])


@case("manifest-unreadable", "error", "its columns are separated by ';'", "train.csv:1")
def semicolons(run):
    run.form = "csv"
    run.raw = lambda data: data.replace(b",", b";")


# Sorting, durations


@case("sorted-wrong", "warning", "'duration' is NaN for 1 of 8 items", "sort_key='duration': t4")
def sorted_by_nan(run):
    run.train["t4"]["duration"] = float("nan")
    run.pick = lambda dataset: dataset.filtered_sorted(sort_key="duration")


@case("sorted-wrong", "warning", "the items are sorted by 'length' as text: '11' comes before '4'", "sort_key='length'")
def numbers_sorted_as_text(run):
    for i, item in enumerate(run.train.values()):
        item["length"] = str(i + 4)
    run.pick = lambda dataset: dataset.filtered_sorted(sort_key="length")


@case("duration-unlike-audio", "note", "1000 times those of the files: are they in milliseconds?", "train duration")
def milliseconds(run):
    for item in run.train.values():
        item["duration"] *= 1000


@case("duration-unlike-audio", "note", "8000 times those of the files: are they in samples?", "train duration")
def samples(run):
    for item in run.train.values():
        item["duration"] *= 8000


@case("duration-unlike-audio", "warning", "the lengths of all 8 items as 0", "train DynamicBatchSampler")
def zeros_for_the_sampler(run):
    for item in run.train.values():
        item["duration"] = 0.0
    run.sampler = lambda dataset: {
        "batch_sampler": DynamicBatchSampler(dataset, 4, bucket_boundaries=[1.0], length_func=lambda item: item["duration"])
    }


def report_of(folder, change, *_):
    run = Run(folder)
    change(run)
    return Takeover().run(run.start)


@pytest.mark.parametrize("change, code, level, what, where", CASES)
def test_a_mistake_is_reported(tmp_path, change, code, level, what, where):
    run = Run(tmp_path)
    change(run)
    report = Takeover().run(run.start)
    assert [(f.code, f.level) for f in report.findings] == [(code, level)], report.text()
    (finding,) = report.findings
    assert what in finding.what.partition("\n")[0] and where in finding.where
    assert finding.remedy and run.remedy in finding.remedy


HEALTHY = []


def healthy(change):
    HEALTHY.append(pytest.param(change, id=change.__name__))


@healthy
def as_it_is(run):
    pass


@healthy
def in_csv(run):
    run.form = "csv"


@healthy
def spare_keys(run):
    run.train["t5"]["speaker"] = "unused"
    del run.valid["v5"]["duration"]


@healthy
def segments_of_one_file(run):
    for split, items in (("t", run.train), ("v", run.valid)):
        for i, item in enumerate(items.values()):
            item |= {"wav": items[f"{split}0"]["wav"], "start": i * 10, "duration": 0.01}
    run.sig = {
        "func": lambda wav, start: sb.dataio.dataio.read_audio(wav)[start : start + 80],
        "takes": ["wav", "start"],
        "provides": "sig",
    }


@healthy
def segments_in_one_value(run):
    for split, items in (("t", run.train), ("v", run.valid)):
        for i, item in enumerate(items.values()):
            item["wav"] = {"file": f"{{root}}/{split}0.wav", "start": i * 10, "stop": i * 10 + 80}


@healthy
def two_lengths_that_the_pipeline_cuts(run):
    clean_and_noisy(run, cuts=True)


@healthy
def one_clean_file_of_its_own(run):
    clean_is_the_noisy(run, copied="clean_t3")


@healthy
def two_parts_of_one_file(run):
    clean_is_the_noisy(run)
    run.clean["func"] = lambda wav: sb.dataio.dataio.read_audio(wav)[40:]


@healthy
def sorted_downwards(run):
    for i, item in enumerate(run.train.values()):
        item["length"] = f"{i + 1:02}"
    run.pick = lambda dataset: dataset.filtered_sorted(sort_key="length", reverse=True, key_min_value={"duration": 0.11})


@healthy
def sorted_by_speaker(run):
    for i, item in enumerate(run.train.values()):
        item["speaker"] = str(i + 4)
    run.pick = lambda dataset: dataset.filtered_sorted(sort_key="speaker")


@healthy
def sampler_of_durations(run):
    run.sampler = lambda dataset: {"batch_sampler": DynamicBatchSampler(dataset, 4, bucket_boundaries=[1.0])}


@healthy
def backslash_that_the_pipeline_handles(run):
    for item in [*run.train.values(), *run.valid.values()]:
        item["wav"] = item["wav"].replace("/", "\\")
    read = sb.dataio.dataio.read_audio
    run.sig["func"] = lambda wav: read(wav.replace("\\", "/"))


@pytest.mark.parametrize("change", HEALTHY)
def test_healthy_data(tmp_path, change):
    run = Run(tmp_path)
    change(run)
    report = Takeover().run(run.start)
    assert not report.findings and not [said for said in report.said if "checked" in said], report.text()


# Manifests that cannot be read


def cut(data):
    lines = data.split(b"\n")
    lines[3] = lines[3].rpartition(b",")[0]
    return b"\n".join(lines)


CSV = {
    "no rows": (lambda data: data.split(b"\n")[0], "it has a header, but no rows", "train.csv:1"),
    "empty": (lambda data: b"", "it has no column ID, but nothing", "train.csv:1"),
    "byte-order mark": (lambda data: b"\xef\xbb\xbf" + data, "it begins with a byte-order mark", "train.csv:1:1"),
    "other header": (lambda data: data.replace(b"ID", b"name"), "it has no column ID, but name, wav", "train.csv:1"),
    "duration": (lambda data: data.replace(b"0.12", b""), "the duration is empty (item 't2')", "train.csv:4, column duration"),
    "text": (lambda data: data.replace(b"0.12", b"1,5", 1).replace(b"1,5", b'"1,5"'), "'1,5', not a number", "column duration"),
    "short row": (cut, "the row has 3 values for 4 columns", "train.csv:4, column duration"),
    "same id": (lambda data: data.replace(b"t4,", b"t3,"), "the id 't3' is already in line 5", "train.csv:6, column ID"),
    "placeholder": (lambda data: data.replace(b"$root/t2", b"$rot/t2"), "$rot has no replacement", "train.csv:4, column wav"),
    "latin 1": (lambda data: data.replace(b"t5,", b"caf\xe9,"), "it is not UTF-8: byte 0xe9", "train.csv:7:4"),
    "utf-16": (lambda data: data.decode().encode("utf-16"), "it is not UTF-8: byte 0xff at position 0", "train.csv:1:1"),
}
JSON = {
    "comma": (lambda data: data.replace(b'"0",', b'"0"', 1), "it is not JSON: Expecting ',' delimiter", "train.json:5:3"),
    "no items": (lambda data: b"{}", "it has no items", "train.json"),
    "a list": (lambda data: b'[{"wav": "a.wav"}]', "it is a list", "train.json"),
    "placeholder": (lambda data: data.replace(b"{root}/t2", b"{rot}/t2"), "{rot} has no replacement", "train.json: t2 wav"),
    "byte-order mark": (lambda data: b"\xef\xbb\xbf" + data, "it is not JSON: Unexpected UTF-8 BOM", "train.json:1:1"),
}


@pytest.mark.parametrize("form, raw, what, where", [(f, *c) for f, cs in (("csv", CSV), ("json", JSON)) for c in cs.values()])
def test_a_manifest_that_cannot_be_read(tmp_path, form, raw, what, where):
    run = Run(tmp_path)
    run.form, run.raw = form, raw
    report = Takeover().run(run.start)
    assert [(f.code, f.level) for f in report.findings] == [("manifest-unreadable", "error")], report.text()
    (finding,) = report.findings
    assert what in finding.what and where in finding.where and finding.remedy


def test_another_error_while_a_manifest_is_read(tmp_path):
    run = Run(tmp_path)
    run.train["t0"]["id"] = "0"  # a reserved key
    report = Takeover().run(run.start)
    assert [finding.code for finding in report.findings] == ["script-failed"], report.text()


# The YAML file


YAML = """seed: 1
number_of_epochs: 2
batch_size: 4
n_mels_1: 3
n_mels_2: 4
limit: !ref <number_of_epochs>
train_batch: 5
"""


def start_with(path, data, *overrides):
    path.write_bytes(data)

    def start():
        sys.argv = ["train.py", str(path)]
        with open(path, encoding="utf-8") as fin:
            hparams = load_hyperpyyaml(fin, dict(overrides))
        Run(path.parent).start()
        return hparams["batch_size"], hparams["n_mels_1"], hparams["seed"]

    return start


@pytest.mark.parametrize(
    "more, found",
    [
        ("", None),
        # In pieces, because this file is part of the script.
        (
            "number_of_" + "epoch: 9\n",
            ("nothing reads 'number_of_" + "epoch', but 'number_of_epochs' is read", "hparams.yaml:8"),
        ),
        ("batch_" + "seiz: 9\n", ("nothing reads 'batch_" + "seiz', but 'batch_size' is read", "hparams.yaml:8")),
        ("learning_rate: 9\n", None),
    ],
)
def test_a_mistyped_key(tmp_path, monkeypatch, more, found):
    monkeypatch.setattr(sys, "argv", sys.argv)
    report = Takeover().run(start_with(tmp_path / "hparams.yaml", (YAML + more).encode()))
    assert [(f.code, f.level) for f in report.findings] == ([("key-mistyped", "note")] if found else []), report.text()
    assert not found or (found[0] == report.findings[0].what and report.findings[0].where.endswith(found[1]))


@pytest.mark.parametrize(
    ("key", "remedy"), [("number_of_" + "epoch", "did you mean --number_of_epochs?"), ("other", "fix the")]
)
def test_a_mistyped_override(tmp_path, monkeypatch, key, remedy):
    monkeypatch.setattr(sys, "argv", sys.argv)
    report = Takeover().run(start_with(tmp_path / "hparams.yaml", YAML.encode(), (key, 3)))
    assert [finding.code for finding in report.findings] == ["script-failed"] and remedy in report.findings[0].remedy


def test_a_yaml_file_in_another_encoding(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", sys.argv)
    report = Takeover().run(start_with(tmp_path / "hparams.yaml", YAML.encode() + b"name: caf\xe9"))
    assert [(f.code, f.level) for f in report.findings] == [("manifest-unreadable", "error")], report.text()
    assert report.findings[0].where.endswith("hparams.yaml:8:10")


def test_a_reference_inside_a_tuple(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", sys.argv)
    report = Takeover().run(start_with(tmp_path / "hparams.yaml", YAML.encode() + b"kernel: (3, !ref <n_mels_1>)"))
    assert [(f.code, f.level) for f in report.findings] == [("script-failed", "error")], report.text()
    (finding,) = report.findings
    assert "does not resolve !ref inside a tuple: (3, !ref <n_mels_1>)" in finding.what
    assert finding.where.endswith("hparams.yaml:8") and finding.remedy == "write a list: [3, !ref <n_mels_1>]"


def test_every_code_has_a_case():
    elsewhere = {"audio-missing", "manifest-unreadable", "signals-unlike", "signals-equal"}
    assert {*manifests.CODES} | elsewhere == {param.values[1] for param in CASES}
    assert "key-mistyped" in hparams.CODES
