"""On a GPU, the preflight runs in the same process, and restores everything. ``make cuda`` runs these tests."""

import gc

import pytest
import torch
from speechbrain.preflight import preflight
from speechbrain.preflight.__main__ import Takeover
from speechbrain.utils.checkpoints import Checkpointer
from torch.nn import Dropout, Linear, Sequential

from brains import LOADER, Classifier, body, data, head, normed

pytestmark = pytest.mark.cuda


class OnGPU(Classifier):
    """Moves its batches to the GPU, and notes the loss that it reports after an epoch."""

    def compute_forward(self, batch, stage):
        batch[:] = [tensor.to(self.device) for tensor in batch]
        return super().compute_forward(batch, stage)

    def on_stage_end(self, stage, stage_loss, epoch=None):
        self.hparams.losses.append((stage.name, stage_loss))


def make(folder=None, precision="fp32", **modules):
    torch.manual_seed(0)
    modules = modules or {"body": Sequential(normed(), Dropout()), "head": head()}
    checkpointer = Checkpointer(folder, modules) if folder else None
    hparams = {"losses": []}
    options = {"device": "cuda", "precision": precision, "eval_precision": precision, "checkpointer": checkpointer}
    return OnGPU(modules, lambda p: torch.optim.Adam(p, lr=0.01), hparams, **options)


def state(brain):
    return [tensor.cpu().tolist() for tensor in brain.modules.state_dict().values()]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training_is_the_same_after_a_preflight(tmp_path, precision):
    trained = []
    for flown in (False, True):
        brain = make(tmp_path / str(flown), precision)
        if flown:
            gc.collect()
            before = torch.cuda.memory_allocated()
            report = preflight(brain, data(), data(24), LOADER, LOADER)
            assert not report.findings and not any("Not everything" in said for said in report.said), report.text()
            gc.collect()
            assert torch.cuda.memory_allocated() == before and not brain.hparams.losses
        torch.manual_seed(1)
        brain.fit(range(1, 3), data(), data(24), train_loader_kwargs={**LOADER, "shuffle": True}, valid_loader_kwargs=LOADER)
        trained.append((state(brain), brain.hparams.losses, float(torch.rand(1, device="cuda"))))
    assert trained[0] == trained[1]


def test_the_loss_of_fp16_is_reported_without_its_scale():
    brain = make(precision="fp16")
    seen = brain.hparams.losses
    brain.start = lambda: brain.fit([1], data(), data(), train_loader_kwargs=LOADER, valid_loader_kwargs=LOADER)
    report = Takeover().run(brain.start)
    assert not report.findings, report.text()
    assert seen == [] or all(loss < 3 for _, loss in seen)


def nan_weight():
    module = head()
    module.weight.data[0] = float("nan")
    return {"body": body(), "head": module}


BROKEN = {
    "nothing-trainable": lambda: {"body": body().requires_grad_(False), "head": head().requires_grad_(False)},
    "weight-not-finite": nan_weight,
    "cross-entropy-on-probabilities": lambda: {"body": body(), "head": Sequential(head(), torch.nn.Softmax(-1))},
    "token-outside": lambda: {"body": body(), "head": Linear(8, 2)},  # for three classes
}


@pytest.mark.parametrize("code", BROKEN)
def test_faults_are_found(code):
    brain = make(**BROKEN[code]())
    before = state(brain)
    report = preflight(brain, data(), data(24), LOADER, LOADER)
    assert code in [finding.code for finding in report.findings], report.text()
    assert repr(state(brain)) == repr(before)  # as text, in which nan is equal to nan
    assert float(torch.ones(3, device="cuda").sum()) == 3  # a failed assertion on the device would have ended all use of it


@pytest.mark.parametrize("classes", [3, 5])
def test_a_label_outside_in_validation_leaves_the_gpu_usable(classes):
    brain = make()
    report = preflight(brain, data(), data(24, classes=classes), LOADER, LOADER)
    assert [finding.code for finding in report.findings] == ["first-validation-failed"] * (classes > 3), report.text()
    assert float(torch.ones(3, device="cuda").sum()) == 3
