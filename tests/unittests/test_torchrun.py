"""Training by two processes on a CPU."""

import os
import re
import subprocess
import sys

import pytest

SCRIPT = """
import hashlib, sys, torch, speechbrain as sb
from torch.nn import BatchNorm1d, Linear, Sequential

class Brain(sb.Brain):
    def on_stage_start(self, stage, epoch=None):
        if sys.argv[1] == "late":
            self.modules.head.requires_grad_(True)

    def compute_forward(self, batch, stage):
        return self.modules.head(self.modules.body(batch[0]))

    def compute_objectives(self, predictions, batch, stage):
        return predictions.pow(2).mean()

options = {"device": "cpu", "distributed_backend": "gloo", "noprogressbar": True}
sb.utils.distributed.ddp_init_group(options)
torch.manual_seed(0)
modules = {"body": Sequential(Linear(4, 4), BatchNorm1d(4) if sys.argv[1] == "norm" else torch.nn.ReLU()), "head": Linear(4, 1)}
if sys.argv[1] == "late":
    modules["head"].requires_grad_(False)
hparams = None if sys.argv[1] == "bare" else {}
brain = Brain(modules, lambda p: torch.optim.SGD(p, lr=0.1), hparams, options)
data = torch.utils.data.TensorDataset(torch.randn(32, 4))
brain.fit(range(2), data, train_loader_kwargs={"batch_size": 4})
weights = b"".join(p.detach().numpy().tobytes() for p in brain.modules.parameters())
print("weights:", hashlib.sha256(weights).hexdigest(), flush=True)
"""


@pytest.mark.parametrize(
    "case, said",
    [
        ("plain", None),
        pytest.param("norm", "body: BatchNorm works on each process's own part", marks=pytest.mark.regression),
        pytest.param("bare", None, marks=pytest.mark.regression),
        pytest.param("late", "Not synchronised between the processes: head.weight, head.bias", marks=pytest.mark.regression),
    ],
)
def test_two_processes_train_one_model(tmp_path, case, said):
    (tmp_path / "train.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py", case]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    weights = re.findall(r"weights: (\w+)", done.stdout)
    assert len(weights) == 2 and (len(set(weights)) == 1) is (case != "late")
    warnings = [line for line in done.stdout.splitlines() if "BatchNorm works" in line or "Not synchronised" in line]
    assert len(warnings) == bool(said) and all(said in line for line in warnings)
