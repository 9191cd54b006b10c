#!/usr/bin/env python3
"""Counts how many faults of the preflight's tests torchtest2, preflight-ml and the preflight find, and their false alarms.

> OMP_NUM_THREADS=1 python tests/benchmarks/peers.py [--list]

Each set-up of those tests that calls ``Brain.fit`` is put to the peers by hand, up to its first step: a module that contains
the Brain's modules and calls ``compute_forward``, the first batch (for preflight-ml, the loaders, but no validation set that
is the training set), ``compute_objectives`` as the loss, and the Brain's optimizer. A tool finds a fault if it reports a
failure or a warning, of any check, that it does not report for the healthy twin. Everything that it reports for a healthy twin
is a false alarm. A column leaves out torchtest2's check overfit_batch: many of these models are too small to learn a batch.
"""

import argparse
import contextlib
import io
import logging
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from unittest import mock

FOLDER = Path(__file__).resolve().parent
sys.path[:] = [str(FOLDER.parent), *(path for path in sys.path if path != str(FOLDER))]  # preflight.py is another module there

import gallery  # noqa: E402
import preflight.runner  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
import torchtest2  # noqa: E402
from speechbrain.core import Stage  # noqa: E402
from speechbrain.dataio.batch import PaddedBatch, PaddedData  # noqa: E402
from speechbrain.preflight import __main__ as command_line  # noqa: E402
from speechbrain.preflight.report import Report  # noqa: E402

TOOLS = ("torchtest2 0.1.0", "without overfit_batch", "preflight-ml 0.1.1", "this preflight")


class Parts:
    """A batch as a list of tensors, and back."""

    def __init__(self, batch):
        self.batch = batch
        self.keys = [key for key in vars(batch) if not key.startswith("_")] if isinstance(batch, PaddedBatch) else None
        values = [getattr(batch, key) for key in self.keys] if self.keys is not None else batch
        self.values = values if isinstance(values, (list, tuple)) else [values]

    @property
    def tensors(self):
        data = [value.data if isinstance(value, PaddedData) else value for value in self.values]
        return [value for value in data if isinstance(value, torch.Tensor)]

    def batch_of(self, tensors):
        """Return a batch of this kind with other tensors, which may have fewer rows."""
        waiting, rows, values = list(tensors), len(tensors[0]), []
        for value in self.values:
            if isinstance(value, PaddedData):
                value = PaddedData(waiting.pop(0), value.lengths[:rows])
            elif isinstance(value, torch.Tensor):
                value = waiting.pop(0)
            elif isinstance(value, list):
                value = value[:rows]
            values.append(value)
        if self.keys is None:
            return values if isinstance(self.batch, (list, tuple)) else values[0]
        made = object.__new__(PaddedBatch)
        vars(made).update({**vars(self.batch), **dict(zip(self.keys, values))})
        return made


class Model(torch.nn.Module):
    """The Brain's modules, called as its ``compute_forward`` does."""

    def __init__(self, brain, parts):
        super().__init__()
        self.parts, self.brain = [parts], [brain]  # in lists, so that they are no modules
        for name, module in brain.modules.items():
            self.add_module(name, module)

    def stage(self):
        return Stage.TRAIN if self.training else Stage.VALID

    def forward(self, *tensors):
        (parts,), (brain,) = self.parts, self.brain
        tensors = [*tensors, *(tensor[: len(tensors[0])] for tensor in parts.tensors[len(tensors) :])]
        return brain.compute_forward(parts.batch_of(tensors), self.stage())

    def loss(self, outputs, targets):
        """Return the loss; ``targets`` are all tensors of the batch, or, for preflight-ml, only the second one."""
        (parts,), (brain,) = self.parts, self.brain
        given = targets if isinstance(targets, (list, tuple)) else [parts.tensors[0][: len(targets)], targets]
        given = [*given, *(tensor[: len(given[0])] for tensor in parts.tensors[len(given) :])]
        return brain.compute_objectives(outputs, parts.batch_of(given), self.stage())


def by_torchtest2(brain, train, valid):
    """The checks that fail or warn."""
    parts = Parts(next(iter(train)))
    model = Model(brain, parts)
    inputs = parts.tensors if parts.keys is not None else parts.tensors[:1]
    report = torchtest2.check_model(
        model, tuple(inputs), tuple(parts.tensors), loss_fn=model.loss, optimizer=getattr(brain, "optimizer", None)
    )
    return {str(result.name) for result in (*report.failures, *report.warnings)}


def by_preflight_ml(brain, train, valid):
    """The checks that fail."""
    first = Parts(next(iter(train)))
    model = Model(brain, first)
    other = Parts(next(iter(valid))).tensors if valid is not None else []
    if len(other) == len(first.tensors) and all(map(torch.equal, other, first.tensors)):
        valid = None  # the tests' training set
    loaders = [_Tensors(loader) if loader is not None else None for loader in (train, valid)]
    results = preflight.runner.run_checks(loaders[0], model, model.loss, {"val_dataloader": loaders[1]})
    return {result.name for result in results if not result.passed}


class _Tensors:
    """A loader that yields tuples of tensors."""

    def __init__(self, loader):
        self.loader, self.dataset = loader, loader.dataset

    def __iter__(self):
        return (tuple(Parts(batch).tensors) for batch in self.loader)


class ByHand(command_line.Takeover):
    """Puts the first training to a peer."""

    def __init__(self, peer):
        super().__init__()
        self.peer, self.found = peer, None

    def loader(self, brain, dataset, stage, options):
        if dataset is None or isinstance(dataset, torch.utils.data.DataLoader):
            return dataset
        return brain.make_dataloader(dataset, stage, **(options or {}))

    def fit(
        self, brain, epochs, train_set, valid_set=None, progressbar=None, train_loader_kwargs=None, valid_loader_kwargs=None
    ):
        torch.manual_seed(0)
        train = self.loader(brain, train_set, Stage.TRAIN, train_loader_kwargs)
        valid = self.loader(brain, valid_set, Stage.VALID, valid_loader_kwargs)
        brain.on_fit_start()
        brain.on_stage_start(Stage.TRAIN, 1)
        brain.modules.train()
        try:
            self.found = self.peer(brain, train, valid)
        except Exception as error:  # of the set-up, or of the peer: the user sees it
            self.found = {type(error).__name__}
        self.report = Report()
        raise command_line.Done


# By module of the tests, how to start the healthy twin of a case, unless it is the same for all cases.
HEALTHY = {
    "test_validation": lambda module, folder, brain, code, level, says, hparams, options: module.Takeover().run(
        module.run(brain, folder, False, hparams, **options)
    ),
    "test_plan": lambda module, folder, make, code, level, where, options: module.fit(make(folder, False), **options),
    "test_resuming": lambda module, folder, cls, *_: module.resumed(cls, folder, False),
    "test_augmentation": lambda module, folder, _, options, *__: module.report(module.as_the_augmenter_says, options),
}
SAME = {
    "test_manifests": lambda module, folder: module.report_of(folder, lambda run: None),
    "test_sequences": lambda module, folder: module.report_of(folder, module.nothing),
    "test_losses": lambda module, folder: module.report(
        lambda scores, labels, _: torch.nn.functional.cross_entropy(scores, labels)
    ),
}


def outcome(tool, module, values, broken):
    """What a tool reports about a set-up: a set, or None if the set-up does not come to its first step."""
    name = module.__name__
    takeover = ByHand(tool) if tool else command_line.Takeover()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for redirect in (contextlib.redirect_stdout, contextlib.redirect_stderr):
            stack.enter_context(redirect(io.StringIO()))
        stack.enter_context(mock.patch.object(module, "Takeover", lambda: takeover))
        torch.manual_seed(0)
        with contextlib.suppress(Exception, pytest.skip.Exception):
            if not hasattr(module, "report_of"):
                takeover.run(lambda: values[0](Path(folder), broken))
            elif broken:
                module.report_of(Path(folder), *values)
            elif name in SAME:
                SAME[name](module, Path(folder))
            else:
                HEALTHY[name](module, Path(folder), *values)
    if tool:
        return takeover.found
    return takeover.report and {finding.code for finding in takeover.report.findings}


def reported(module, values, broken):
    """What each of TOOLS reports."""
    first, *others = [outcome(tool, module, values, broken) for tool in (by_torchtest2, by_preflight_ml, None)]
    return [first, first and first - {"overfit_batch"}, *others]


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="also print what each tool reports for each set-up")
    parser.add_argument("--only", default="", metavar="TEXT", help="only codes that contain TEXT")
    options = parser.parse_args()
    logging.disable()
    twins = {}
    setups, found, alarms = Counter(), Counter(), Counter()
    sections = {code: title for title, codes in gallery.SECTIONS.items() for code in codes.split()}
    for code, cases in gallery.cases().items():
        for module, values in cases if options.only in code else ():
            name = module.__name__
            if not hasattr(module, "Takeover") or (hasattr(module, "report_of") and name not in {*HEALTHY, *SAME}):
                continue
            broken = reported(module, values, True)
            if broken[0] is None:
                continue
            twin = name if name in SAME else f"{name} {code} {values[0].__name__} {values[1:]}"
            if twin not in twins:
                twins[twin] = reported(module, values, False)
            section = sections.get(code, "Others")
            setups[section] += 1
            for tool, mine, its in zip(TOOLS, broken, twins[twin]):
                found[section, tool] += bool((mine or set()) - (its or set()))
            if options.list:
                print(code, values[0].__name__, broken, twins[twin], flush=True)
    for its in twins.values():
        alarms.update(tool for tool, reported in zip(TOOLS, its) if reported)
    print("| faults found, of set-ups that come to the first step | set-ups |", " | ".join(TOOLS), "|")
    print("| --- | --- |" + " --- |" * len(TOOLS))
    for section in dict.fromkeys([*gallery.SECTIONS]):
        if setups[section]:
            print(f"| {section} | {setups[section]} |", " | ".join(str(found[section, tool]) for tool in TOOLS), "|")
    totals = [str(sum(count for (_, one), count in found.items() if one == tool)) for tool in TOOLS]
    print(f"| all | {sum(setups.values())} |", " | ".join(totals), "|")
    print(f"| false alarms, of healthy twins | {len(twins)} |", " | ".join(str(alarms[tool]) for tool in TOOLS), "|")


if __name__ == "__main__":
    main()
