# Copyright (c) 2026, The nemo_mshubert authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""Fine-tuning of a CTC model: it is restored with the options of an experiment, and its data is checked first."""

import inspect
from itertools import chain
from pathlib import Path
from typing import Iterator, Optional

from lhotse.dataset.sampling.base import CutSampler
from lightning.pytorch import Trainer
from nemo.collections.asr.models import ASRModel, EncDecCTCModel, EncDecCTCModelBPE
from nemo.collections.common.tokenizers import TokenizerSpec
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import DataLoader

from nemo_mshubert.data.audio import iter_with_audio
from nemo_mshubert.data.manifest import Line, check_for_nemo, iter_manifest, not_empty
from nemo_mshubert.data.resumed_sampler import resumable
from nemo_mshubert.data.tarred import all_paths, check_shards, has_remote_paths, local_paths
from nemo_mshubert.data.transcripts import check_transcript
from nemo_mshubert.data.unreadable import MAX_UNREADABLE, CountedAudio
from nemo_mshubert.data.usable_utterances import check_counts, check_for_mixing, counts_of
from nemo_mshubert.data.word_pieces import check_pieces
from nemo_mshubert.models.loading import is_foreign, local_path, not_restored, unpack
from nemo_mshubert.models.save_restore import WholeFile
from nemo_mshubert.models.seeding import seed_of
from nemo_mshubert.modules.mshubert_encoder import MSHuBERTEncoder
from nemo_mshubert.parallel.ranks import on_one_rank_of_each_node
from nemo_mshubert.parallel.registration import strategies

NO_LIMIT = 1_000_000_000  # batches
LEAVE_TRANSCRIPTS = ("truncate_duration", "cut_into_windows_duration")
ENCODER_OPTIONS = ("dropout", "attention_dropout", "activation_dropout", "dropout_input", "layerdrop")
ENCODER_OPTIONS += ("feature_grad_mult", "mask_prob", "mask_length", "mask_channel_prob", "mask_channel_length")
NEMO_OPTIONS = ("use_cer", "interctc", "optim_param_groups")  # of ASR models, which fine-tuning may set


def restore_for_finetuning(path: str, overrides: DictConfig, trainer: Trainer) -> EncDecCTCModel:
    """Restore a CTC ``.nemo`` with the options of ``overrides`` in its config, and set up its data and optimizer.

    Args:
        path: the file, a folder with it, or a model of the hub, as `models.loading` takes them.
        overrides: the ``model`` section of conf/finetune: ``encoder``, ``train_ds``, ``validation_ds`` (without a
            manifest there is no validation), ``optim``; also NeMo's ``interctc`` and ``optim_param_groups``.
        trainer: of the run.

    Raises:
        FileNotFoundError, ValueError: no such file, not a CTC model, another encoder, an unknown option of the model
            or its encoder, a strategy under which ranks share a model, or data that cannot be trained on (a missing
            or truncated shard, a missing audio file, a broken line, no text, letters that the model lacks, or nothing
            but ``<unk>`` for its tokenizer in most lines).
    """
    model = _restore(path, overrides, trainer)
    if isinstance(trainer.strategy, tuple(kind for kind, _ in strategies().values())):
        raise ValueError(
            f"trainer.strategy: {type(trainer.strategy).__name__} shares one model among ranks, which only "
            "pre-training can. Fine-tune with trainer.strategy=ddp."
        )
    train_ds, validation_ds, optim = (
        OmegaConf.create(OmegaConf.to_container(overrides[name], resolve=True))
        for name in ("train_ds", "validation_ds", "optim")
    )
    if "tokenizer" not in model.cfg:
        # not cfg.labels: if NeMo has changed the vocabulary, these are still the old letters
        model.cfg.labels = train_ds.labels = validation_ds.labels = list(model.cfg.decoder.vocabulary)
    for name, data in (("train_ds", train_ds), ("validation_ds", validation_ds)):
        if not data.get("use_lhotse") and data.get("batch_size") is None:
            raise ValueError(f"model.{name}.use_lhotse=false: NeMo's older loader needs model.{name}.batch_size.")
        for option in LEAVE_TRANSCRIPTS:
            if data.get(option):
                raise ValueError(
                    f"model.{name}.{option}={data[option]}: the audio would be cut, and its transcript left whole. "
                    "Remove it; max_duration leaves out what is too long."
                )
    on_one_rank_of_each_node(trainer, _check_data, train_ds, validation_ds, getattr(model, "tokenizer", None))
    _set_up_training(model, train_ds, trainer)
    if validation_ds.manifest_filepath is not None:
        _set_up_validation(model, validation_ds)
    model.setup_optimization(optim)
    model.cfg = model.cfg  # hparams.yaml and the report show a config as it was when it was last set
    return model


def _restore(path: str, overrides: DictConfig, trainer: Trainer) -> EncDecCTCModel:
    try:
        file = local_path(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such file. Make it with scripts/ssl_to_ctc.py.") from error
    if is_foreign(file):
        raise ValueError(f"{path}: not a .nemo. Make one of it with scripts/ssl_to_ctc.py.")
    try:
        config = unpack(ASRModel, file, return_config=True)
    except Exception as error:
        raise not_restored(path, error) from error
    if "decoder" not in config or not str(config.encoder.get("_target_")).endswith(MSHuBERTEncoder.__name__):
        raise ValueError(f"{path}: expected a CTC model with an MSHuBERTEncoder. Make it with scripts/ssl_to_ctc.py.")
    unknown = sorted(set(overrides) - {"encoder", "train_ds", "validation_ds", "optim", *NEMO_OPTIONS})
    if unknown:
        raise ValueError(f"model: fine-tuning has no options {unknown}; those of the architecture are in the .nemo.")
    unknown = sorted(set(overrides.encoder) - set(inspect.signature(MSHuBERTEncoder.__init__).parameters))
    if unknown:
        raise ValueError(f"model.encoder: MSHuBERTEncoder has no options {unknown}. Correct their names.")
    others = sorted(set(overrides.encoder) - set(ENCODER_OPTIONS))
    changed = [name for name in others if overrides.encoder[name] != config.encoder.get(name)]
    if changed:  # with some, such as num_heads, the weights would fit and be those of another network
        raise ValueError(f"model.encoder: {changed} belong to the architecture, which is that of {path}. Remove them.")
    OmegaConf.set_struct(config, False)
    config.encoder = OmegaConf.merge(config.encoder, overrides.encoder)
    config.update({name: overrides[name] for name in NEMO_OPTIONS if name in overrides})
    # not ASRModel: it cannot be instantiated, and would hide what is wrong with an option
    kind = EncDecCTCModelBPE if "tokenizer" in config else EncDecCTCModel
    model = unpack(kind, file, override_config_path=config, trainer=trainer)
    model._save_restore_connector = WholeFile()
    model.decoding.supported_punctuation = None  # else "give me 'em" would be validated as "give me'em"
    return model


def _check_data(train_ds: DictConfig, validation_ds: DictConfig, tokenizer: Optional[TokenizerSpec]) -> None:
    """Find what stock loaders skip: what is missing, on disk or in a tar, and letters that the model lacks."""
    _check_set(train_ds, tokenizer, are_mixed=bool(train_ds.get("use_lhotse")))
    if validation_ds.manifest_filepath is not None:
        _check_set(validation_ds, tokenizer, are_mixed=False)  # NeMo makes a loader for each manifest


def _check_set(config: DictConfig, tokenizer: Optional[TokenizerSpec], are_mixed: bool) -> None:
    manifests = config.manifest_filepath
    are_mixed = are_mixed and len(all_paths(manifests)) > 1
    if config.get("tarred_audio_filepaths") is not None:
        check_shards(manifests, config.tarred_audio_filepaths)
    lines = chain.from_iterable(_checked_lines(path, config, are_mixed) for path in local_paths(manifests))
    if tokenizer is not None:
        lines = check_pieces(lines, tokenizer, config.get("text_field", "text"))
    counts = counts_of(config, lines)
    if not has_remote_paths(manifests):
        check_counts(config, counts)


def _checked_lines(manifest: str, config: DictConfig, are_mixed: bool) -> Iterator[Line]:
    """The lines of `iter_manifest`, each checked as it passes."""
    is_tarred = config.get("tarred_audio_filepaths") is not None
    check_for_nemo(manifest)
    if are_mixed and not is_tarred:
        check_for_mixing(manifest)
    lines = iter_manifest(manifest) if is_tarred else iter_with_audio(manifest)
    for where, entry in not_empty(lines, manifest):
        check_transcript(entry, where, config.get("labels"), config.get("text_field", "text"))
        yield where, entry


def _set_up_training(model: EncDecCTCModel, config: DictConfig, trainer: Trainer) -> None:
    """NeMo leaves the data to the caller when a model is restored."""
    is_tarred = config.get("tarred_audio_filepaths") is not None
    if is_tarred:
        config.seed = seed_of_session(config.get("seed", 0), trainer)
        trainer.limit_train_batches = NO_LIMIT  # NeMo multiplies the default (1.0) by a length, which tars lack
    else:
        config.shard_seed = config.get("seed", 0)  # the same on all ranks, which share one order
    config.concurrent_bucketing = False  # if its thread met an unreadable file, training would wait forever
    max_unreadable = config.pop("max_unreadable", MAX_UNREADABLE)
    model.setup_training_data(config)
    if not is_tarred and isinstance(model._train_dl.sampler, CutSampler):
        model._train_dl = resumable(model._train_dl, trainer)
    elif not is_tarred and trainer.world_size > 1:  # use_distributed_sampler is off
        raise ValueError("model.train_ds.use_lhotse=false: all ranks would train on the same batches. Use one GPU.")
    _count_unreadable(model._train_dl, max_unreadable)


def _set_up_validation(model: EncDecCTCModel, config: DictConfig) -> None:
    model.setup_multiple_validation_data(config)
    for loader in model._validation_dl if isinstance(model._validation_dl, list) else [model._validation_dl]:
        _count_unreadable(loader, 0)  # without unreadable files, the WER would be that of another set


def _count_unreadable(loader: DataLoader, limit: int) -> None:
    """Count the unreadable audio that NeMo's datasets for Lhotse skip; its other datasets end with an error."""
    dataset = getattr(loader.dataset, "dataset", loader.dataset)  # for tars, it is wrapped
    if hasattr(dataset, "load_audio"):
        dataset.load_audio = CountedAudio(limit)


def seed_of_session(seed: int, trainer: Trainer) -> int:
    """Seed of dropout, masks and streams of tars. A resumed fine-tuning does not continue these, so every session has
    a different seed: otherwise it would see the same first shards again and again."""
    return seed_of(seed, Path(trainer.ckpt_path).name) % 2**30 if trainer.ckpt_path else seed
