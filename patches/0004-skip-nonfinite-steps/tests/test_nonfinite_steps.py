"""Steps with non-finite gradients, and clipping."""

import math
import os
import re

import pytest
import speechbrain as sb
import torch
from speechbrain.processing.features import InputNormalization
from torch.nn import BatchNorm1d, Linear, Sequential

regression = pytest.mark.regression
nan = math.nan


class Brain(sb.Brain):
    """Its loss is the mean output, multiplied by a factor that comes with the data."""

    def compute_forward(self, batch, stage):
        x = batch[0].to(self.device)
        if "norm" in self.modules:
            x = self.modules.norm(x.view(-1, 2, 2), torch.ones(len(x), device=x.device)).reshape(-1, 4)
        return self.modules.model(x)

    def compute_objectives(self, predictions, batch, stage):
        return predictions.mean() * batch[1].to(self.device).mean()


def make(modules, optimizer=torch.optim.SGD, kind=Brain, device="cpu", precision="fp32", **options):
    torch.manual_seed(0)
    run_opts = {"device": device, "precision": precision, "noprogressbar": True}
    return kind(modules(), lambda p: optimizer(p, lr=0.1), options, run_opts)


def data(inputs=(), losses=(), length=6):
    """Batches of two samples. ``inputs`` and ``losses`` are the indices of batches with a nan there."""
    torch.manual_seed(1)
    x, factor = torch.randn(2 * length, 4), torch.ones(2 * length)
    for place in inputs:
        x[2 * place, 1] = nan
    for place in losses:
        factor[2 * place] = nan
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, factor), batch_size=2)


def plain():
    return {"model": Linear(4, 3)}


def normalised():
    return {"norm": InputNormalization(norm_type="global"), "model": Sequential(Linear(4, 4), BatchNorm1d(4), Linear(4, 3))}


def state(brain):
    tensors = list(brain.modules.state_dict().values())
    if "norm" in brain.modules:
        norm = brain.modules.norm
        tensors += [norm.glob_mean, norm.glob_std, torch.tensor(norm.count)]
    return [tensor.clone() for tensor in tensors]


@regression
@pytest.mark.parametrize("where", ["inputs", "losses"])
@pytest.mark.parametrize("modules", [plain, normalised])
@pytest.mark.parametrize("place", range(6))
def test_a_batch_with_nan_leaves_no_trace(caplog, modules, where, place):
    brain, other = make(modules, torch.optim.Adam), make(modules, torch.optim.Adam)
    brain.fit(range(1), data(**{where: [place]}))
    clean = list(data())
    other.fit(range(1), torch.utils.data.DataLoader(clean[:place] + clean[place + 1 :], batch_size=None))
    assert brain.optimizer_step == other.optimizer_step == 5
    assert all(torch.equal(one, two) for one, two in zip(state(brain), state(other)))
    warnings = [r.getMessage() for r in caplog.records if "Skipping step" in r.getMessage()]
    first = "model.weight" if modules is plain else "model.0.weight"
    assert len(warnings) == 1 and warnings[0].startswith(
        f"Skipping step {place + 1} (batch {place + 1}): the gradients of {first}"
    )


class OwnFitBatch(Brain):
    """Has its own ``fit_batch``, as many recipes do."""

    def fit_batch(self, batch):
        loss = self.compute_objectives(self.compute_forward(batch, sb.Stage.TRAIN), batch, sb.Stage.TRAIN)
        loss.backward()
        self.optimizers_step()
        return loss.detach()


@regression
def test_a_fit_batch_of_the_recipe_restores_what_the_step_before_left():
    brain, other = make(normalised, kind=OwnFitBatch), make(normalised, kind=OwnFitBatch)
    brain.fit(range(1), data(inputs=[2]))
    clean = list(data())
    other.fit(range(1), torch.utils.data.DataLoader(clean[:2] + clean[3:], batch_size=None))
    assert all(torch.equal(one, two) for one, two in zip(state(brain), state(other)))


@regression
def test_the_error_names_statistics_that_cannot_be_restored():
    brain = make(normalised, kind=OwnFitBatch)
    with pytest.raises(
        ValueError,
        match=r"Running statistics are not finite after batch 1, and there are no earlier finite ones to restore: "
        r"norm.glob_mean, norm.glob_std, model.1.running_mean and 1 more\. Look at the audio of that batch and at its aug",
    ):
        brain.fit(range(1), data(inputs=[0]))


class Late(torch.nn.Module):
    """Its running mean has another type before the first batch, and another shape from then on."""

    def __init__(self):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(1, dtype=torch.int64))
        self.count = 0

    def forward(self, x):
        self.running_mean, self.count = x.mean(0), self.count + 1
        return x


@regression
@pytest.mark.parametrize(
    "layer", [lambda: torch.nn.LazyBatchNorm1d(affine=False), lambda: torch.jit.script(BatchNorm1d(4)), Late]
)
@pytest.mark.parametrize("place", [0, 1, 3])
def test_statistics_of_unusual_layers_are_restored(layer, place):
    def modules():
        return {"model": Sequential(Linear(4, 4), layer(), Linear(4, 3))}

    brain, other = make(modules), make(modules)
    loader = data(inputs=[place])
    if isinstance(brain.modules.model[1], torch.nn.LazyBatchNorm1d) and place == 0:
        with pytest.raises(ValueError, match=r"to restore: model\.1\.running_mean, model\.1\.running_var\."):
            brain.fit(range(1), loader)
        return
    brain.fit(range(1), loader)
    clean = list(data())
    other.fit(range(1), torch.utils.data.DataLoader(clean[:place] + clean[place + 1 :], batch_size=None))
    assert all(torch.equal(one, two) for one, two in zip(state(brain), state(other)))
    assert getattr(brain.modules.model[1], "count", 5) == 5


@regression
@pytest.mark.parametrize("change", ["replaced", "loaded"])
def test_what_is_restored_is_what_the_modules_had_before_this_batch(change):
    brain = make(normalised)
    brain.fit(range(1), data())
    norm = BatchNorm1d(4) if change == "replaced" else brain.modules.model[1]
    norm.load_state_dict({**BatchNorm1d(4).state_dict(), "running_mean": torch.full((4,), 7.0)})
    brain.modules.model[1] = norm
    brain.fit(range(1), data(inputs=[0], length=1))
    assert torch.equal(norm.running_mean, torch.full((4,), 7.0)) and norm.num_batches_tracked == 0


@regression
def test_a_step_of_several_batches_is_left_out_as_a_whole():
    brain, other = (make(normalised, grad_accumulation_factor=2) for _ in "ab")
    brain.fit(range(2), data(inputs=[0], length=5))  # the last batch of an epoch makes no step
    other.fit(range(2), torch.utils.data.DataLoader(list(data(length=5))[2:], batch_size=None))
    assert all(torch.equal(one, two) for one, two in zip(state(brain), state(other)))


class WithIds(list):
    """A batch with ids, as PaddedBatch has them."""

    def __init__(self, batch, ids):
        super().__init__(batch)
        self.id = ids


@regression
@pytest.mark.parametrize(
    "factor, ids, of_batch, of_step",
    [
        (1, 2, " Ids of the batch: item0, item1.", " Ids of the batch: item0, item1."),
        (1, 5, " Ids of the batch: item0, item1, item2 and 2 more.", " Ids of the batch: item0, item1, item2 and 2 more."),
        (2, 2, " Ids of the batch: item0, item1.", " Ids of the 2 batches: item0, item1, item0 and 1 more."),
        (1, 0, "", ""),
    ],
)
def test_messages_name_the_ids_of_the_batch(caplog, factor, ids, of_batch, of_step):
    brain = make(plain, nonfinite_patience=factor, grad_accumulation_factor=factor)
    names = [f"item{number}" for number in range(ids)]
    bad = [WithIds(batch, names) for batch in data(losses=range(2 * factor))]
    with pytest.raises(ValueError, match=rf"nonfinite_patience is {factor}\.{of_batch} Parameters and buffers are finite"):
        brain.fit(range(1), torch.utils.data.DataLoader(bad, batch_size=None))
    *losses, skipped = [record.getMessage() for record in caplog.records if "not finite" in record.getMessage()]
    assert len(losses) == factor and all(loss.endswith(f"that this epoch tolerates.{of_batch}") for loss in losses)
    assert skipped.endswith(f"the gradients of model.weight, model.bias are not finite.{of_step}")


def test_a_healthy_run_has_the_weights_and_statistics_of_stock(monkeypatch, caplog):
    brain = make(normalised, torch.optim.Adam)
    brain.fit(range(2), data())
    monkeypatch.setattr(sb.Brain, "only_finite_steps", False, raising=False)
    other = make(normalised, torch.optim.Adam)
    other.fit(range(2), data())
    assert all(torch.equal(one, two) for one, two in zip(state(brain), state(other)))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


class Scaled(Brain):
    """Trains with a GradScaler, as in fp16 on a GPU."""

    def on_fit_start(self):
        super().on_fit_start()
        self.scaler = torch.GradScaler(torch.device(self.device).type, init_scale=2.0**15)

    def compute_objectives(self, predictions, batch, stage):
        # The scaled gradients of the second batch overflow
        return super().compute_objectives(predictions, batch, stage) * (1e35 if self.step == 2 else 1.0)


CUDA = pytest.param("cuda", marks=pytest.mark.cuda)


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("place", [*(pytest.param(i, marks=regression) for i in (0, 3)), pytest.param(None, id="healthy")])
def test_the_gradscaler_skips_steps_and_the_statistics_stay_finite(monkeypatch, device, place):
    def trained(finite):
        monkeypatch.setattr(sb.Brain, "only_finite_steps", finite, raising=False)
        brain = make(normalised, torch.optim.Adam, Scaled, device, nonfinite_patience=9)
        brain.fit(range(1), data(inputs=[] if place is None else [place]))
        return brain

    ours, stocks = trained(True), trained(False)
    assert ours.scaler.get_scale() == 2.0 ** (15 - 1 - (place is not None))
    assert all(tensor.isfinite().all() for tensor in state(ours))
    same = [torch.equal(one, two) for one, two in zip(state(ours), state(stocks))]
    assert all(same) if place is None else not all(tensor.isfinite().all() for tensor in state(stocks))


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_on_a_gpu_a_healthy_run_has_the_weights_and_statistics_of_stock(monkeypatch, precision):
    def trained(finite):
        monkeypatch.setattr(sb.Brain, "only_finite_steps", finite)
        brain = make(normalised, torch.optim.Adam, Brain, "cuda", precision)
        brain.fit(range(2), data())
        return state(brain)

    assert all(torch.equal(one, two) for one, two in zip(trained(True), trained(False)))


@regression
def test_only_finite_steps_false_gives_stock_behaviour(monkeypatch):
    monkeypatch.setattr(sb.Brain, "only_finite_steps", False)
    brain = make(plain, nonfinite_patience=9)
    brain.fit(range(1), data(losses=[1]))
    assert all(torch.isnan(p).all() for p in brain.modules.parameters())


@regression
def test_skipped_steps_in_a_row_are_counted_across_epochs():
    brain = make(plain, nonfinite_patience=3)
    with pytest.raises(ValueError, match=r"Skipped 4 steps in a row, and nonfinite_patience is 3: .* model.weight, model.bias"):
        brain.fit(range(9), data(losses=[0, 1], length=2))
    assert all(torch.isfinite(p).all() for p in brain.modules.parameters())


def test_too_many_nonfinite_losses_in_an_epoch_end_the_run_as_on_stock():
    brain = make(plain, nonfinite_patience=2)
    with pytest.raises(ValueError, match="Loss is not finite and patience is exhausted"):
        brain.fit(range(9), data(losses=[0, 2, 4]))


@regression
def test_the_error_names_the_first_nonfinite_tensor():
    brain = make(plain, nonfinite_patience=0)
    brain.modules.model.bias.data[1] = nan
    with pytest.raises(ValueError, match=r"The first non-finite tensor of the model is model\.bias"):
        brain.fit(range(1), data())


@pytest.mark.parametrize(
    "largest, separate, norm",
    [
        (1.0, False, 1.0),
        (1000.0, False, 50.0),
        pytest.param(1.0, True, 1.0, marks=regression),
        pytest.param(-1.0, False, 50.0, marks=regression),
        pytest.param(-1.0, True, 50.0, marks=regression),
    ],
)
def test_all_groups_are_clipped_together(largest, separate, norm):
    brain = make(plain, max_grad_norm=largest, remove_vector_weight_decay=separate)
    brain.init_optimizers()
    before = [p.detach().clone() for p in brain.modules.parameters()]
    brain.modules.model.weight.grad = torch.full((3, 4), 40 / math.sqrt(12))
    brain.modules.model.bias.grad = torch.full((3,), 30 / math.sqrt(3))
    brain.optimizers_step()
    taken = torch.cat([(old - new).flatten() for old, new in zip(before, brain.modules.parameters())]) / 0.1
    assert taken.norm().item() == pytest.approx(norm, rel=1e-4) and (taken > 0).all()


RANKS = """
import sys
sys.path.insert(0, sys.argv[1])
import torch, speechbrain as sb
from test_nonfinite_steps import Brain, data, plain

options = {"device": "cpu", "distributed_backend": "gloo", "noprogressbar": True}
sb.utils.distributed.ddp_init_group(options)
torch.manual_seed(0)
brain = Brain(plain(), lambda p: torch.optim.SGD(p, lr=0.1), {"nonfinite_patience": int(sys.argv[2])}, options)
try:
    brain.fit(range(1), data(losses=[1, 3] if brain.rank else []))
    finite = all(torch.isfinite(p).all().item() for p in brain.modules.parameters())
    sys.stdout.write(f"ended {finite} {brain.optimizer_step}\\n")
except ValueError as error:
    sys.stdout.write(f"raised {str(error)[:20]}\\n")
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


@regression
@pytest.mark.parametrize("patience, printed", [(3, ["ended True 4"] * 2), (1, ["raised Loss is not finite"] * 2)])
def test_nan_on_one_of_two_processes(torchrun, patience, printed):
    _, output = torchrun(RANKS, os.path.dirname(os.path.abspath(__file__)), str(patience))
    assert re.findall("ended True 4|raised Loss is not finite", output) == printed, output
