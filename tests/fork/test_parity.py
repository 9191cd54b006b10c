"""Where the stock release works, the fork gives the same weights, losses and checkpoints, bit for bit."""

import os
import subprocess
import sys
from pathlib import Path

from composer import base

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


SAME = """
import importlib.util, pathlib, pytest
package = pathlib.Path(importlib.util.find_spec("speechbrain").origin).parent  # importing it takes long

def test_that_passes(): assert (package / "core.py").exists()
def test_that_fails(): raise KeyError
"""
OTHER = "def test_stock(): assert '+' not in (package / 'version.txt').read_text()\n"


def test_the_harness_sees_a_difference_and_nothing_else(stock_wheel, tmp_path):
    (tmp_path / "conftest.py").write_text("def pytest_addoption(parser): parser.addoption('--device')\n")
    (tmp_path / "theirs").mkdir()
    for source, status, message in (
        (SAME, 0, "The same on both"),
        (SAME + OTHER, 1, "test_stock: passed on the stock release, failure AssertionError on the fork\n"),
    ):
        (tmp_path / "theirs" / "test_theirs.py").write_text(source)
        command = [sys.executable, Path(__file__).with_name("parity.py"), "--upstream-tests", tmp_path / "theirs"]
        environment = {**os.environ, base.LOCAL_WHEEL: str(stock_wheel)}
        done = subprocess.run(command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        assert done.returncode == status and message in done.stdout, done.stdout
        assert "1 failure, " in done.stdout.splitlines()[0] and "test_that_" not in done.stdout
