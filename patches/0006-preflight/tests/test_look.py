"""``--look`` writes what the model hears, after augmentation, and a picture; without audio it says so."""

import numpy as np
import pytest
import soundfile
import speechbrain as sb
import torch
from speechbrain.augment.augmenter import Augmenter
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.lobes.features import Fbank
from speechbrain.preflight import __main__, look
from speechbrain.preflight.__main__ import Takeover, main
from test_sequences import LETTERS, Run

from brains import Classifier, sgd

RATE = 16000
WORDS = ["да/нет $x_1$", "ja", "你好", "a word that is " + "very " * 40 + "long"]


class Half(torch.nn.Module):
    def forward(self, x):
        return x / 2


class Words(Classifier):
    def compute_forward(self, batch, stage):
        sound = batch.sig.data * self.hparams.loudness
        if stage == sb.Stage.TRAIN:
            sound, _ = self.hparams.augment(sound, batch.sig.lengths)
        return self.modules.head(self.hparams.features(sound).mean(1))[: len(batch.id)]

    def compute_objectives(self, predictions, batch, stage):
        return torch.nn.functional.cross_entropy(predictions, batch.label.data[:, 0])


@pytest.fixture
def words(tmp_path):
    """callable: Looks at a classifier of four words; returns the remarks, and by name of a file what it contains."""

    def start(loudness=1.0, channels=1):
        items = {}
        for i in range(8):
            noise = np.random.default_rng(i).uniform(-0.5, 0.5, (RATE // 4 + 100 * i, channels))
            soundfile.write(tmp_path / f"{i}.wav", noise, RATE)
            items[f"c/{i}"] = {"wav": str(tmp_path / f"{i}.wav"), "word": WORDS[i % 4]}
        data = DynamicItemDataset(items)
        data.add_dynamic_item(sb.dataio.dataio.read_audio, "wav", "sig")
        data.add_dynamic_item(lambda word: torch.LongTensor([WORDS.index(word)]), "word", "label")
        data.set_output_keys(["id", "sig", "label"])
        augment = Augmenter(concat_original=True, min_augmentations=1, augmentations=[Half()])
        hparams = {"augment": augment, "features": Fbank(sample_rate=RATE), "sample_rate": RATE, "loudness": loudness}
        brain = Words({"head": torch.nn.Linear(40, 4)}, sgd, hparams)
        brain.fit(range(1, 2), data, data, train_loader_kwargs={"batch_size": 4}, valid_loader_kwargs={"batch_size": 4})

    def run(**options):
        folder = tmp_path / "look"
        folder.mkdir()
        said = Takeover(look=folder).run(lambda: start(**options)).said
        return said, {path.name: soundfile.read(path) for path in sorted(folder.glob("*.wav"))}

    return run


def test_it_writes_each_clip_and_its_augmented_copy(words, tmp_path):
    said, files = words()
    assert list(files)[:4] == ["01 c_0_да_нет_x_1.wav", "02 c_0_copy_1_да_нет_x_1.wav", "03 c_1_ja.wav", "04 c_1_copy_1_ja.wav"]
    assert list(files)[4] == "05 c_2_你好.wav" and len(files) == 8
    (first, rate), (copy, _), (second, _) = list(files.values())[:3]
    assert rate == RATE and len(first) == RATE // 4 and len(second) == RATE // 4 + 100
    np.testing.assert_allclose(first, soundfile.read(tmp_path / "0.wav")[0], atol=1e-4)
    np.testing.assert_allclose(copy, first / 2, atol=1e-4)
    assert f"--look: look.png and 8 WAV files, at {RATE} Hz, are in {tmp_path / 'look'}." in said
    assert (tmp_path / "look" / "look.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_too_loud_for_a_file_is_written_more_quietly(words, monkeypatch):
    monkeypatch.setattr(look, "_draw", print)
    _, files = words(loudness=3.0)
    assert [round(abs(samples).max(), 2) for samples, _ in list(files.values())[:2]] == [1.0, 0.75]


def test_every_channel_is_written(words, monkeypatch):
    monkeypatch.setattr(Half, "forward", lambda self, x: x[:, :, :1] / 2, raising=False)
    monkeypatch.setattr(Words, "compute_forward", lambda self, batch, stage: self.modules.head(batch.sig.data[:, :40].mean(2)))
    _, files = words(channels=2)
    assert {samples.shape[1] for samples, _ in files.values()} == {2} and len(files) == 4


@pytest.mark.parametrize("most, graph", [(20, "Classes (label)"), (3, "Items of each class (label)")])
def test_it_counts_classes(words, monkeypatch, most, graph):
    monkeypatch.setattr(look, "CLASSES", most)
    drawn = []
    monkeypatch.setattr(look, "_draw", lambda path, clips, rate, graphs: drawn.extend(graphs))
    words()
    (durations, counts) = drawn
    assert durations[0] == "Durations" and {*durations[3]} == {"train", "valid"}
    assert sorted(durations[3]["train"]) == [(RATE // 4 + 100 * i) / RATE for i in range(8)]
    assert counts[0] == graph and counts[3]["train"] == ({word[:40]: 2 for word in WORDS} if most == 20 else [2, 2, 2, 2])


def test_it_counts_tokens_per_second(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(look, "_draw", lambda path, clips, rate, graphs: drawn.extend([clips, *graphs]))
    monkeypatch.setattr("test_sequences.Takeover", lambda: Takeover(look=tmp_path))
    Run(tmp_path).report()
    clips, _, (title, *_, rates) = drawn
    assert title == "Speaking rates (tokens)" and all(9 < rate < 11 for of in rates.values() for rate in of)
    assert len(clips) == 4 and all(name.startswith("t") and {*text} <= {*LETTERS} for name, text, _ in clips)


def test_without_audio_it_says_so(tmp_path):
    report = Takeover(look=tmp_path).run(Classifier({"head": torch.nn.Linear(4, 3)}).start)
    assert any("has a waveform" in said for said in report.said) and not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "missing, folder, said", [(True, "new", "pip install matplotlib"), (False, "file/new", "cannot write")]
)
def test_wrong_usage(tmp_path, monkeypatch, capsys, missing, folder, said):
    (tmp_path / "file").touch()
    script = tmp_path / "train.py"
    script.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    if missing:
        monkeypatch.setattr(__main__, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as end:
        main(["--look", str(tmp_path / folder), str(script)])
    assert end.value.code == 2 and said in capsys.readouterr().err and not (tmp_path / "ran").exists()
