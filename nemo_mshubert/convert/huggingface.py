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

"""Reads and writes Hugging Face folders: ``config.json``, weights, and the files of the processor.

Reads base, CTC and pre-training classes of HuBERT, wav2vec 2.0, WavLM and data2vec-audio, as safetensors or ``.bin``,
whole or in shards. Writes ``HubertModel`` and ``HubertForCTC``, or the WavLM or data2vec classes if the encoder has
their parts.
"""

import json
import re
from pathlib import Path
from typing import Any, Dict, Mapping, Optional

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nemo_mshubert.alphabet import WRITTEN_SPACE, written
from nemo_mshubert.convert.checkpoint import Checkpoint, CtcHead, LetterHead, Source, assemble
from nemo_mshubert.convert.pickles import load_torch_file
from nemo_mshubert.convert.tables import hugging_face_table
from nemo_mshubert.data.manifest import SAMPLE_RATE
from nemo_mshubert.whole_files import PathLike, atomic_folder

MODEL_TYPES = ("hubert", "wav2vec2", "wavlm", "data2vec-audio")
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # or one of them with .index.json, which lists shards
BLANK = "<pad>"

# config.json -> arguments of MSHuBERTEncoder, for names that all families share
CONFIG_ARGUMENTS = {
    "conv_bias": "conv_bias",
    "hidden_size": "d_model",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "d_inner",
    "num_conv_pos_embedding_groups": "pos_conv_groups",
}
POSITION_ARGUMENTS = {
    "hubert": {"num_conv_pos_embeddings": "pos_conv_kernel", "do_stable_layer_norm": "pre_norm"},
    "wavlm": {
        "num_conv_pos_embeddings": "pos_conv_kernel",
        "do_stable_layer_norm": "pre_norm",
        "num_buckets": "position_buckets",
        "max_bucket_distance": "position_max_distance",
    },
    "data2vec-audio": {"conv_pos_kernel_size": "pos_conv_kernel", "num_conv_pos_embeddings": "pos_conv_depth"},
}
POSITION_ARGUMENTS["wav2vec2"] = POSITION_ARGUMENTS["hubert"]
# Options for which our encoder has only one value. A config without such a field has this value.
FIXED = {
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "layer_norm_eps": 1e-5,
    "feat_proj_layer_norm": True,
    "conv_pos_batch_norm": False,
    "add_adapter": False,
}
CLASSES = {
    "hubert": ("HubertModel", "HubertForCTC", "hubert."),
    "wavlm": ("WavLMModel", "WavLMForCTC", "wavlm."),
    "data2vec-audio": ("Data2VecAudioModel", "Data2VecAudioForCTC", "data2vec_audio."),
}

# --- In --------------------------------------------------------------------------------------------------------------


def read_huggingface(folder: PathLike) -> Checkpoint:
    """The encoder, and the output layer of a CTC class, of a Hugging Face folder.

    Raises:
        FileNotFoundError: no ``config.json`` or no weights.
        ValueError: another family, a file that cannot be read, or a tensor that does not fit, by name.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json")
    if config is None:
        raise FileNotFoundError(
            f"{folder}: no config.json. Expected a Hugging Face folder, as save_pretrained writes it."
        )
    source = Source(
        where=str(folder),
        tensors=_read_weights(folder),
        table=hugging_face_table(),
        declared=declared_architecture(config, folder),
        normalize=_read_normalize(folder),
        mask_embedding_optional=not (config.get("mask_time_prob", 0.05) or config.get("mask_feature_prob", 0.0)),
    )
    checkpoint, heads = assemble(source)
    if heads:
        checkpoint.ctc = _read_ctc_head(heads, config, folder)
    return checkpoint


def declared_architecture(config: Mapping[str, Any], folder: PathLike) -> Dict[str, Any]:
    """Arguments of `MSHuBERTEncoder` that ``config.json`` states; raises ``ValueError`` if our encoder lacks one."""
    family = config.get("model_type")
    if family not in MODEL_TYPES:
        raise ValueError(
            f"{folder}: config.json says model_type {family!r}; expected one of {', '.join(MODEL_TYPES)}. Name the "
            "folder of a model of these families; other encoders cannot be read."
        )
    for field, value in FIXED.items():
        if config.get(field, value) != value:
            raise ValueError(
                f"{folder}: config.json says {field} {config[field]!r}; our encoder has {value!r} only. Use another "
                "model: its weights would compute something else here."
            )
    arguments = {**CONFIG_ARGUMENTS, **POSITION_ARGUMENTS[family]}
    declared = {ours: config[theirs] for theirs, ours in arguments.items() if theirs in config}
    if all(name in config for name in ("conv_dim", "conv_kernel", "conv_stride")):
        layers = zip(config["conv_dim"], config["conv_kernel"], config["conv_stride"])
        declared["conv_layers"] = [list(layer) for layer in layers]
    if family == "data2vec-audio":
        declared["pre_norm"] = False
    elif "feat_extract_norm" in config:
        declared["conv_norm"] = f"{config['feat_extract_norm']}_norm"
    return declared


def read_json(path: Path) -> Optional[Dict[str, Any]]:
    """A JSON object, or None if there is no such file; raises ``ValueError`` with the name of a broken file."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}). Get it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(content).__name__}. Get it again.")
    return content


def _read_weights(folder: Path) -> Dict[str, Tensor]:
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return _read_weight_file(folder / name)
        index = read_json(folder / f"{name}.index.json")
        if index is not None:
            shards = sorted(set(index["weight_map"].values()))
            return {key: tensor for shard in shards for key, tensor in _read_weight_file(folder / shard).items()}
    raise FileNotFoundError(f"{folder}: no {' or '.join(WEIGHT_FILES)}. TensorFlow and Flax weights are not read.")


def _read_weight_file(path: Path) -> Dict[str, Tensor]:
    if path.suffix != ".safetensors":
        return load_torch_file(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: cut short, or not safetensors ({error}). Get it again.") from error


def _read_normalize(folder: Path) -> Optional[bool]:
    """``do_normalize`` of the feature extractor; transformers 5 keeps it in ``processor_config.json``."""
    own = read_json(folder / "preprocessor_config.json") or {}
    nested = (read_json(folder / "processor_config.json") or {}).get("feature_extractor") or {}
    rate = own.get("sampling_rate", nested.get("sampling_rate", SAMPLE_RATE))
    if rate != SAMPLE_RATE:
        raise ValueError(
            f"{folder}: its feature extractor expects {rate} Hz; our encoder {SAMPLE_RATE} Hz. Use a model of "
            f"{SAMPLE_RATE} Hz, or correct sampling_rate in its preprocessor_config.json if it is one."
        )
    return own.get("do_normalize", nested.get("do_normalize"))


def refuse_weights_alone(path: Path) -> None:
    """Raise ``ValueError`` for a single file of a folder that only `read_huggingface` can read as a whole."""
    if path.suffix == ".safetensors" or path.name == "pytorch_model.bin":
        raise ValueError(f"{path}: give its folder, which holds config.json too.")


def _read_ctc_head(heads: Mapping[str, Tensor], config: Mapping[str, Any], folder: Path) -> CtcHead:
    vocabulary = read_json(folder / "vocab.json")
    head = CtcHead(heads["ctc.weight"], heads["ctc.bias"], None, blank=config.get("pad_token_id") or 0)
    # There is no vocabulary, or one per language (MMS).
    if vocabulary is None or any(isinstance(rows, dict) for rows in vocabulary.values()):
        return head
    tokens = {row: token for token, row in vocabulary.items()}
    tokens.update({row: token for token, row in (read_json(folder / "added_tokens.json") or {}).items()})
    tokenizer = read_json(folder / "tokenizer_config.json") or {}
    names = {key: _token(tokenizer.get(key, default)) for key, default in _SPECIAL_TOKENS.items()}
    head.tokens = [tokens.get(row, "<unk>") for row in range(len(head.weight))]
    head.tokens = [WRITTEN_SPACE if token == names["word_delimiter_token"] else token for token in head.tokens]
    if names["pad_token"] in head.tokens:  # otherwise the config's blank, which may be older than the tokenizer
        head.blank = head.tokens.index(names["pad_token"])
    head.specials = [*_SPECIAL_TOKENS.values(), *names.values()]
    head.specials += filter(_MARKER.fullmatch, head.tokens)  # <mask>, [MASK]
    head.specials = [token for token in head.specials if token not in (None, WRITTEN_SPACE)]
    return head


_MARKER = re.compile(r"<.+>|\[.+\]")  # such tokens are never letters
_SPECIAL_TOKENS = {
    "bos_token": "<s>",
    "pad_token": BLANK,
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "word_delimiter_token": WRITTEN_SPACE,
}


def _token(value: Any) -> Optional[str]:
    """A token is given as a string or as an object with ``content``."""
    return value.get("content") if isinstance(value, dict) else value


# --- Out -------------------------------------------------------------------------------------------------------------


def write_huggingface(checkpoint: Checkpoint, folder: PathLike) -> None:
    """Write a folder for ``from_pretrained``, completely or not at all; for a CTC class if there is a letter head.

    Raises:
        FileExistsError: the folder is not empty.
        ValueError: Hugging Face has no class for the encoder.
    """
    with atomic_folder(folder) as temporary:
        letters = checkpoint.ctc.letters() if checkpoint.ctc else None
        config = hugging_face_config(checkpoint.encoder, letters)
        _write_json(temporary / "config.json", config)
        save_file(
            _their_tensors(checkpoint, letters, config["model_type"]), temporary / WEIGHT_FILES[0], {"format": "pt"}
        )
        _write_json(temporary / "preprocessor_config.json", _feature_extractor_config(checkpoint))
        if letters:
            _write_json(temporary / "vocab.json", {token: row for row, token in enumerate(_vocabulary(letters))})
            _write_json(temporary / "tokenizer_config.json", TOKENIZER_CONFIG)


def hugging_face_config(encoder: Mapping[str, Any], letters: Optional[LetterHead]) -> Dict[str, Any]:
    """The content of ``config.json``; raises ``ValueError`` if no class has the encoder's parts."""
    family = hugging_face_family(encoder)
    inverse = {ours: theirs for theirs, ours in {**CONFIG_ARGUMENTS, **POSITION_ARGUMENTS[family]}.items()}
    base_class, ctc_class, _ = CLASSES[family]
    config = {"architectures": [ctc_class if letters else base_class], "model_type": family, "dtype": "float32"}
    config.update({theirs: encoder[ours] for ours, theirs in inverse.items()})
    config.update(
        zip(("conv_dim", "conv_kernel", "conv_stride"), (list(column) for column in zip(*encoder["conv_layers"])))
    )
    config["num_feat_extract_layers"] = len(encoder["conv_layers"])
    config.update({field: value for field, value in FIXED.items() if family == "hubert" or field in _COMMON_FIXED})
    if family != "data2vec-audio":
        config["feat_extract_norm"] = encoder["conv_norm"].removesuffix("_norm")
    if letters:
        config.update(vocab_size=len(letters.weight), pad_token_id=0, bos_token_id=None, eos_token_id=None)
        config.update(ctc_loss_reduction="mean", ctc_zero_infinity=True)
    return config


def hugging_face_family(encoder: Mapping[str, Any]) -> str:
    """The ``model_type`` whose classes have the encoder's parts; wav2vec 2.0, the same as HuBERT, is ``hubert``."""
    stacked, gated = encoder.get("pos_conv_depth", 1) > 1, encoder.get("position_buckets", 0) > 0
    if stacked and (gated or encoder["pre_norm"] or encoder["conv_norm"] != "layer_norm"):
        raise ValueError("No class of transformers has stacked positional convolutions with these other parts.")
    return "data2vec-audio" if stacked else "wavlm" if gated else "hubert"


_COMMON_FIXED = ("hidden_act", "feat_extract_activation", "layer_norm_eps")

TOKENIZER_CONFIG = {
    "tokenizer_class": "Wav2Vec2CTCTokenizer",
    "processor_class": "Wav2Vec2Processor",
    "pad_token": BLANK,
    "word_delimiter_token": WRITTEN_SPACE,
    "bos_token": None,
    "eos_token": None,
    "unk_token": None,
    "do_lower_case": False,
}


def _vocabulary(letters: LetterHead) -> list:
    """The blank first, as in Hugging Face's configs, then our order."""
    return [BLANK] + [written(label) for label in letters.labels]


def _their_tensors(checkpoint: Checkpoint, letters: Optional[LetterHead], family: str) -> Dict[str, Tensor]:
    tensors = hugging_face_table().to_theirs(checkpoint.weights)
    if letters:
        tensors = {CLASSES[family][2] + name: tensor for name, tensor in tensors.items()}
        tensors["lm_head.weight"], tensors["lm_head.bias"] = (
            torch.cat([head[-1:], head[:-1]]) for head in (letters.weight, letters.bias)
        )
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _feature_extractor_config(checkpoint: Checkpoint) -> Dict[str, Any]:
    return {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "processor_class": "Wav2Vec2Processor",
        "feature_size": 1,
        "sampling_rate": SAMPLE_RATE,
        "padding_value": 0.0,
        "padding_side": "right",
        "do_normalize": checkpoint.normalize,
        # transformers' group norm sees the padding, so its base models are trained without a mask.
        "return_attention_mask": checkpoint.encoder["conv_norm"] == "layer_norm",
    }


def _write_json(path: Path, content: Dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
