"""The processes of torchrun: they go on together, and make one report."""

import pickle
from dataclasses import replace
from datetime import timedelta
from itertools import count

import torch
from speechbrain.preflight.report import Report

# How long to wait for the others: where all is well here, and where this process has failed and they may wait for it.
PATIENCE, HASTE = timedelta(minutes=30), timedelta(minutes=1)


class Ranks:
    """The processes of torchrun; without it, the one that there is.

    Example
    -------
    >>> ranks = Ranks()
    >>> ranks.agree(True), ranks.agree(False)
    (True, False)
    """

    talks = count()

    def __init__(self):
        self.rank, self.size, self.lost = 0, 1, False
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            self.rank, self.size = torch.distributed.get_rank(), torch.distributed.get_world_size()

    @property
    def speaks(self):
        """bool: Whether this process prints the report: the first one, and one that got no answer from the others."""
        return self.rank == 0 or self.lost

    def _gather(self, item, patience=PATIENCE):
        """Get the items of all; only the own one where another process has ended, or does not answer in time."""
        if self.size > 1 and not self.lost:
            # Not a collective: one of these may be what another process is waiting in, for this one.
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
        """Tell whether all is well on all of them.

        Arguments
        ---------
        well : bool
            Whether all is well on this one.

        Returns
        -------
        bool
            Whether it is on all; where one does not answer, it is not.
        """
        return all(self._gather(well, PATIENCE if well else HASTE)) and not self.lost

    def merge(self, report):
        """Make one report of those of all processes.

        Arguments
        ---------
        report : Report
            That of this process.

        Returns
        -------
        Report
            What all found, and what only some did with their numbers.
        """
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
            said.append(f"This is what rank {self.rank} found: another process has ended, or did not answer.")
        return Report(findings, said)
