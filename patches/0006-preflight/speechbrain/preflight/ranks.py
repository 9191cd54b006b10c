"""The processes of torchrun: they proceed together, and make one report."""

import pickle
from dataclasses import replace
from datetime import timedelta
from itertools import count

import torch
from speechbrain.preflight.report import Report

# How long to wait for the other processes: normally, and after this process has failed, when they may be waiting for it.
PATIENCE, HASTE = timedelta(minutes=30), timedelta(minutes=1)


class Ranks:
    """The processes of torchrun; without torchrun, this process only."""

    talks = count()

    def __init__(self):
        self.rank, self.size, self.lost = 0, 1, False
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
