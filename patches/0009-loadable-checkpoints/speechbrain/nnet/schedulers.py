"""What schedulers save, they also load."""

import torch

from speechbrain.nnet.schedulers import logger
from speechbrain.utils import checkpoints


class InverseSquareRootScheduler:
    @checkpoints.mark_as_loader
    def load(self, path, end_of_epoch=False):
        """Loads the number of steps from the specified path."""
        del end_of_epoch  # Unused in this class
        self.n_steps = torch.load(path)["n_steps"]


class ScheduledLoss:
    @checkpoints.mark_as_loader
    def load(self, path, end_of_epoch=False, device=None):
        if "n_steps" not in torch.load(path):
            logger.warning(
                f"{path} is of a release that did not save the number of "
                "steps: the schedule starts again."
            )
            return
        self._upstream_load(path, end_of_epoch, device)
