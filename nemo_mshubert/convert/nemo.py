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

"""Reads our ``.nemo`` files, and writes stock CTC models, which all our scripts and NeMo's take.

An encoder from another ecosystem has no label maker, so it cannot be a pre-training model. It becomes an
``EncDecCTCModel`` over letters, with its own output layer if it has one, otherwise with a random one.
"""

import inspect
from typing import Any, Dict, Tuple

import torch
from nemo.collections.asr.models import EncDecCTCModel
from nemo.core.classes import ModelPT
from omegaconf import OmegaConf

from nemo_mshubert.alphabet import ENGLISH_LABELS, written
from nemo_mshubert.convert.architecture import blank_weights, check_weights
from nemo_mshubert.convert.checkpoint import Checkpoint, CtcHead, PredictionHead
from nemo_mshubert.convert.conversion import log_notes, read_checkpoint
from nemo_mshubert.data.manifest import SAMPLE_RATE
from nemo_mshubert.models.ctc import ctc_config
from nemo_mshubert.models.loading import restore_mshubert, save_model
from nemo_mshubert.modules.mshubert_encoder import MSHuBERTEncoder
from nemo_mshubert.modules.waveform_preprocessor import WaveformPreprocessor
from nemo_mshubert.whole_files import PathLike

# Options of the encoder that only concern training, and its class
TRAINING_OPTIONS = (
    "_target_",
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "dropout_input",
    "layerdrop",
    "feature_grad_mult",
    "mask_prob",
    "mask_length",
    "mask_channel_prob",
    "mask_channel_length",
)
RANDOM_OUTPUT_SEED = 0


def read_nemo(path: PathLike) -> Checkpoint:
    """The encoder and the heads of a pre-trained or fine-tuned ``.nemo``.

    Raises:
        FileNotFoundError, ValueError: no such file; not a NeMo model; another encoder; an encoder with adapters.
    """
    return checkpoint_of(restore_mshubert(path), path)


def checkpoint_of(model: ModelPT, name: PathLike) -> Checkpoint:
    """The encoder and the heads of a restored model.

    Raises:
        ValueError: the encoder has adapters; the message begins with ``name``.
    """
    if adapters := model.encoder.adapter_names():
        raise ValueError(f"{name}: has adapters ({', '.join(adapters)}), for which no other format has a place.")
    options = OmegaConf.to_container(model.cfg.encoder, resolve=True)
    encoder = _with_defaults({key: value for key, value in options.items() if key not in TRAINING_OPTIONS})
    weights = {name: tensor.detach().float() for name, tensor in model.encoder.state_dict().items()}
    check_weights(weights, blank_weights(encoder), str, str(name))
    checkpoint = Checkpoint(encoder, weights, model.cfg.preprocessor.get("normalize") == "per_feature")
    if hasattr(model, "label_heads"):
        checkpoint.prediction_heads = [_prediction_head(head) for head in model.label_heads.heads.values()]
    if isinstance(model, EncDecCTCModel):
        checkpoint.ctc = _ctc_head(model)
        if checkpoint.ctc.letters() is None:
            checkpoint.notes.append("its output layer is over word pieces, which only .nemo files have a place for")
    return checkpoint


def write_nemo(checkpoint: Checkpoint, path: PathLike) -> str:
    """Write the result of `to_model`. Returns a description of its output layer."""
    model, output_layer = to_model(checkpoint)
    save_model(model, path)
    return output_layer


def read_as_model(path: PathLike) -> EncDecCTCModel:
    """`to_model` for a folder or file of another ecosystem; assumptions are logged.

    Raises:
        FileNotFoundError, ValueError: as `read_checkpoint`.
    """
    checkpoint = read_checkpoint(path)
    model, output_layer = to_model(checkpoint)
    log_notes(path, [*checkpoint.notes, output_layer])
    return model


def to_model(checkpoint: Checkpoint) -> Tuple[EncDecCTCModel, str]:
    """A stock CTC model around the encoder, and a description of its output layer."""
    letters = checkpoint.ctc.letters() if checkpoint.ctc else None
    labels = letters.labels if letters else ENGLISH_LABELS
    target = f"{MSHuBERTEncoder.__module__}.{MSHuBERTEncoder.__name__}"
    config = ctc_config(_preprocessor(checkpoint.normalize), {"_target_": target, **checkpoint.encoder}, labels, None)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(RANDOM_OUTPUT_SEED)  # not the GPUs' generators, which belong to the caller
        model = EncDecCTCModel(cfg=config)
    model.encoder.load_state_dict(checkpoint.weights)
    if letters:
        weights = {"decoder_layers.0.weight": letters.weight[..., None], "decoder_layers.0.bias": letters.bias}
        model.decoder.load_state_dict(weights)
    model.output_layer_is_random = not letters  # evaluation.load_ctc_model checks it
    kind = "converted" if letters else "random: fine-tune it before decoding"
    if checkpoint.ctc and not letters:
        kind += f" (the one of the checkpoint is over {checkpoint.ctc.other_tokens()})"
    return model, f"CTC over {len(labels)} letters, its output layer {kind}"


def _with_defaults(options: Dict[str, Any]) -> Dict[str, Any]:
    """The options, completed with the defaults of `MSHuBERTEncoder`, which refuses options that it does not know."""
    signature = inspect.signature(MSHuBERTEncoder.__init__)
    defaults = {name: parameter.default for name, parameter in signature.parameters.items() if name != "self"}
    return {**{key: value for key, value in defaults.items() if key not in TRAINING_OPTIONS}, **options}


def _preprocessor(normalize: bool) -> Dict[str, Any]:
    return {
        "_target_": f"{WaveformPreprocessor.__module__}.{WaveformPreprocessor.__name__}",
        "sample_rate": SAMPLE_RATE,
        "window_stride": 1 / SAMPLE_RATE,  # seconds: one sample
        "features": 1,
        "normalize": "per_feature" if normalize else None,
    }


def _prediction_head(head) -> PredictionHead:
    tensors = (head.final_proj.weight, head.final_proj.bias, head.label_embeddings)
    return PredictionHead(*(tensor.detach().float() for tensor in tensors))


def _ctc_head(model: EncDecCTCModel) -> CtcHead:
    layer = model.decoder.decoder_layers[0]
    tokens = [written(label) for label in model.decoder.vocabulary]
    weight, bias = layer.weight.detach().float()[..., 0], layer.bias.detach().float()
    return CtcHead(weight, bias, [*tokens, "<blank>"], blank=len(tokens), specials=(), keeps_case=True)
