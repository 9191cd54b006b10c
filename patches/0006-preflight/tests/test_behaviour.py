"""Real steps, and items alone and in a batch: each code is found in a broken training, and nothing in its healthy twin."""

import re
from contextlib import nullcontext
from typing import ClassVar

import pytest
import speechbrain as sb
import torch
from speechbrain.core import Stage
from speechbrain.dataio.batch import PaddedData
from speechbrain.dataio.dataio import length_to_mask
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.preflight import attempts
from speechbrain.preflight.__main__ import Takeover
from speechbrain.preflight.checks import behaviour, optimised
from speechbrain.preflight.observe import steps
from test_runner import torchrun
from torch.nn import BatchNorm1d, Conv1d, Dropout, Linear, Sequential
from torch.nn import functional as F

from brains import LOADER, OPTIONS, Classifier, body, data, head, registering, sgd

CASES, HEALTHY = [], []
NAN_LEVEL = "warning" if hasattr(sb.Brain, "only_finite_steps") else "error"  # the fork skips these steps


def healthy(start):
    HEALTHY.append(start)
    return start


case = registering(CASES)  # functions that start a training, broken or healthy, in a given folder


# Real steps


@case("real-step-failed", "error", "step_count")
def fails_after_the_step(folder, broken):
    class Brain(Classifier):
        def optimizers_step(self):
            super().optimizers_step()
            self.step_count = getattr(self, "step_count" if broken else "other", 0) + 1
            del self.step_count
            self.last = self.step_count if broken else None

    Brain({"head": Linear(4, 3)}).start()


@case("real-step-failed", "error", "second time")
def graph_of_the_last_step(folder, broken):
    class Brain(Classifier):
        def compute_forward(self, batch, stage):
            out = super().compute_forward(batch, stage)
            if stage == Stage.TRAIN:
                out, self.last = out + getattr(self, "last", 0), (out if broken else out.detach()).exp() * 1e-3
            return out

    Brain({"head": Linear(4, 3)}).start()


@case("nothing-changes", "error", "with gradients (learning rate 1e-05)")
def rounded_away(folder, broken):
    class Brain(Classifier):
        def compute_forward(self, batch, stage):
            return super().compute_forward([batch[0].to(self.modules.head.weight.dtype)], stage).float()

    linear = Linear(4, 3)
    torch.nn.init.ones_(linear.bias)  # 0.9999 is 1 in bfloat16
    Brain({"head": linear.bfloat16() if broken else linear}, lambda p: torch.optim.SGD(p, 1e-5)).start()


@case("nothing-changes", "error", "without a gradient")
def gradients_are_zeroed(folder, broken):
    class Brain(Classifier):
        def optimizers_step(self):
            if broken:
                self.zero_grad()
            self.optimizer.step()
            self.zero_grad()

    Brain({"head": Linear(4, 3)}).start()


@case("nothing-changes", "warning", "ends without a step of an optimizer")
def never_steps(folder, broken):
    class Brain(Classifier):
        def optimizers_step(self):
            if not broken:
                self.optimizer.step()
            self.zero_grad()

    Brain({"head": Linear(4, 3)}).start()


@case("frozen-changes", "warning", "body.0.weight")
def frozen_with_a_gradient(folder, broken):
    class Brain(Classifier):
        def optimizers_step(self):
            self.modules.body.requires_grad_(False)
            if not broken:
                self.modules.body.zero_grad()
            self.optimizer.step()
            self.zero_grad()

        def on_fit_batch_start(self, batch, should_step):
            self.modules.body.requires_grad_(True)

    Brain({"body": body(), "head": head()}).start()


class TwoLosses(Classifier):
    """Trains body and head as a GAN does: the head's loss gives gradients to the body, too."""

    def init_optimizers(self):
        self.of_body = sgd(self.modules.body.parameters())
        self.of_head = sgd(self.modules.head.parameters())
        self.optimizers_dict = {"body": self.of_body, "head": self.of_head}

    def fit_batch(self, batch):
        for optimizer in (self.of_body, self.of_head):
            self.clear(optimizer)
            loss = self.compute_objectives(self.compute_forward(batch, Stage.TRAIN), batch, Stage.TRAIN)
            loss.backward()
            optimizer.step()
        return loss.detach()

    def clear(self, optimizer):
        optimizer.zero_grad()


@case("gradients-not-cleared", "error", "because nothing clears them: head.bias, head.weight")
def gradients_pile_up(folder, broken):
    class Brain(TwoLosses):
        def clear(self, optimizer):
            if optimizer is self.of_body or not broken:
                optimizer.zero_grad(set_to_none=False)

    Brain({"body": body(), "head": head()}).start()


@pytest.mark.parametrize("every", [1, 2])
def test_gradients_may_be_cleared_after_a_step_or_be_accumulated(every):
    class Brain(Classifier):
        batches = 0

        def fit_batch(self, batch):
            loss = self.compute_objectives(self.compute_forward(batch, Stage.TRAIN), batch, Stage.TRAIN)
            loss.backward()
            self.batches += 1
            if self.batches % every == 0:
                self.optimizer.step()
                self.optimizer.zero_grad()
            return loss.detach()

    report = Takeover().run(Brain({"body": body(), "head": head()}).start)
    assert not report.findings, report.text()


@case("update-too-large", "warning", "changes 2 of 2 weights by at least their own size")
def learning_rate(folder, broken):
    Classifier({"body": body(), "head": head()}, lambda p: torch.optim.Adam(p, 3.0 if broken else 1e-2)).start()


@case("not-finite-after-step", NAN_LEVEL, "parameters are NaN or infinite, so")
def root_of_zero(folder, broken):
    class Brain(Classifier):
        def compute_objectives(self, predictions, batch, stage):
            loss = super().compute_objectives(predictions, batch, stage)
            return loss + (predictions * 0 + (0 if broken else 1)).sqrt().mean()

    Brain({"head": Linear(4, 3)}).start()


@case("update-too-large", "warning", "up to 1e+19 times")
def diverges(folder, broken):
    class Brain(Classifier):
        def compute_objectives(self, predictions, batch, stage):
            return super().compute_objectives(predictions, batch, stage) + (predictions**2).mean()

    def fast(parameters):
        return torch.optim.SGD(parameters, lr=1e19 if broken else 1e-2)

    Brain({"head": Linear(4, 3)}, fast).start()


class Keeping(Classifier):
    broken = True

    def on_fit_start(self):
        super().on_fit_start()
        self.losses, self.total = [], 0.0

    def keep(self, value):
        return value if self.broken else value.detach()

    @classmethod
    def begin(cls, broken, **options):
        brain = cls({"head": Linear(4, 3)}, **options)
        brain.broken = broken
        setattr(brain, "{name}", [0])  # a name with braces
        brain.start()


@case("memory-grows", "warning", "self.losses keeps the graph of each step")
def list_of_losses(folder, broken):
    class Brain(Keeping):
        def compute_objectives(self, predictions, batch, stage):
            loss = super().compute_objectives(predictions, batch, stage)
            self.losses.append({"loss": self.keep(loss)})
            self.last = loss
            return loss

    Brain.begin(broken)


@case("memory-grows", "warning", "self.hparams.meter.total keeps the graph")
def sum_of_losses(folder, broken):
    class Meter:
        total = 0.0

        def add(self, value):
            self.total = self.total + value

    class Brain(Keeping):
        def compute_objectives(self, predictions, batch, stage):
            loss = super().compute_objectives(predictions, batch, stage)
            self.hparams.meter.add(self.keep(loss))
            return loss

    Brain.begin(broken, hparams={"meter": Meter()})


@case("memory-grows", "warning", "losses in the closure of compute_objectives keeps the graph of each step")
def list_in_a_closure(folder, broken):
    losses = []

    class Brain(Keeping):
        def compute_objectives(self, predictions, batch, stage):
            losses.append(self.keep(super().compute_objectives(predictions, batch, stage)))
            return losses[-1] * 1 if broken else super().compute_objectives(predictions, batch, stage)

    Brain.begin(broken)


LOSSES = []


@case("memory-grows", "warning", "LOSSES in test_behaviour.py keeps the graph of each step")
def list_in_the_script(folder, broken):
    class Brain(Keeping):
        def compute_objectives(self, predictions, batch, stage):
            loss = super().compute_objectives(predictions, batch, stage)
            LOSSES.append((self.keep(loss),))
            return loss

    LOSSES.clear()
    Brain.begin(broken)
    LOSSES.clear()


@case("memory-grows", "warning", "Brain.losses keeps the graph of each step")
def list_of_the_class(folder, broken):
    class Brain(Keeping):
        losses: ClassVar = []

        def on_fit_start(self):
            sb.Brain.on_fit_start(self)

        def compute_objectives(self, predictions, batch, stage):
            loss = super().compute_objectives(predictions, batch, stage)
            self.losses.append(self.keep(loss))
            return loss

    Brain.begin(broken)


@case("memory-grows", "warning", "self.losses keeps the graph of each step")
def list_in_on_fit_batch_end(folder, broken):
    class Brain(Keeping):
        def on_fit_batch_end(self, batch, outputs, loss, should_step):
            self.losses.append(self.keep(loss))

    Brain.begin(broken)


@pytest.mark.skipif(torch.cuda.is_available(), reason="where nothing is forked, what restores the Brain may keep them")
def test_what_keeps_graphs_may_not_be_found():
    class Brain(Keeping):
        def compute_objectives(self, predictions, batch, stage):
            loss = super().compute_objectives(predictions, batch, stage)
            keep.send(self.keep(loss))
            return loss

    def generator(losses):
        while True:
            losses = [*losses, (yield)]

    keep = generator([])
    next(keep)
    (finding,) = Takeover().run(lambda: Brain.begin(True)).findings
    assert finding.what.startswith("something outside of the Brain keeps the graph of each step")


@healthy
def empties_its_list_now_and_then():
    class Brain(Classifier):
        def on_fit_start(self):
            super().on_fit_start()
            self.losses = []

        def compute_objectives(self, predictions, batch, stage):
            loss = super().compute_objectives(predictions, batch, stage)
            self.losses = [*self.losses, loss] if len(self.losses) < 9 else []
            return loss

    Brain({"head": Linear(4, 3)}).start()


@case("memory-grows", "warning", "self.modules.head.mean keeps the graph")
def running_mean(folder, broken):
    class Normed(Linear):
        mean = 0.0

        def forward(self, x):
            out = super().forward(x)
            if self.training:
                self.mean = 0.9 * self.mean + 0.1 * (out if broken else out.detach()).mean(0)
            return out - (self.mean if self.training else 0)

    class Brain(Classifier):
        def compute_objectives(self, predictions, batch, stage):
            return super().compute_objectives(predictions, batch, stage)

        def fit_batch(self, batch):
            loss = self.compute_objectives(self.compute_forward(batch, Stage.TRAIN), batch, Stage.TRAIN)
            loss.backward(retain_graph=True)
            self.optimizer.step()
            self.zero_grad()
            return loss.detach()

    with torch.autograd.graph.allow_mutation_on_saved_tensors() if broken else nullcontext():  # it leaks memory
        Brain({"head": Normed(4, 3)}).start()


# Items alone and in a batch


def clips(count=12, same=False):
    draw = torch.Generator().manual_seed(0)
    frames = [30 if same else int(torch.randint(20, 30, (), generator=draw)) for _ in range(count)]
    items = {str(i): {"frames": n, "label": i * 5 % 3} for i, n in enumerate(frames)}
    dataset = DynamicItemDataset(items)
    dataset.add_dynamic_item(
        lambda n, i: torch.randn(n, 4, generator=draw.manual_seed(int(i))) + int(i) % 3, ["frames", "id"], "x"
    )
    dataset.set_output_keys(["id", "x", "label"])
    return dataset


class Pooling(sb.Brain):
    """A classifier of sequences."""

    def compute_forward(self, batch, stage):
        x, lens = batch.x
        x = self.modules.cnn(x.transpose(1, 2)).transpose(1, 2)
        return self.modules.head(self.pool(x, lens))

    def pool(self, x, lens):
        mask = length_to_mask(lens * x.shape[1], x.shape[1])[..., None]
        return (x * mask).sum(1) / mask.sum(1)

    def compute_objectives(self, predictions, batch, stage):
        return F.cross_entropy(predictions, batch.label)

    def start(self, same=False):
        sets = clips(same=same), clips(same=same)
        self.fit(range(1, 2), *sets, train_loader_kwargs=LOADER, valid_loader_kwargs=LOADER)


def pooling(cls=Pooling, cnn=None, hparams=None):
    modules = {"cnn": cnn or Sequential(Conv1d(4, 8, 3, padding=1), torch.nn.ReLU()), "head": head()}
    return cls(modules, sgd, hparams or {}, OPTIONS)


@case("input-unused", "warning", "batch[0] has no effect")
def ignores_its_input(folder, broken):
    class Brain(Classifier):
        def compute_forward(self, batch, stage):
            return super().compute_forward([batch[0] * (0 if broken else 1)], stage)

    brain = Brain({"head": Linear(4, 3)})
    if not broken:
        torch.nn.init.zeros_(brain.modules.head.weight)
    brain.start()


@case("input-unused", "warning", "batch.words has no effect: with other values")
def ids_that_are_overwritten(folder, broken):
    class Brain(sb.Brain):
        def compute_forward(self, batch, stage):
            words = self.modules.embedding(batch.words.data) * (batch.mask.data[..., None] > 0)
            return self.modules.head((words * (0 if broken else 1) + 1).mean(1))

        def compute_objectives(self, predictions, batch, stage):
            return F.cross_entropy(predictions, batch.label)

    items = {str(i): {"text": [i % 5, i % 3, 1], "label": i % 3} for i in range(12)}
    dataset = DynamicItemDataset(items)
    dataset.add_dynamic_item(lambda text: torch.tensor(text), ["text"], "words")
    dataset.add_dynamic_item(lambda text: torch.ones(len(text), dtype=torch.long), ["text"], "mask")  # no other values
    dataset.set_output_keys(["id", "words", "mask", "label"])
    brain = Brain({"embedding": torch.nn.Embedding(5, 8), "head": head()}, sgd, {}, OPTIONS)
    brain.fit(range(1, 2), dataset, dataset, train_loader_kwargs=LOADER, valid_loader_kwargs=LOADER)


@case("input-unused", "warning", "batch.x has no effect: with other values, the outputs and the loss (")
def input_that_is_overwritten(folder, broken):
    class Brain(Pooling):
        def compute_forward(self, batch, stage):
            if broken:
                batch.x = PaddedData(
                    torch.zeros_like(batch.x.data) + torch.as_tensor(batch.label)[:, None, None], batch.x.lengths
                )
            return super().compute_forward(batch, stage)

    pooling(Brain).start()


@case("input-unused", "note", "batch[1] has no effect")
def input_for_a_metric(folder, broken):
    class Brain(Classifier):
        def compute_forward(self, batch, stage):
            self.loud = batch[1].std(1) > 1 if broken else None
            return self.modules.head(batch[0])

        def compute_objectives(self, predictions, batch, stage):
            return F.cross_entropy(predictions, batch[-1])

    items = [(x, torch.randn(4), y) for x, y in data()]
    brain = Brain({"head": Linear(4, 3)})
    brain.fit(range(1, 2), items, items, train_loader_kwargs=LOADER, valid_loader_kwargs=LOADER)


@case("input-unused", "warning", "batch[0] has no effect")
def decoder_without_its_encoder(folder, broken):
    class Brain(Classifier):
        def compute_forward(self, batch, stage):
            encoded, previous = self.modules.encoder(batch[0]), F.one_hot(batch[1].roll(1), 4).float()
            return self.modules.decoder(previous if broken else previous + encoded)

    Brain({"encoder": Linear(4, 4).requires_grad_(not broken), "decoder": Linear(4, 3)}).start()


@case("depends-on-batch", "note", "with more padding: to three times its length, not twice; the lengths of x have no effect")
def mean_of_the_padding(folder, broken):
    class Brain(Pooling):
        def pool(self, x, lens):
            return x.mean(1) if broken else super().pool(x, lens)

    pooling(Brain).start()


@case("depends-on-batch", "note", "padding")
def normalized_over_the_padding(folder, broken):
    norm = torch.nn.GroupNorm(1, 8) if broken else BatchNorm1d(8)
    pooling(cnn=Sequential(Conv1d(4, 8, 3, padding=1), norm)).start()


@case("depends-on-batch", "note", "if another item of the same length is in its batch")
def centred_over_the_batch(folder, broken):
    class Brain(Pooling):
        def pool(self, x, lens):
            x = super().pool(x, lens)
            return x - x.mean(0) if broken else x

    pooling(Brain).start(same=True)


@case("trainable-without-gradient", "warning", "because it runs under torch.no_grad(): body.0.bias, body.0.weight")
def under_no_grad(folder, broken):
    class Brain(Classifier):
        def compute_forward(self, batch, stage):
            with torch.set_grad_enabled(not broken and stage == Stage.TRAIN):
                x = self.modules.body(batch[0])
            return self.modules.head(x)

    Brain({"body": body(), "head": head()}).start()


@healthy
def padding_that_never_is():
    class Brain(Pooling):
        def pool(self, x, lens):
            return x.mean(1)

    pooling(Brain).start(same=True)


@healthy
def inputs_for_training_only_or_for_their_lengths():
    class Brain(Classifier):
        def compute_forward(self, batch, stage):
            x, noise, other, lengths, _ = batch
            noise, number = noise * 0.1, other.shape[0]
            if stage == Stage.TRAIN:
                x = x + noise + 0 * lengths[:, None]
            return self.modules.head(x[:number])

        def compute_objectives(self, predictions, batch, stage):
            return F.cross_entropy(predictions, batch[-1]) + 0 * batch[2].mean()

    items = [(x, torch.randn(4), torch.randn(4), torch.ones(()), y) for x, y in data()]
    Brain({"head": Linear(4, 3)}).fit(range(1, 2), items, items, train_loader_kwargs=LOADER, valid_loader_kwargs=LOADER)


@healthy
def keeps_what_the_encoder_gives():
    class Brain(Classifier):
        def compute_forward(self, batch, stage):
            x, self.known = batch[0], getattr(self, "known", {})
            for key in map(int, batch[2]):
                if key not in self.known:
                    self.known[key] = self.modules.encoder(x[int(key) % len(x)]).detach()
            return self.modules.head(torch.stack([self.known[int(key)] for key in batch[2]]))

    items = [(x, y, i) for i, (x, y) in enumerate(data())]
    brain = Brain({"encoder": Linear(4, 4).requires_grad_(False), "head": Linear(4, 3)})
    brain.fit(range(1, 2), items, items, train_loader_kwargs=LOADER, valid_loader_kwargs=LOADER)


def zeros(module):
    torch.nn.init.zeros_(module.weight)
    torch.nn.init.zeros_(module.bias)
    return module


@healthy
def layers_that_begin_with_zeros():
    class Brain(Classifier):
        def compute_forward(self, batch, stage):
            x, _, condition = batch
            return self.modules.head(x + self.modules.gate(condition))

    items = [(x, y, torch.randn(4)) for x, y in data()]
    brain = Brain({"gate": zeros(Linear(4, 4)), "head": zeros(Linear(4, 3))})
    brain.fit(range(1, 2), items, items, train_loader_kwargs=LOADER, valid_loader_kwargs=LOADER)


@healthy
def ids_whose_order_does_not_matter():
    class Brain(Classifier):
        def compute_forward(self, batch, stage):
            return self.modules.head(self.modules.words(batch[0]).mean(1))

    items = [(torch.randint(9, (6,)), torch.tensor(i % 3)) for i in range(16)]
    brain = Brain({"words": torch.nn.Embedding(9, 8), "head": head()})
    brain.fit(range(1, 2), items, items, train_loader_kwargs=LOADER, valid_loader_kwargs={"batch_size": 1})


@healthy
def draws_from_its_own_generator():
    class Brain(Pooling):
        draw = torch.Generator().manual_seed(0)

        def pool(self, x, lens):
            x = super().pool(x, lens)
            return x + torch.randn(x.shape, generator=self.draw)

    pooling(Brain).start()


@healthy
def ends_the_process_for_single_items():
    class Brain(Pooling):
        def compute_forward(self, batch, stage):
            if len(batch.label) < 3:
                raise SystemExit(1)
            return super().compute_forward(batch, stage)

    pooling(Brain).start()


@healthy
def keeps_the_last_losses():
    class Brain(Classifier):
        losses: ClassVar = []

        def compute_objectives(self, predictions, batch, stage):
            loss = super().compute_objectives(predictions, batch, stage)
            self.losses[:] = [*self.losses[-4:], loss]
            return loss

    Brain({"head": Linear(4, 3)}).start()


class ZeroingSGD(torch.optim.SGD):
    def step(self, closure=None):
        super().step(closure)
        self.zero_grad()


class SAM(torch.optim.Optimizer):
    """Takes its step at the weights that are worst nearby."""

    def __init__(self, parameters):
        super().__init__(parameters, {})
        self.base = sgd(self.param_groups)
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def step(self, closure):
        parameters = self.param_groups[0]["params"]
        norm = torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm()
        moves = [0.05 * p.grad / (norm + 1e-12) for p in parameters]
        for p, move in zip(parameters, moves):
            p.add_(move)
        self.zero_grad()
        torch.enable_grad()(closure)()
        for p, move in zip(parameters, moves):
            p.sub_(move)
        self.base.step()


class WithClosure(Classifier):
    def fit_batch(self, batch):
        def closure():
            self.optimizer.zero_grad()
            loss = self.compute_objectives(self.compute_forward(batch, Stage.TRAIN), batch, Stage.TRAIN)
            loss.backward()
            return loss

        before = [p.detach().clone() for p in self.modules.parameters()]
        loss = closure().detach()
        self.optimizer.step(closure)
        moved = not all(map(torch.equal, before, self.modules.parameters()))
        self.hparams.moved.append(moved)
        return loss


@pytest.mark.parametrize("optimizer", [SAM, lambda p: torch.optim.LBFGS(p, 0.1, 2), ZeroingSGD], ids=["SAM", "LBFGS", "own"])
def test_the_first_step_of_an_optimizer_that_takes_a_closure_changes_nothing(optimizer):
    brain = WithClosure({"body": body(), "head": head()}, optimizer, {"moved": []})
    report = Takeover().run(brain.start)
    assert not report.findings and brain.hparams.moved == [False], report.text()


@healthy
def an_optimizer_beside_one_of_its_parent_class():
    class Brain(Classifier):
        def init_optimizers(self):
            self.of_body = ZeroingSGD(self.modules.body.parameters(), 0.1)
            self.of_head = sgd(self.modules.head.parameters())
            self.optimizers_dict = {"body": self.of_body, "head": self.of_head}

        def on_fit_start(self):
            super().on_fit_start()
            self.of_body.step()  # before the first batch

    Brain({"body": body(), "head": head()}).start()


@healthy
def optimizers_that_step_in_backward():
    class Brain(Classifier):
        def init_optimizers(self):
            found = {p: sgd([p]) for p in self.modules.parameters()}

            def step(p):
                found[p].step()
                found[p].zero_grad()

            for p in found:
                p.register_post_accumulate_grad_hook(step)
            self.optimizers_dict = {str(i): optimizer for i, optimizer in enumerate(found.values())}

        def fit_batch(self, batch):
            loss = self.compute_objectives(self.compute_forward(batch, Stage.TRAIN), batch, Stage.TRAIN)
            loss.backward()
            return loss.detach()

    Brain({"body": body(), "head": head()}).start()


@healthy
def writes_a_gradient_before_backward():
    class Brain(Classifier):
        def fit_batch(self, batch):
            for p in self.modules.parameters():
                p.grad = 0.01 * p.detach()
            loss = self.compute_objectives(self.compute_forward(batch, Stage.TRAIN), batch, Stage.TRAIN)
            loss.backward()
            self.optimizer.step()
            return loss.detach()

    Brain({"body": body(), "head": head()}).start()


@healthy
def warm_up_from_0():
    class Brain(Classifier):
        def on_stage_end(self, stage, loss, epoch=None):
            self.hparams.lr_annealing(self.optimizer)

    schedule = {"lr_annealing": sb.nnet.schedulers.NoamScheduler(0.1, 2)}
    brain = Brain({"head": Linear(4, 3)}, lambda p: torch.optim.SGD(p, 0.0), schedule)
    torch.nn.init.zeros_(brain.modules.head.weight)
    brain.start()


@healthy
def averages_its_weights():
    class Brain(Classifier):
        def on_fit_batch_end(self, batch, outputs, loss, should_step):
            with torch.no_grad():
                for slow, fast in zip(self.modules.teacher.parameters(), self.modules.head.parameters()):
                    slow.lerp_(fast, 0.1)

        def compute_forward(self, batch, stage):
            return self.modules.head(batch[0]) + 0 * self.modules.teacher(batch[0])

    Brain({"head": Linear(4, 3), "teacher": Linear(4, 3).requires_grad_(False)}).start()


@healthy
def samples_in_evaluation():
    class Brain(Pooling):
        def pool(self, x, lens):
            return x.mean(1) + torch.rand_like(x[:, 0])

    pooling(Brain).start()


@healthy
def keeps_the_last_output_and_a_few_losses():
    from collections import deque

    class Brain(Classifier):
        def compute_objectives(self, predictions, batch, stage):
            loss = super().compute_objectives(predictions, batch, stage)
            self.last, self.few = predictions, getattr(self, "few", deque(maxlen=9))
            self.few.append(loss)
            return loss

    Brain({"drop": Dropout(), "head": Linear(4, 3)}).start()


@healthy
def accumulates():
    Classifier({"head": Linear(4, 3)}, grad_accumulation_factor=4).start()


@healthy
def changes_its_batch():
    class Brain(Classifier):
        def compute_forward(self, batch, stage):
            batch[0], batch[1] = torch.cat([batch[0], batch[0]]), torch.cat([batch[1], batch[1]])
            assert len(batch[0]) == 16
            return super().compute_forward(batch, stage)

    Brain({"head": Linear(4, 3)}).start()


@healthy
def own_signature():
    class Brain(Classifier):
        def compute_forward(self, x, batch, stage):
            return self.modules.head(x)

        def fit_batch(self, batch):
            loss = self.compute_objectives(self.compute_forward(batch[0], batch, Stage.TRAIN), batch, Stage.TRAIN)
            loss.backward()
            self.optimizer.step()
            self.zero_grad()
            return loss.detach()

        def evaluate_batch(self, batch, stage):
            return self.compute_objectives(self.compute_forward(batch[0], batch, stage), batch, stage)

    Brain({"head": Linear(4, 3)}).start()


@pytest.mark.parametrize("start, code, level, says", CASES)
def test_each_code(monkeypatch, tmp_path, start, code, level, says):
    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(attempts, "can_fork", lambda brain: False)
        report = Takeover().run(lambda: start(tmp_path, True))
    assert [(f.code, f.level) for f in report.findings] == [(code, level)], report.text()
    for finding in report.findings:
        assert says in finding.what.partition("\n")[0] and finding.where and finding.remedy, report.text()
    torch.manual_seed(0)
    report = Takeover().run(lambda: start(tmp_path, False))
    assert not report.findings and not [said for said in report.said if "checked" in said], report.text()


@pytest.mark.parametrize("start", HEALTHY, ids=lambda start: start.__name__)
@pytest.mark.parametrize("forks", [True, False], ids=["in a child", "in place"])
def test_a_healthy_training(monkeypatch, start, forks):
    monkeypatch.setattr(steps, "SLOW", 60.0)  # also if the machine has other work
    torch.manual_seed(0)
    if not forks:
        monkeypatch.setattr(attempts, "can_fork", lambda brain: False)
    report = Takeover().run(start)
    assert not report.findings and not [said for said in report.said if "checked" in said], report.text()


def test_nothing_changes_in_this_process(monkeypatch):
    monkeypatch.setattr(attempts, "can_fork", lambda brain: False)
    torch.manual_seed(0)
    brain = Classifier({"body": body(), "head": head()}, lambda p: torch.optim.Adam(p, 3.0))
    before = {key: value.clone() for key, value in brain.modules.state_dict().items()}
    report = Takeover().run(brain.start)
    assert [finding.code for finding in report.findings] == ["update-too-large"]
    assert all(torch.equal(before[key], value) for key, value in brain.modules.state_dict().items())
    assert not brain.optimizer.state and brain.step <= 1


UNUSED = """
sb.utils.distributed.ddp_init_group({'distributed_backend': 'gloo'})

class Partly(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lower, self.upper, self.early = Linear(4, 3), Linear(3, 3), Linear(3, 3)
        self.late = Linear(3, 3).requires_grad_(False)

    def forward(self, x):
        x = self.early(self.late(self.lower(x)))
        self.upper(x)
        return x

class Late(Brain):
    def init_optimizers(self):
        super().init_optimizers()
        self.modules.model.module.late.requires_grad_(True)
        self.optimizer.add_param_group({"params": [*self.hparams.top.parameters(), *self.hparams.own.parameters(), self.free]})

    def on_stage_start(self, stage, epoch=None):
        self.modules.model.module.early.requires_grad_(False)
        self.modules.whole.requires_grad_(False)

    def compute_forward(self, batch, stage):
        self.modules.side(batch[0])
        x = self.hparams.top(self.hparams.bare(self.modules.whole(super().compute_forward(batch, stage))))
        return self.hparams.own(x) * self.free

brain = make(Late, Partly(), find_unused_parameters="unused" in sys.argv)
brain.hparams.top, brain.hparams.bare = Linear(3, 3), Linear(3, 3)
brain.hparams.own = torch.nn.parallel.DistributedDataParallel(Linear(3, 3))  # both are averaged
brain.free = torch.nn.Parameter(torch.ones(3))
brain.free.register_hook(lambda gradient: torch.distributed.all_reduce(gradient) or gradient / 2)
brain.modules.update({"whole": Linear(3, 3), "side": Linear(4, 3), "bare": brain.hparams.bare})
brain.fit(range(1, 2), data, **loader)
"""


@pytest.mark.torchrun
@pytest.mark.parametrize("arguments", [[], ["unused"]])
def test_gradients_under_torchrun(tmp_path, arguments):
    """A module that is frozen or unused as a whole stops nothing."""
    status, out, err = torchrun(tmp_path, UNUSED, "-m", "speechbrain.preflight", "train.py", *arguments)
    found = re.findall(r"^(?:error|note)\[(\S+)\]: (.*)", out, re.M)
    none = "but the first step gives them none: the second step fails: model.upper.bias, model.upper.weight"
    frozen = "which the script freezes after it wraps them: the second step fails: model.early.bias, model.early.weight"
    waits = "DistributedDataParallel waits for the gradients of these parameters, "
    own = "DistributedDataParallel, so each process trains its own copy:"
    idle = "these parameters are trainable, but get no gradient in the first step: "
    expected = {
        ("ddp-unfrozen-late", f"the script unfreezes these after they are wrapped in {own} model.late.bias, model.late.weight"),
        ("ddp-not-wrapped", f"these are not in the Brain's modules, and not in {own} top.bias, top.weight"),
        ("ddp-bypassed", f"the script calls these directly, as self.hparams does, not through {own} bare.bias, bare.weight"),
        ("trainable-without-gradient", f"{idle}side.bias, side.weight"),
    }
    if arguments:
        expected |= {("trainable-without-gradient", f"{idle}model.upper.bias, model.upper.weight")}
    else:
        expected |= {("ddp-without-gradient", waits + which) for which in (none, frozen)}
    assert status == 1 and {*found} == expected, out + err


# What is only done if it is asked for


def timed(cls=Pooling, seconds="duration", **loader):
    """A training on clips with durations."""
    dataset = clips()
    for item in dataset.data.values():
        item[seconds] = item["frames"] / 10
    options = {"train_loader_kwargs": {**LOADER, "batch_size": 4, **loader}}
    return lambda: pooling(cls).fit(range(1, 2), dataset, **options)


@pytest.mark.parametrize(
    "loader, says",
    [
        ({}, r"4 items of up to 2\.9 s, 11\.6 s with padding\) takes \d+(\.\d+)? GB of resident memory"),
        ({"shuffle": True}, r"4 items of up to 2\.9 s"),
        ({"batch_size": 1, "batch_sampler": [[0, 1], [2, 3, 4, 5, 6]]}, r"5 items of up to"),
    ],
)
def test_the_longest_batch(loader, says):
    report = Takeover(longest=True).run(timed(**loader))
    assert not report.findings and re.search(says, report.said[-1]), report.text()


def test_the_longest_batch_of_unknown_lengths():
    report = Takeover(longest=True, overfit=2).run(timed(seconds="other"))
    assert any("durations of the training items are not known" in said for said in report.said), report.text()


@pytest.mark.parametrize("error", [MemoryError("can't allocate memory"), RuntimeError("CUDA out of memory. Tried")])
def test_the_longest_batch_does_not_fit(error):
    class Brain(Pooling):
        def compute_forward(self, batch, stage):
            if max(batch.id) == "9" and len(batch.id) == 5:
                raise error
            return super().compute_forward(batch, stage)

    sampler = [[0, 1], [2, 3, 4, 5, 9]]
    report = Takeover(longest=True).run(timed(Brain, batch_size=1, batch_sampler=sampler))
    (finding,) = report.findings
    assert (finding.level, finding.code) == ("error", "out-of-memory") and "(5 items of up to 2." in finding.what, report.text()


def test_the_longest_batch_takes_no_less_than_the_first_one():
    report = Takeover(longest=True).run(timed())
    assert float(re.search(r"takes (\S+) GB", report.said[-1])[1]) >= float(f"{report.plan['memory']['bytes'] / 1e9:.2g}")


def test_learning_one_batch_in_too_few_steps():
    report = Takeover(overfit=12).run(Classifier({"head": Linear(4, 3)}, lambda p: torch.optim.SGD(p, 0.01)).start)
    assert not report.findings and report.said[-1].endswith("It still falls: try more steps."), report.text()


def test_learning_nothing_from_one_batch():
    class Brain(Classifier):
        def compute_objectives(self, predictions, batch, stage):
            return super().compute_objectives(predictions * 1e-6, batch, stage)

    report = Takeover(overfit=12).run(Brain({"head": Linear(4, 3)}).start)
    (finding,) = [finding for finding in report.findings if finding.code == "cannot-overfit"]
    assert finding.remedy.startswith("check that each label belongs to its clip"), report.text()


@pytest.mark.parametrize("broken", [True, False])
def test_learning_one_batch(broken):
    class Brain(Classifier):
        def compute_objectives(self, predictions, batch, stage):
            loss = super().compute_objectives(predictions, batch, stage)
            return loss + 1 if broken else loss

    torch.manual_seed(0)
    brain = Brain({"body": body(), "head": head()}, lambda p: torch.optim.Adam(p, 0.05))
    before = [parameter.clone() for parameter in brain.modules.parameters()]
    report = Takeover(overfit=60).run(brain.start)
    assert [(f.level, f.code) for f in report.findings] == [("warning", "cannot-overfit")] * broken, report.text()
    assert re.search(r"in 60 steps.*\n  █[▁-█]{49}\n  step 1: \d\.\d+, .*, step 60: ", report.said[-1]), report.text()
    assert all(map(torch.equal, before, brain.modules.parameters()))


def test_every_code_has_a_case():
    codes = {param.values[1] for param in CASES}
    assert set(behaviour.CODES) - {"cannot-overfit", "out-of-memory"} <= codes
    assert {"ddp-without-gradient", "ddp-unfrozen-late", "ddp-not-wrapped", "ddp-bypassed"} <= set(optimised.CODES)
