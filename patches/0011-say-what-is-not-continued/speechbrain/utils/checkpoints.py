"""A checkpointer knows what it has loaded."""

import torch


class Checkpointer:
    # Whether checkpoints were ever looked for
    searched = False

    # The checkpoint that was loaded last, and the learning rates that its
    # optimizers had before
    loaded = (None, {})

    def load_checkpoint(self, checkpoint):
        learning_rates = {
            name: [group.get("lr") for group in obj.param_groups]
            for name, obj in self.recoverables.items()
            if isinstance(obj, torch.optim.Optimizer)
        }
        self._upstream_load_checkpoint(checkpoint)
        self.loaded = (checkpoint, learning_rates)

    def list_checkpoints(self):
        self.searched = True
        return self._upstream_list_checkpoints()
