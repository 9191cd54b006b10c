"""Mistakes in labels and batches are reported; targets that are not one label per item are not checked."""

import contextlib
import copy
import re
from types import SimpleNamespace

import pytest
import torch
from speechbrain.core import Brain
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.dataio.sampler import ReproducibleWeightedRandomSampler
from speechbrain.nnet.losses import AdditiveAngularMargin, LogSoftmaxWrapper, nll_loss
from speechbrain.preflight.attempts import Log
from speechbrain.preflight.checks import batches, labels
from speechbrain.preflight.observe import Given, columns
from speechbrain.preflight.observe.first_step import first_step
from speechbrain.preflight.observe.items import Items
from speechbrain.preflight.observe.loads import Loaded, watched_loads
from speechbrain.preflight.observe.start import nothing_changes, start
from speechbrain.preflight.ranks import Ranks
from speechbrain.preflight.report import Report
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from brains import judge, observe

WORDS = ["bed", "cat", "dog", "tree"]


class Run:
    """A small classifier of four words: its data, label encoder, loader options and loss."""

    def __init__(self):
        self.train = {f"t{i}": {"word": WORDS[i % 4], "size": i} for i in range(16)}
        self.valid = {f"v{i}": {"word": WORDS[i % 4], "size": i} for i in range(8)}
        self.model = torch.nn.Linear(3, 4)
        self.loader = {"batch_size": 4, "shuffle": True}
        self.label = {"takes": ["word"], "provides": "label"}
        self.items, self.keys = [], ["id", "sound", "label"]
        encode(self, WORDS)
        self.sound = {"func": lambda size: torch.full((3,), size / 10), "takes": ["size"], "provides": "sound"}
        self.loss = lambda scores, batch: cross_entropy(scores, batch.label.data[:, 0])
        self.wrap = lambda dataset: dataset
        self.copies = 1

    def dataset(self, split):
        items = [self.label, self.sound, *self.items]
        return self.wrap(DynamicItemDataset(copy.deepcopy(split), items, self.keys))

    def findings(self, loaded=None):
        run = self

        class Classifier(Brain):
            def compute_forward(self, batch, stage):
                return self.modules.model(batch.sound.data.repeat(run.copies, 1))

            def compute_objectives(self, scores, batch, stage):
                return run.loss(scores, batch)

        brain = Classifier({"model": self.model}, lambda p: torch.optim.SGD(p, 0.1), run_opts={"device": "cpu"})
        valid = self.valid and self.dataset(self.valid)
        given = Given(brain, self.dataset(self.train), valid, iter([1]), self.loader, {"batch_size": 4})
        log = Log(Ranks())
        with nothing_changes(log.said) as stepped:
            before = start(given, log)
            seen, _ = observe(given, loaded=loaded or Loaded(), start=before, step=first_step(given, before, stepped, log))
        return [*judge(batches, seen), *judge(labels, seen)]


def more_classes(run):
    run.model = torch.nn.Linear(3, 2)


def encode(run, words, **options):
    run.encoder = CategoricalEncoder(**options)
    run.encoder.update_from_iterable(words)
    run.encoder.ignore_len()
    run.label["func"] = run.encoder.encode_label_torch


def from_one(run):
    encode(run, WORDS, starting_index=1)


def from_one_with_log_probabilities(run):
    from_one(run)
    run.model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LogSoftmax(-1))
    run.loss = lambda scores, batch: nll_loss(scores.unsqueeze(1), batch.label.data)


def more_classes_in_valid(run):
    run.encoder.update_from_iterable(["wow"])
    run.valid["v0"]["word"] = "wow"


def a_class_is_ignored(run):
    run.loss = lambda scores, batch: cross_entropy(scores, batch.label.data[:, 0], ignore_index=0)


def a_class_is_not_numbered(run):
    run.label["func"] = lambda word: torch.tensor([-100 if word == "cat" else WORDS.index(word)])


def only_in_valid(run):
    run.train = {name: item for name, item in run.train.items() if item["word"] != "cat"}


def only_in_valid_with_margin(run):
    only_in_valid(run)
    margin(run)


def margin(run):
    loss = LogSoftmaxWrapper(AdditiveAngularMargin())
    run.loss = lambda scores, batch: loss(scores.tanh().unsqueeze(1), batch.label.data)


def encoder_of_other_words(run):
    encode(run, ["yes", "no"])


def encoder_of_fewer_words(run):
    encode(run, WORDS[:3])


def encoder_of_other_words_and_unk(run):
    encoder_of_other_words(run)
    run.encoder.add_unk()


def in_order(run):
    run.train = dict(sorted(run.train.items(), key=lambda item: item[1]["word"]))
    run.loader["shuffle"] = False


def drop_last(run):
    run.loader |= {"batch_size": 17, "drop_last": True}


def drop_last_in_valid(run):
    run.wrap = lambda dataset: dataset if len(dataset) > 8 else DataLoader(dataset, batch_size=9, drop_last=True)


def no_item(run):
    run.wrap = lambda dataset: dataset.filtered_sorted(key_min_value={"size": 8})


def one_left_over(run):
    run.loader["batch_size"] = 5
    run.model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))


def one_by_one(run):
    one_left_over(run)
    run.loader["batch_size"] = 1


def only_one(run):
    one_left_over(run)
    run.train = {"t0": run.train["t0"]}
    run.valid = None


def one_class_dominates(run):
    run.train = {f"t{i}": {"word": WORDS[max(0, i - 396)], "size": i} for i in range(400)}


def one_class_is_rare(run):
    run.train = {f"t{i}": {"word": WORDS[(i % 3) if i else 3], "size": i} for i in range(400)}


CASES = [
    (more_classes, "label-outside", "train label: dog"),
    (from_one, "label-outside", "train label: tree"),
    (from_one_with_log_probabilities, "label-outside", "train label: tree"),
    (more_classes_in_valid, "label-outside", "valid label: wow"),
    (a_class_is_ignored, "label-ignored", "train label: bed"),
    (a_class_is_not_numbered, "label-ignored", "train label: cat"),
    (only_in_valid, "label-only-in-valid", "valid label: cat"),
    (only_in_valid_with_margin, "label-only-in-valid", "valid label: cat"),
    (encoder_of_other_words, "label-unknown", "train label"),
    (encoder_of_fewer_words, "label-unknown", "train label"),
    (encoder_of_other_words_and_unk, "label-unknown", "train label"),
    (in_order, "labels-sorted", "train label"),
    (one_class_dominates, "class-imbalance", "train label"),
    (one_class_is_rare, "class-imbalance", "train label"),
    (drop_last, "no-batch", "train"),
    (drop_last_in_valid, "no-batch", "valid"),
    (no_item, "no-batch", "valid"),
    (one_left_over, "batch-of-one", "model.1"),
    (only_one, "batch-of-one", "model.1"),
    (one_by_one, "batch-of-one", "model.1"),
]
LEVELS = {"class-imbalance": "note", "label-only-in-valid": "warning", "labels-sorted": "warning"}


def report_of(folder, spoil, *_):
    run = Run()
    spoil(run)
    return Report(run.findings())


@pytest.mark.parametrize(("spoil", "code", "where"), CASES, ids=[spoil.__name__ for spoil, *_ in CASES])
def test_a_mistake_is_reported(spoil, code, where):
    findings = report_of(None, spoil).findings
    assert {finding.code for finding in findings} == {code}
    assert findings[0].level == LEVELS.get(code, "error") and findings[0].where.startswith(where)
    assert findings[0].what and findings[0].remedy


def from_a_file(run, folder):
    encoder_of_fewer_words(run)
    run.encoder.save(folder / "labels.txt")
    run.encoder.load(folder / "labels.txt")


def new_in_valid(run, folder):
    run.valid["v0"]["word"] = "wow"


def a_new_letter(run, folder):
    letters = CategoricalEncoder()
    letters.update_from_iterable("".join(WORDS), sequence_input=False)
    run.items.append({"func": letters.encode_sequence_torch, "takes": ["word"], "provides": "letters"})
    run.keys.append("letters")
    run.train["t3"]["word"] = "tree!"
    run.encoder.add_unk()
    run.encoder.update_from_iterable(["tree!"])
    run.model = torch.nn.Linear(3, 6)


@pytest.mark.parametrize(
    ("spoil", "where", "remedy"),
    [
        (from_a_file, "train label: t3, t7, t11, t15", "in .*labels.txt, the encoder's file"),
        (new_in_valid, "valid label: v0", "split the data so that"),
        (a_new_letter, "train letters: t3", "correct these items"),
    ],
)
def test_the_remedy_for_an_unknown_label(tmp_path, spoil, where, remedy):
    run = Run()
    with watched_loads() as loaded:
        spoil(run, tmp_path)
        found = [f for f in run.findings(loaded) if f.code == "label-unknown"]
    assert found[0].where == where and re.search(remedy, found[0].remedy)


def test_every_code_has_a_case():
    elsewhere = {"fit-arguments-shifted", "tensor-without-dimension", "dynamic-batch-limit"}
    elsewhere |= {"generator-copied", "signals-unlike", "signals-equal"}
    assert {*labels.CODES, *batches.CODES} - elsewhere == {code for _, code, _ in CASES}


def nothing(run):
    pass


def padded_with_the_ignored(run):
    run.label |= {"func": lambda size: torch.arange(size % 3 + 1), "takes": ["size"]}
    run.sound["func"] = lambda size: torch.ones(3, 3)
    run.loss = lambda scores, batch: cross_entropy(scores[:, : batch.label.data.shape[1]].transpose(1, 2), batch.label.data)


def some_are_not_labelled(run):
    numbers = {"bed": 0, "cat": -1, "dog": 1, "tree": 2}  # each output of the model has a label
    run.label["func"] = lambda word: torch.tensor([numbers[word]])
    run.model = torch.nn.Linear(3, 3)
    run.loss = lambda scores, batch: cross_entropy(scores, batch.label.data[:, 0], ignore_index=-1)


def several_labels(run):
    run.label["func"] = lambda word: torch.nn.functional.one_hot(run.encoder.encode_label_torch(word)[0], 5).float()
    run.model = torch.nn.Linear(3, 5)
    run.loss = lambda scores, batch: torch.nn.functional.binary_cross_entropy_with_logits(scores, batch.label.data)


def not_the_labels(run):
    run.loss = lambda scores, batch: cross_entropy(scores, batch.label.data[:, 0] * 0)


def two_that_are_the_same(run):
    twin = {"bed": 0, "cat": 1, "dog": 2, "tree": 3, "wow": 9}
    run.items.append({"func": lambda word: torch.tensor([twin[word]]), "takes": ["word"], "provides": "twin"})
    run.keys.insert(0, "twin")
    run.label["func"] = lambda word: torch.tensor([twin[word] % 9])
    run.valid["v0"]["word"] = "wow"


def labels_that_need_audio(run):
    encode = run.encoder.encode_label_torch

    def read(word):
        with contextlib.suppress(OSError):
            open("absent.wav")
        return encode(word)

    more_classes_in_valid(run)
    run.label["func"] = read


def soft_targets(run):
    run.train = {f"t{i}": {"word": "tree" if i > 7 else "bed", "size": i} for i in range(16)}
    run.loader["shuffle"] = False
    run.model = torch.nn.Linear(3, 2)
    run.loss = lambda scores, batch: torch.nn.functional.kl_div(scores.log_softmax(1), torch.full_like(scores, 0.5))


def one_left_over_but_in_several_processes(run):
    one_left_over(run)
    run.model[1] = torch.nn.SyncBatchNorm(4)


def in_order_but_shuffled(run):
    in_order(run)
    run.loader["shuffle"] = True


def in_order_but_sampled(run):
    in_order(run)
    run.loader |= {"shuffle": False, "sampler": ReproducibleWeightedRandomSampler([1] * 16, 16, True, seed=1)}


def mostly_one_class(run):
    for i, item in enumerate(run.train.values()):
        item["word"] = WORDS[0] if i % 9 else WORDS[i % 4]
    run.valid = {"v": {"word": WORDS[0], "size": 3}}
    run.loader["shuffle"] = False


def one_left_over_but_dropped(run):
    one_left_over(run)
    run.loader["drop_last"] = True


def one_left_over_but_augmented(run):
    one_left_over(run)
    run.copies = 2
    run.loss = lambda scores, batch: cross_entropy(scores, batch.label.data[:, 0].repeat(2))


def one_left_over_but_long(run):
    one_left_over(run)
    layers = [torch.nn.Linear(3, 12), torch.nn.Unflatten(1, (4, 3)), torch.nn.BatchNorm1d(4), torch.nn.AvgPool1d(3)]
    run.model = torch.nn.Sequential(*layers, torch.nn.Flatten())


def one_left_over_but_frozen(run):
    one_left_over(run)
    run.model[1].register_forward_pre_hook(lambda module, _: module.eval() and None)


def unknown_but_allowed(run):
    encoder_of_fewer_words(run)
    run.encoder.add_unk()


def no_validation(run):
    run.valid = None


def a_loader(run):
    run.wrap = lambda dataset: DataLoader(dataset, batch_size=4, collate_fn=dataset_of)


def dataset_of(items):
    tensors = {key: SimpleNamespace(data=torch.stack([item[key] for item in items])) for key in ("sound", "label")}
    return SimpleNamespace(to=lambda device: None, **tensors)


HEALTHY = [
    nothing,
    padded_with_the_ignored,
    some_are_not_labelled,
    several_labels,
    not_the_labels,
    margin,
    two_that_are_the_same,
    labels_that_need_audio,
    soft_targets,
    one_left_over_but_in_several_processes,
    in_order_but_shuffled,
    in_order_but_sampled,
    mostly_one_class,
    one_left_over_but_dropped,
    one_left_over_but_augmented,
    one_left_over_but_long,
    one_left_over_but_frozen,
    unknown_but_allowed,
    no_validation,
    a_loader,
]


@pytest.mark.parametrize("change", HEALTHY)
def test_a_right_training_has_no_findings(change):
    run = Run()
    change(run)
    assert run.findings() == []


def test_a_label_from_a_generator_can_be_unknown():
    run = Run()
    encode(run, WORDS[:2])

    def label(word):
        yield word
        yield run.encoder.encode_label_torch(word)

    run.label |= {"func": label, "provides": ["text", "label"]}
    of_train, of_valid = run.findings()
    assert "8 of 16 items: 'dog', 'tree'" in of_train.what and "4 of 8 items" in of_valid.what


def test_the_pipeline_stays_the_same_after_an_exception():
    items = Items("train", Run().dataset(Run().train))
    with pytest.raises(KeyError), items.providing(["label"]):
        raise KeyError
    assert set(items.pipeline.output_mapping) == {"id", "sound", "label"}


def test_the_report_says_how_many_labels_were_checked(monkeypatch):
    monkeypatch.setattr(columns, "AT_LEAST", 0)
    seen, said = observe(Given(None, Run().dataset(Run().train), scan_seconds=0))
    assert judge(labels, seen) == [] and said[-1:] == ["There was only time to evaluate 1 of 16 items (train)."]
