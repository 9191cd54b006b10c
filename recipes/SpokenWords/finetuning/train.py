#!/usr/bin/env python3
"""Fine-tunes a pretrained, frozen encoder to spot new words: a new classifier is trained on its embeddings.

To run it, after pretrain.py has made the encoder:
> python train.py hparams/finetune.yaml
With the Speech Commands corpus instead of made speech:
> python train.py hparams/finetune.yaml --data_folder /path/to/speech_commands
"""

import os
import sys

import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.inference.classifiers import EncoderClassifier
from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.logger import format_order_of_magnitude, get_logger

from spoken_words_prepare import prepare_spoken_words, same_run

logger = get_logger(__name__)


class KeywordBrain(sb.Brain):
    """Trains a classifier of words on the embeddings of a frozen encoder."""

    # Of the last test; none has been run where the preflight passes over evaluate().
    test_error = None

    def print_trainable_parameters(self):
        """Say of each module how much of it is trained: the first thing to check when modules are frozen."""
        super().print_trainable_parameters()
        for name, module in self.modules.items():
            sizes = [(p.numel(), p.requires_grad) for p in module.parameters()]
            total = format_order_of_magnitude(sum(size for size, _ in sizes))
            # The frozen encoder has 0 trainable parameters; formatting that 0 is where the stock release dies.
            trainable = format_order_of_magnitude(sum(size for size, trained in sizes if trained))
            logger.info(f"{name}: {trainable} trainable of {total} parameters")

    def embed(self, batch, stage):
        """Compute the embeddings of a batch, [batch, 1, emb_dim]."""
        # fit() puts every module into training mode, which would move the BatchNorm statistics of a frozen one.
        self.modules.encoder.eval()
        wavs, lens = batch.sig
        with torch.no_grad():
            return self.hparams.pretrained.encode_batch(wavs, lens)

    def compute_forward(self, batch, stage):
        """Compute the log-probabilities of the words, [batch, 1, n_words]."""
        batch = batch.to(self.device)
        return self.modules.classifier(self.embed(batch, stage))

    def compute_objectives(self, predictions, batch, stage):
        """Compute the loss, and collect the errors where the model is evaluated."""
        targets = batch.word_encoded.data
        loss = sb.nnet.losses.nll_loss(predictions, targets)
        if stage != sb.Stage.TRAIN:
            self.errors.append(batch.id, predictions, targets)
        return loss

    def on_stage_start(self, stage, epoch=None):
        """Start to collect errors."""
        if stage != sb.Stage.TRAIN:
            self.errors = self.hparams.error_stats()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Log the stage; after validation keep the best checkpoint."""
        if stage == sb.Stage.TRAIN:
            self.train_stats = {"loss": stage_loss}
            return
        stats = {"loss": stage_loss, "error": self.errors.summarize("average")}
        if stage == sb.Stage.VALID:
            self.hparams.train_logger.log_stats({"epoch": epoch}, self.train_stats, stats)
            self.checkpointer.save_and_keep_only(meta=stats, min_keys=["error"])
        else:
            self.hparams.train_logger.log_stats({"Epoch loaded": self.hparams.epoch_counter.current}, test_stats=stats)
            self.test_error = stats["error"]

    def fit_and_test(self, datasets):
        """Train, then test the best epoch."""
        loader = self.hparams.dataloader_options
        # BatchNorm cannot train on a last batch of one.
        alone = len(datasets["train"]) % self.hparams.batch_size == 1
        self.fit(
            self.hparams.epoch_counter,
            datasets["train"],
            datasets["valid"],
            train_loader_kwargs={**loader, "shuffle": True, "drop_last": alone},
            valid_loader_kwargs=loader,
        )
        self.evaluate(datasets["test"], min_key="error", test_loader_kwargs=loader)


def load_hparams(arguments):
    """Read the command line and the YAML, and make the output folder."""
    hparams_file, run_opts, overrides = sb.parse_arguments(arguments)
    sb.utils.distributed.ddp_init_group(run_opts)
    with open(hparams_file, encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, overrides)
    sb.create_experiment_directory(hparams["output_folder"], hparams_file, overrides)
    return hparams_file, hparams, run_opts


def prepare(hparams):
    """Prepare the data, unless the output folder holds a run on something else; returns the datasets."""
    run_on = {key: hparams[key] for key in ("words", "source") if key in hparams}
    run_on["data_folder"] = os.path.realpath(hparams["data_folder"])
    run_on_main(same_run, [hparams["output_folder"]], run_on)
    keys = ("data_folder", "words", "manifests", "skip_prep")
    run_on_main(prepare_spoken_words, kwargs={key: hparams[key] for key in keys})
    return dataio_prep(hparams)


def dataio_prep(hparams):
    """Make the datasets of the three splits, and the encoder of their labels."""

    @sb.utils.data_pipeline.takes("wav")
    @sb.utils.data_pipeline.provides("sig")
    def audio_pipeline(wav):
        return sb.dataio.dataio.read_audio(wav)

    label_encoder = hparams["label_encoder"]

    @sb.utils.data_pipeline.takes("word")
    @sb.utils.data_pipeline.provides("word", "word_encoded")
    def label_pipeline(word):
        yield word
        yield label_encoder.encode_label_torch(word)

    datasets = {
        split: sb.dataio.dataset.DynamicItemDataset.from_json(
            path,
            replacements={"data_root": hparams["data_folder"]},
            dynamic_items=[audio_pipeline, label_pipeline],
            output_keys=["id", "sig", "word_encoded"],
        )
        for split, path in hparams["manifests"].items()
    }
    # The words themselves, in the YAML's order: the same labels whatever the data are.
    label_encoder.update_from_iterable(hparams["words"])
    label_encoder.expect_len(len(hparams["words"]))
    return datasets


def main():
    """Fine-tune, and tell the test error before and after."""
    _, hparams, run_opts = load_hparams(sys.argv[1:])
    if not os.path.isdir(hparams["source"]) and hparams["source"].count("/") != 1:  # a hub id has one slash
        raise ValueError(f"there is no folder {hparams['source']}: run pretrain.py first, or name another --source")
    datasets = prepare(hparams)

    # from_hparams freezes what it loads.
    pretrained = EncoderClassifier.from_hparams(hparams["source"], run_opts=run_opts)
    hparams["pretrained"] = pretrained
    emb_dim = pretrained.encode_batch(torch.zeros(1, 16000)).shape[-1]
    if emb_dim != hparams["emb_dim"]:
        raise ValueError(f"{hparams['source']} gives embeddings of size {emb_dim}: run again with --emb_dim {emb_dim}")

    brain = KeywordBrain(
        modules={"encoder": pretrained.mods.embedding_model, **hparams["modules"]},
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    before = None
    if hparams["checkpointer"].find_checkpoint() is None:  # else the classifier is no longer a new one
        brain.evaluate(datasets["test"], test_loader_kwargs=hparams["dataloader_options"])
        before = brain.test_error
    brain.fit_and_test(datasets)
    if before is not None:
        logger.info(f"Test error before fine-tuning: {before:.1%}")
    logger.info(f"Test error after fine-tuning: {brain.test_error:.1%}")


if __name__ == "__main__":
    main()
