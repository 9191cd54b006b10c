"""The recipe SpokenWords: the made corpus, and the check of the data before training."""

import json
import os
import shutil
import struct
import subprocess
import sys
import wave
from pathlib import Path

import numpy
import pytest
import soundfile
import speechbrain as sb
import torch
from speechbrain.dataio.preprocess import AudioNormalizer

from background_noise import BackgroundNoise
from scripts import NEW, RECIPE, make
from spoken_words_prepare import prepare_spoken_words, read_clip, same_run
from train import dataio_prep


@pytest.fixture
def files(tmp_path):
    splits = ("train", "valid", "test")
    return {
        "manifests": {split: str(tmp_path / f"{split}.json") for split in splits},
        "data_report": str(tmp_path / "data_report.txt"),
        "clip_seconds": 1.0,
    }


def prepared(files):
    return {split: json.load(open(path)) for split, path in files["manifests"].items()}


def clips(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.wav")}


def test_the_same_seed_makes_the_same_files(corpus, tmp_path):
    made = clips(corpus)
    assert len(made) == 5 * 24 * 2 + 3
    make(tmp_path / "again")
    make(tmp_path / "other", "--seed", "2")
    assert clips(tmp_path / "again") == made != clips(tmp_path / "other")
    with wave.open(str(corpus / "cat" / sorted(os.listdir(corpus / "cat"))[0])) as clip:
        assert (clip.getframerate(), clip.getnchannels(), clip.getsampwidth(), clip.getnframes()) == (16000, 1, 2, 16000)


def test_made_speech_overwrites_nothing(corpus):
    command = [sys.executable, RECIPE / "make_spoken_words.py", corpus, "cat"]
    done = subprocess.run(list(map(str, command)), stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and f"{corpus} already contains something" in done.stderr
    command[2] = "/proc/data"
    done = subprocess.run(list(map(str, command)), stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and "/proc/data could not be made" in done.stderr and "Traceback" not in done.stderr


def test_two_simultaneous_makers_and_a_killed_one_leave_one_corpus(tmp_path):
    (tmp_path / ".making-data").mkdir()
    command = [sys.executable, str(RECIPE / "make_spoken_words.py"), str(tmp_path / "data"), "cat", "--takes", "10"]
    makers = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [maker.wait() for maker in makers] == [0, 0]
    assert len(list((tmp_path / "data/cat").glob("*.wav"))) == 600 and not (tmp_path / ".making-data").exists()


def test_a_hash_of_the_speaker_decides_the_split(corpus, files):
    prepare_spoken_words(str(corpus), NEW, **files)
    splits = [items.values() for items in prepared(files).values()]
    speakers = [{item["speaker"] for item in items} for items in splits]
    assert all(speakers) and len(set.union(*speakers)) == sum(map(len, speakers)) == 24
    assert {item["word"] for items in splits for item in items} == set(NEW)
    assert open(files["data_report"]).read() == "nothing found\n"


def test_the_lists_of_speech_commands_decide_the_split(corpus, tmp_path, files):
    folder = tmp_path / "data"
    shutil.copytree(corpus, folder)
    names = sorted(f"cat/{name}" for name in os.listdir(folder / "cat"))
    (folder / "validation_list.txt").write_text("".join(f"{name}\n" for name in names[::3]), encoding="utf-8-sig")
    (folder / "testing_list.txt").write_text("".join(f"{name} \r\n" for name in [*names[1::3], "dog/not_asked_for.wav"]))
    prepare_spoken_words(str(folder), ["cat"], **files)
    assert {split: sorted(items) for split, items in prepared(files).items()} == {
        "train": names[2::3],
        "valid": names[::3],
        "test": names[1::3],
    }
    report = open(files["data_report"]).read()
    assert "speakers are in more than one split, so the test error will be too low" in report and "lines of" not in report


def first(folder):
    return min((folder / "cat").glob("*.wav"))


def rewritten(samples, suffix=".wav", rate=16000, subtype=None, keep=1.0, name=None, header=None):
    def change(folder):
        path = first(folder)
        path.unlink()
        path = path.with_name(name or path.name).with_suffix(suffix)
        soundfile.write("clip" + suffix, samples, rate, subtype=subtype)  # because soundfile cannot open every name
        content = Path("clip" + suffix).read_bytes()
        if header is not None:
            content = content[:4] + struct.pack("<I", header) + content[8:]
        path.write_bytes(content[: int(len(content) * keep)])

    return change


NOISE = numpy.random.default_rng(0).uniform(-0.5, 0.5, 16000)


@pytest.mark.parametrize(
    "change",
    [
        rewritten(NOISE, header=32000),
        rewritten(NOISE, header=0x7FFFF024),
        rewritten(NOISE, header=0x80000024),
        rewritten(NOISE, header=0xFFFFFFFF),
        rewritten(NOISE, name="{a}_nohash_}{.wav"),
        rewritten(NOISE, name="a, $b'_nohash_0.wav"),
        rewritten(NOISE, ".WAV"),
        rewritten(numpy.stack([NOISE, 0 * NOISE], 1)),
        lambda folder: (folder / "cat" / "._x_nohash_0.wav").write_bytes(b"of macOS"),
    ],
    ids=[
        "a header with the size of the samples",
        "streamed by sox",
        "streamed by arecord",
        "streamed",
        "braces in the name",
        "other special characters",
        "a suffix in capitals",
        "one channel silent",
        "a hidden file",
    ],
)
def test_a_clip_without_a_fault_is_in_the_dataset(corpus, tmp_path, files, change, monkeypatch):
    folder = tmp_path / "data"
    shutil.copytree(corpus, folder)
    monkeypatch.chdir(tmp_path)
    change(folder)
    prepare_spoken_words(str(folder), NEW, bad_clips="refuse", **files)
    hparams = {"label_encoder": sb.dataio.encoder.CategoricalEncoder(), "words": NEW, "data_folder": str(folder), **files}
    read = [item for dataset in dataio_prep(hparams, 16000, 1.0).values() for item in dataset]
    assert len(read) == 96 and all(item["sig"].shape == (16000,) and len(item["word_encoded"]) == 1 for item in read)


@pytest.mark.parametrize(
    "change, fault",
    [
        (rewritten(NOISE, keep=0.5), r"wav is cut off: its header gives 32044 bytes, and it has 16022"),
        (rewritten(NOISE, ".flac", keep=0.5), r"flac cannot be read"),
        (rewritten(NOISE, ".mp3", keep=0.5), r"mp3 is cut off: \d+ of 16000 samples can be read"),
        (
            rewritten(numpy.where(numpy.arange(16000) == 9, numpy.nan, NOISE), subtype="FLOAT"),
            "contains 1 samples that are not f",
        ),
        (rewritten(NOISE * 2e30, subtype="FLOAT"), r"wav contains samples of up to 1e\+30, where full scale is 1"),
        (rewritten(NOISE * 1e-4), r"wav is silent: its loudest sample is at -8\d dB"),
        (rewritten(numpy.zeros(16000)), r"wav is silent"),
        (rewritten(numpy.stack([NOISE, -NOISE], 1)), r"wav is silent"),
        (rewritten(NOISE, subtype="GSM610"), r"wav cannot be read"),
        (rewritten(NOISE, name="Ren\udce9_nohash_0.wav"), r"wav cannot be read"),
        (rewritten(NOISE[:100]), r"wav is 0.006 s long, shorter than 0.1 s"),
        (rewritten(NOISE[:0]), r"wav is 0.000 s long"),
        (lambda folder: first(folder).write_bytes(b""), r"wav is empty"),
        (lambda folder: first(folder).write_bytes(b"RIFF, but no more"), r"wav cannot be read"),
    ],
    ids=[
        "cut wav",
        "cut flac",
        "cut mp3",
        "nan",
        "enormous",
        "near-silent",
        "silent",
        "silent when mixed down",
        "not seekable",
        "a name that is not valid text",
        "short",
        "no sample",
        "empty",
        "not audio",
    ],
)
def test_a_clip_with_a_fault_is_named_and_left_out_or_refused(corpus, tmp_path, files, change, fault, monkeypatch):
    folder = tmp_path / "data"
    shutil.copytree(corpus, folder)
    monkeypatch.chdir(tmp_path)
    change(folder)
    with pytest.raises(ValueError, match=f"1 of 96 clips have a fault: .*{fault}"):
        prepare_spoken_words(str(folder), NEW, bad_clips="refuse", **files)
    assert not any(os.path.exists(path) for path in files["manifests"].values())
    prepare_spoken_words(str(folder), NEW, bad_clips="leave_out", **files)
    assert sum(map(len, prepared(files).values())) == 95


def few(folder):
    for path in sorted((folder / "cat").glob("*"))[6:]:
        path.unlink()


def only_in_validation(folder):
    shutil.rmtree(folder / "dog")
    (folder / "dog").mkdir()
    first(folder).rename(folder / "dog/x_nohash_0.wav")
    (folder / "validation_list.txt").write_text("dog/x_nohash_0.wav\n")
    (folder / "testing_list.txt").write_text(f"cat/{first(folder).name}\n")


def repeated(folder):
    for number in range(9):
        shutil.copy(first(folder), folder / "dog" / f"s{number}_nohash_0.wav")


def nameless(folder):
    for path in [*(folder / "cat").glob("*"), *(folder / "dog").glob("*")]:
        path.rename(path.with_name(path.name.replace("_nohash_", "-")))


def listed_otherwise(folder):
    clips = [f"{path.parent.name}/{path.stem}" for path in sorted((folder / "cat").glob("*"))]
    (folder / "testing_list.txt").write_text("".join(f"{name}.flac\n" for name in clips[:3]) + f"{clips[3]}.wav\n")
    (folder / "validation_list.txt").write_text(f"{clips[4]}.wav\ncow/of_a_word_that_is_not_here.wav\n")


def mistaken_lists(folder):
    (folder / "testing_list.txt").write_bytes(b"cat\\a_nohash_0.wav\nRen\xe9\n")


def something_else(folder):
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "x.txt").touch()


@pytest.mark.parametrize(
    "change, words, remark",
    [
        (rewritten(numpy.zeros((8000, 2)) + 0.1, ".ogg", 8000), NEW, "1 at 8000 Hz with 2 channels; all are resampled"),
        (few, NEW, "training clips: with fewer than 10"),
        (only_in_validation, NEW, "dog has no training clip, and 1 in validation: the model cannot learn it"),
        (repeated, NEW, "1 recordings are in more than one split"),
        (nameless, NEW, "the file names contain no speaker"),
        (listed_otherwise, NEW, "3 lines of validation_list.txt and testing_list.txt match no clip; if that clip has ano"),
        (
            rewritten(numpy.tile(NOISE, 3)),
            NEW,
            "1 clips are longer than clip_seconds, 1.0: the model hears only the middle of each",
        ),
        (lambda folder: (folder / "cat/x.m4a").touch(), NEW, "1 files or folders beside the clips are not .wav, .flac, .mp3,"),
    ],
    ids=[
        "8 kHz stereo ogg",
        "few clips",
        "a label only in validation",
        "the same audio in two splits",
        "no speakers",
        "lists with other names",
        "long",
        "another format",
    ],
)
def test_the_report_has_a_remark_on_odd_data(corpus, tmp_path, files, change, words, remark, monkeypatch):
    folder = tmp_path / "data"
    shutil.copytree(corpus, folder)
    monkeypatch.chdir(tmp_path)
    change(folder)
    prepare_spoken_words(str(folder), words, **files)
    assert remark in open(files["data_report"]).read()


@pytest.mark.parametrize(
    "change, options, error, said",
    [
        (None, {"words": ["cat", "cow"]}, ValueError, r"cow contains no .* the folders there are: _back.*Correct data_folder"),
        (None, {"words": [1, 2]}, ValueError, r"data/1 contains no .*quote words that YAML would read as a number"),
        (None, {"words": "cat"}, ValueError, "words is 'cat': it must be a list of different words"),
        (None, {"words": ["cat", "dog", "cat"]}, ValueError, "must be a list of different words"),
        (None, {"words": []}, ValueError, "must be a list of different words"),
        (None, {"words": ["cat/"]}, ValueError, "each must be the name of a folder in .*data, not a path"),
        (None, {"skip_prep": True}, FileNotFoundError, r"train.json does not exist: run once without skip_prep"),
        (
            mistaken_lists,
            {},
            ValueError,
            r"there is no clip for valid, test: correct the lists, validation_list.txt and testing_li",
        ),
        (None, {"bad_clips": "keep"}, ValueError, r"bad_clips is 'keep': it must be leave_out or refuse"),
        (
            shutil.rmtree,
            {},
            FileNotFoundError,
            r"data is not a folder, or is empty: correct data_folder, or .* --make_speech True",
        ),
        (something_else, {}, ValueError, "the folders there are: none"),
        (few, {"words": ["cat"], "valid_percent": 0}, ValueError, "there is no clip for valid: use more speakers"),
    ],
    ids=[
        "a word without clips",
        "numbers for words",
        "one word instead of a list",
        "a word twice",
        "no words",
        "a path for a word",
        "no manifests",
        "lists of something else",
        "a mistyped bad_clips",
        "no folder",
        "something else",
        "an empty split",
    ],
)
def test_the_error_names_bad_data_and_no_manifest_is_written(corpus, tmp_path, files, change, options, error, said):
    folder = tmp_path / "data"
    shutil.copytree(corpus, folder)
    if change is not None:
        change(folder)
    with pytest.raises(error, match=said):
        prepare_spoken_words(str(folder), **{"words": NEW, **options}, **files)
    assert not any(os.path.exists(path) for path in files["manifests"].values())


@pytest.mark.parametrize("rate, channels, seconds", [(16000, 1, 1.0), (8000, 2, 0.5), (44100, 1, 1.7)])
def test_any_clip_is_read_as_one_second_of_16_khz_mono(tmp_path, rate, channels, seconds):
    tone = numpy.sin(2 * numpy.pi * 440 * numpy.arange(int(rate * seconds)) / rate) / 2
    soundfile.write(tmp_path / "tone.wav", numpy.stack([tone] * channels, 1), rate)
    sig = read_clip(tmp_path / "tone.wav", AudioNormalizer(16000), 1.0)
    assert sig.shape == (16000,)
    middle = sig[6000:10000]
    assert int(torch.fft.rfft(middle).abs().argmax()) == 440 * len(middle) // 16000
    assert (sig[:3000].abs().max() == 0) == (seconds < 1)


def test_background_noise_comes_only_from_the_corpus(corpus):
    noise = BackgroundNoise(corpus / "_background_noise_", 16000)
    torch.manual_seed(1)
    drawn = noise(torch.zeros(4, 16000))
    torch.manual_seed(1)
    assert torch.equal(drawn, noise(torch.zeros(4, 16000))) and len(noise.recordings) == 3
    pieces = [recording.unfold(0, 16000, 1) for recording in noise.recordings]
    alike = [piece for of_one in pieces for piece in of_one[of_one[:, 0] == drawn[0, 0]]]  # comparing all in full takes seconds
    assert any(torch.equal(drawn[0], piece) for piece in alike)


def test_a_recording_with_a_fault_is_not_used_as_noise(tmp_path, caplog):
    for name, samples in {"a.WAV": NOISE, "b.wav": NOISE[:9000], "._c.wav": NOISE}.items():
        soundfile.write(tmp_path / name, samples, 16000)
    (tmp_path / "d.wav").write_bytes(b"no audio")
    noise = BackgroundNoise(tmp_path, 16000)
    assert noise(torch.zeros(4, 10000)).shape == (4, 10000) and len(noise.recordings) == 1
    assert "b.wav is shorter than a clip: it is left out" in caplog.text and "d.wav cannot be read" in caplog.text


def test_only_a_run_with_checkpoints_refuses_another(tmp_path):
    same_run(str(tmp_path), words=["cta"])
    same_run(str(tmp_path), words=["cat"])
    (tmp_path / "save/head/CKPT+1").mkdir(parents=True)
    same_run(str(tmp_path), words=["cat"])
    with pytest.raises(ValueError, match=r"belongs to a run with words \['cat'\], not \['dog'\]: use another --output_folder"):
        same_run(str(tmp_path), words=["dog"])
