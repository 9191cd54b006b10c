"""Where the stock release works, the fork gives the same weights, losses and checkpoints, bit for bit."""

import os
import subprocess
import sys

SCRIPT = """
import hashlib, logging, sys, torch, speechbrain as sb
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.epoch_loop import EpochCounter

logging.disable(logging.ERROR)
torch.set_num_threads(1)
torch.manual_seed(0)


class Brain(sb.Brain):
    def compute_forward(self, batch, stage):
        return self.modules.model(batch[0])

    def compute_objectives(self, predictions, batch, stage):
        return torch.nn.functional.cross_entropy(predictions, batch[1])

    def on_stage_end(self, stage, stage_loss, epoch=None):
        print(stage.name, epoch, float(stage_loss).hex())
        if stage == sb.Stage.VALID:
            self.checkpointer.save_and_keep_only({"loss": stage_loss}, min_keys=["loss"], num_to_keep=2)


model = torch.nn.Sequential(
    torch.nn.Linear(20, 30), torch.nn.BatchNorm1d(30), torch.nn.Dropout(0.2), torch.nn.ReLU(), torch.nn.Linear(30, 5)
)
data = torch.utils.data.TensorDataset(torch.randn(60, 20), torch.randint(5, (60,)))
counter = EpochCounter(4)
brain = Brain(
    {"model": model},
    lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
    {"max_grad_norm": 0.5, "grad_accumulation_factor": 2},
    {"device": "cpu", "noprogressbar": True},
    Checkpointer(sys.argv[1], {"model": model, "counter": counter}),
)
brain.fit(counter, data, data, {"batch_size": 8, "shuffle": True}, {"batch_size": 8})
print("test", brain.evaluate(data, min_key="loss", test_loader_kwargs={"batch_size": 8}).hex())
print([checkpoint.meta["loss"].hex() for checkpoint in brain.checkpointer.find_checkpoints(min_key="loss")])
print(hashlib.sha256(b"".join(value.numpy().tobytes() for value in model.state_dict().values())).hexdigest())
"""


def test_training_is_the_same_bit_for_bit(stock, tmp_path):
    def run(name, path):
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / name)]
        environment = {**os.environ, "PYTHONPATH": path}
        return subprocess.run(command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=True).stdout

    on_stock, on_fork = run("stock", str(stock)), run("fork", os.environ.get("PYTHONPATH", ""))
    assert on_stock == on_fork and on_stock.count("\n") == 12
