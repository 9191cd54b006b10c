"""Writes the results of a run: metrics, pictures, the worst clips, and an inference folder."""

import contextlib
import csv
import errno
import io
import json
import os
import re
import shutil
import statistics
import sys

import matplotlib
import numpy as np
import ruamel.yaml
from hyperpyyaml import resolve_references
from matplotlib import pyplot
from speechbrain.utils.checkpoints import DEFAULT_SAVE_HOOKS, get_default_hook
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.fetching import fetch
from speechbrain.utils.logger import get_logger

from spoken_words_prepare import write as write_text

matplotlib.use("Agg")  # pictures go to files, so no screen is needed
matplotlib.rcParams["text.parse_math"] = False  # a word may contain a $
logger = get_logger(__name__)


class Metrics(dict):
    """The numbers of a run. Each is written to disk as soon as it is added; a resumed run reads them back.

    Arguments
    ---------
    path : str
        The JSON file.
    """

    def __init__(self, path):
        self.path = path
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                self.update(json.load(file))

    def add(self, key, value):
        """Set a value."""
        self[key] = value
        if if_main_process():
            write_text(self.path, json.dumps(self, indent=1))

    def add_epoch(self, stage, epoch, train, valid, seconds):
        """Set the numbers of an epoch; an epoch that is trained again replaces the numbers of a killed run."""
        row = {"train_loss": train["loss"], "valid_loss": valid["loss"], "valid_error": valid["error"], "seconds": seconds}
        self.add(stage, {**self.get(stage, {}), "epochs": {**self.get(stage, {}).get("epochs", {}), str(epoch): row}})

    def add_test(self, stage, best_epoch, test):
        """Set the test result of a stage."""
        epochs = self.get(stage, {}).get("epochs", {})
        seconds = statistics.median([row["seconds"] for row in epochs.values()] or [0.0])
        row = {"best_epoch": best_epoch, "test_loss": test["loss"], "test_error": test["error"], "seconds_per_epoch": seconds}
        self.add(stage, {**self.get(stage, {}), **row})


def error_of(predictions):
    """Compute the share of clips that were taken for another word.

    Arguments
    ---------
    predictions : list of (str, int, list of float)
        Name, label and probabilities of each clip.

    Returns
    -------
    float
        The error; nan if there is no clip.

    Example
    -------
    >>> error_of([("a", 0, [0.9, 0.1]), ("b", 0, [0.2, 0.8])])
    0.5
    """
    wrong = [int(np.argmax(probabilities)) != label for _, label, probabilities in predictions]
    return sum(wrong) / len(wrong) if wrong else float("nan")


def write(hparams_file, overrides, hparams, brain, pretrained, metrics):
    """Write pictures, the worst clips and the inference folder.

    Arguments
    ---------
    hparams_file, overrides, hparams : str, str, dict
        What the run was started with.
    brain : KeywordBrain
        The last stage, after its test.
    pretrained : EncoderClassifier
        The model that was fine-tuned.
    metrics : Metrics
        The numbers.
    """
    folder, words = hparams["output_folder"], [str(word) for word in hparams["words"]]
    plot_curves(os.path.join(folder, "curves.png"), metrics, [s for s in ("head", "full") if s in metrics])
    plot_confusion(os.path.join(folder, "confusion.png"), brain.predictions, words)
    write_worst(os.path.join(folder, "worst_clips.csv"), brain.predictions, words, hparams["data_folder"])
    with open(hparams_file, encoding="utf-8") as file:
        classifier = yaml().load(resolve_references(file, overrides).getvalue())["classifier"]
    with open(fetch("hyperparams.yaml", hparams["source"]), encoding="utf-8") as file:
        tree = yaml().load(file)
    tree["classifier"] = classifier
    tree["modules"]["classifier"] = yaml().load("!ref <classifier>")
    tree.update({key: hparams[key] for key in ("n_words", "sample_rate", "clip_seconds")})
    loadables = dict(pretrained.hparams.pretrainer.loadables)
    loadables.update(classifier=brain.hparams.classifier, label_encoder=hparams["label_encoder"])
    save_inference_folder(hparams["inference_folder"], tree, loadables)
    logger.info(f"Metrics, pictures, the worst clips and the model for inference are in {folder}")


def refuse_to_replace(folder, source=None):
    """Refuse a path for the inference folder if saving the model there would delete something else.

    Arguments
    ---------
    folder : str
        The path of the inference folder.
    source : str, optional
        Where the encoder comes from.

    Raises
    ------
    ValueError
        If it is the source, a file, or a folder with anything except an older inference folder.
    """
    folder = os.path.realpath(folder)
    there = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    other = [name for name in there if name != "hyperparams.yaml" and not name.endswith(".ckpt")]
    if os.path.isfile(folder):
        why = "is a file"
    elif other or (there and "hyperparams.yaml" not in there):
        why = f"contains {', '.join((other or there)[:5])}"
    elif source and os.path.realpath(source) == folder:
        why = "is the --source"
    else:
        return
    raise ValueError(f"{folder} {why} and would be replaced: use another --inference_folder.")


def plot_curves(path, metrics, stages):
    """Draw the losses and the error of each epoch, with the stages side by side."""
    figure, axes = pyplot.subplots(1, len(stages), figsize=(5 * len(stages), 4), squeeze=False, sharey=True)
    for axis, stage in zip(axes[0], stages):
        epochs = {int(epoch): row for epoch, row in metrics[stage].get("epochs", {}).items()}
        for key, style in (("train_loss", "--"), ("valid_loss", "-"), ("valid_error", "-")):
            axis.plot(list(epochs), [row[key] for row in epochs.values()], style, label=key.replace("_", " "))
        axis.axvline(metrics[stage]["best_epoch"], color="0.8", zorder=0, label="best epoch")
        axis.set(title=f"{stage}: test error {metrics[stage]['test_error']:.1%}", xlabel="epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0][0].set_ylim(bottom=0)
    axes[0][0].legend()
    save_picture(figure, path)


def plot_confusion(path, predictions, words):
    """Draw how often the model took each spoken word for each other word."""
    counts = np.zeros((len(words), len(words)), dtype=int)
    for _, label, probabilities in predictions:
        counts[label, int(np.argmax(probabilities))] += 1
    side = max(4.0, 0.5 * len(words))
    figure, axis = pyplot.subplots(figsize=(side, side))
    axis.imshow(counts, cmap="Blues")
    axis.set(xlabel="predicted", ylabel="spoken")
    axis.set_xticks(range(len(words)), words, rotation=60, ha="right")
    axis.set_yticks(range(len(words)), words)
    for (spoken, predicted), count in np.ndenumerate(counts):
        if count:
            color = "white" if count > counts.max() / 2 else "black"
            axis.text(predicted, spoken, count, ha="center", va="center", color=color)
    save_picture(figure, path)


def save_picture(figure, path):
    """Write a picture; if that is interrupted, leave no incomplete file under its name."""
    figure.savefig(f"{path}.part", format="png", dpi=120, bbox_inches="tight")
    pyplot.close(figure)
    os.replace(f"{path}.part", path)


def write_worst(path, predictions, words, data_folder, count=50):
    """List the clips whose own word got the lowest probability: listen to these first."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["probability", "said", "told", "clip"])
    for name, label, probabilities in sorted(predictions, key=lambda p: p[2][p[1]])[:count]:
        predicted = words[int(np.argmax(probabilities))]
        table.writerow([f"{probabilities[label]:.4f}", words[label], predicted, os.path.join(data_folder, name)])
    write_text(path, text.getvalue())


def yaml():
    """Make a YAML reader and writer that keeps tags and comments."""
    found = ruamel.yaml.YAML()
    found.width = 1000
    return found


def save_inference_folder(folder, tree, loadables):
    """Write a folder that ``EncoderClassifier.from_hparams(source=folder)`` loads, even after it is moved.

    Arguments
    ---------
    folder : str
        Its path.
    tree : ruamel.yaml.CommentedMap
        The content of its hyperparams.yaml.
    loadables : dict of str to object
        The objects that its pretrainer loads, each from ``<name>.ckpt``.
    """
    tree = {**tree, "pretrainer": yaml().load("!new:speechbrain.utils.parameter_transfer.Pretrainer {loadables: {}}")}
    tree["pretrainer"]["loadables"].update({name: yaml().load(f"!ref <{name}>") for name in loadables})
    # Without this, the label encoder warns at the first prediction that expect_len was not called.
    expect = "!apply:speechbrain.dataio.encoder.CategoricalEncoder.expect_len [!ref <label_encoder>, %d]"
    tree["__expect_len"] = yaml().load(expect % len(loadables["label_encoder"]))
    refuse_to_replace(folder)  # again: something may have been put there since the start
    folder = os.path.realpath(folder)  # a symbolic link stays one
    part, old = f"{folder}.part", f"{folder}.replaced"  # part is renamed once it is complete, and old deleted after that
    for left in (part, old):  # left by a killed run
        shutil.rmtree(left, ignore_errors=True)
    os.makedirs(part)
    for name, loadable in loadables.items():
        get_default_hook(loadable, DEFAULT_SAVE_HOOKS)(loadable, os.path.join(part, f"{name}.ckpt"))
    with open(os.path.join(part, "hyperparams.yaml"), "w", encoding="utf-8") as file:
        yaml().dump(tree, file)
    if os.path.exists(folder):
        os.rename(folder, old)
    os.rename(part, folder)
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def advice_on_storage():
    """Replace the traceback of a full or write-protected disk by a message that says what to do."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        full = re.search("PytorchStreamWriter|inline_container", str(error)) or getattr(error, "errno", None) in (
            errno.ENOSPC,
            errno.EDQUOT,
        )
        if not full and getattr(error, "errno", None) not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        act, remedy = ("write", "free some space") if full else ("read or write", "fix the permissions or use another folder")
        sys.exit(
            f"Could not {act}: {error}. The checkpoints are unchanged: {remedy}, then run the same command again to resume."
        )
