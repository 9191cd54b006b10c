"""Mistakes in audio files are reported, unless the pipeline can handle them."""

import copy
import os
import shutil
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.signal
import soundfile
import torch
from speechbrain.augment.time_domain import AddNoise, Resample
from speechbrain.dataio.dataio import read_audio
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.preflight.checks import audio
from speechbrain.preflight.observe import FirstStep, Given, Start, clips
from speechbrain.preflight.observe.audio import sources
from speechbrain.preflight.observe.items import Items, Watch
from speechbrain.preflight.report import Report
from torch.utils.data import DataLoader, Subset
from torchaudio.functional import resample

from brains import judge, observe

RATE = 16000


def clip(seed=0, seconds=0.5, rate=RATE):
    return np.random.default_rng(seed).normal(0, 0.1, int(seconds * rate))


class Data:
    """Eight training and four validation clips, their manifests, and the function that reads them."""

    def __init__(self, folder):
        self.folder, self.script = folder, folder / "train.py"
        self.read, self.takes, self.hparams, self.stepped = read_audio, ["wav"], {"sample_rate": RATE}, True
        self.resampled, self.error = [], ""  # what happens in the first step
        self.train, self.valid = ({f"{split}{i}": {} for i in range(n)} for split, n in (("train", 8), ("valid", 4)))
        for seed, (name, item) in enumerate([*self.train.items(), *self.valid.items()]):
            item["wav"] = str(folder / f"{name}.wav")
            self.write(item, clip(seed, 0.5 + seed / 100))

    def write(self, item, samples, rate=RATE, **options):
        soundfile.write(item["wav"], samples, rate, **options)

    @property
    def item(self):
        return self.train["train1"]

    @property
    def items(self):
        return [*self.train.values(), *self.valid.values()]

    def dataset(self, split):
        pipeline = {"func": self.read, "takes": self.takes, "provides": "sig"}
        return DynamicItemDataset(copy.deepcopy(getattr(self, split)), [pipeline], ["id", "sig"])

    def given(self, **options):
        brain = SimpleNamespace(modules=torch.nn.ModuleDict(), hparams=SimpleNamespace(**self.hparams))
        sets = {"train_set": self.dataset("train"), "valid_set": self.dataset("valid")}
        return Given(brain, **{**sets, "script": self.script, **options})

    @property
    def step(self):
        return FirstStep(taken=self.stepped, resampled=self.resampled, error=self.error)

    def seen(self, **options):
        """Return the findings, and the remarks."""
        seen, said = observe(self.given(**options), start=Start(batch={}), step=self.step)
        return judge(audio, seen), said


@pytest.fixture
def data(tmp_path):
    return Data(tmp_path)


def missing(data):
    os.remove(data.item["wav"])


def unreadable(data):
    Path(data.item["wav"]).write_text("<html>Not found</html>")


def cut(extension):
    def cut(data):
        name = data.item["wav"]
        data.item["wav"] = name.replace("wav", extension)
        data.write(data.item, clip(3, 3))
        whole = Path(data.item["wav"]).read_bytes()
        Path(data.item["wav"]).write_bytes(whole[: len(whole) * 2 // 3])

    return cut


def empty(data):
    data.write(data.item, clip(0, 0))


def noises(number, spoil=None):
    """Add noises for an augmentation; one of them is spoiled."""

    def noises(data):
        lines = ["ID,duration,wav,wav_format,wav_opts"]
        for i in range(6):
            data.train["train1"], before = {"wav": str(data.folder / f"noise{i}.wav")}, data.train["train1"]
            data.write(data.item, clip(i + 50))
            if i == number and spoil:
                spoil(data)
                data.noise = data.item["wav"]
            lines.append(f"noise{i},0.5,{data.item['wav']},wav,")
            data.train["train1"] = before
        (data.folder / "noise.csv").write_text("\n".join(lines) + "\n")
        data.hparams["add_noise"] = AddNoise(csv_file=str(data.folder / "noise.csv"))

    return noises


def not_finite(data):
    samples = clip()
    samples[100] = np.nan
    data.write(data.item, samples, subtype="FLOAT")


def other_rate(data):
    data.write(data.item, clip(rate=8000), 8000)


def other_rate_everywhere(data):
    data.hparams = {"features": SimpleNamespace(), "compute": torch.nn.Sequential(Features(RATE), Features(RATE))}
    for seed, item in enumerate(data.items):
        data.write(item, clip(seed, 0.5 + seed / 100, 44100), 44100)


def other_rate_in_the_yaml(data):
    other_rate_everywhere(data)
    data.hparams = {"sample_rate": RATE}


def other_rate_in_a_script_that_resamples_something_else(data):
    other_rate(data)
    data.script.write_text("# no resampling")
    data.resampled = [RATE]  # as SpeedPerturb does


def other_rate_and_a_crop(data):
    other_rate(data)
    data.read = lambda wav: read_audio(wav)[100:3000]


def other_rate_and_a_part_of_the_file(data):
    other_rate(data)
    data.read = lambda wav: torch.from_numpy(soundfile.read(wav, 3000, 100)[0])


def other_rate_resampled_to_itself(data):
    other_rate(data)
    data.read = lambda wav: resample(read_audio(wav), RATE, RATE)


class Features(torch.nn.Module):
    def __init__(self, rate):
        super().__init__()
        self.sample_rate = rate


def stereo(data):
    data.write(data.item, np.stack([clip(20), clip(21)], -1))


def stereo_everywhere(data):
    for seed, item in enumerate(data.items):
        data.write(item, np.stack([clip(seed, 0.5 + seed / 100)] * 2, -1))


def stereo_for_a_model_that_fails(data):
    stereo_everywhere(data)
    data.stepped, data.error = False, "RuntimeError: expected input[4, 2, 8000] to have 1 channels, but got 2 channels instead"


def silent(data):
    data.write(data.item, 0 * clip())


def silent_in_both(data):
    silent(data)
    a_copy(data)


def clipped(subtype):
    def clipped(data):
        data.write(data.item, (20 * clip()).clip(-1, 1), subtype=subtype)

    return clipped


def the_same_name(data):
    data.valid["valid1"]["wav"] = data.item["wav"]


def a_copy(data):
    shutil.copy(data.item["wav"], data.valid["valid1"]["wav"])


def long(data):
    data.write(data.item, clip(3, 30))


CASES = [
    (missing, "audio-missing"),
    (unreadable, "audio-unreadable"),
    (cut("wav"), "audio-truncated"),
    (cut("flac"), "audio-truncated"),
    (cut("mp3"), "audio-truncated"),
    (empty, "audio-empty"),
    (not_finite, "audio-not-finite"),
    (other_rate, "audio-rate"),
    (other_rate_everywhere, "audio-rate"),
    (other_rate_in_a_script_that_resamples_something_else, "audio-rate"),
    (other_rate_and_a_crop, "audio-rate"),
    (other_rate_and_a_part_of_the_file, "audio-rate"),
    (other_rate_resampled_to_itself, "audio-rate"),
    (stereo, "audio-channels"),
    (stereo_for_a_model_that_fails, "audio-channels"),
    (silent, "audio-silent"),
    (silent_in_both, "audio-silent"),
    *((clipped(subtype), "audio-clipped") for subtype in ("PCM_U8", "PCM_16", "PCM_24", "FLOAT")),
    (the_same_name, "audio-leak"),
    (a_copy, "audio-leak"),
    (long, "audio-duration"),
]
LEVELS = {"audio-silent": "warning", "audio-clipped": "warning", "audio-leak": "warning", "audio-duration": "note"}


@pytest.mark.parametrize(("spoil", "code"), CASES, ids=[f"{code}-{spoil.__name__}" for spoil, code in CASES])
def test_a_mistake_is_reported(data, spoil, code):
    spoil(data)
    (finding,) = data.seen()[0]
    assert finding.code == code
    assert finding.level == LEVELS.get(code, "error")
    assert (data.valid["valid1"] if code == "audio-leak" else data.item)["wav"] in finding.where
    assert finding.what and finding.remedy


def report_of(folder, spoil, *_):
    data = Data(folder)
    spoil(data)
    return Report(data.seen()[0])


def test_every_code_has_a_case():
    assert set(audio.CODES) == {code for _, code in CASES}


def nothing(data):
    pass


def read_if_there(data):
    missing(data)
    data.read = lambda wav: read_audio(wav) if os.path.exists(wav) else torch.zeros(100)


def unreadable_but_not_read(data):
    unreadable(data)
    data.takes, data.read = ["id"], len


def read_by_its_text(data):
    for item in data.items:
        Path(item["wav"]).write_text("0 1 2 3")
    data.read = lambda wav: torch.tensor([float(number) for number in open(wav).read().split()])


def size_not_filled_in(data):
    content = bytearray(Path(data.item["wav"]).read_bytes())
    content[40:44] = struct.pack("<I", 0xFFFFFFFF)
    Path(data.item["wav"]).write_bytes(content)


def empty_but_padded(data):
    empty(data)
    data.read = lambda wav: torch.nn.functional.pad(read_audio(wav), (0, 16000))


def not_finite_but_replaced(data):
    not_finite(data)
    data.read = lambda wav: read_audio(wav).nan_to_num()


def resampled(data):
    other_rate(data)
    data.read = lambda wav: resample(read_audio(wav), soundfile.info(wav).samplerate, RATE)


def resampled_and_cut(data):
    for seed, item in enumerate(data.items):
        data.write(item, clip(seed, 1.0, 8000), 8000)
    data.read = lambda wav: resample(read_audio(wav), 8000, RATE)[:8000]


def resampled_by_a_module(data):
    other_rate(data)
    with Watch() as watch:
        Resample(8000, RATE)(torch.zeros(1, 8000))
    data.resampled = watch.resampled


def resampled_by_the_script(data):
    other_rate(data)
    with Watch() as watch:
        scipy.signal.resample(np.zeros(100), 200)
    data.resampled = watch.resampled


def decimated(data):
    other_rate_everywhere(data)
    data.hparams["sample_rate"] = 22050
    data.read = lambda wav: read_audio(wav)[::2]


def stereo_in_the_validation_set(data):
    for seed, item in enumerate(data.valid.values()):
        data.write(item, np.stack([clip(seed), clip(seed + 9)], -1))


def stereo_everywhere_for_a_model_that_fails_otherwise(data):
    stereo_everywhere(data)
    data.stepped, data.error = False, "KeyError: 'lr'"


def stereo_mixtures_of_mono_sources(data):
    for seed, item in enumerate(data.items):
        item["source"] = item["wav"]
        item["wav"] = item["wav"].replace(".wav", "_mix.wav")
        data.write(item, np.stack([clip(seed, 0.5 + seed / 100)] * 2, -1))
    data.takes, data.read = ["wav", "source"], lambda wav, source: read_audio(wav) + read_audio(source)[:, None]


def features_of_another_rate(data):
    other_rate(data)
    data.read = lambda wav: read_audio(wav).unfold(0, 400, 160)


def no_rate_expected(data):
    other_rate(data)
    data.hparams = {"one": Features(RATE), "other": Features(8000)}


def mixed_down(data):
    stereo(data)
    data.read = lambda wav: torch.from_numpy(soundfile.read(wav, always_2d=True)[0].mean(-1))


def quiet(data):
    data.write(data.item, clip() / 5000)


def loud(data):
    samples = clip()
    data.write(data.item, samples / np.abs(samples).max())


def peaks(data):
    samples = clip().clip(-0.9, 0.9)
    samples[::50] = 1.0
    data.write(data.item, samples)


def loud_and_lossy(data):
    data.item["wav"] = data.item["wav"].replace("wav", "mp3")
    data.write(data.item, (20 * clip()).clip(-1, 1))


def mp3_of_unknown_length(data):
    data.item["wav"] = data.item["wav"].replace("wav", "mp3")
    content = b""
    for level in (0.99, 0.0):  # few bits per second, then many: the estimated length is too large
        data.write(data.item, clip(0, 5), bitrate_mode="CONSTANT", compression_level=level)
        content += Path(data.item["wav"]).read_bytes()
    Path(data.item["wav"]).write_bytes(content)


def parts_of_one_recording(data):
    for seed, item in enumerate(data.items):
        item["start"], item["stop"] = str(100 * seed), str(100 * seed + 100)
        item["wav"] = data.item["wav"]
    data.takes = ["wav", "start", "stop"]
    data.read = lambda wav, start, stop: read_audio({"file": wav, "start": int(start), "stop": int(stop)})


def parts_of_a_long_recording(data):
    long(data)
    for i, name in enumerate(("train4", "train5")):
        data.train[name] = {"wav": data.item["wav"], "start": 100 * i}


def two_parts_of_one_recording(data):
    parts = {"train0": (0, 4000), "valid1": (4000, 8000)}
    wav = data.item["wav"]
    for name, item in [*data.train.items(), *data.valid.items()]:
        start, stop = parts.get(name, (0, 0))
        item["wav"] = {"file": wav if name in parts else item["wav"], "start": start, "stop": stop}
    data.item["wav"] = {"file": data.train["train2"]["wav"]["file"], "start": 0, "stop": 0}


def one_noise_for_all(data):
    for item in data.items:
        item["noise"] = data.item["wav"]
    data.train.pop("train1")
    data.takes, data.read = ["wav", "noise"], lambda wav, noise: read_audio(wav)[:3000] + read_audio(noise)[:3000]


def some_longer_some_shorter(data):
    for seed, item in enumerate(data.items):
        data.write(item, clip(seed, 0.2 * 1.4**seed))


def an_item_that_is_none(data):
    data.train["train7"] = None


def ids_and_numbers_beyond_all_bounds(data):
    for item in data.items[1:8]:
        item |= {"id": ["train"], "length": 10**400}


def noises_of_another_rate(data):
    write, data.write = data.write, lambda item, samples: write(item, (20 * samples).clip(-1, 1), 8000)
    noises(None)(data)


HEALTHY = [
    nothing,
    noises(None),
    noises_of_another_rate,
    an_item_that_is_none,
    ids_and_numbers_beyond_all_bounds,
    read_if_there,
    unreadable_but_not_read,
    read_by_its_text,
    size_not_filled_in,
    empty_but_padded,
    not_finite_but_replaced,
    resampled,
    resampled_and_cut,
    resampled_by_a_module,
    resampled_by_the_script,
    decimated,
    stereo_in_the_validation_set,
    stereo_everywhere_for_a_model_that_fails_otherwise,
    stereo_mixtures_of_mono_sources,
    features_of_another_rate,
    no_rate_expected,
    mixed_down,
    stereo_everywhere,
    quiet,
    loud,
    peaks,
    loud_and_lossy,
    mp3_of_unknown_length,
    parts_of_one_recording,
    parts_of_a_long_recording,
    two_parts_of_one_recording,
    one_noise_for_all,
    some_longer_some_shorter,
]


@pytest.mark.parametrize(
    ("spoil", "code"),
    [(missing, "audio-missing"), (unreadable, "audio-unreadable"), (empty, "audio-empty"), (not_finite, "audio-not-finite")],
)
def test_a_mistake_in_a_noise_is_reported(data, spoil, code):
    noises(3, spoil)(data)
    (finding,) = data.seen()[0]
    assert (finding.code, finding.level, finding.where) == (code, "error", f"add_noise wav_data: {data.noise}")


@pytest.mark.parametrize("change", HEALTHY)
def test_right_data_has_no_findings(data, change):
    change(data)
    assert data.seen()[0] == []


def in_folder(data):
    for item in data.items:
        item["wav"] = os.path.basename(item["wav"])
    data.read = lambda wav: read_audio(str(data.folder / wav))
    return ("wav",)


def by_id(data):
    for item in data.items:
        item["wav"] = "nothing"
    data.takes, data.read = ["id"], lambda name: read_audio(f"{data.folder}/{name}.wav")
    return ("id",)


def in_a_mapping(data):
    for item in data.items:
        item["wav"] = {"file": item["wav"], "start": 0}
    return ("wav", "file")


def in_a_list(data):
    for item in data.items:
        item["wav"] = [item["wav"]]
    data.read = lambda wavs: torch.stack([read_audio(wav) for wav in wavs])
    return ("wav",)


def opened_in_python(data):
    data.read = lambda wav: torch.from_numpy(soundfile.read(open(wav, "rb"))[0])
    return of_no_extension(data)


def opened_by_pathlib(data):
    data.read = lambda wav: torch.frombuffer(bytearray(Path(wav).read_bytes()[44:]), dtype=torch.int16)
    return ("wav",)


def of_no_extension(data):
    for item in data.items:
        item["wav"] = shutil.move(item["wav"], item["wav"].removesuffix(".wav"))
    return ("wav",)


def by_soundfile_as_a_path(data):
    data.read = lambda wav: torch.from_numpy(soundfile.read(Path(wav))[0])
    return of_no_extension(data)


def read_before(data):
    sounds = {item["wav"]: read_audio(item["wav"]) for item in data.items}
    data.read = sounds.get
    return ("wav",)


WAYS = [
    in_folder,
    by_id,
    in_a_mapping,
    in_a_list,
    opened_in_python,
    opened_by_pathlib,
    of_no_extension,
    by_soundfile_as_a_path,
    read_before,
]


def test_a_folder_is_written_once(data):
    for item in data.items[:4]:
        os.remove(item["wav"])
    (finding,) = data.seen()[0]
    assert finding.where.count(str(data.folder)) == 1 and finding.where.endswith(".wav and 1 more")
    assert finding.where.startswith(f"train wav: {data.folder}/train")


@pytest.mark.parametrize("way", WAYS)
def test_files_are_found_however_they_are_read(data, way):
    keys = way(data)
    assert [source.keys for source in sources(Items.of("train", data.dataset("train")))] == [keys]
    findings, said = data.seen()
    assert findings == []
    assert "12 of 12 headers and 12 whole files" in said[0]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda dataset: DataLoader(dataset, collate_fn=list),
        lambda dataset: Subset(Subset(dataset, [0, 1, 5]), [1, 2]),
        lambda dataset: dataset.filtered_sorted(sort_key="id"),
        lambda dataset: [{"wav": item["wav"]} for item in dataset.data.values()],
    ],
    ids=["loader", "subset", "sorted", "list"],
)
def test_files_are_found_in_everything_that_fit_takes(data, wrap):
    silent(data)
    (finding,) = data.seen(train_set=wrap(data.dataset("train")), valid_set=None)[0]
    assert finding.code == "audio-silent" and finding.where == f"train wav: {data.item['wav']}"


class OfTorch(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, i):
        return torch.zeros(3)


@pytest.mark.parametrize("given", [OfTorch(), None, [], [torch.zeros(3)], iter([1])])
def test_the_report_says_if_files_are_not_known(data, given):
    findings, said = data.seen(train_set=given, valid_set=None)
    assert findings == [] and "was not scanned" in said[0]


def test_the_report_says_if_two_keys_make_a_path(data):
    for name, item in {**data.train, **data.valid}.items():
        speaker = data.folder / name[-1]
        speaker.mkdir(exist_ok=True)
        shutil.move(item["wav"], speaker / f"{name}.wav")
        item |= {"wav": name, "speaker": name[-1]}
    data.takes, data.read = ["wav", "speaker"], lambda wav, speaker: read_audio(f"{data.folder}/{speaker}/{wav}.wav")
    findings, said = data.seen()
    assert findings == [] and "was not scanned" in said[0]


@pytest.mark.parametrize("spoil, ends", [(other_rate, "convert the files"), (other_rate_in_the_yaml, "44100 in the YAML file")])
def test_the_remedy_for_another_rate(data, spoil, ends):
    spoil(data)
    assert data.seen()[0][0].remedy.endswith(ends)


def test_headers_are_read_even_without_time(data):
    other_rate(data)
    silent(data)
    data.write(data.train["train5"], clip(rate=8000), 8000)
    findings, said = data.seen(scan_seconds=0)
    assert [finding.code for finding in findings] == ["audio-rate"]
    assert "12 of 12 headers and 0 whole files" in said[0]


def test_a_running_profiler_is_kept(data):
    def profiler(*event):
        pass

    missing(data)
    sys.setprofile(profiler)  # since Python 3.12, cProfile does not use this any more
    try:
        assert data.seen()[0] == []
        assert sys.getprofile() is profiler
    finally:
        sys.setprofile(None)


def test_the_pipeline_stays_the_same(data):
    missing(data)
    train_set = data.dataset("train")
    mapping = dict(train_set.pipeline.output_mapping)
    opener = open
    data.seen(train_set=train_set)
    assert train_set.pipeline.output_mapping == mapping and set(train_set[0]) == {"id", "sig"}
    assert open is opener


FORMATS = [
    (extension, subtype)
    for extension in ("wav", "flac", "mp3", "ogg", "aiff")
    for subtype in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", None)
    if soundfile.check_format(extension.upper(), subtype)
]


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("extension", "subtype"), FORMATS)
def test_a_file_is_read_as_by_soundfile(tmp_path, monkeypatch, extension, subtype, channels):
    monkeypatch.setattr(clips, "MOST", 1500)
    path = str(tmp_path / f"clip.{extension}")
    soundfile.write(path, np.stack([clip()] * channels, -1), RATE, subtype=subtype)
    info = soundfile.info(path)
    header, look = clips.read_header(path), clips.read_whole(path)
    assert header == (info.samplerate, info.channels, info.frames, info.subtype, 0)
    samples = soundfile.read(path)[0] * {"PCM_16": 2**15}.get(header.subtype, 1)  # these are read as integers
    assert look[:3] == pytest.approx((info.frames, samples.min(), samples.max()), rel=1e-5)
