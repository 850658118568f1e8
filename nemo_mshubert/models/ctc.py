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

"""CTC models around our encoder. They are NeMo's own classes, so that every stock script takes the ``.nemo``."""

import inspect
import string
from pathlib import Path
from typing import Any, Dict, Optional

from lhotse.dataset.sampling.base import CutSampler
from lightning.pytorch import Trainer
from nemo.collections.asr.models import ASRModel, EncDecCTCModel, EncDecCTCModelBPE
from nemo.core.classes import ModelPT
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import DataLoader

from nemo_mshubert.data.manifest import check_audio_files, check_for_nemo
from nemo_mshubert.data.resumed_sampler import resumable
from nemo_mshubert.data.tarred import check_shards, local_paths
from nemo_mshubert.data.transcripts import check_transcripts
from nemo_mshubert.data.unreadable import MAX_UNREADABLE, CountedAudio
from nemo_mshubert.data.usable_utterances import check_utterances
from nemo_mshubert.decoding.lexicon import WRITTEN_DELIMITER
from nemo_mshubert.models.loading import is_foreign, local_path, restore_mshubert
from nemo_mshubert.models.seeding import seed_of
from nemo_mshubert.models.whole_file import WholeFile
from nemo_mshubert.modules.mshubert_encoder import MSHuBERTEncoder

NEMO_OPTIONS = ("interctc", "optim_param_groups")  # of ASR models, which fine-tuning may set
LETTERS = [" ", *string.ascii_lowercase, "'"]  # the space is the word delimiter (fairseq's "|"); NeMo adds the blank


def ctc_config(
    preprocessor: Dict[str, Any], encoder: Dict[str, Any], labels: Optional[list], tokenizer_dir: Optional[str]
) -> DictConfig:
    """Config of a stock CTC model: letters where ``labels`` are given, else the SentencePiece model in
    ``tokenizer_dir``."""
    data = {"manifest_filepath": None, "sample_rate": preprocessor["sample_rate"], "batch_size": 8, "shuffle": False}
    if labels:
        data["labels"] = labels
    config = {
        "sample_rate": preprocessor["sample_rate"],
        "ctc_reduction": "mean_batch",
        "log_prediction": False,
        "preprocessor": preprocessor,
        "encoder": encoder,
        "decoder": {
            "_target_": "nemo.collections.asr.modules.ConvASRDecoder",
            "feat_in": encoder["d_model"],
            "num_classes": len(labels) if labels else -1,
            "vocabulary": labels or [],
        },
        "decoding": {"strategy": "greedy_batch"},
        "train_ds": {**data, "shuffle": True},  # NeMo's scripts read all three, and do not take null for one
        "validation_ds": data,
        "test_ds": data,
        "optim": {"name": "adam", "lr": 5e-5},
    }
    if labels:
        config["labels"] = labels
    else:
        config["tokenizer"] = {"dir": str(tokenizer_dir), "type": "bpe"}
    return OmegaConf.create(config)


def ssl_to_ctc(
    ssl_path: str, tokenizer_dir: Optional[str] = None, from_scratch: bool = False, letters: Optional[str] = None
) -> EncDecCTCModel:
    """A stock CTC model with the encoder of a pre-trained ``.nemo`` and a random output layer.

    Args:
        ssl_path: ``.nemo`` with an `MSHuBERTEncoder`.
        tokenizer_dir: folder with NeMo's ``tokenizer.model`` and ``vocab.txt`` for a BPE model; letters by default.
        from_scratch: random weights in the encoder too: the baseline without pre-training.
        letters: of another language, in one string, without the word delimiter; `LETTERS` by default.

    Raises:
        FileNotFoundError, ValueError: no such file, another architecture, or letters that are there twice, that are
            white space or ``|``, or together with a tokenizer.
    """
    unfit = [letter for letter in letters or "" if letter.isspace() or letter == WRITTEN_DELIMITER]
    if letters is not None and (tokenizer_dir or not letters or len(set(letters)) < len(letters) or unfit):
        found = f"; {unfit} cannot be among them" if unfit else ""
        raise ValueError(
            f"letters {letters!r}{found}: give each letter once, and no tokenizer with them. The space is added; no "
            f"other white space can be written in a lexicon, where {WRITTEN_DELIMITER!r}, as in other ecosystems, "
            "stands for the space."
        )
    ssl_model = restore_mshubert(ssl_path)
    if adapters := ssl_model.encoder.adapter_names():
        raise ValueError(
            f"{ssl_path}: has adapters ({', '.join(adapters)}), which a new model has no place for. Give the model "
            "that they were added to."
        )
    for name in ("tokenizer.model", "vocab.txt") if tokenizer_dir else ():
        if not (Path(tokenizer_dir) / name).is_file():
            raise FileNotFoundError(
                f"{tokenizer_dir}: no {name}. Make one with NeMo's scripts/tokenizers/process_asr_text_tokenizer.py."
            )
    preprocessor, encoder = (
        OmegaConf.to_container(ssl_model.cfg[name], resolve=True) for name in ("preprocessor", "encoder")
    )
    labels = LETTERS if letters is None else [" ", *letters]
    config = ctc_config(preprocessor, encoder, None if tokenizer_dir else labels, tokenizer_dir)
    if not from_scratch:
        config.pretraining_labels = pretraining_labels(ssl_model)
    model = (EncDecCTCModelBPE if tokenizer_dir else EncDecCTCModel)(cfg=config)
    if not from_scratch:
        model.encoder.load_state_dict(ssl_model.encoder.state_dict())
    return model


def pretraining_labels(model: ModelPT) -> Optional[Dict[str, Any]]:
    """What a model was pre-trained on, for its model card: ``label_maker`` (its id), ``features``, and ``sets``
    (numbers of clusters). A CTC model of `ssl_to_ctc` has it in its config. None where it is not known.
    """
    if hasattr(model, "label_maker"):
        maker = model.label_maker
        return {"label_maker": maker.id, "features": maker.features.name, "sets": list(model.cfg.label_sets)}
    known = model.cfg.get("pretraining_labels")
    return None if known is None else OmegaConf.to_container(known)


def restore_for_finetuning(path: str, overrides: DictConfig, trainer: Trainer) -> EncDecCTCModel:
    """Restore a CTC ``.nemo`` with the options of ``overrides`` in its config, and its data and optimizer set up.

    Args:
        path: the file, a folder with it, or a model of the hub, as `models.loading` takes them.
        overrides: the ``model`` section of conf/finetune: ``encoder``, ``train_ds``, ``validation_ds`` (without a
            manifest there is no validation), ``optim``; also NeMo's ``interctc`` and ``optim_param_groups``.
        trainer: of the run.

    Raises:
        FileNotFoundError, ValueError: no such file, not a CTC model, one with another encoder, an unknown option or
            one of the encoder, or data that cannot be trained on (a missing or truncated shard, a missing audio file, a
            broken line, no text, letters that the model lacks).
    """
    try:
        file = local_path(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such file. Make it with scripts/ssl_to_ctc.py.") from error
    if is_foreign(file):
        raise ValueError(f"{path}: not a .nemo. Make one of it with scripts/ssl_to_ctc.py.")
    try:
        config = ASRModel.restore_from(str(file), return_config=True)
    except Exception as error:
        raise ValueError(f"{path}: cannot be restored as a NeMo model ({type(error).__name__}: {error}).") from error
    if "decoder" not in config or not str(config.encoder.get("_target_")).endswith(MSHuBERTEncoder.__name__):
        raise ValueError(f"{path}: expected a CTC model with an MSHuBERTEncoder. Make it with scripts/ssl_to_ctc.py.")
    unknown = sorted(set(overrides) - {"encoder", "train_ds", "validation_ds", "optim", *NEMO_OPTIONS})
    if unknown:
        raise ValueError(f"model: fine-tuning has no options {unknown}; those of the architecture are in the .nemo.")
    unknown = sorted(set(overrides.encoder) - set(inspect.signature(MSHuBERTEncoder.__init__).parameters))
    if unknown:
        raise ValueError(f"model.encoder: MSHuBERTEncoder has no options {unknown}. Correct their names.")
    OmegaConf.set_struct(config, False)
    config.encoder = OmegaConf.merge(config.encoder, overrides.encoder)
    config.update({name: overrides[name] for name in NEMO_OPTIONS if name in overrides})
    model = ASRModel.restore_from(str(file), override_config_path=config, trainer=trainer, map_location="cpu")
    model._save_restore_connector = WholeFile()
    model.decoding.supported_punctuation = None  # else "give me 'em" would be validated as "give me'em"
    train_ds, validation_ds, optim = (
        OmegaConf.create(OmegaConf.to_container(overrides[name], resolve=True))
        for name in ("train_ds", "validation_ds", "optim")
    )
    if "tokenizer" not in config:
        # not config.labels: where NeMo has changed the vocabulary these are still the letters of before
        config.labels = train_ds.labels = validation_ds.labels = list(config.decoder.vocabulary)
    validates = validation_ds.manifest_filepath is not None
    _check_data(train_ds)
    if validates:
        _check_data(validation_ds)
    is_tarred = train_ds.get("tarred_audio_filepaths") is not None
    if is_tarred:
        train_ds.seed = seed_of_session(train_ds.get("seed", 0), trainer)
    else:
        train_ds.shard_seed = train_ds.get("seed", 0)  # alike on all ranks, which share one order
    train_ds.concurrent_bucketing = False  # where its thread meets an unreadable file, training would wait for ever
    max_unreadable = train_ds.pop("max_unreadable", MAX_UNREADABLE)
    model.setup_training_data(train_ds)  # NeMo leaves these to the caller when a model is restored
    if not is_tarred and isinstance(model._train_dl.sampler, CutSampler):
        model._train_dl = resumable(model._train_dl, trainer)
    elif not is_tarred and trainer.world_size > 1:  # use_distributed_sampler is off
        raise ValueError("model.train_ds.use_lhotse=false: all ranks would train on the same batches. Use one GPU.")
    _count_unreadable(model._train_dl, max_unreadable)
    if validates:
        model.setup_multiple_validation_data(validation_ds)
        for loader in model._validation_dl if isinstance(model._validation_dl, list) else [model._validation_dl]:
            _count_unreadable(loader, 0)  # a WER without them would be that of another set
    model.setup_optimization(optim)
    return model


def seed_of_session(seed: int, trainer: Trainer) -> int:
    """Of dropout, masks and streams of tars, which a resumed fine-tuning does not go on with: others than those of the
    sessions before, whose first shards it would see again and again."""
    return seed_of(seed, Path(trainer.ckpt_path).name) % 2**30 if trainer.ckpt_path else seed


def _count_unreadable(loader: DataLoader, limit: int) -> None:
    """NeMo's datasets for Lhotse pass over what cannot be decoded; its others end with an error."""
    dataset = getattr(loader.dataset, "dataset", loader.dataset)  # of tars it is wrapped
    if hasattr(dataset, "load_audio"):
        dataset.load_audio = CountedAudio(limit)


def _check_data(config: DictConfig) -> None:
    """Stock loaders pass over what is missing, on disk or in a tar, and over letters that the model lacks."""
    is_tarred = config.get("tarred_audio_filepaths") is not None
    if is_tarred:
        check_shards(config.manifest_filepath, config.tarred_audio_filepaths)
    check_utterances(config)
    for path in local_paths(config.manifest_filepath):
        if is_tarred:  # else `check_utterances` has
            check_for_nemo(path)
        check_transcripts(path, config.get("labels"))
        if not is_tarred:
            check_audio_files(path)
