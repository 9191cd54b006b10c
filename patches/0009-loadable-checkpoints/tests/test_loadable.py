"""What a checkpoint saves can be loaded again."""

import types

import numpy as np
import pytest
import torch
import yaml
from speechbrain.nnet import schedulers
from speechbrain.utils import checkpoints
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.epoch_loop import EpochCounter, EpochCounterWithStopper

regression = pytest.mark.regression


def resumed(folder, made, obj, **options):
    """Save an object, and load the checkpoint into the objects that `made` makes."""
    Checkpointer(folder, {"it": obj}).save_checkpoint(**options)
    other = made()
    Checkpointer(folder, {"it": other}).recover_if_possible()
    return other


def stopper():
    return EpochCounterWithStopper(limit=50, limit_to_stop=2, limit_warmup=0, direction="min")


def train(counter, scores):
    """Count epochs until the counter stops; returns the last one."""
    for epoch in counter:
        counter.update_metric(scores[epoch - 1] if epoch <= len(scores) else scores[-1])
    return counter.current


@regression
@pytest.mark.parametrize("number", [float, np.float64, torch.tensor])
def test_a_run_that_stopped_early_stays_stopped(tmp_path, number):
    counter = stopper()
    assert train(counter, [number(s) for s in (3.0, 1.0, 2.0, 2.5)]) == 4
    other = resumed(tmp_path, stopper, counter)
    assert train(other, [0.0]) == 4
    assert (other.best_limit, other.best_score, type(other.best_score)) == (2, 1.0, float)


@regression
def test_a_stopper_goes_on_with_its_best_score(tmp_path):
    counter = stopper()
    next(counter)
    counter.update_metric(1.0)
    other = resumed(tmp_path, stopper, counter, end_of_epoch=False)
    assert other.current == 0 and other.best_score == 1.0
    assert train(other, [2.0]) == 3


@regression
def test_a_higher_limit_lets_a_stopped_run_go_on(tmp_path):
    counter = stopper()
    train(counter, [1.0, 2.0])
    other = resumed(tmp_path, lambda: EpochCounterWithStopper(50, 4, 0, "min"), counter)
    assert train(other, [2.0]) == 5


def test_a_counter_of_an_older_release_is_read(tmp_path):
    made = Checkpointer(tmp_path, {"it": stopper()})
    (made.save_checkpoint().path / "it.ckpt").write_text("3")
    made.recover_if_possible()
    assert made.recoverables["it"].current == 3


@regression
def test_marked_methods_of_a_class_that_is_not_registered_are_used(tmp_path):
    class Notes:
        text = "new"

        @checkpoints.mark_as_saver
        def save(self, path):
            path.write_text(self.text)

        @checkpoints.mark_as_loader
        def load(self, path, end_of_epoch):
            self.text = path.read_text()

    notes = Notes()
    notes.text = "old"
    assert resumed(tmp_path, Notes, notes).text == "old"


@regression
def test_scheduled_loss_and_inverse_square_root_continue(tmp_path):
    schedule = [{"steps": 2, "loss_fn": torch.nn.MSELoss()}, {"loss_fn": torch.nn.L1Loss()}]
    loss = schedulers.ScheduledLoss(schedule)
    for _ in range(3):
        loss(torch.ones(1), torch.ones(1))
    other = resumed(tmp_path / "loss", lambda: schedulers.ScheduledLoss(schedule), loss)
    assert other.n_steps == 3 and isinstance(other.current_loss_fn, torch.nn.L1Loss)
    scheduler = schedulers.InverseSquareRootScheduler(4)
    scheduler(types.SimpleNamespace(param_groups=[{"lr": 1.0}]))
    assert resumed(tmp_path / "lr", lambda: schedulers.InverseSquareRootScheduler(4), scheduler).n_steps == 1


def test_a_scheduled_loss_of_stock_is_read(tmp_path, caplog):
    made = Checkpointer(tmp_path, {"it": schedulers.ScheduledLoss([{"loss_fn": torch.nn.MSELoss()}])})
    torch.save(made.recoverables["it"].state_dict(), made.save_checkpoint().path / "it.ckpt")
    made.recover_if_possible()
    assert made.recoverables["it"].n_steps == 0


def newbob(score):
    scheduler = schedulers.NewBobScheduler(initial_value=0.1)
    scheduler(score)
    return scheduler


def adam(rate):
    torch.manual_seed(0)
    module = torch.nn.Linear(2, 1)
    optimizer = torch.optim.Adam(module.parameters(), lr=rate)
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return optimizer


@pytest.mark.parametrize(
    "make, number",
    [
        (newbob, float),
        (adam, float),
        pytest.param(newbob, np.float64, marks=regression),
        pytest.param(newbob, np.float32, marks=regression),
        pytest.param(adam, np.float64, marks=regression),
    ],
)
def test_numbers_of_numpy_are_saved_as_plain_numbers(tmp_path, make, number):
    other = resumed(tmp_path, lambda: make(0.5), make(number(0.25)))
    expected = make(0.25)
    if make is newbob:
        assert other.metric_values == [0.25] and type(other.metric_values[0]) is float
    else:
        assert repr(other.state_dict()) == repr(expected.state_dict())
    (file,) = tmp_path.glob("*/it.ckpt")
    torch.load(file, weights_only=True)


@regression
def test_numbers_of_numpy_in_files_of_stock_are_read(tmp_path):
    made = Checkpointer(tmp_path, {"it": newbob(1.0)})
    file = made.save_checkpoint().path / "it.ckpt"
    newbob(np.float64(0.25)).save(file)
    made.recover_if_possible()
    assert made.recoverables["it"].metric_values == [0.25]


@regression
@pytest.mark.parametrize("value", ["array", "object", "code"])
def test_what_could_not_be_loaded_is_an_error_when_it_is_saved(tmp_path, value):
    scheduler = newbob(1.0)
    scheduler.metric_values = {"array": np.ones(2), "object": [types.SimpleNamespace()], "code": [print]}[value]
    made = Checkpointer(tmp_path, {"scheduler": scheduler})
    with pytest.raises(
        RuntimeError, match=r"scheduler \(NewBobScheduler\) can be saved, but not loaded again: torch.load refuses"
    ):
        made.save_checkpoint()
    assert not list(tmp_path.iterdir())


@regression
def test_a_recoverable_without_a_loader_is_an_error_when_it_is_saved(tmp_path):
    made = Checkpointer(tmp_path)
    made.add_recoverable("notes", object(), custom_save_hook=lambda obj, path: path.touch())
    with pytest.raises(RuntimeError, match=r"notes \(object\) can be saved, but not .*no loader is known"):
        made.save_checkpoint()


@pytest.mark.parametrize("text", [None, "!!python/name:x", ""])
def test_files_with_their_own_loader_are_left_as_they_are(tmp_path, text):
    def write(obj, path):
        torch.save([print, np.float64(1)], path) if text is None else path.write_text(text)

    made = Checkpointer(tmp_path)
    made.add_recoverable("own", object(), custom_save_hook=write, custom_load_hook=lambda *_: None)
    saved = made.save_checkpoint().path / "own.ckpt"
    write(None, tmp_path / "own.ckpt")
    assert saved.read_bytes() == (tmp_path / "own.ckpt").read_bytes()
    assert made.recover_if_possible()


def test_files_of_a_healthy_run_are_as_on_stock(tmp_path):
    objects = {"counter": EpochCounter(9), "adam": adam(0.1), "newbob": newbob(0.5), "model": torch.nn.BatchNorm1d(2)}
    made = Checkpointer(tmp_path, objects)
    saved = made.save_checkpoint().path
    for name, obj in objects.items():
        checkpoints.get_default_hook(obj, checkpoints.DEFAULT_SAVE_HOOKS)(obj, tmp_path / f"{name}.ckpt")
        assert (saved / f"{name}.ckpt").read_bytes() == (tmp_path / f"{name}.ckpt").read_bytes()
    assert yaml.safe_load((saved / "counter.ckpt").read_text()) == 0
