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

"""``init_encoder=`` of pre-training: start from the encoder of a checkpoint, from all of it or not at all.

A tensor that does not fit is an error here; ``load_state_dict(strict=False)`` would leave its place random. So is an
encoder that computes something else with the same tensors (heads, pre-LN, scaled audio).
"""

from typing import Any, Dict, List, Optional

from nemo.utils import logging
from torch import nn

from nemo_mshubert.convert.architecture import infer_architecture
from nemo_mshubert.models.loading import Name, load_encoder
from nemo_mshubert.models.mshubert_model import MSHuBERTModel
from nemo_mshubert.modules.frames import HUBERT_KERNELS_AND_STRIDES
from nemo_mshubert.modules.mshubert_encoder import MSHuBERTEncoder
from nemo_mshubert.modules.state_dicts import listed, misfits

UNSAID = {"pos_conv_depth": 1, "position_buckets": 0}  # where `infer_architecture` leaves them out


def maybe_init_encoder(model: MSHuBERTModel, name: Optional[str], ckpt_path: Optional[str]) -> None:
    """`init_encoder` at the start of a run. A run that resumes takes its weights from its checkpoint."""
    if name is None:
        return
    if ckpt_path:
        logging.info(
            f"init_encoder={name} is for the start of a run and is not read: this one goes on from {ckpt_path}."
        )
        return
    init_encoder(model, name)


def init_encoder(model: MSHuBERTModel, name: Name) -> None:
    """Load the weights of a checkpoint into the encoder of a model, before it is split over ranks. Every rank reads
    the checkpoint.

    Args:
        model: its label heads stay as they are.
        name: what `load_encoder` takes.

    Raises:
        FileNotFoundError, ValueError: as `load_encoder`; also for an encoder of another kind, with the settings to
            change.
    """
    encoder = load_encoder(name)
    check_kind(encoder, name)
    own, theirs = model.encoder.state_dict(), encoder.state_dict()
    settings = differing_settings(model, encoder)
    found = misfits(own, theirs)
    if settings or found:
        remedy = f"Set {' '.join(settings)}, or give" if settings else "Give"
        tensors = "; ".join(found) if found else "all tensors fit, but would compute something else"
        raise ValueError(
            f"init_encoder={name}: its encoder is not that of the config ({tensors}). {remedy} a checkpoint of the "
            "config's architecture."
        )
    lacking = {weight: own[weight] for weight in encoder.drawn_weights}
    model.encoder.load_state_dict({**theirs, **lacking})
    rest = f", {listed(list(lacking))} (which it lacks) keeps its initial value" if lacking else ""
    logging.info(
        f"init_encoder={name}: {len(own) - len(lacking)} of the encoder's {len(own)} tensors are from there{rest}; "
        "label heads start at random."
    )


def check_kind(encoder: nn.Module, name: Name) -> None:
    """Raise ``ValueError`` for an encoder that no settings of `MSHuBERTEncoder` can produce."""
    if not isinstance(encoder, MSHuBERTEncoder):
        raise ValueError(
            f"init_encoder={name}: an encoder at several rates (MR-HuBERT), which pre-training has no place for. Give "
            "a HuBERT, wav2vec 2.0, WavLM, data2vec or MS-HuBERT."
        )
    convolutions = tuple(encoder.feature_extractor.kernels_and_strides)
    if convolutions != HUBERT_KERNELS_AND_STRIDES:
        raise ValueError(
            f"init_encoder={name}: its convolutions (kernel, stride) are {convolutions}, but labels and masks are of "
            f"HuBERT's frames, {HUBERT_KERNELS_AND_STRIDES}. Give a checkpoint with those."
        )
    if adapters := encoder.adapter_names():
        raise ValueError(
            f"init_encoder={name}: has adapters ({', '.join(adapters)}), which pre-training has no place for. Give "
            "the file from before they were added."
        )


def differing_settings(model: MSHuBERTModel, encoder: MSHuBERTEncoder) -> List[str]:
    """Overrides for Hydra that give a model the architecture and the input of ``encoder``."""
    own, theirs = architecture(model.encoder), architecture(encoder)
    config = model.cfg.encoder
    settings = [
        f"{'' if option in config else '+'}model.encoder.{option}={_spell(value)}"
        for option, value in theirs.items()
        if own.get(option) != value
    ]
    if encoder.normalized_input != model.preprocessor.normalized:
        settings.append(f"model.preprocessor.normalize={'per_feature' if encoder.normalized_input else 'null'}")
    return settings


def architecture(encoder: MSHuBERTEncoder) -> Dict[str, Any]:
    """Arguments of `MSHuBERTEncoder` that decide what its tensors are and what they compute."""
    strides = encoder.feature_extractor.kernels_and_strides
    convs = encoder.feature_extractor.conv_layers
    no_tensor_tells = {
        "num_heads": encoder.layers[0].attention.num_heads,
        "pre_norm": encoder.pre_norm,
        "conv_layers": [[layer.conv.out_channels, *each] for layer, each in zip(convs, strides)],
    }
    if encoder.position_bias is not None:
        no_tensor_tells["position_max_distance"] = encoder.position_bias.max_distance
    found, _ = infer_architecture(encoder.state_dict(), no_tensor_tells, str, "the encoder")
    return {**UNSAID, **found}


def _spell(value: Any) -> str:
    """``value`` as Hydra reads it from the command line."""
    return str(value).lower().replace(" ", "") if isinstance(value, (bool, list)) else str(value)
