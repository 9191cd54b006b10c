"""The recipe SpokenWords: its data, and its run on the stock release and on the fork."""

import json
import os
import re
import shutil
import subprocess
import sys
import wave

import numpy
import pytest
import soundfile

from composer import record

RECIPE = record.ROOT / "recipes" / "SpokenWords"
sys.path.insert(0, str(RECIPE))

from spoken_words_prepare import prepare_spoken_words  # noqa: E402  the path above leads to it

PRETRAINED, NEW = ["yes", "no", "up"], ["cat", "dog"]


def make(folder, seed=1):
    command = [
        sys.executable,
        RECIPE / "make_spoken_words.py",
        folder,
        *PRETRAINED,
        *NEW,
        "--speakers",
        "24",
        "--seed",
        str(seed),
    ]
    subprocess.run(list(map(str, command)), check=True, stderr=subprocess.DEVNULL)
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.wav"))}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """pathlib.Path: A small made corpus."""
    folder = tmp_path_factory.mktemp("corpus") / "data"
    make(folder)
    return folder


@pytest.fixture
def manifests(tmp_path):
    return {split: str(tmp_path / f"{split}.json") for split in ("train", "valid", "test")}


def test_the_same_seed_makes_the_same_files(corpus, tmp_path):
    clips = {str(path.relative_to(corpus)): path.read_bytes() for path in corpus.rglob("*.wav")}
    assert len(clips) == 5 * 24 * 2
    assert make(tmp_path / "again") == clips
    assert make(tmp_path / "other", seed=2) != clips
    assert not list(corpus.parent.glob(".making-*"))
    with wave.open(str(corpus / min(clips))) as clip:
        assert (clip.getframerate(), clip.getnchannels(), clip.getsampwidth(), clip.getnframes()) == (16000, 1, 2, 16000)


def test_no_speaker_is_in_two_splits(corpus, manifests):
    prepare_spoken_words(str(corpus), NEW, manifests)
    splits = {split: json.load(open(path)).values() for split, path in manifests.items()}
    speakers = [{item["speaker"] for item in items} for items in splits.values()]
    assert all(speakers) and len(set.union(*speakers)) == sum(map(len, speakers)) == 24
    assert {item["word"] for items in splits.values() for item in items} == set(NEW)


def break_nothing(folder):
    (folder / "notes").mkdir()


def rewrite(samples, rate=16000):
    def change(folder):
        soundfile.write(next((folder / "cat").glob("*.wav")), samples, rate)

    return change


def break_clip(folder):
    next((folder / "cat").glob("*.wav")).write_bytes(b"RIFF, but no more")


@pytest.mark.parametrize(
    "change, words, said",
    [
        (break_nothing, ["cat", "cow"], r"cow holds no \.wav file; .* the folders there are: cat, .*Mend data_folder or words"),
        (rewrite(numpy.zeros(8000), 8000), NEW, r"has a sample rate of 8000 Hz, not of 16000: convert"),
        (rewrite(numpy.zeros((16000, 2))), NEW, r"has 2 channels, not one: convert"),
        (rewrite(numpy.zeros(100)), NEW, r"is 0.006 s long, shorter than 0.1 s: convert, replace or remove it"),
        (rewrite(numpy.zeros(0)), NEW, r"is 0.000 s long"),
        (break_clip, NEW, r"cat/\w+_nohash_\d\.wav cannot be read as audio .*replace or remove it"),
        (
            lambda folder: [shutil.rmtree(folder), folder.mkdir(), (folder / "x.txt").touch()],
            NEW,
            "the folders there are: none",
        ),
        (lambda folder: [p.unlink() for p in sorted((folder / "cat").glob("*.wav"))[2:]], ["cat"], "no speaker falls into"),
    ],
    ids=[
        "a word without clips",
        "8 kHz",
        "stereo",
        "short",
        "empty",
        "a broken clip",
        "a folder of something else",
        "too few speakers",
    ],
)
def test_bad_data_are_named_and_nothing_is_written(corpus, tmp_path, manifests, change, words, said):
    folder = tmp_path / "data"
    shutil.copytree(corpus, folder)
    change(folder)
    with pytest.raises(ValueError, match=said):
        prepare_spoken_words(str(folder), words, manifests)
    assert not any(os.path.exists(path) for path in manifests.values())


def run(script, *arguments, stock=None):
    environment = {**os.environ, "PYTHONPATH": str(stock or ""), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, script, *arguments, "--device=cpu", "--noprogressbar"]
    done = subprocess.run(
        list(map(str, command)),
        cwd=RECIPE / "finetuning",
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


def test_the_recipe_dies_on_the_stock_release_and_trains_on_the_fork(corpus, tmp_path, stock):
    common = [f"--data_folder={corpus}", "--number_of_epochs=5", "--batch_size=8"]
    pretraining = [
        "pretrain.py",
        "hparams/pretrain.yaml",
        f"--words=[{','.join(PRETRAINED)}]",
        f"--output_folder={tmp_path / 'pre'}",
    ]
    # An override of the model must reach the saved folder, or the folder could not be loaded.
    status, said = run(*pretraining, "--model={channels: 24}", *common)
    assert status == 0, said
    (tmp_path / "pre" / "inference").rename(tmp_path / "moved")
    shutil.rmtree(tmp_path / "pre")

    fine_tuning = ["train.py", "hparams/finetune.yaml", f"--words=[{','.join(NEW)}]", f"--source={tmp_path / 'moved'}", *common]
    status, said = run(*fine_tuning, f"--output_folder={tmp_path / 'stock'}", stock=stock)
    assert status == 1 and said.strip().endswith("ValueError: math domain error")
    assert re.search(r"(?s)in __init__\n.*in print_trainable_parameters\n.*in format_order_of_magnitude\n", said)

    status, said = run(*fine_tuning, f"--output_folder={tmp_path / 'fork'}")
    assert status == 0, said
    assert re.search(r"encoder: 0 trainable of [\d.]+k parameters", said)
    before, after = (float(e) for e in re.findall(r"Test error \w+ fine-tuning: ([\d.]+)%", said))
    assert after < before

    # The same command again has nothing to train, and does not call the trained classifier a new one.
    status, said = run(*fine_tuning, f"--output_folder={tmp_path / 'fork'}")
    assert status == 0 and "before fine-tuning" not in said and f"after fine-tuning: {after}%" in said

    # With other words it is another run, and may not go on from that one's checkpoints.
    others = [argument.replace("--words=[cat,dog]", "--words=[dog]") for argument in fine_tuning]
    status, said = run(*others, f"--output_folder={tmp_path / 'fork'}")
    assert status == 1 and "holds a run with words ['cat', 'dog'], not ['dog']: name another --output_folder" in said

    status, said = run(*fine_tuning, f"--output_folder={tmp_path / 'size'}", "--emb_dim=5")
    assert status == 1 and "run again with --emb_dim 64" in said


def test_a_source_that_is_not_there_is_named(corpus, tmp_path):
    status, said = run(
        "train.py", "hparams/finetune.yaml", f"--output_folder={tmp_path}", f"--data_folder={corpus}", "--words=[cat]"
    )
    assert status == 1 and "ValueError: there is no folder results/pretrain/1234/inference: run pretrain.py first" in said


def test_speech_is_never_made_over_something(corpus, tmp_path):
    command = [sys.executable, RECIPE / "make_spoken_words.py", corpus, "cat"]
    done = subprocess.run(list(map(str, command)), stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and f"{corpus} holds something already" in done.stderr
    command[2] = "/proc/data"
    done = subprocess.run(list(map(str, command)), stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and "/proc/data could not be made" in done.stderr and "Traceback" not in done.stderr


def test_two_makers_at_once_leave_one_corpus(tmp_path):
    command = [sys.executable, str(RECIPE / "make_spoken_words.py"), str(tmp_path / "data"), "cat", "--takes", "10"]
    makers = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [maker.wait() for maker in makers] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["data"] and len(list(tmp_path.rglob("*.wav"))) == 600


def test_the_inference_folder_tells_words(corpus, tmp_path):
    common = [
        f"--words=[{','.join(PRETRAINED)}]",
        f"--output_folder={tmp_path}",
        f"--data_folder={corpus}",
        "--number_of_epochs=1",
    ]
    status, said = run("pretrain.py", "hparams/pretrain.yaml", *common)
    assert status == 0, said
    from speechbrain.inference.classifiers import EncoderClassifier

    model = EncoderClassifier.from_hparams(str(tmp_path / "inference"), run_opts={"device": "cpu"})
    items = list(json.load(open(tmp_path / "test.json")).values())
    told = [model.classify_file(item["wav"].format(data_root=corpus))[3][0] for item in items]
    error = sum(word != item["word"] for word, item in zip(told, items)) / len(items)
    reported = float(re.search(r"on the words of pretraining: ([\d.]+)%", said).group(1))
    assert f"{error:.1%}" == f"{reported}%"
