"""torchrun works on CPU, and names parameters that it cannot synchronize."""

import re
import traceback
from contextlib import contextmanager
from types import SimpleNamespace

import torch
from torch.nn.parallel import DistributedDataParallel as DDP

from speechbrain.core import logger


class Brain:
    # Ids of the parameters that torchrun keeps equal on all processes; None
    # without torchrun
    _synchronized = None

    # For each DDP wrapper, the names of its parameters in the order of DDP
    _ddp_parameters = {}

    def _train_loader_specifics(self, dataset, loader_kwargs):
        # A Brain may have no hparams
        if self.distributed_launch and not hasattr(self, "hparams"):
            self.hparams = SimpleNamespace()
        return self._upstream__train_loader_specifics(dataset, loader_kwargs)

    def zero_grad(self, set_to_none=False):
        self._upstream_zero_grad(set_to_none)
        # fit() calls this right after on_stage_start, which may unfreeze
        if self._synchronized is None:
            return
        unfrozen = [
            name
            for name, parameter in self.modules.named_parameters()
            if parameter.requires_grad
            and id(parameter) not in self._synchronized
        ]
        if unfrozen:
            logger.warning(
                f"Not synchronized between the processes: {', '.join(unfrozen)}"
                ". They were unfrozen after fit() had wrapped the modules for "
                "torchrun: unfreeze them before fit(), and then freeze those "
                "that should not be trained yet."
            )
            # Warn only once
            self._synchronized.update(map(id, self.modules.parameters()))

    def _wrap_distributed(self):
        on_cpu = torch.device(self.device).type == "cpu"
        if self.distributed_launch and on_cpu:
            for name, module in self.modules.items():
                if any(p.requires_grad for p in module.parameters()):
                    self._warn_about_batchnorm(name, module)
                    self.modules[name] = DDP(
                        module,
                        device_ids=None,
                        find_unused_parameters=self.find_unused_parameters,
                    )
        else:
            self._upstream__wrap_distributed()
        if self.distributed_launch:
            self._synchronized = {
                id(p) for p in self.modules.parameters() if p.requires_grad
            }
            wrapped = {
                module: [
                    f"{key}.{name}"
                    for name, parameter in module.module.named_parameters()
                    if parameter.requires_grad
                    and name not in module.parameters_to_ignore
                ]
                for key, module in self.modules.items()
                if isinstance(module, DDP)
            }
            self._ddp_parameters = {**self._ddp_parameters, **wrapped}

    @contextmanager
    def no_sync(self, use=True):
        try:
            with self._upstream_no_sync(use):
                yield
        except RuntimeError as error:
            unused = self._without_gradient(error)
            if not unused:
                raise
            which = ", ".join(unused[:3])
            if len(unused) > 3:
                which += f" and {len(unused) - 3} more"
            option = ", or run with --find_unused_parameters"
            raise RuntimeError(
                "These parameters got no gradient in the step before: "
                f"{which}. Freeze them before fit(), or use them in the loss"
                f"{'' if self.find_unused_parameters else option}."
            ) from error

    def _without_gradient(self, error):
        """Returns the names for the indices in DDP's error."""
        pattern = r"indices which did not receive grad for rank \d+: ([\d ,]+)"
        indices = re.search(pattern, str(error))
        owners = [
            frame.f_locals.get("self")
            for frame, _ in traceback.walk_tb(error.__traceback__)
        ]
        # The error is from the innermost DDP wrapper that was called
        ddp = [owner for owner in owners if isinstance(owner, DDP)][-1:]
        if not indices or not ddp:
            return []
        names = dict(enumerate(self._ddp_parameters.get(ddp[0], [])))
        indices = map(int, re.findall(r"\d+", indices[1]))
        return [names[index] for index in indices if index in names]

    def _warn_about_batchnorm(self, name, module):
        """Warns that BatchNorm stays, since SyncBatchNorm raises on a CPU."""
        norm = torch.nn.modules.batchnorm._BatchNorm
        if any(isinstance(part, norm) for part in module.modules()):
            logger.warning(
                f"{name}: BatchNorm normalizes each process's own part of the "
                "batch, since SyncBatchNorm needs a GPU."
            )
