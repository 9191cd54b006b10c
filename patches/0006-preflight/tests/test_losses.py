"""Losses that get something else than they take are reported; similar calls that are meant are not."""

import pytest
import torch
from speechbrain.nnet import losses
from speechbrain.preflight.__main__ import Takeover
from speechbrain.preflight.checks import losses as checks
from torch.nn import Linear
from torch.nn import functional as F

from brains import Classifier, registering

CASES, HEALTHY = [], []
case = registering(CASES)  # losses of predictions [8, 3], labels [8] and inputs [8, 4]


def healthy(loss):
    HEALTHY.append(pytest.param(loss, id=loss.__name__))
    return loss


def one_hot(labels):
    return F.one_hot(labels, 3).float()


def report(loss, **hparams):
    class Brain(Classifier):
        def compute_objectives(self, predictions, batch, stage):
            return loss(predictions, batch[1], batch[0])

    torch.manual_seed(0)
    return Takeover().run(Brain({"head": Linear(4, 3)}, hparams=hparams).start)


@case("bce-on-probabilities", "error", "they come from a sigmoid", "binary_cross_entropy_with_logits, input 8 x 3")
def sigmoid_twice(scores, labels, inputs):
    return F.binary_cross_entropy_with_logits(scores.sigmoid(), one_hot(labels))


@case("bce-on-probabilities", "error", "they come from a sigmoid", "binary_cross_entropy_with_logits, input 8 x 3")
def softmax_and_bce(scores, labels, inputs):
    return losses.bce_loss(scores.softmax(-1)[:, None].squeeze(1), one_hot(labels))


@healthy
def logits_from_0_to_1(scores, labels, inputs):
    return F.binary_cross_entropy_with_logits(scores.clamp(0.2, 0.8), one_hot(labels))


@healthy
def bce_of_probabilities(scores, labels, inputs):
    return F.binary_cross_entropy(scores.sigmoid(), one_hot(labels))


@case(
    "loss-broadcast",
    "error",
    "its input has shape 8 x 1, but its target 8, so it compares 8 x 8 pairs",
    "mse_loss, input 8 x 1",
)
def one_output_for_each_item(scores, labels, inputs):
    return F.mse_loss(scores[:, :1], labels.float())


@case("loss-broadcast", "error", "its input has shape 8, but its target 8 x 1, so it compares 8 x 8 pairs", "l1_loss, input 8")
def one_target_for_each_item(scores, labels, inputs):
    return F.l1_loss(scores[:, 0], labels[:, None].float())


@healthy
def one_target_for_all(scores, labels, inputs):
    return F.mse_loss(scores, torch.ones(1)) + F.mse_loss(scores[:, :1], torch.zeros(8, 1))


@healthy
def pairs_that_are_meant(scores, labels, inputs):
    return F.l1_loss(scores[:, None], one_hot(labels)[None], reduction="none").min(1).values.mean()


@case("loss-of-itself", "error", "its input and its target are the same tensor", "mse_loss, input 8 x 3")
def predictions_twice(scores, labels, inputs):
    return losses.mse_loss(scores, scores) + F.cross_entropy(scores, labels)


@case("loss-of-itself", "error", "its input and its target are the same tensor", "l1_loss, input 8 x 3")
def nothing_but_itself(scores, labels, inputs):
    return F.l1_loss(scores, scores.detach())


@healthy
def halves_of_one_tensor(scores, labels, inputs):
    return F.mse_loss(scores[:4], scores[4:]) + F.mse_loss(scores[:, :2], scores[:, 1:])


@case("loss-maximized", "error", "training minimizes its negative, so it grows", "cross_entropy, input 8 x 3")
def minus_cross_entropy(scores, labels, inputs):
    return -F.cross_entropy(scores, labels)


@case("loss-maximized", "error", "training minimizes its negative, so it grows", "nll_loss, input 8 x 3 x 1")
def minus_nll_of_speechbrain(scores, labels, inputs):
    return -losses.nll_loss(scores.log_softmax(-1)[:, None], labels[:, None], torch.ones(8))


@case(
    "loss-maximized",
    "error",
    "training minimizes its negative, so it grows",
    "speechbrain.nnet.losses.cal_si_snr, input 3 x 1 x 1",
)
def minus_si_snr(scores, labels, inputs):
    return -losses.get_si_snr_with_pitwrapper(inputs[:, :3, None], scores[..., None]).mean()


@healthy
def si_snr(scores, labels, inputs):
    return losses.get_si_snr_with_pitwrapper(inputs[:, :3, None], scores[..., None]).mean()


@healthy
def focal_loss(scores, labels, inputs):
    loss = F.cross_entropy(scores, labels, reduction="none")
    return ((1 - (-loss).exp()) ** 2 * loss).mean()


@healthy
def distance_that_is_limited(scores, labels, inputs):
    return 9 - F.mse_loss(scores, inputs[:, :3])


@healthy
def negative_part_of_a_loss(scores, labels, inputs):
    return F.cross_entropy(scores, labels) - 0.1 * F.mse_loss(scores, inputs[:, :3])


def margin(kind, of, **options):
    def start(scores, labels, inputs):
        loss = losses.LogSoftmaxWrapper(kind(**options))
        return loss(of(scores)[:, None], labels[:, None])

    start.__name__ = f"{kind.__name__} of {of.__name__} with {options}"
    return start


def scores(x):
    return x * 10


def cosines(x):
    return x.tanh()


LIMITED = "it takes cosines, from -1 to 1, but gets values up to"
case("margin-without-cosine", "warning", LIMITED, "AdditiveAngularMargin, input 8 x 3")(
    margin(losses.AdditiveAngularMargin, scores, margin=0.2, scale=30)
)
case("margin-without-cosine", "warning", LIMITED, "AngularMargin, input 8 x 3")(
    margin(losses.AngularMargin, scores, margin=0.2, scale=30)
)
healthy(margin(losses.AdditiveAngularMargin, cosines, margin=0.2, scale=30))
healthy(margin(losses.AngularMargin, scores))


def smoothed(share):
    def by_torch(scores, labels, inputs):
        return F.cross_entropy(scores, labels, label_smoothing=share)

    def by_nll(scores, labels, inputs):
        return losses.nll_loss(scores.log_softmax(-1)[:, None], labels[:, None], torch.ones(8), label_smoothing=share)

    def by_kl_divergence(scores, labels, inputs):
        return losses.kldiv_loss(scores.log_softmax(-1)[:, None], labels[:, None], torch.ones(8), label_smoothing=share)

    for loss in (by_torch, by_nll, by_kl_divergence):
        loss.__name__ += f" {share}"
        yield loss


for loss, where in zip(
    smoothed(0.9), ("cross_entropy", "speechbrain.nnet.losses.nll_loss", "speechbrain.nnet.losses.kldiv_loss")
):
    case("smoothing-strong", "warning", "label_smoothing is 0.9, so the right class gets only 0.1", where)(loss)
for loss in smoothed(0.1):
    healthy(loss)


@pytest.mark.filterwarnings("ignore:Using a target size")
def report_of(folder, loss, *_):
    return report(loss)


@pytest.mark.parametrize("loss, code, level, what, where", CASES)
def test_a_mistake_is_reported(loss, code, level, what, where):
    found = report(loss)
    assert [(f.code, f.level) for f in found.findings] == [(code, level)], found.text()
    (finding,) = found.findings
    assert what in finding.what and finding.where.startswith(where) and finding.remedy
    assert not [said for said in found.said if "was checked" in said]


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("loss", HEALTHY)
def test_what_is_meant_is_not(loss):
    found = report(loss)
    assert not found.findings and not [said for said in found.said if "was checked" in said], found.text()


def test_a_generator_that_maximizes():
    """Two optimizers play against each other."""

    class GAN(Classifier):
        def init_optimizers(self):
            self.one, self.other = (torch.optim.SGD(module.parameters(), 0.1) for module in self.modules.values())

        def fit_batch(self, batch):
            made = self.modules.generator(batch[0])
            loss = -F.binary_cross_entropy_with_logits(self.modules.discriminator(made), torch.zeros(8, 1))
            loss.backward()
            self.one.step()
            return loss.detach()

        def evaluate_batch(self, batch, stage):
            return torch.ones(())

    found = Takeover().run(GAN({"generator": Linear(4, 4), "discriminator": Linear(4, 1)}, None).start)
    assert "loss-maximized" not in [finding.code for finding in found.findings], found.text()


def test_every_code_has_a_case():
    elsewhere = {"nll-without-log-softmax", "cross-entropy-on-probabilities"}  # in test_checks.py
    codes = {code for code, *_ in checks.MISTAKES} | {"loss-maximized"}
    assert codes - elsewhere == {param.values[1] for param in CASES} and codes <= set(checks.CODES)
