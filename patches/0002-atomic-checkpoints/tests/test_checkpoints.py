"""Checkpoints are written whole or not at all, and damaged ones are skipped."""

import fractions
import logging
import math
import os
import pathlib
import pickle
import shutil
from contextlib import nullcontext

import numpy as np
import pytest
import speechbrain as sb
import torch
import yaml
from speechbrain.utils import checkpoints
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.epoch_loop import EpochCounter

regression = pytest.mark.regression
HIDDEN = (".saving-", ".deleting-", ".replaced-")


def build(folder, value=0.0, **options):
    """A checkpointer of a module filled with a value, a counter and an object saved by pickle."""
    model = torch.nn.Linear(300, 1)
    model.weight.data.fill_(value)
    counter = EpochCounter(9)
    counter.current = int(value)
    made = Checkpointer(folder, {"model": model, "counter": counter}, **options)
    made.add_recoverable("notes", [value] * 99, custom_save_hook=save_pickle, custom_load_hook=load_pickle)
    return made


def save_pickle(obj, path):
    with open(path, "wb") as file:
        pickle.dump(obj, file)


def load_pickle(obj, path, end_of_epoch):
    with open(path, "rb") as file:
        obj[:] = pickle.load(file)


def fill(made, value):
    made.recoverables["model"].weight.data.fill_(value)
    made.recoverables["counter"].current = int(value)
    made.recoverables["notes"][:] = [value] * 99


def values(made):
    model, counter, notes = made.recoverables.values()
    return {*model.weight.data.unique().tolist(), float(counter.current), *notes}


def save(folder, *saved, **options):
    """Save a checkpoint for each value; higher values have a later time and a lower loss."""
    made = build(folder)
    for value in saved:
        fill(made, value)
        made.save_checkpoint({"unixtime": value, "loss": -value}, name=f"{value:.0f}", verbosity=logging.DEBUG, **options)
    return made


def hidden(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(HIDDEN)]


def in_a_process_that_is_killed(run):
    """Run in a forked process, which must kill itself before `run` returns."""
    child = os.fork()
    if not child:
        try:
            run()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9, "it was not killed"


def die(*_):
    os._exit(9)


@pytest.mark.parametrize(
    "victim",
    [
        pytest.param("model", marks=regression),
        pytest.param("counter", marks=regression),
        pytest.param("notes", marks=regression),
    ],
)
@pytest.mark.parametrize("how", [die, "raise"], ids=["killed", "raised"])
def test_after_an_interrupted_save_the_previous_checkpoint_is_the_newest(tmp_path, victim, how):
    made = save(tmp_path, 1.0)

    def full(obj, path):
        path.write_bytes(b"PK half")
        die() if how is die else (_ for _ in ()).throw(OSError("No space left on device"))

    made.custom_save_hooks[victim] = full
    fill(made, 2.0)
    if how is die:
        in_a_process_that_is_killed(lambda: made.save_checkpoint(name="2"))
    else:
        with pytest.raises(OSError, match="No space left"):
            made.save_checkpoint(name="2")
        assert not hidden(tmp_path)
    resumed = build(tmp_path)
    assert resumed.recover_if_possible().path.name == "CKPT+1"
    assert values(resumed) == {1.0}
    resumed.save_checkpoint()
    assert not hidden(tmp_path) and len(resumed.list_checkpoints()) == 2


@regression
@pytest.mark.parametrize("renames", [0, 1])
def test_a_named_checkpoint_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch, renames):
    made = save(tmp_path, 1.0)
    fill(made, 2.0)
    calls = []

    def rename(source, target):
        die() if len(calls) == renames else calls.append(os.replace(source, target))

    def interrupted():
        monkeypatch.setattr(os, "rename", rename)
        made.save_checkpoint(name="1")

    in_a_process_that_is_killed(interrupted)
    resumed = build(tmp_path)
    assert resumed.recover_if_possible() and values(resumed) == {1.0}
    made.save_checkpoint(name="1")
    assert resumed.recover_if_possible() and values(resumed) == {2.0}
    assert [path.name for path in tmp_path.iterdir()] == ["CKPT+1"]


@regression
def test_an_interrupted_deletion_leaves_no_partial_checkpoint(tmp_path, monkeypatch):
    made = save(tmp_path, 1.0, 2.0)
    oldest = made.find_checkpoints()[-1]

    def rmtree(path, ignore_errors=False):
        if os.path.exists(path):
            os.remove(next(entry.path for entry in os.scandir(path) if entry.name != "CKPT.yaml"))
            die()

    def interrupted():
        monkeypatch.setattr(shutil, "rmtree", rmtree)
        made._delete_checkpoint(oldest)

    in_a_process_that_is_killed(interrupted)
    assert [c.path.name for c in made.list_checkpoints()] == ["CKPT+2"]
    made.save_checkpoint(name="3")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["CKPT+2", "CKPT+3"]


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)


def zero(path):
    path.write_bytes(bytes(path.stat().st_size))


def empty(path):
    path.write_bytes(b"")


def remove(path):
    path.unlink()


def scramble(path):
    path.write_text("{half a mapping: [")


DAMAGES = [
    *((name, how) for name in ("model", "notes") for how in (cut, zero, empty, remove)),
    ("model", flip),
    ("counter", zero),
    ("counter", empty),
    ("counter", remove),
    ("CKPT.yaml", cut),
    ("CKPT.yaml", empty),
    ("CKPT.yaml", zero),
    ("CKPT.yaml", scramble),
]


def damage(folder, name, how):
    how(folder / (name if name == "CKPT.yaml" else f"{name}.ckpt"))


@regression
@pytest.mark.parametrize("name, how", DAMAGES)
@pytest.mark.parametrize(
    "keys", [{}, {"min_key": "loss"}, {"importance_key": lambda c: -c.meta["loss"]}], ids=["newest", "key", "function"]
)
def test_a_damaged_checkpoint_is_skipped(tmp_path, caplog, name, how, keys):
    save(tmp_path, 1.0, 3.0, 2.0)
    damage(tmp_path / "CKPT+3", name, how)
    made = build(tmp_path)
    assert made.recover_if_possible(**keys).path.name == "CKPT+2"
    assert values(made) == {2.0}
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == 1 and f"Skipping {tmp_path / 'CKPT+3'}" in warnings[0] and name in warnings[0]


@regression
@pytest.mark.parametrize("name, how", [("model", cut), ("notes", cut), ("counter", zero), ("CKPT.yaml", scramble)])
def test_training_does_not_start_from_scratch_if_no_checkpoint_can_be_read(tmp_path, name, how):
    save(tmp_path, 1.0, 2.0)
    for folder in list(tmp_path.iterdir()):
        damage(folder, name, how)
    made = build(tmp_path, 7.0)
    with pytest.raises(RuntimeError, match=r"None of the 2 checkpoints in .* can be read"):
        made.recover_if_possible()
    assert values(made) == {7.0}


def test_a_folder_without_checkpoints_is_not_an_error(tmp_path):
    assert build(tmp_path).recover_if_possible() is None


def test_loading_a_given_checkpoint_that_is_damaged_still_raises(tmp_path):
    made = save(tmp_path, 1.0, 2.0)
    damage(tmp_path / "CKPT+2", "model", cut)
    with pytest.raises(RuntimeError):
        made.load_checkpoint(made.find_checkpoint())


def test_a_state_that_does_not_fit_the_model_is_still_an_error(tmp_path):
    save(tmp_path, 1.0, 2.0)
    made = build(tmp_path)
    made.recoverables["model"] = torch.nn.Linear(3, 1)
    with pytest.raises(RuntimeError, match="size mismatch"):
        made.recover_if_possible()
    made = build(tmp_path)
    made.add_recoverable("new", torch.nn.Linear(1, 1))
    with pytest.raises(RuntimeError, match="missing a load path for new"):
        made.recover_if_possible()


def test_a_recoverable_that_was_never_saved_raises_as_on_stock(tmp_path):
    made = save(tmp_path, 1.0)
    made.add_recoverable("new", torch.nn.Linear(1, 1))
    made.save_checkpoint({"unixtime": 2.0}, name="2")
    with pytest.raises(RuntimeError, match="missing a load path for new"):
        made.recover_if_possible(importance_key=lambda checkpoint: -checkpoint.meta["unixtime"])


@pytest.mark.parametrize("tolerated", ["dataloader-TRAIN", "optional", "partial"])
def test_files_that_stock_allows_to_be_absent_are_not_damage(tmp_path, tolerated):
    save(tmp_path, 1.0)
    both = build(tmp_path, 2.0)
    both.add_recoverable(tolerated, torch.nn.Linear(1, 1))
    both.save_checkpoint({"unixtime": 2.0}, name="2")
    fill(both, 3.0)
    del both.recoverables[tolerated]
    both.save_checkpoint({"unixtime": 3.0}, name="3")
    made = build(tmp_path, allow_partial_load=tolerated == "partial")
    made.add_recoverable(tolerated, torch.nn.Linear(1, 1), optional_load=tolerated == "optional")
    with pytest.warns(UserWarning, match="missing a load path") if tolerated != "partial" else nullcontext():
        assert made.recover_if_possible().path.name == "CKPT+3"


def test_a_file_that_is_empty_in_every_checkpoint_is_left_to_its_loader(tmp_path):
    made = save(tmp_path, 1.0)
    made.add_recoverable("mark", object(), custom_save_hook=lambda o, p: p.touch(), custom_load_hook=lambda o, p, e: None)
    made.save_checkpoint({"unixtime": 5.0}, name="5")
    made.save_checkpoint({"unixtime": 6.0}, name="6")
    assert made.recover_if_possible().path.name == "CKPT+6"


@regression
def test_each_save_searches_the_folder_equally_often(tmp_path, monkeypatch):
    made, searches = build(tmp_path), []
    find = checkpoints.Checkpointer.find_checkpoints
    monkeypatch.setattr(Checkpointer, "find_checkpoints", lambda self, *a, **k: searches.append(1) or find(self, *a, **k))
    counts = []
    for _ in range(4):
        made.save_and_keep_only(verbosity=logging.DEBUG)
        counts.append(len(searches))
        searches.clear()
    assert set(counts) == {2}


def test_a_checkpoint_has_the_same_place_and_content_as_on_stock(tmp_path):
    made = build(tmp_path, 4.0)
    done = made.save_checkpoint({"loss": 1.0}, end_of_epoch=False)
    assert done.path.name.startswith("CKPT+2") and done.path.parent == tmp_path
    assert sorted(path.name for path in done.path.iterdir()) == ["CKPT.yaml", "counter.ckpt", "model.ckpt", "notes.ckpt"]
    assert done.meta["loss"] == 1.0 and done.meta["end-of-epoch"] is False and done.meta["unixtime"] > 0
    assert done.paramfiles == {name: done.path / f"{name}.ckpt" for name in ("model", "counter", "notes")}
    assert made.list_checkpoints() == [done]


METAS = [
    (3.5, 3.5),
    (True, True),
    (math.nan, math.nan),
    ("text", "text"),
    ({"a": [1, None]}, {"a": [1, None]}),
    *(
        pytest.param(*case, marks=regression)
        for case in [
            (np.float64(3.5), 3.5),
            (np.float32(math.inf), math.inf),
            (np.mean([1, 2]), 1.5),
            (np.int64(3), 3),
            (np.bool_(True), True),
            (torch.tensor(3.5), 3.5),
            (torch.tensor(3, dtype=torch.int16), 3),
            (torch.tensor(math.nan, requires_grad=True), math.nan),
            (torch.tensor([[1.0, 2.0]], dtype=torch.bfloat16), [[1.0, 2.0]]),
            (fractions.Fraction(1, 2), 0.5),
            ((1, 2.5), [1, 2.5]),
            ({"a": (np.int8(1), {np.int64(2): torch.tensor(3)})}, {"a": [1, {2: 3}]}),
        ]
    ),
]


@pytest.mark.parametrize("value, expected", METAS, ids=repr)
def test_numbers_of_any_kind_in_the_meta_are_saved_as_plain_numbers(tmp_path, value, expected):
    made = build(tmp_path)
    for _ in range(2):
        made.save_and_keep_only({"score": value})
    (found,) = made.list_checkpoints()
    assert repr(found.meta["score"]) == repr(expected)
    assert yaml.safe_load((found.path / "CKPT.yaml").read_text()).keys() == found.meta.keys()
    assert made.recover_if_possible(max_key="score").path == found.path


@regression
@pytest.mark.parametrize("value", [pathlib.Path("x"), object(), torch.float32, {(1, 2): 3}, {"a": [1j]}, np.array([print])])
def test_a_meta_that_could_not_be_read_is_refused_before_anything_is_written(tmp_path, value):
    made = build(tmp_path)
    made.custom_save_hooks["model"] = lambda *_: pytest.fail("written")
    with pytest.raises(ValueError, match=f"cannot have 'place', a {type(value).__name__}, .*Use numbers"):
        made.save_checkpoint({"loss": 1.0, "place": value})
    assert not list(tmp_path.iterdir())


@regression
@pytest.mark.parametrize("value", [np.float64(3.5), np.float32(3.5), torch.tensor(3.5), torch.tensor([1.0, 3.5])[1], (1, 2)])
@pytest.mark.parametrize("numpy", ["numpy._core", "numpy.core"])
def test_a_meta_that_stock_has_saved_is_read(tmp_path, value, numpy):
    made = save(tmp_path, 1.0)
    path = tmp_path / "CKPT+1" / "CKPT.yaml"
    text = yaml.dump({**made.find_checkpoint().meta, "score": value})
    path.write_text(text.replace("numpy._core", numpy).replace("numpy.core", numpy))
    expected = list(value) if isinstance(value, tuple) else value
    assert made.recover_if_possible(max_key="score").meta["score"] == expected


@regression
def test_code_in_a_meta_file_is_not_run(tmp_path, caplog):
    made = save(tmp_path, 1.0, 2.0)
    with open(tmp_path / "CKPT+2" / "CKPT.yaml", "a") as file:
        file.write(f"payload: !!python/object/apply:os.mkdir [{tmp_path / 'payload'}]\n")
    assert made.recover_if_possible().path.name == "CKPT+1"
    assert not (tmp_path / "payload").exists() and "could not determine a constructor" in caplog.text


@regression
@pytest.mark.parametrize("keys", [{"min_key": "WER"}, {"max_key": "WER"}, {"min_key": "WER", "ckpt_predicate": lambda c: True}])
def test_a_key_that_no_checkpoint_has_is_an_error(tmp_path, keys):
    save(tmp_path, 1.0, 2.0)
    made = build(tmp_path, 7.0)
    with pytest.raises(ValueError, match=r"No checkpoint in .* has the key 'WER'\. Their keys: 'loss'\. Use one"):
        made.recover_if_possible(**keys)
    assert values(made) == {7.0}


def test_a_key_that_some_checkpoints_have_is_used(tmp_path):
    made = save(tmp_path, 1.0, 2.0)
    assert build(tmp_path / "empty").recover_if_possible(min_key="WER") is None
    assert made.recover_if_possible(min_key="loss", ckpt_predicate=lambda c: False) is None
    made.save_checkpoint({"unixtime": 0.5, "WER": 3})
    assert made.recover_if_possible(min_key="WER").meta["WER"] == 3


def test_checkpoints_within_an_epoch_need_no_key(tmp_path):
    made = save(tmp_path, 1.0, end_of_epoch=False)
    assert made.recover_if_possible(min_key="WER") is None


def plain_text(obj, path):
    path.write_text("PK is not a zip")


def eight_zeros(obj, path):
    path.write_bytes(bytes(8) + b"\x01")


def not_a_pickle(obj, path):
    path.write_bytes(b"\x80" + bytes(7))


def read_only_copy(obj, path):
    path.write_text("copied")
    path.chmod(0o444)


def link_to_nowhere(obj, path):
    path.symlink_to("nowhere")


def without_checksums(obj, path):
    torch.serialization.set_crc32_options(False)
    torch.save(torch.nn.Linear(3, 3).state_dict(), path)
    torch.serialization.set_crc32_options(True)


@pytest.mark.parametrize(
    "write",
    [plain_text, eight_zeros, not_a_pickle, read_only_copy, link_to_nowhere, without_checksums],
    ids=lambda f: f.__name__,
)
def test_files_of_any_kind_are_saved_and_not_taken_for_damage(tmp_path, write):
    made = build(tmp_path)
    made.add_recoverable("own", object(), custom_save_hook=write, custom_load_hook=lambda *_: None)
    saved = made.save_checkpoint()
    assert made.recover_if_possible() == saved


def test_a_checkpoint_in_a_read_only_folder_is_found(tmp_path, monkeypatch):
    made = save(tmp_path, 1.0)
    (tmp_path / ".replaced-CKPT+0").mkdir()
    monkeypatch.setattr(os, "rename", lambda *_: (_ for _ in ()).throw(PermissionError("read-only")))
    assert made.recover_if_possible().path.name == "CKPT+1"


MAIN_ONLY = """
import time, torch, speechbrain as sb
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.distributed import if_main_process, run_on_main

sb.utils.distributed.ddp_init_group({"distributed_backend": "gloo"})
checkpointer = Checkpointer("save", {"model": torch.nn.Linear(2, 2)})
time.sleep(not if_main_process())
checkpointer.recover_if_possible() if if_main_process() else None
checkpointer.save_checkpoint(name="both")
run_on_main(checkpointer.save_checkpoint, kwargs={"name": "main"})
print(len(checkpointer.list_checkpoints()), "saved", flush=True)
checkpointer.max_wait = 2
if if_main_process():
    checkpointer.save_checkpoint()
torch.distributed.barrier()
"""


@regression
def test_a_process_that_saves_alone_does_not_wait_forever(torchrun):
    status, output = torchrun(MAIN_ONLY)
    assert status == 1 and output.count("2 saved") == 2, output
    assert " s in save_checkpoint() for these processes: 1. All processes have to call it" in output


@pytest.mark.cuda
@pytest.mark.parametrize("saves, loads", [("cuda", "cuda"), ("cuda", "cpu"), ("cpu", "cuda")])
def test_a_run_resumes_on_the_device_that_it_gets(tmp_path, saves, loads):
    class Brain(sb.Brain):
        def compute_forward(self, batch, stage):
            return self.modules.model(batch[0].to(self.device))

        def compute_objectives(self, predictions, batch, stage):
            return predictions.pow(2).mean()

    def train(device, epochs):
        torch.manual_seed(0)
        modules, counter = {"model": torch.nn.Linear(4, 4)}, EpochCounter(epochs)
        checkpointer = Checkpointer(tmp_path, {**modules, "counter": counter})
        options = {"device": device, "noprogressbar": True}
        brain = Brain(modules, lambda p: torch.optim.Adam(p, lr=0.1), {}, options, checkpointer)
        brain.fit(counter, [(torch.eye(4),)])
        checkpointer.save_and_keep_only()
        return brain

    before = [p.detach().cpu() for p in train(saves, 1).modules.parameters()]
    brain = train(loads, 1)  # it is at its limit, and only loads
    assert all(torch.equal(one, two.detach().cpu()) for one, two in zip(before, brain.modules.parameters()))
    brain = train(loads, 2)
    (moments,) = {state["exp_avg"].device.type for state in brain.optimizer.state.values()}
    assert moments == loads and brain.optimizer_step == 2
