#!/usr/bin/env python3
"""Fine-tunes a pretrained encoder to spot new words, in two stages.

Stage 1 trains a new classifier on the embeddings of the frozen encoder, which
are computed once. Stage 2 trains encoder and classifier together, on augmented
audio.

To run it, after pretrain.py has made the encoder:
> python train.py hparams/finetune.yaml
Only the first stage:
> python train.py hparams/finetune.yaml --unfreeze False
With the Speech Commands corpus instead of made speech:
> python train.py hparams/finetune.yaml --data_folder /path/to/speech_commands
"""

from command_line import start

if __name__ == "__main__":
    start(__doc__)  # before the imports below, which take seconds

import contextlib
import hashlib
import os
import random
import sys
import time

import numpy as np
import speechbrain as sb
import torch
import torch._dynamo  # now, or the first optimizer imports it in the middle of training
from filelock import FileLock, Timeout
from hyperpyyaml import load_hyperpyyaml
from speechbrain.inference.classifiers import EncoderClassifier
from speechbrain.utils.distributed import if_main_process, run_on_main
from speechbrain.utils.logger import format_order_of_magnitude, get_logger
from tqdm import tqdm

import embeddings
import results
from spoken_words_prepare import prepare_spoken_words, read_clip, same_run

STARTED = time.perf_counter()
logger = get_logger(__name__)


class KeywordBrain(sb.Brain):
    """Trains the modules that a stage lists, and freezes the others.

    Arguments
    ---------
    stage : dict
        From the YAML: ``name``, ``trained`` (names of modules), ``opt_class``, ``lr_annealing``,
        ``dataloader_options``, ``counter``, ``checkpointer``, and optionally ``augment``.
    modules : dict of str to torch.nn.Module
        ``compute_features``, ``mean_var_norm``, ``embedding_model`` and ``classifier``.
    metrics : results.Metrics
        Records the numbers of each epoch.
    hparams, run_opts : dict
        As for ``sb.Brain``.
    """

    # Of the last test. Under the preflight, which skips evaluate(), they stay nan.
    test_stats = {"loss": float("nan"), "error": float("nan")}  # noqa: RUF012

    def __init__(self, stage, modules, metrics, hparams, run_opts):
        self.name, self.metrics, self.counter = stage["name"], metrics, stage["counter"]
        self.lr_annealing = stage["lr_annealing"]
        self.loader_options, self.augment, self.cached = stage["dataloader_options"], stage.get("augment"), None
        self.frozen = [name for name in modules if name not in stage["trained"]]
        for name, module in modules.items():
            module.requires_grad_(name in stage["trained"])
        stage["checkpointer"].add_recoverables({name: modules[name] for name in stage["trained"]})
        stage["checkpointer"].add_recoverable("counter", stage["counter"])
        super().__init__(modules, stage["opt_class"], hparams, run_opts, stage["checkpointer"])

    def print_trainable_parameters(self):
        """Log how many parameters of each module are trainable: check this first when modules are frozen."""
        super().print_trainable_parameters()
        for name, module in self.modules.items():
            sizes = [(p.numel(), p.requires_grad) for p in module.parameters()]
            total = format_order_of_magnitude(sum(size for size, _ in sizes))
            # The frozen encoder has 0 trainable parameters. The stock release crashes when it formats that 0.
            trainable = format_order_of_magnitude(sum(size for size, trained in sizes if trained))
            logger.info(f"{self.name}: {name}: {trainable} trainable of {total} parameters")

    def on_fit_start(self):
        """Check before the first step that all values are finite, the pretrained ones in particular."""
        super().on_fit_start()
        bad = [name for name, value in self.modules.state_dict().items() if not torch.isfinite(value).all()]
        if bad:
            what = f"{', '.join(bad)} contain values that are not finite before the first step of {self.name}"
            raise ValueError(f"{what}: make or download the encoder again.")

    def embed(self, batch):
        """Compute the embeddings of a batch, [batch, 1, emb_dim]."""
        if self.cached is not None:
            return self.cached(batch.id).to(self.device)
        wavs, lens = batch.sig
        if self.augment is not None and self.modules.training:
            wavs, lens = self.augment(wavs, lens)
        count = len(wavs)
        if "embedding_model" in self.frozen:
            # The last bit of an embedding depends on the batch size, and for some sizes on the clip's position in the batch.
            # Filling every batch up to batch_size, rounded up to a multiple of 8, gives the cache, training and testing the
            # same embeddings.
            missing = -count % (-(-self.loader_options["batch_size"] // 8) * 8)
            wavs, lens = torch.cat([wavs, wavs.new_zeros(missing, wavs.shape[1])]), torch.cat([lens, lens.new_ones(missing)])
        feats = self.modules.mean_var_norm(self.modules.compute_features(wavs), lens)
        return self.modules.embedding_model(feats, lens)[:count]

    def compute_forward(self, batch, stage):
        """Compute the log-probabilities of the words, [batch, 1, n_words]."""
        batch = batch.to(self.device)
        return self.modules.classifier(self.embed(batch))

    def compute_objectives(self, predictions, batch, stage):
        """Compute the loss; in validation and test also collect the predictions."""
        targets = batch.word_encoded.data
        if stage == sb.Stage.TRAIN and self.augment is not None:
            targets = self.augment.replicate_labels(targets)
        if stage != sb.Stage.TRAIN:
            self.predictions += zip(batch.id, targets.squeeze(-1).tolist(), predictions.squeeze(1).exp().tolist())
        return sb.nnet.losses.nll_loss(predictions, targets)

    def fit_batch(self, batch):
        """Train on a batch, with random numbers that depend only on the step, so that a resumed run draws the same ones."""
        seed_with(self.hparams.seed, self.name, self.counter.current, self.step, os.environ.get("RANK", 0))
        # fit() puts every module into training mode, which would change the BatchNorm statistics of the frozen ones.
        for name in self.frozen:
            if self.modules[name].training:
                self.modules[name].eval()
        with self.naming(batch, sb.Stage.TRAIN):
            return super().fit_batch(batch)

    def evaluate_batch(self, batch, stage):
        """Evaluate a batch."""
        with self.naming(batch, stage):
            loss = super().evaluate_batch(batch, stage)
            self.warn_if_not_finite(loss)
            return loss

    def check_loss_isfinite(self, loss):
        """Name the utterances of a loss that is not finite; SpeechBrain then decides whether to go on."""
        self.warn_if_not_finite(loss)
        super().check_loss_isfinite(loss)

    def warn_if_not_finite(self, loss):
        """Warn if a loss is not finite."""
        if not torch.isfinite(loss).all():
            logger.warning(f"the loss is {loss.item()} in {self.at_work_on}")

    @contextlib.contextmanager
    def naming(self, batch, stage):
        """Add the stage, the step and the utterances to an error."""
        where = f"{self.name}, {stage.name.lower()}, epoch {self.counter.current}, step {self.step}"
        self.at_work_on = f"{where}, with {', '.join(batch.id)}"
        try:
            yield
        except Exception as error:
            if hasattr(error, "add_note"):
                error.add_note(f"This happened in {self.at_work_on}")
            else:  # Python 3.10
                logger.error(f"{error!r} happened in {self.at_work_on}")
            raise

    def on_stage_start(self, stage, epoch=None):
        """Start to collect predictions; before training also set the learning rate of the epoch."""
        self.predictions = []
        if stage == sb.Stage.TRAIN:
            self.epoch_started = time.perf_counter()
            self.lr, _ = self.lr_annealing(epoch)  # depends only on the epoch, so a resumed run uses the same rate
            sb.nnet.schedulers.update_learning_rate(self.optimizer, self.lr)

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Log the numbers of the stage; after validation also save a checkpoint, and keep only the best one."""
        if stage == sb.Stage.TRAIN:
            self.train_stats = {"loss": stage_loss}
            return
        stats = {"loss": stage_loss, "error": results.error_of(self.predictions)}
        if stage == sb.Stage.TEST:
            self.test_stats = stats
            return
        seconds = time.perf_counter() - self.epoch_started
        self.hparams.train_logger.log_stats({"stage": self.name, "epoch": epoch, "lr": self.lr}, self.train_stats, stats)
        self.metrics.add_epoch(self.name, epoch, self.train_stats, stats, seconds)
        self.checkpointer.save_and_keep_only(meta={"epoch": epoch, **stats}, min_keys=["error"])

    def fit_and_test(self, datasets):
        """Train, then test the best epoch."""
        loader = self.loader_options
        processes = int(os.environ.get("WORLD_SIZE", 1))  # each trains on its share of the clips
        clips, size = -(-len(datasets["train"]) // processes), loader["batch_size"]
        if min(clips, size) < 2:
            found = f"batch_size is {size}, and each process has {clips} clips"
            raise ValueError(f"BatchNorm cannot train on one clip at a time: {found}. Both must be 2 or more.")
        alone = clips % size == 1  # BatchNorm cannot train on a last batch of one clip either
        self.fit(
            self.counter,
            datasets["train"],
            datasets["valid"],
            train_loader_kwargs={**loader, "shuffle": True, "drop_last": alone},
            valid_loader_kwargs=loader,
        )
        self.evaluate(datasets["test"], min_key="error", test_loader_kwargs={**loader})  # a copy: the release writes into it
        self.hparams.train_logger.log_stats(
            {"stage": self.name, "Epoch loaded": self.counter.current}, test_stats=self.test_stats
        )
        self.metrics.add_test(self.name, self.counter.current, self.test_stats)


def seed_with(*what):
    """Seed all random numbers of this process with a digest of the arguments."""
    seed = int(hashlib.sha256(repr(what).encode()).hexdigest()[:8], 16)
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # before that, each torch.manual_seed would add a call to a list that grows
        torch.cuda.manual_seed_all(seed)


def load_hparams(arguments):
    """Read the command line and the YAML, and make the output folder."""
    hparams_file, run_opts, overrides = sb.parse_arguments(arguments)
    sb.utils.distributed.ddp_init_group(run_opts)
    with open(hparams_file, encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, overrides)
    sb.create_experiment_directory(hparams["output_folder"], hparams_file, overrides)
    hparams["lock"] = FileLock(os.path.join(hparams["output_folder"], ".lock"))
    if if_main_process():
        try:
            hparams["lock"].acquire(timeout=10)  # the loader workers of a killed run keep the lock for 5 more seconds
        except Timeout:
            raise RuntimeError(f"another run is writing to {hparams['output_folder']}: use another --output_folder.") from None
    results.refuse_to_replace(hparams["inference_folder"], hparams.get("source"))
    return hparams_file, overrides, hparams, run_opts


def prepare(hparams, clip_seconds, **run_on):
    """Check and prepare the data, unless the output folder belongs to another run."""
    words, folder = hparams["words"], os.path.realpath(hparams["data_folder"])
    run_on.update(words=[*map(str, words)] if isinstance(words, list) else words, data_folder=folder, clip_seconds=clip_seconds)
    run_on_main(same_run, [hparams["output_folder"]], run_on)
    keys = ("data_folder", "words", "manifests", "data_report", "bad_clips", "make_speech", "skip_prep")
    run_on_main(prepare_spoken_words, kwargs={"clip_seconds": clip_seconds, **{key: hparams[key] for key in keys}})


def dataio_prep(hparams, sample_rate, clip_seconds):
    """Make the datasets of the three splits, and fill the label encoder."""
    normalizer = sb.dataio.preprocess.AudioNormalizer(sample_rate)

    @sb.utils.data_pipeline.takes("wav")
    @sb.utils.data_pipeline.provides("sig")
    def audio_pipeline(wav):
        return read_clip(wav, normalizer, clip_seconds)

    label_encoder = hparams["label_encoder"]

    @sb.utils.data_pipeline.takes("word")
    @sb.utils.data_pipeline.provides("word_encoded")
    def label_pipeline(word):
        return label_encoder.encode_label_torch(word)

    # From the list in the YAML and in its order, so that the labels do not depend on the data.
    label_encoder.update_from_iterable(map(str, hparams["words"]))
    label_encoder.expect_len(len(hparams["words"]))
    return {
        split: sb.dataio.dataset.DynamicItemDataset.from_json(
            path,
            replacements={"data_root": hparams["data_folder"]},
            dynamic_items=[audio_pipeline, label_pipeline],
            output_keys=["id", "sig", "word_encoded"],
        )
        for split, path in hparams["manifests"].items()
    }


def cache_embeddings(brain, datasets, folder, **settings):
    """Make the Brain read embeddings from disk instead of computing them from audio."""
    brain.modules.eval()
    paths = {}
    for split, dataset in datasets.items():
        key = embeddings.key_of(dataset, **settings, batch_size=brain.loader_options["batch_size"])
        paths[split] = os.path.join(folder, f"{split}-{key}.npy")
        loader = brain.make_dataloader(dataset, sb.Stage.TEST, ckpt_prefix=None, **brain.loader_options)
        batches = tqdm(loader, desc=f"embedding {split}", disable=brain.noprogressbar, leave=False)
        run_on_main(embeddings.keep, [paths[split], batches, len(dataset), lambda batch: brain.embed(batch.to(brain.device))])
        dataset.set_output_keys(["id", "word_encoded"])
    brain.cached = embeddings.Embeddings(datasets, paths)


def main():
    """Fine-tune, and log the test error before and after; returns the Brain of the last stage."""
    hparams_file, overrides, hparams, run_opts = load_hparams(sys.argv[1:])
    source = hparams["source"]
    if os.path.isdir(source):
        source = os.path.realpath(source)
    elif source.count("/") != 1:  # a hub id has one slash
        raise ValueError(f"there is no folder {source}: run pretrain.py first, or use another --source")
    if hparams["clip_seconds"] < 0.1:
        raise ValueError(f"clip_seconds is {hparams['clip_seconds']}: it must be at least 0.1, because a word takes that long")

    # from_hparams freezes what it loads.
    pretrained = EncoderClassifier.from_hparams(source, run_opts=run_opts)
    clip_settings = {key: hparams[key] for key in ("sample_rate", "clip_seconds")}
    found = {
        "emb_dim": pretrained.encode_batch(torch.zeros(1, round(hparams["sample_rate"] * hparams["clip_seconds"]))).shape[-1],
        "sample_rate": pretrained.audio_normalizer.sample_rate,
    }
    for key, value in found.items():
        if value != hparams[key]:
            raise ValueError(f"{source} has {key} {value}: run again with --{key} {value}")
    modules = {name: pretrained.mods[name] for name in ("compute_features", "mean_var_norm", "embedding_model")}
    digest = embeddings.digest_of(modules)  # the path stays the same when the encoder is trained again
    prepare(hparams, hparams["clip_seconds"], source=source, encoder_digest=digest)
    modules["classifier"] = hparams["classifier"]
    metrics = results.Metrics(os.path.join(hparams["output_folder"], "metrics.json"))

    # Stage 1: only the classifier.
    brain = KeywordBrain(hparams["head"], modules, metrics, hparams, run_opts)
    datasets = dataio_prep(hparams, **clip_settings)
    if hparams["cache_embeddings"]:
        cache_embeddings(brain, datasets, hparams["cache_folder"], encoder_digest=digest, **clip_settings)
    if hparams["head"]["checkpointer"].find_checkpoint() is None:  # otherwise the classifier is trained already
        brain.evaluate(datasets["test"], test_loader_kwargs={**brain.loader_options})
        metrics.add("before", brain.test_stats)
    brain.fit_and_test(datasets)

    # Stage 2: the encoder as well.
    if hparams["unfreeze"]:
        brain = KeywordBrain(hparams["full"], modules, metrics, hparams, run_opts)
        brain.fit_and_test(dataio_prep(hparams, **clip_settings))

    metrics.add("seconds", time.perf_counter() - STARTED)
    if "before" in metrics:  # not if everything in the output folder except the checkpoints was deleted
        logger.info(f"Test error before fine-tuning: {metrics['before']['error']:.1%}")
    logger.info(f"Test error after fine-tuning: {brain.test_stats['error']:.1%}")
    run_on_main(results.write, [hparams_file, overrides, hparams, brain, pretrained, metrics])
    return brain


if __name__ == "__main__":
    with results.advice_on_storage():
        main()
