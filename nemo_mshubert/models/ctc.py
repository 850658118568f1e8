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

from collections import Counter
from pathlib import Path
from typing import Any, Dict, Optional

from nemo.collections.asr.models import EncDecCTCModel, EncDecCTCModelBPE
from nemo.core.classes import ModelPT
from omegaconf import DictConfig, OmegaConf

from nemo_mshubert.alphabet import ENGLISH_LABELS, SPACE, WRITTEN_SPACE
from nemo_mshubert.models.loading import restore_mshubert


def ctc_config(
    preprocessor: Dict[str, Any], encoder: Dict[str, Any], labels: Optional[list], tokenizer_dir: Optional[str]
) -> DictConfig:
    """Config of a stock CTC model: with letters if ``labels`` are given, else with the SentencePiece model in
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
        "train_ds": {**data, "shuffle": True},  # NeMo's scripts read all three, and do not accept null
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
        from_scratch: random weights in the encoder, too: the baseline without pre-training.
        letters: those of another language, as one string without the word delimiter; `ENGLISH_LABELS` by default.

    Raises:
        FileNotFoundError, ValueError: no such file, another architecture, or letters that occur twice, that are white
            space or ``|``, or that are given together with a tokenizer.
    """
    unfit = [letter for letter in letters or "" if letter.isspace() or letter == WRITTEN_SPACE]
    twice = [letter for letter, count in Counter(letters or "").items() if count > 1]
    if letters is not None and (tokenizer_dir or not letters or twice or unfit):
        found = f"; {unfit} cannot be among them" if unfit else ""
        found += f"; {ascii(twice)} are there twice" if twice else ""  # a decomposed umlaut looks like a composed one
        raise ValueError(
            f"letters {letters!r}{found}: give each letter once, and no tokenizer with them. The space is added; no "
            f"other white space can be written in a lexicon, where {WRITTEN_SPACE!r}, as in other ecosystems, "
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
                f"{tokenizer_dir}: no {name}. Make one with NeMo's "
                "scripts/tokenizers/process_asr_text_tokenizer.py --tokenizer spe."
            )
    preprocessor, encoder = (
        OmegaConf.to_container(ssl_model.cfg[name], resolve=True) for name in ("preprocessor", "encoder")
    )
    labels = ENGLISH_LABELS if letters is None else [SPACE, *letters]
    config = ctc_config(preprocessor, encoder, None if tokenizer_dir else labels, tokenizer_dir)
    if not from_scratch:
        config.pretraining_labels = pretraining_labels(ssl_model)
    model = (EncDecCTCModelBPE if tokenizer_dir else EncDecCTCModel)(cfg=config)
    if not from_scratch:
        model.encoder.load_state_dict(ssl_model.encoder.state_dict())
    return model


def pretraining_labels(model: ModelPT) -> Optional[Dict[str, Any]]:
    """What a model was pre-trained on, for its model card: ``label_maker`` (its id), ``features``, and ``sets``
    (numbers of clusters). A CTC model of `ssl_to_ctc` has these in its config. None if they are not known.
    """
    if hasattr(model, "label_maker"):
        maker = model.label_maker
        return {"label_maker": maker.id, "features": maker.features.name, "sets": list(model.cfg.label_sets)}
    known = model.cfg.get("pretraining_labels")
    return None if known is None else OmegaConf.to_container(known)
