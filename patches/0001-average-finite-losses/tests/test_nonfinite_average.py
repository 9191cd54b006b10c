"""The average loss of a stage, and the order of checkpoints by it."""

import logging
import math

import pytest
import speechbrain as sb
import torch
import yaml
from speechbrain.utils.checkpoints import Checkpointer

nan, inf = math.nan, math.inf
regression = pytest.mark.regression


class Scripted(sb.Brain):
    """A Brain whose losses are its data."""

    def compute_forward(self, batch, stage):
        return self.modules.model(batch[0]) * 0 + batch[0]

    def compute_objectives(self, predictions, batch, stage):
        return predictions.mean()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        self.reported = stage_loss
        if stage == sb.Stage.VALID and self.checkpointer is not None:
            self.checkpointer.save_and_keep_only(meta={"loss": stage_loss}, min_keys=["loss"], importance_keys=[])


def scripted(checkpointer=None):
    return Scripted({"model": torch.nn.Linear(1, 1)}, run_opts={"device": "cpu"}, checkpointer=checkpointer)


def batches(losses):
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.tensor(losses, dtype=torch.float32)[:, None]))


@pytest.mark.parametrize(
    "losses, average, skipped",
    [
        ([2.0, 4.0], 3.0, 0),
        ([0.0, 0.0], 0.0, 0),
        ([2.0, 4.0, nan], 3.0, None),  # on stock right by luck, without a warning
        pytest.param([2.0, nan, 4.0], 3.0, 1, marks=regression),
        pytest.param([nan, 2.0, inf, nan, 4.0], 3.0, 3, marks=regression),
        pytest.param([nan], nan, 1, marks=regression),
        pytest.param([nan, nan, -inf], nan, 3, marks=regression),
        pytest.param([], nan, 0, marks=regression),
    ],
)
def test_a_stage_reports_the_average_of_its_finite_losses(caplog, losses, average, skipped):
    brain = scripted()
    assert brain.evaluate(batches(losses), progressbar=False) == pytest.approx(average, nan_ok=True)
    assert brain.reported == pytest.approx(average, nan_ok=True)
    brain._fit_valid(batches(losses), epoch=1, enable=False)
    assert brain.reported == pytest.approx(average, nan_ok=True)
    warnings = [r.getMessage() for r in caplog.records if "not finite" in r.getMessage()]
    if skipped is not None:
        assert warnings == [
            f"{skipped} losses of {s} were not finite; the average leaves them out."
            for s in ("the test", "validation in epoch 1")
        ] * bool(skipped)


@regression
def test_the_loss_of_training_without_a_batch_is_nan():
    brain = scripted()
    brain._fit_train(batches([]), epoch=1, enable=False)
    assert math.isnan(brain.reported)


@regression
def test_an_average_is_resumed_from_a_checkpoint(tmp_path):
    brain = scripted(Checkpointer(tmp_path))
    average = 0.0
    for brain.step, loss in enumerate([nan, 2.0], start=1):
        average = brain.update_average(torch.tensor(loss), average)
    brain.avg_train_loss = average
    brain.checkpointer.save_checkpoint(end_of_epoch=False)
    other = scripted(Checkpointer(tmp_path))
    other.checkpointer.recover_if_possible()
    other.step += 1
    assert other.update_average(torch.tensor(4.0), other.avg_train_loss) == 3.0


def test_a_brain_recovers_from_a_stock_checkpoint(tmp_path):
    (tmp_path / "brain.ckpt").write_text(yaml.dump({"step": 3, "avg_train_loss": 2.0, "optimizer_step": 3}))
    brain = scripted()
    brain._recover(tmp_path / "brain.ckpt", False)
    assert (brain.step, brain.avg_train_loss, getattr(brain, "nonfinite_skipped", 0)) == (3, 2.0, 0)


@regression
def test_an_epoch_of_nan_is_not_the_best(tmp_path):
    brain = scripted(Checkpointer(tmp_path))
    for epoch, loss in enumerate([2.0, 1.0, nan], start=1):
        brain.modules.model.bias.data.fill_(loss)
        brain._fit_valid(batches([loss] * 3), epoch, enable=False)
    assert brain.checkpointer.find_checkpoint(min_key="loss").meta["loss"] == 1.0


KEYS = {
    "min_key": {"min_key": "loss"},
    "max_key": {"max_key": "loss"},
    "importance_key": {"importance_key": lambda c: c.meta["loss"]},
    "a tuple": {"importance_key": lambda c: (1, c.meta["loss"])},
}


def saved(folder, losses):
    checkpointer = Checkpointer(folder)
    for time, loss in enumerate(losses):
        checkpointer.save_checkpoint(meta={"loss": loss, "unixtime": time}, verbosity=logging.DEBUG)
    return checkpointer


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
@pytest.mark.parametrize(
    "losses, order",
    [
        ([2.0, 1.0, 3.0], [1, 2, 3]),
        ([2.0, 2.0, 1.0], [1, 2, 2]),
        pytest.param([2.0, nan, 1.0, nan, 3.0], [1, 2, 3, nan, nan], marks=regression),
        pytest.param([nan, 3.0, nan, 1.0, 2.0, nan], [1, 2, 3, nan, nan, nan], marks=regression),
    ],
)
def test_nan_ranks_last(tmp_path, key, losses, order):
    found = saved(tmp_path, losses).find_checkpoints(**key)
    finite = [loss for loss in order if loss == loss]
    expected = (finite if "min_key" in key else finite[::-1]) + [loss for loss in order if loss != loss]
    assert [checkpoint.meta["loss"] for checkpoint in found] == pytest.approx(expected, nan_ok=True)
    for loss in set(finite) | {nan}:  # equal losses: newest first
        times = [
            c.meta["unixtime"] for c in found if c.meta["loss"] == loss or loss != loss != c.meta["loss"] != c.meta["loss"]
        ]
        assert times == sorted(times, reverse=True)


@pytest.mark.parametrize(
    "losses, keep, left",
    [
        ([2.0, 1.0, 3.0], 1, [1.0]),
        pytest.param([nan, 1.0, nan, 2.0], 1, [1.0], marks=regression),
        ([nan, 1.0, nan], 2, [1.0, nan]),
        ([nan, nan], 2, [nan, nan]),
        ([nan, 1.0, nan], 0, []),
    ],
)
def test_deleting_keeps_finite_losses_first(tmp_path, losses, keep, left):
    checkpointer = saved(tmp_path, losses)
    assert len(checkpointer.list_checkpoints()) == len(losses)
    checkpointer.delete_checkpoints(num_to_keep=keep, min_keys=["loss"], importance_keys=[], verbosity=logging.DEBUG)
    kept = sorted((c.meta["loss"] for c in checkpointer.list_checkpoints()), key=lambda loss: (loss != loss, loss))
    assert kept == pytest.approx(left, nan_ok=True)


def test_a_key_and_a_function_cannot_be_combined(tmp_path):
    with pytest.raises(ValueError, match="only one of"):
        Checkpointer(tmp_path).find_checkpoints(min_key="loss", importance_key=len)


@regression
def test_evaluate_does_not_change_the_given_dictionary():
    options = {"batch_size": 2}
    scripted().evaluate(torch.utils.data.TensorDataset(torch.ones(2, 1)), progressbar=False, test_loader_kwargs=options)
    assert options == {"batch_size": 2}


@regression
def test_asking_for_more_checkpoints_than_are_kept_is_said(tmp_path, caplog):
    checkpointer = Checkpointer(tmp_path)
    for _ in range(3):
        checkpointer.save_and_keep_only(num_to_keep=2)
    assert len(checkpointer.find_checkpoints(max_num_checkpoints=5)) == 2
    assert (
        f"5 checkpoints are asked for, but {tmp_path} has 2 of this kind: save_and_keep_only() keeps num_to_keep=2"
        in caplog.text
    )


@pytest.mark.parametrize("num_to_keep, asked", [(1, 1), (3, 3), (5, 5), (5, 2), (5, None)])
def test_asking_for_as_many_checkpoints_as_are_kept_is_not(tmp_path, caplog, num_to_keep, asked):
    checkpointer = Checkpointer(tmp_path)
    for _ in range(3):
        checkpointer.save_and_keep_only(num_to_keep=num_to_keep)
    checkpointer.find_checkpoints(max_num_checkpoints=asked)
    Checkpointer(tmp_path).find_checkpoints(max_num_checkpoints=9)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@regression
def test_lists_have_a_lowest(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    for score in ([1, 3], [1, 2], [2, 1]):
        checkpointer.save_checkpoint({"score": score})
    assert checkpointer.find_checkpoint(min_key="score").meta["score"] == [1, 2]
    assert checkpointer.find_checkpoint(max_key="score").meta["score"] == [2, 1]
