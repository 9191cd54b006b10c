"""The preflight of a Brain: take it to its first step, then run all checks."""

import importlib
import os
import pkgutil
from types import SimpleNamespace

import speechbrain.preflight
import torch
from speechbrain.preflight.isolate import in_child, put_back
from speechbrain.preflight.observe.first_step import guarded, reach_first_step
from speechbrain.preflight.observe.given import Seen
from speechbrain.preflight.observe.loads import watched_loads
from speechbrain.preflight.ranks import Ranks
from speechbrain.preflight.report import Finding, Report
from speechbrain.utils.parameter_transfer import Pretrainer


def checks():
    """Import the modules of this package that are checks.

    Returns
    -------
    list of module
        The modules with ``CODES`` and ``check``.

    Example
    -------
    >>> "nothing-trainable" in {code for module in checks() for code in module.CODES}
    True
    """
    found = pkgutil.walk_packages(speechbrain.preflight.__path__, "speechbrain.preflight.")
    modules = [importlib.import_module(info.name) for info in found if not info.name.endswith("__")]
    modules.sort(key=lambda module: module.__name__.rpartition(".")[2])
    return [module for module in modules if hasattr(module, "CODES")]


def examine(seen, ranks, epochs, train_loader_kwargs, valid_loader_kwargs):
    """Take a Brain to its first step, and run all checks. This changes the Brain.

    Arguments
    ---------
    seen : Seen
        Contains the Brain and its data.
    ranks : Ranks
        The processes of torchrun.
    epochs : iterable
        The epoch counter.
    train_loader_kwargs, valid_loader_kwargs : dict
        The options of the dataloaders.

    Returns
    -------
    Report
        The findings of all processes.
    """
    reach_first_step(seen, ranks, epochs, train_loader_kwargs, valid_loader_kwargs)
    findings = []
    for module in checks():
        guarded(seen.said, module.__name__, lambda found: findings.extend(found), module.check(seen))
    return ranks.merge(Report(findings, seen.said))


def preflight(brain, train_set, valid_set=None, train_loader_kwargs=None, valid_loader_kwargs=None, scan_seconds=20.0):
    """Report what is wrong with a training run before it starts.

    Training after this call gives the same result as without it. On a CPU, the
    preflight runs in a forked process. On a GPU, and under torchrun, it runs in
    this process and restores what :func:`~speechbrain.preflight.isolate.put_back` lists.

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
    hparams = vars(getattr(brain, "hparams", SimpleNamespace()))

    def look():
        with watched_loads() as loaded:
            for value in hparams.values():
                if isinstance(value, Pretrainer):
                    loaded.pretrained += [value.loadables[name] for name in value.is_local]
            seen = Seen(brain, hparams, train_set, valid_set, scan_seconds=scan_seconds, loaded=loaded)
            counter = hparams.get("epoch_counter")
            # A generator reads the counter only after a checkpoint was loaded.
            epochs = (getattr(counter, "current", 0) + 1 for _ in range(1))
            return examine(seen, Ranks(), epochs, train_loader_kwargs or {}, valid_loader_kwargs or {})

    alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    if alone and torch.device(brain.device).type == "cpu" and not torch.cuda.is_initialized() and hasattr(os, "fork"):
        try:
            return in_child(look)
        except ChildProcessError as error:
            remedy = "check how much memory the first step takes, and what was printed"
            return Report([Finding("error", "preflight-killed", str(error), type(brain).__name__, remedy)])
    with put_back(brain, *(getattr(train_set, name, None) for name in ("sampler", "batch_sampler", "generator"))):
        return look()
