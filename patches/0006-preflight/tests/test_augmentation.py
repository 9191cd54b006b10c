"""Labels that do not fit the items that augmentation makes are reported."""

import pytest
import torch
from speechbrain.augment.augmenter import Augmenter
from speechbrain.nnet import losses
from speechbrain.preflight.__main__ import Takeover
from speechbrain.preflight.checks import augmentation
from speechbrain.preflight.quiet import seed_all
from torch.nn import Linear
from torch.nn import functional as F

from brains import Classifier

CASES, HEALTHY = [], []


def case(code, level, what, remedy):
    """Register how labels [8] become targets, with what its finding says."""

    def register(options, start):
        CASES.append(pytest.param(start, options, code, level, what, remedy, id=f"{code}: {start.__name__} {options}"))

    return register


def healthy(options, start):
    HEALTHY.append(pytest.param(start, options, id=f"{start.__name__} {options}"))


def report(repeat, options, loss=F.cross_entropy):
    class Brain(Classifier):
        def compute_forward(self, batch, stage):
            x, lengths = batch[0][:, None].repeat(1, 6, 1), torch.ones(len(batch[0]))
            x = self.hparams.augment(x, lengths)[0] if stage.name == "TRAIN" else x
            return self.modules.head(x.mean(1))

        def compute_objectives(self, predictions, batch, stage):
            labels = batch[1] if stage.name != "TRAIN" else repeat(batch[1], self.hparams.augment)
            return loss(predictions, labels)

    seed_all(0)  # also Python's generator, from which the Augmenter draws whether it acts
    augment = Augmenter(augmentations=[torch.nn.Dropout(0.2), torch.nn.Dropout(0.4)], **options)
    return Takeover().run(Brain({"head": Linear(4, 3)}, hparams={"augment": augment}).start)


def not_at_all(labels, augment):
    return labels


def item_by_item(labels, augment):
    return labels.repeat_interleave(2)


def always(labels, augment):
    return labels.repeat(2)


def as_the_augmenter_says(labels, augment):
    return augment.replicate_labels(labels)


def nll(scores, labels):
    return losses.nll_loss(scores.log_softmax(-1)[:, None], labels[:, None], torch.ones(len(labels)))


def margin(scores, labels):
    return losses.LogSoftmaxWrapper(torch.nn.Identity())(scores[:, None], labels[:, None])


KEPT, PARALLEL = {"concat_original": True}, {"parallel_augment": True, "min_augmentations": 2}
REMEDY = "self.hparams.augment.replicate_labels"
for options in (KEPT, PARALLEL):
    case("labels-not-repeated", "error", "augmentation makes 16 items of 8, but the script does not repeat all labels", REMEDY)(
        options, not_at_all
    )
    case("labels-in-another-order", "warning", "with each item 2 times in a row", REMEDY)(options, item_by_item)
    for repeat in (always, as_the_augmenter_says):
        healthy(options, repeat)
for share in (0.01, 0.99):
    for repeat, which in ((not_at_all, "that are augmented"), (always, "that are not augmented")):
        first = (repeat is always) == (share < 0.5)  # the first step already fails
        code = (
            "labels-not-repeated" if first and repeat is not_at_all else "first-step-failed" if first else "augmentation-fails"
        )
        case(code, "error", "" if first else f"augment_prob is {share:g}, and the step fails in batches {which}", "")(
            {**KEPT, "augment_prob": share}, repeat
        )
    healthy({**KEPT, "augment_prob": share}, as_the_augmenter_says)
healthy({"augment_prob": 0.5}, not_at_all)


def report_of(folder, repeat, options, *_):
    return report(repeat, options)


@pytest.mark.parametrize("repeat, options, code, level, what, remedy", CASES)
def test_a_mistake_is_reported(repeat, options, code, level, what, remedy):
    found = report(repeat, options)
    assert [(f.code, f.level) for f in found.findings] == [(code, level)], found.text()
    assert what in found.findings[0].what and remedy in found.findings[0].remedy
    assert not [said for said in found.said if "was checked" in said]


@pytest.mark.parametrize("loss", [nll, margin])
def test_targets_of_other_losses(loss):
    for repeat, codes in ((item_by_item, ["labels-in-another-order"]), (always, [])):
        assert [finding.code for finding in report(repeat, KEPT, loss).findings] == codes


@pytest.mark.parametrize("repeat, options", HEALTHY)
def test_healthy_augmentation(repeat, options):
    found = report(repeat, options)
    assert not found.findings and not [said for said in found.said if "was checked" in said], found.text()


def test_every_code_has_a_case():
    assert set(augmentation.CODES) | {"first-step-failed"} == {param.values[2] for param in CASES}
