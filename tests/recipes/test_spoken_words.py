"""The recipe SpokenWords: training on the stock release and on the fork, and the files that a run writes."""

import contextlib
import csv
import errno
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import speechbrain as sb
import torch
from speechbrain.inference.classifiers import EncoderClassifier

from composer import record
from embeddings import Embeddings, digest_of, keep, key_of
from results import advice_on_storage, refuse_to_replace
from scripts import RECIPE, command, environment, forked, run, same, weights
from train import KeywordBrain


def test_the_recipe_crashes_on_the_stock_release(fine_tuning, tmp_path, stock):
    status, said = run("train.py", *fine_tuning(tmp_path), stock=stock)
    assert status == 1 and said.strip().endswith("ValueError: math domain error")
    assert re.search(r"(?s)in __init__\n.*in print_trainable_parameters\n.*in format_order_of_magnitude\n", said)


def test_the_recipe_trains_on_the_fork(finetuned):
    folder, said = finetuned
    assert re.search(r"head: embedding_model: 0 trainable of [\d.]+k parameters", said)
    assert re.search(r"full: embedding_model: ([\d.]+k) trainable of \1 parameters", said)
    before, after = (float(e) for e in re.findall(r"Test error \w+ fine-tuning: ([\d.]+)%", said))
    assert after < before
    metrics = json.loads((folder / "metrics.json").read_text())
    assert f"{metrics['full']['test_error']:.1%}" == f"{after}%"
    assert [len(metrics[stage]["epochs"]) for stage in ("head", "full")] == [15, 3]
    for picture in ("curves.png", "confusion.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
    worst = [float(row["probability"]) for row in csv.DictReader(open(folder / "worst_clips.csv"))]
    assert worst == sorted(worst) and len(worst) > 10
    assert not list(folder.rglob("*.part"))


def test_the_first_stage_does_not_change_the_frozen_encoder(fine_tuning, pretrained, tmp_path):
    status, said = forked("train.py", *fine_tuning(tmp_path, unfreeze=False, cache_embeddings=False, head_epochs=1))
    assert status == 0, said
    before, after = (torch.load(folder / "embedding_model.ckpt") for folder in (pretrained, tmp_path / "inference"))
    assert same(list(before.values()), list(after.values()))  # its BatchNorm statistics too


def test_cached_and_uncached_runs_with_the_same_seed_end_with_the_same_weights(fine_tuning, finetuned, tmp_path):
    status, said = forked("train.py", *fine_tuning(tmp_path, cache_embeddings=False))
    assert status == 0, said
    assert same(weights(tmp_path), weights(finetuned[0]))
    assert (tmp_path / "worst_clips.csv").read_text() == (finetuned[0] / "worst_clips.csv").read_text()


def test_the_same_command_trains_nothing_more_and_another_run_is_refused(fine_tuning, finetuned, pretrained, tmp_path):
    folder, said = finetuned
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    status, again = forked("train.py", *fine_tuning(copy))
    errors = r"Test error \w+ fine-tuning: [\d.]+%"
    assert status == 0 and "Going into epoch" not in again and re.findall(errors, again) == re.findall(errors, said)
    assert same(weights(copy), weights(folder))
    status, said = forked("train.py", *fine_tuning(copy, words="[dog]"))
    assert status == 1 and "belongs to a run with words ['cat', 'dog'], not ['dog']: use another --output_folder" in said
    status, said = forked("train.py", *fine_tuning(copy, clip_seconds=0.5))
    assert status == 1 and "belongs to a run with clip_seconds 1.0, not 0.5: use another --output_folder" in said
    retrained = tmp_path / "pretrained"
    shutil.copytree(pretrained, retrained)
    status, said = forked("train.py", *fine_tuning(copy, source=retrained))
    assert status == 1 and f"belongs to a run with source {pretrained}, not {retrained}: use another --output_folder" in said
    recorded = json.loads((copy / "run_on.json").read_text())
    (copy / "run_on.json").write_text(json.dumps({**recorded, "encoder_digest": "of another training"}))
    status, said = forked("train.py", *fine_tuning(copy))
    assert status == 1 and "belongs to a run with encoder_digest of another training, not" in said


@pytest.mark.parametrize(
    "options, said",
    [
        ({"source": "no_such_folder"}, "there is no folder no_such_folder: run pretrain.py first"),
        ({"emb_dim": "5"}, "has emb_dim 64: run again with --emb_dim 64"),
        ({"sample_rate": "8000"}, "has sample_rate 16000: run again with --sample_rate 16000"),
        ({"clip_seconds": "0.01"}, "clip_seconds is 0.01: it must be at least 0.1, because a word takes that long"),
        ({"data_folder": "no_such_folder"}, "no_such_folder is not a folder, or is empty: correct data_folder"),
    ],
)
def test_the_error_names_a_wrong_option_and_the_remedy(fine_tuning, tmp_path, options, said):
    status, output = forked("train.py", *fine_tuning(tmp_path, **options))
    assert status == 1 and said in output


@functools.cache
def help_of(script):
    """Run a script with --help; returns its exit status, its output and the names of the modules that it imports."""
    python, *arguments = command(script, "--help")
    done = subprocess.run(
        [python, "-X", "importtime", *arguments],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    line = r"(?m)^import time:.*\| +(.+)\n"
    return done.returncode, re.sub(line, "", done.stdout), set(re.findall(line, done.stdout))


@pytest.mark.parametrize("script", ["train.py", "pretrain.py"])
def test_help_shows_the_commands(script):
    status, said, _ = help_of(script)
    assert status == 0 and f"> python {script} hparams/" in said and "Each key of the YAML is an option" in said
    assert said.startswith(f"{script}: importing PyTorch")


@pytest.mark.parametrize(
    "script, slow",
    [
        ("train.py", ("torch._dynamo", "matplotlib")),
        ("pretrain.py", ("torch._dynamo", "matplotlib")),
        ("infer.py", ("torch", "speechbrain")),
        ("../make_spoken_words.py", ("torch", "speechbrain", "scipy.signal")),
    ],
)
def test_help_answers_before_slow_imports(script, slow):
    status, _, imported = help_of(script)
    assert status == 0 and "argparse" in imported and not {*slow} & imported


def killed(options, when, folder):
    """Start train.py, kill it once ``when(folder)`` is true, and run it again."""
    process = subprocess.Popen(
        command("train.py", *options),
        cwd=RECIPE / "finetuning",
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and not when(folder):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    return forked("train.py", *options)


def epochs(folder, stage):
    try:
        return len(json.loads((folder / "metrics.json").read_text())[stage]["epochs"])
    except (FileNotFoundError, KeyError):
        return 0


@pytest.mark.parametrize("stage, number", [("head", 7), ("full", 1)])
def test_a_killed_run_resumes_to_the_same_weights(fine_tuning, finetuned, tmp_path, stage, number):
    status, said = killed(fine_tuning(tmp_path), lambda folder: epochs(folder, stage) >= number, tmp_path)
    assert status == 0, said
    assert same(weights(tmp_path), weights(finetuned[0]))
    assert (tmp_path / "worst_clips.csv").read_text() == (finetuned[0] / "worst_clips.csv").read_text()


# Runs a script that waits for a lock, and makes it wait a hundredth of the time.
IMPATIENT = """
import filelock, runpy, sys
acquire = filelock.FileLock.acquire
filelock.FileLock.acquire = lambda lock, timeout=None: acquire(lock, timeout and timeout / 100)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_two_runs_cannot_write_to_one_folder(fine_tuning, finetuned, tmp_path):
    from filelock import FileLock

    (tmp_path / "impatient.py").write_text(IMPATIENT)
    with FileLock(finetuned[0] / ".lock"):
        status, said = forked(tmp_path / "impatient.py", *command("train.py", *fine_tuning(finetuned[0]))[1:])
    assert status == 1 and f"another run is writing to {finetuned[0]}: use another --output_folder" in said


IN_TWO = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import hashlib, torch, train
state = train.main().modules.state_dict()
assert len(state) > 100
digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in state.values())).hexdigest()
sys.stdout.write(f"weights: {digest}\\n")
"""


def test_two_processes_end_with_the_same_weights_and_about_the_error_of_one(fine_tuning, finetuned, tmp_path, torchrun):
    options = command("train.py", *fine_tuning(tmp_path / "out"))[2:]
    status, said = torchrun(IN_TWO, RECIPE / "finetuning", *options, "--distributed_backend=gloo", seconds=300)
    assert status == 0, said
    digests = re.findall(r"weights: (\w+)", said)
    assert len(digests) == 2 and len(set(digests)) == 1
    one, two = (json.loads((folder / "metrics.json").read_text()) for folder in (finetuned[0], tmp_path / "out"))
    for stage in ("head", "full"):
        assert two[stage]["test_error"] == pytest.approx(one[stage]["test_error"], abs=0.25)  # of 28 clips


def test_the_inference_folder_has_the_same_error(finetuned, corpus):
    folder, _ = finetuned
    model = EncoderClassifier.from_hparams(str(folder / "inference"), run_opts={"device": "cpu"})
    items = list(json.load(open(folder / "test.json")).values())
    words = [model.classify_file(item["wav"].format(data_root=corpus))[3][0] for item in items]
    error = sum(word != item["word"] for word, item in zip(words, items)) / len(items)
    assert error == json.loads((folder / "metrics.json").read_text())["full"]["test_error"]

    clips = [item["wav"].format(data_root=corpus) for item in items][:3]
    status, said = run("infer.py", "--model", folder / "inference", *clips, "no_such.wav")
    assert status == 1 and "no_such.wav cannot be read" in said and "expect_len" not in said
    assert re.findall(r"(?m)^(\w+) +[\d.]+%  \S+wav$", said) == words[:3]


@pytest.fixture
def brain(pretrained, tmp_path):
    """callable: Makes a Brain that trains some modules of a pretrained model."""
    source = EncoderClassifier.from_hparams(str(pretrained))
    modules = {name: source.mods[name] for name in ("compute_features", "mean_var_norm", "embedding_model", "classifier")}
    checkpointer = sb.utils.checkpoints.Checkpointer(tmp_path / "save")
    counter = sb.utils.epoch_loop.EpochCounter(40)

    def make(*trained, lr=0.01):
        stage = {"name": "test", "trained": trained, "opt_class": lambda p: torch.optim.Adam(p, lr=lr)}
        stage.update(counter=counter, checkpointer=checkpointer, dataloader_options={"batch_size": 8}, lr_annealing=None)
        return KeywordBrain(stage, modules, None, {"seed": 1}, {"device": "cpu", "noprogressbar": True})

    return make


def batch_of(sigs, labels):
    items = [
        {"id": f"clip{i}", "sig": sig, "word_encoded": torch.tensor([label])}
        for i, (sig, label) in enumerate(zip(sigs, labels))
    ]
    return sb.dataio.batch.PaddedBatch(items)


def test_the_brain_learns_a_few_clips_to_zero_error(brain):
    brain = brain("embedding_model", "classifier")
    torch.manual_seed(1)
    batch = batch_of(torch.randn(6, 16000) * torch.linspace(0.1, 1, 6)[:, None], [0, 1, 2, 0, 1, 2])
    brain.on_fit_start()
    for brain.step in range(1, 41):
        brain.modules.train()
        loss = brain.fit_batch(batch)
    brain.modules.eval()
    brain.on_stage_start(sb.Stage.VALID)
    with torch.no_grad():
        brain.evaluate_batch(batch, sb.Stage.VALID)
    assert [max(range(3), key=p.__getitem__) for _, _, p in brain.predictions] == [0, 1, 2, 0, 1, 2] and loss < 0.1


@pytest.mark.parametrize("stage", ["fit_batch", "evaluate_batch"])
def test_an_error_names_the_utterances_that_it_happened_with(brain, stage, caplog):
    brain = brain("classifier")
    brain.on_fit_start()
    brain.on_stage_start(sb.Stage.VALID)
    broken = batch_of(torch.zeros(2, 16000), [0, 99])
    with pytest.raises(IndexError) as raised:
        brain.fit_batch(broken) if stage == "fit_batch" else brain.evaluate_batch(broken, sb.Stage.VALID)
    said = "".join(getattr(raised.value, "__notes__", [])) or caplog.text
    assert f"in test, {'train' if stage == 'fit_batch' else 'valid'}, epoch 0, step 0, with clip0, clip1" in said


def test_training_on_one_clip_at_a_time_is_refused(brain):
    brain = brain("classifier")
    brain.loader_options = {"batch_size": 1}
    with pytest.raises(
        ValueError, match="BatchNorm cannot train on one clip at a time: batch_size is 1, and each process has 2 clips"
    ):
        brain.fit_and_test({"train": [0, 1]})


@pytest.mark.parametrize(
    "clips, processes, left_out", [(9, 1, True), (16, 1, False), (9, 2, False), (34, 2, True), (33, 2, True)]
)
def test_a_last_batch_of_one_clip_is_left_out_on_each_process(brain, monkeypatch, clips, processes, left_out):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    brain, asked = brain("classifier"), {}
    brain.fit = lambda *_, train_loader_kwargs, **__: asked.update(train_loader_kwargs)
    brain.evaluate = lambda *_, **__: fail(InterruptedError)
    with pytest.raises(InterruptedError):
        brain.fit_and_test({"train": range(clips), "valid": [], "test": []})
    assert asked["drop_last"] is left_out


@pytest.mark.parametrize("size", [3, 5, 7, 8, 13])
def test_an_embedding_does_not_depend_on_the_other_clips_of_its_batch(brain, size):
    brain = brain("classifier")
    brain.loader_options = {"batch_size": size}
    brain.modules.eval()
    torch.manual_seed(1)
    sigs = torch.randn(size, 16000)
    with torch.no_grad():
        together = brain.embed(batch_of(sigs, range(size)))
        assert all(torch.equal(brain.embed(batch_of(sigs[i : i + 1], [0]))[0], together[i]) for i in range(size))
        assert len(brain.embed(batch_of(sigs.repeat(3, 1), range(3 * size)))) == 3 * size  # an augmenter may return more clips


def test_a_warning_names_the_utterances_of_a_loss_that_is_not_finite(brain, caplog):
    brain = brain("classifier")
    brain.on_fit_start()
    brain.nonfinite_count = 0
    brain.modules.train()
    brain.fit_batch(batch_of(torch.rand(2, 16000), [0, 1]))
    brain.fit_batch(batch_of(torch.full((2, 16000), float("nan")), [0, 1]))
    assert "the loss is nan in test, train, epoch 0, step 0, with clip0, clip1" in caplog.text


def test_a_pretrained_parameter_that_is_not_finite_ends_the_run_before_the_first_step(brain):
    brain = brain("classifier")
    next(brain.modules.embedding_model.parameters()).view(-1)[0] = float("nan")
    with pytest.raises(
        ValueError, match=r"^embedding_model\.\S+weight contain values that are not finite before the first step of test: make"
    ):
        brain.on_fit_start()


@pytest.mark.parametrize(
    "there, source, said",
    [
        (["thesis.txt", "hyperparams.yaml"], None, "contains thesis.txt and would be replaced: use another --inference_folder"),
        (["epoch=1.ckpt"], None, "contains epoch=1.ckpt and would be replaced: use another --inference_folder"),
        (None, None, "is a file and would be replaced: use another --inference_folder"),
        (["hyperparams.yaml", "classifier.ckpt"], "model/../model", "is the --source and would be replaced: use another"),
        (["hyperparams.yaml", "classifier.ckpt"], "other", None),
        ([], None, None),
    ],
    ids=["something else", "a checkpoint of something else", "a file", "the source", "an older one", "nothing"],
)
def test_an_inference_folder_replaces_only_an_older_one(tmp_path, there, source, said):
    if there is None:
        (tmp_path / "model").touch()
    else:
        (tmp_path / "model").mkdir()
    for name in there or []:
        (tmp_path / "model" / name).touch()
    with pytest.raises(ValueError, match=said) if said else contextlib.nullcontext():
        refuse_to_replace(str(tmp_path / "model"), source and str(tmp_path / source))


def linear(value=1.0, **attributes):
    module = torch.nn.Linear(2, 2)
    module.load_state_dict({name: torch.full_like(tensor, value) for name, tensor in module.state_dict().items()})
    vars(module).update(attributes)
    return {"encoder": module}


def dataset(**sha1s):
    return sb.dataio.dataset.DynamicItemDataset({name: {"sha1": sha1} for name, sha1 in sha1s.items()})


def test_the_key_of_the_cache_changes_with_everything_that_it_depends_on():
    def key(encoder, data, sample_rate=16000):
        return key_of(data, encoder=digest_of(encoder), sample_rate=sample_rate)

    same = [key(linear(device=device), dataset(a="1", b="2")) for device in ("cpu", "cuda:0")]
    others = [
        key(linear(2.0), dataset(a="1", b="2")),
        key(linear(n_mels=80), dataset(a="1", b="2")),
        key(linear(), dataset(a="1", b="3")),
        key(linear(), dataset(a="1", c="2")),
        key(linear(), dataset(a="1")),
        key(linear(), dataset(a="1", b="2"), sample_rate=8000),
    ]
    assert same[0] == same[1] and len({same[0], *others}) == 7


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"),
        lambda path: path.write_bytes(path.read_bytes()[:40]),
        lambda path: path.unlink(),
        lambda path: Path(f"{path}.sha256").unlink(),
        lambda path: Path(f"{path}.sha256").write_text(""),
    ],
    ids=["a changed byte", "cut off", "deleted", "no checksum", "an empty checksum"],
)
def test_a_damaged_cache_is_computed_again(tmp_path, damage):
    data = dataset(**{name: name for name in "abcde"})
    data.set_output_keys(["id"])
    path = tmp_path / "cache" / "e.npy"
    seen = []

    def embed(batch):
        seen.extend(batch)
        return torch.tensor([[[float(ord(name)), 0.5]] for name in batch])

    def cached():
        keep(str(path), [["a", "b"], ["c", "d"], ["e"]], 5, embed)
        return Embeddings({"train": data}, {"train": str(path)})(["e", "b"])

    assert cached().tolist() == [[[101.0, 0.5]], [[98.0, 0.5]]] and cached().shape == (2, 1, 2) and len(seen) == 5
    damage(path)
    assert cached().tolist() == [[[101.0, 0.5]], [[98.0, 0.5]]] and len(seen) == 10
    assert not list(tmp_path.rglob("*.part"))


def test_the_error_names_a_cache_that_is_cut_off_during_training(tmp_path):
    data, path = dataset(a="a", b="b"), tmp_path / "e.npy"
    keep(str(path), [["a", "b"]], 2, lambda batch: torch.ones(2, 1, 9))
    embeddings = Embeddings({"train": data}, {"train": str(path)})
    assert embeddings(["b"]).shape == (1, 1, 9)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(RuntimeError, match=r"e\.npy was cut off .* run the same command again to compute it again"):
        embeddings(["b"])


PEAK = """
import resource, sys
import speechbrain as sb
import torch
from embeddings import Embeddings, keep

path, count = sys.argv[1], int(sys.argv[2])
names = [str(i) for i in range(64 * count)]
batches = [names[i : i + 64] for i in range(0, len(names), 64)]
keep(path, batches, len(names), lambda batch: torch.ones(len(batch), 1, 4096))
dataset = sb.dataio.dataset.DynamicItemDataset({name: {} for name in names})
cached = Embeddings({"train": dataset}, {"train": path})
assert all(cached(batch).shape == (64, 1, 4096) for batch in batches)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_a_large_cache_takes_no_more_memory_than_a_small_one(tmp_path):
    def peak(count):
        status, said = forked(tmp_path / "peak.py", tmp_path / f"{count}.npy", count)
        assert status == 0, said
        return int(said.split()[-1])

    (tmp_path / "peak.py").write_text(PEAK)
    small, large = peak(4), peak(256)  # 256 * 64 embeddings are a quarter of a gigabyte
    (tmp_path / "256.npy").unlink()
    assert large < small + 64  # MiB


def fail(error):
    raise error


@pytest.mark.parametrize(
    "write, said",
    [
        (lambda: fail(OSError(errno.ENOSPC, "No space left on device", "x")), "free some space"),
        (lambda: torch.save(torch.zeros(10**6), "/dev/full"), "free some space"),
        (lambda: fail(OSError(errno.EROFS, "Read-only file system", "x")), "fix the permissions or use another folder"),
        (lambda: os.mkdir("/sys/x"), "fix the permissions or use another folder"),
    ],
)
def test_a_full_or_read_only_disk_gives_a_message_without_a_traceback(write, said):
    message = f"Could not (read or )?write: .*The checkpoints are unchanged: {said}, then run the same command"
    with pytest.raises(SystemExit, match=message), advice_on_storage():
        write()


@pytest.mark.parametrize("error", [RuntimeError("size mismatch"), FileNotFoundError(2, "No such file", "x"), ValueError("x")])
def test_any_other_error_keeps_its_traceback(error):
    with pytest.raises(type(error)), advice_on_storage():
        raise error


def test_every_row_of_the_table_of_recipes_runs(corpus, tmp_path):
    (tmp_path / "made_speech").symlink_to(corpus)
    rows = list(csv.DictReader(open(Path(__file__).with_name("SpokenWords.csv"))))
    assert {row["Script_file"] for row in rows} == {f"recipes/SpokenWords/finetuning/{n}.py" for n in ("train", "pretrain")}
    for row in rows:
        for column in ("Script_file", "Hparam_file", "Data_prep_file", "Readme_file"):
            assert (record.ROOT / row[column]).is_file(), row[column]
        flags = row["test_debug_flags"].split()
        status, said = forked(Path(row["Script_file"]).name, *flags, cwd=tmp_path)
        assert status == 0, said
        output = tmp_path / re.search(r"--output_folder=(\S+)", row["test_debug_flags"])[1]
        checks = re.fullmatch(r"file_exists=\[(.*?)\] performance_check=\[(.*?)\]", row["test_debug_checks"])
        for name in checks[1].split(","):
            assert (output / name).is_file(), name
        log, key, bound, where = (part.strip() for part in checks[2].split(","))
        line = next(line for line in (output / log).read_text().splitlines() if re.search(rf"{where}\b", line))
        assert float(re.search(rf"{key}: (\S+)", line)[1].rstrip(",")) < float(bound.removeprefix("<"))
