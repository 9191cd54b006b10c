"""The preflight of a Brain: take it to its first step, then run all checks."""

from dataclasses import replace
from itertools import repeat

from speechbrain.dataio.dataloader import LoopedLoader
from speechbrain.preflight.attempts import Log
from speechbrain.preflight.checks import RULES
from speechbrain.preflight.explained import without_explained
from speechbrain.preflight.isolate import can_fork, in_child, put_back
from speechbrain.preflight.look import hearing, look
from speechbrain.preflight.observe import Clips, Given, Labels, Observed, Sequences
from speechbrain.preflight.observe.asked import asked
from speechbrain.preflight.observe.audio import audio
from speechbrain.preflight.observe.augmentation import tries
from speechbrain.preflight.observe.behaviour import behaviour
from speechbrain.preflight.observe.calls import tokens_inside
from speechbrain.preflight.observe.columns import evaluated
from speechbrain.preflight.observe.first_step import first_step
from speechbrain.preflight.observe.first_valid import first_valid
from speechbrain.preflight.observe.given import hparams_of
from speechbrain.preflight.observe.labels import labels
from speechbrain.preflight.observe.loads import watched_loads
from speechbrain.preflight.observe.plan import plan
from speechbrain.preflight.observe.sequences import sequences
from speechbrain.preflight.observe.start import nothing_changes, start
from speechbrain.preflight.ranks import Ranks
from speechbrain.preflight.report import Finding, Report
from speechbrain.utils.epoch_loop import EpochCounter
from speechbrain.utils.parameter_transfer import Pretrainer
from torch.utils.data import DataLoader


def examine(given, loaded, ranks):
    """Take a Brain to its first step, look at its data, and run all checks. This changes the Brain."""
    log = Log(ranks)
    with tokens_inside(given.brain), nothing_changes(log.said) as stepped:
        before = start(given, log, loaded)
        with hearing(given) as heard:
            step = first_step(given, before, stepped, log)
        behaves = behaviour(given, before, step, stepped, log)  # first: what is not put back may lose graphs in validation
        valid = first_valid(given, before, step, log)
        tries(given, before, step, log)
    clips = log.guarded("audio", audio, given, log) or Clips({})
    with tokens_inside(given.brain):
        wanted = asked(given, before, step, clips, log)
    columns, failed = log.guarded("items", evaluated, given, log) or ({}, [])
    words = log.guarded("labels", labels, given, loaded, before, step, columns) or Labels()
    seen = Observed(given, loaded, before, step, clips, words, valid, failed, behaviour=behaves, asked=wanted)
    seen = replace(seen, sequences=log.guarded("sequences", sequences, seen) or Sequences())
    seen = replace(seen, plan=plan(seen, log))
    if given.look:
        log.guarded("--look", look, given.look, seen, heard, log)
    for rule in RULES:
        log.guarded(f"{rule.__module__}.{rule.__name__}", lambda: log.findings.extend(rule(seen)))  # noqa: B023
    report = ranks.merge(Report(log.findings, log.said, seen.plan))
    return replace(report, findings=without_explained(report.findings))


def preflight(brain, train_set, valid_set=None, train_loader_kwargs=None, valid_loader_kwargs=None, scan_seconds=20.0):
    """Report what is wrong with a training run before it starts.

    Training after this call gives the same result as without it. Without a GPU,
    the preflight runs in a forked process. With one, under torchrun, and where the
    script has started threads, it runs in this process and restores what
    :func:`~speechbrain.preflight.isolate.put_back` lists.

    Arguments
    ---------
    brain : speechbrain.Brain
        The Brain that will be trained.
    train_set, valid_set : Dataset or DataLoader
        The sets that will be passed to ``fit``.
    train_loader_kwargs, valid_loader_kwargs : dict
        The options of the dataloaders that will be passed to ``fit``.
    scan_seconds : float
        How many seconds to spend on reading audio.

    Returns
    -------
    Report
        The findings.

    Example
    -------
    >>> import speechbrain, torch
    >>> class MyBrain(speechbrain.Brain):
    ...     def compute_forward(self, batch, stage):
    ...         return self.modules.model(batch[0])
    ...     def compute_objectives(self, predictions, batch, stage):
    ...         return torch.nn.functional.mse_loss(predictions, batch[1])
    >>> model = torch.nn.Linear(3, 1).requires_grad_(False)
    >>> brain = MyBrain({"model": model}, lambda p: torch.optim.SGD(p, 0.1), run_opts={"device": "cpu"})
    >>> report = preflight(brain, [(torch.ones(3), torch.ones(1))])
    >>> [(finding.code, finding.where) for finding in report.findings]
    [('nothing-trainable', 'model')]
    """
    hparams = hparams_of(brain)

    def run():
        with watched_loads() as loaded:
            for value in hparams.values():
                if isinstance(value, Pretrainer):
                    loaded.pretrainers[value] = "load_collected" if value.is_local or value.collect_in else ""
                    loaded.pretrained.extend([value.loadables[name] for name in value.is_local])
            epochs = hparams.get("epoch_counter")
            epochs = epochs if isinstance(epochs, EpochCounter) else repeat(1)  # how many is unknown
            options = train_loader_kwargs or {}, valid_loader_kwargs or {}
            given = Given(brain, train_set, valid_set, epochs, *options, scan_seconds=scan_seconds)
            return examine(given, loaded, Ranks())

    if can_fork(brain):
        try:
            return in_child(run)
        except ChildProcessError as error:
            remedy = "check how much memory the first step takes, and what was printed"
            return Report([Finding("error", "preflight-killed", str(error), type(brain).__name__, remedy)])
    with put_back(brain, *(each for each in (train_set, valid_set) if isinstance(each, (DataLoader, LoopedLoader)))):
        return run()
