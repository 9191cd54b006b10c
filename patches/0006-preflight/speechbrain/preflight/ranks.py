"""The processes of torchrun: they proceed together, and make one report."""

import pickle
import sys
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from itertools import count

import torch
from speechbrain.preflight.attempts import caller, own_modules
from speechbrain.preflight.quiet import IDLE, replaced, uninterrupted
from speechbrain.preflight.report import Report
from speechbrain.utils import distributed
from speechbrain.utils.checkpoints import Checkpointer

# How long to wait for the other processes: normally, and after this process has failed, when they may be waiting for it.
PATIENCE, HASTE = timedelta(minutes=30), timedelta(minutes=1)

COLLECTIVES = "barrier broadcast broadcast_object_list all_reduce reduce all_gather all_gather_into_tensor all_gather_object "
COLLECTIVES += "gather gather_object scatter scatter_object_list reduce_scatter_tensor all_to_all all_to_all_single"


class Apart(BaseException):
    """The processes wait at different points; a BaseException, so that a script's ``except Exception`` cannot catch it."""


class Ranks:
    """The processes of torchrun; without torchrun, this process only."""

    talks = count()

    def __init__(self):
        self.rank, self.size, self.lost, self.apart = 0, 1, False, False
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            self.rank, self.size = torch.distributed.get_rank(), torch.distributed.get_world_size()

    @property
    def speaks(self):
        """bool: Whether this process prints the report: the first one does, and one that gets no answer from the others."""
        return self.rank == 0 or self.lost

    def _gather(self, item, patience=PATIENCE):
        """Collect the items of all processes; only this one's if another process has ended or does not answer in time."""
        if self.size > 1 and not self.lost:
            # Not by a collective operation: another process may already be waiting in one for this process.
            store, talk = torch.distributed.distributed_c10d._get_default_store(), next(self.talks)
            keys = [f"preflight/{talk}/{rank}" for rank in range(self.size)]
            store.set(keys[self.rank], pickle.dumps(item))
            try:
                store.wait(keys, patience)
                return [pickle.loads(store.get(key)) for key in keys]
            except RuntimeError:
                self.lost = True
        return [item]

    def agree(self, well):
        """Return whether all processes succeeded; False if one of them does not answer."""
        return all(self._gather(well, PATIENCE if well else HASTE)) and not self.lost

    @uninterrupted()
    def meet(self, name, place=""):
        """Wait until each process is at a point with this name; if they are at different ones, each gets Apart with all."""
        points = self._gather((name, place))
        if self.lost or len({name for name, _ in points}) > 1:
            self.apart = True
            raise Apart(points)

    def part(self):
        """End what processes do together: after this, they meet no more."""
        if not self.apart:
            with suppress(Apart):
                self.meet("")
        self.apart = False

    @contextmanager
    def together(self, hook):
        """Let processes wait for one another in a hook, as in training, but only where all do; at last, at its end."""

        def join(owner, name):
            real = getattr(owner, name)

            def joined(*args, **kwargs):
                groups = [one for one in (*args, *kwargs.values()) if isinstance(one, torch.distributed.ProcessGroup)]
                some = any(group is not torch.distributed.group.WORLD for group in groups)
                alone = owner is Checkpointer and (distributed.MAIN_PROC_ONLY or getattr(distributed, "NODE_ONCE_ONLY", 0))
                with uninterrupted():  # between the meeting and what follows
                    if not some and not alone:
                        self.meet(name, caller(sys._getframe(1)))
                    return real(*args, **kwargs)

            return replaced(owner, name, joined)

        with ExitStack() as stack:
            if self.size > 1:
                initialized = torch.distributed.distributed_c10d.is_initialized
                stack.enter_context(replaced(torch.distributed, "is_initialized", initialized))
                points = [(Checkpointer, name) for name in IDLE]
                collectives = {getattr(torch.distributed, name, None) for name in COLLECTIVES.split()} - {None}
                for module in (torch.distributed, *own_modules()):  # a script may import a name
                    known = {name: value for name, value in vars(module).items() if callable(value)}
                    points += [(module, name) for name, value in known.items() if any(value is one for one in collectives)]
                for owner, name in points:
                    stack.enter_context(join(owner, name))
            yield
            self.meet(f"at the end of {hook}")

    def merge(self, report):
        """Merge the reports of all processes into one, in which findings of only some processes name their ranks."""
        reports = self._gather(report)
        found = {}
        for rank, one in enumerate(reports):
            for finding in one.findings:
                found.setdefault(finding, []).append(rank)
        findings = [
            f if len(ranks) == len(reports) else replace(f, where=f"{f.where} (rank {', '.join(map(str, ranks))})".strip())
            for f, ranks in found.items()
        ]
        said = list(dict.fromkeys(remark for one in reports for remark in one.said))
        if self.lost:
            said.append(f"These are the findings of rank {self.rank} only: another process has ended, or did not answer.")
        return Report(findings, said, reports[0].plan)
