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

"""Reads and writes fairseq's ``.pt`` files without fairseq; also reads s3prl's, WavLM's and the authors' files.

fairseq   {"cfg" or "args", "model", "task_state", ...}
s3prl     {"task_cfg", "model_cfg", "model_weight", "dictionaries_symbols"}     (the authors' MS-HuBERT)
WavLM     {"cfg", "model"}, with a flat cfg
weights   {name: tensor}
"""

import ast
from typing import Any, Dict, List, Mapping, Optional, Tuple

import torch
from torch import Tensor

from nemo_mshubert.alphabet import written
from nemo_mshubert.convert.checkpoint import (
    ENGLISH_LETTERS,
    SPECIALS,
    Checkpoint,
    CtcHead,
    PredictionHead,
    Source,
    assemble,
)
from nemo_mshubert.convert.pickles import load_torch_file, plain
from nemo_mshubert.convert.tables import fairseq_table
from nemo_mshubert.whole_files import PathLike, atomic_write

# fairseq's options -> arguments of MSHuBERTEncoder
CONFIG_ARGUMENTS = {
    "encoder_embed_dim": "d_model",
    "encoder_layers": "num_layers",
    "encoder_attention_heads": "num_heads",
    "encoder_ffn_embed_dim": "d_inner",
    "layer_norm_first": "pre_norm",
    "conv_bias": "conv_bias",
    "conv_pos_groups": "pos_conv_groups",
}
EXTRACTOR_MODES = {"default": "group_norm", "layer_norm": "layer_norm"}
NEVER = -1e4  # bias of rows that must never be chosen; finite in half precision

# --- In --------------------------------------------------------------------------------------------------------------


def read_fairseq(path: PathLike) -> Checkpoint:
    """The encoder and its heads of a file in fairseq's layout.

    Raises:
        FileNotFoundError, ValueError: no such file; code in the pickle; another family; a tensor that does not fit.
    """
    return from_fairseq(load_torch_file(path), str(path))


def from_fairseq(content: Any, where: str) -> Checkpoint:
    """As `read_fairseq`, for the content of a loaded file."""
    if not isinstance(content, dict):
        raise ValueError(
            f"{where}: holds a {type(content).__name__}, expected a dictionary of weights. Use the file that fairseq "
            "or s3prl wrote, or save the state_dict of the model."
        )
    model, task, tensors = sections(content)
    layer_norms = any(".2.1." in name for name in tensors)
    source = Source(
        where=where,
        tensors=tensors,
        table=fairseq_table("layer_norm" if layer_norms else "group_norm"),
        declared=declared_architecture(model, where),
        normalize=next((bool(c["normalize"]) for c in (task, model) if c.get("normalize") is not None), None),
    )
    checkpoint, heads = assemble(source)
    symbols = _symbols(content)
    if "ctc.weight" in heads:
        checkpoint.ctc = _ctc_head(heads, symbols, checkpoint.notes)
    elif "label_embeddings" in heads and "final_proj.weight" in heads:
        checkpoint.prediction_heads = split_heads(heads, symbols, where, checkpoint.notes)
        heads = {}
    unused = [name for name in heads if not name.startswith("ctc.")]
    if unused:
        names = ", ".join(source.table.spell(name) for name in unused)
        checkpoint.notes.append(f"dropped {names}: no prediction heads of HuBERT")
    return checkpoint


def sections(content: Mapping[str, Any]) -> Tuple[Dict[str, Any], Dict[str, Any], Dict[str, Tensor]]:
    """Options of the model, options of the task, and tensors."""
    if "model_weight" in content:
        return plain(content.get("model_cfg")) or {}, plain(content.get("task_cfg")) or {}, content["model_weight"]
    if "model" not in content:
        return {}, {}, dict(content)
    options = plain(content.get("cfg")) or plain(content.get("args")) or {}
    model, task = options.get("model", options), options.get("task", options)
    return _pretrained_options(model), task if isinstance(task, dict) else {}, content["model"]


def _pretrained_options(model: Any) -> Dict[str, Any]:
    """A fine-tuned model keeps the options of its encoder in ``w2v_args``."""
    model = model if isinstance(model, dict) else {}
    inner = model.get("w2v_args") or {}
    inner = inner.get("model", inner)
    return {**inner, **{key: model[key] for key in ("normalize",) if key in model}} if inner else model


def declared_architecture(model: Mapping[str, Any], where: str) -> Dict[str, Any]:
    """Arguments of `MSHuBERTEncoder` that fairseq's options state; raises ``ValueError`` if our encoder lacks one."""
    for option, expected in (("activation_fn", "gelu"), ("layer_type", "transformer")):
        if model.get(option, expected) != expected:
            raise ValueError(
                f"{where}: its config says {option} {model[option]!r}; our encoder has {expected!r} only. Use another "
                "model: its weights would compute something else here."
            )
    declared = {ours: model[theirs] for theirs, ours in CONFIG_ARGUMENTS.items() if model.get(theirs) is not None}
    if model.get("extractor_mode") in EXTRACTOR_MODES:
        declared["conv_norm"] = EXTRACTOR_MODES[model["extractor_mode"]]
    if model.get("conv_feature_layers"):
        declared["conv_layers"] = parse_conv_layers(model["conv_feature_layers"], where)
    depth = model.get("pos_conv_depth") or 1
    if model.get("conv_pos"):
        declared["pos_conv_kernel"] = model["conv_pos"] if depth == 1 else max(3, model["conv_pos"] // depth)
    if depth > 1:
        declared["pos_conv_depth"] = depth
    if model.get("relative_position_embedding"):  # WavLM
        declared["position_buckets"] = model.get("num_buckets", 320)
        declared["position_max_distance"] = model.get("max_distance", 1280)  # the defaults of WavLM's code
    return declared


def parse_conv_layers(text: str, where: str = "conv_feature_layers") -> List[List[int]]:
    """``"[(512,10,5)] + [(512,3,2)] * 4"`` -> ``[[512, 10, 5], ...]``, without evaluating it as Python."""

    def value(node):
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, (ast.List, ast.Tuple)):
            return [value(item) for item in node.elts]
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return value(node.left) + value(node.right)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult) and isinstance(node.right, ast.Constant):
            return value(node.left) * min(value(node.right), 100)
        raise TypeError(type(node).__name__)

    try:
        return value(ast.parse(str(text).strip(), mode="eval").body)
    except (SyntaxError, TypeError) as error:
        raise ValueError(
            f"{where}: cannot read conv_feature_layers {text!r}. Write it in the config as fairseq does: "
            "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2."
        ) from error


def split_heads(
    heads: Mapping[str, Tensor], symbols: Optional[List[List[str]]], where: str, notes: List[str]
) -> List[PredictionHead]:
    """The prediction head of each label set, in the order of the file.

    fairseq stacks the rows of n sets in ``final_proj`` (with ``untie_final_proj``; otherwise all sets share one
    projection) and in ``label_embs_concat``. There each set begins with four special symbols, which no frame has as a
    label.
    """
    weight, bias, embeddings = heads["final_proj.weight"], heads["final_proj.bias"], heads["label_embeddings"]
    width = embeddings.shape[1]
    num_sets, remainder = divmod(len(weight), width)
    if symbols is None:
        if num_sets != 1:
            raise ValueError(
                f"{where}: {num_sets} label sets share label_embs_concat, and the file has no dictionaries to tell "
                "their sizes. Use the file that fairseq or s3prl wrote."
            )
        notes.append("assumed that the first four rows of label_embs_concat are fairseq's special symbols")
        symbols = [[*SPECIALS, *map(str, range(len(embeddings) - len(SPECIALS)))]]
    sizes = [len(names) for names in symbols]
    if remainder or num_sets not in (1, len(sizes)) or sum(sizes) != len(embeddings):
        raise ValueError(
            f"{where}: final_proj {list(weight.shape)} and label_embs_concat {list(embeddings.shape)} do not fit "
            f"dictionaries of {sizes} symbols. Use the file that fairseq or s3prl wrote, with the dictionaries of its "
            "own training; or, for the encoder alone, remove final_proj and label_embs_concat from it."
        )
    projections = list(zip(weight.split(width), bias.split(width))) * (len(sizes) // num_sets)
    return [
        PredictionHead(*projection, rows[sum(name in SPECIALS for name in names) :])
        for projection, rows, names in zip(projections, embeddings.split(sizes), symbols)
    ]


def _symbols(content: Mapping[str, Any]) -> Optional[List[List[str]]]:
    """Symbols of each dictionary in the file."""
    if content.get("dictionaries_symbols"):
        return plain(content["dictionaries_symbols"])
    task_state = plain(content.get("task_state")) or {}
    dictionaries = task_state.get("dictionaries") or [task_state.get("target_dictionary")]
    symbols = [dictionary["symbols"] for dictionary in dictionaries if dictionary]
    return symbols or None


def _ctc_head(heads: Mapping[str, Tensor], symbols: Optional[List[List[str]]], notes: List[str]) -> CtcHead:
    """The output layer of a CTC model; its blank is ``<s>``, row 0."""
    weight, tokens = heads["ctc.weight"], symbols[0] if symbols else None
    if tokens is None and len(weight) == len(SPECIALS) + len(ENGLISH_LETTERS):
        tokens = [*SPECIALS, *ENGLISH_LETTERS]
        notes.append("assumed the letters of LibriSpeech's dict.ltr.txt, since the file has no dictionary")
    if tokens is not None and len(tokens) != len(weight):
        notes.append(f"its dictionary of {len(tokens)} symbols does not fit an output layer of {len(weight)} rows")
        tokens = None
    return CtcHead(weight, heads["ctc.bias"], tokens)


# --- Out -------------------------------------------------------------------------------------------------------------


def to_fairseq(checkpoint: Checkpoint) -> Dict[str, Any]:
    """A dictionary in fairseq's layout: HuBERT with its prediction heads, or, with letters, fairseq's CTC wrapper.

    ``cfg`` consists of plain dictionaries. Symbols are in ``dictionaries_symbols``, as in s3prl. fairseq's own
    ``task_state`` would need its classes, so fairseq must read dictionaries from the folder of its task.
    """
    tensors = fairseq_table(checkpoint.encoder["conv_norm"]).to_theirs(checkpoint.weights)
    letters = checkpoint.ctc.letters() if checkpoint.ctc else None
    options = {"_name": "hubert", **fairseq_options(checkpoint.encoder)}
    task: Dict[str, Any] = {"_name": "hubert_pretraining", "normalize": checkpoint.normalize, "sample_rate": 16000}
    symbols: List[List[str]] = []
    if letters:
        tensors = {f"w2v_encoder.w2v_model.{name}": tensor for name, tensor in tensors.items()}
        tensors["w2v_encoder.proj.weight"], tensors["w2v_encoder.proj.bias"] = _with_special_rows(letters)
        symbols = [[*SPECIALS, *map(written, letters.labels)]]
        options = {
            "_name": "hubert_ctc",
            "normalize": checkpoint.normalize,
            "w2v_args": {"model": options, "task": task},
        }
    elif checkpoint.prediction_heads:
        tensors.update(_joined_heads(checkpoint.prediction_heads))
        sizes = [len(head.embeddings) for head in checkpoint.prediction_heads]
        symbols = [[*SPECIALS, *map(str, range(size))] for size in sizes]
        options.update(final_dim=checkpoint.prediction_heads[0].embeddings.shape[1], untie_final_proj=True)
    content = {"args": None, "cfg": {"model": options, "task": task}, "model": tensors}
    return {**content, "dictionaries_symbols": symbols} if symbols else content


def write_fairseq(checkpoint: Checkpoint, path: PathLike) -> None:
    """Write the result of `to_fairseq` as a ``.pt``, completely or not at all."""
    with atomic_write(path, "wb") as stream:
        torch.save(to_fairseq(checkpoint), stream)


def fairseq_options(encoder: Mapping[str, Any]) -> Dict[str, Any]:
    """The options with which fairseq builds the same encoder."""
    options = {theirs: encoder[ours] for theirs, ours in CONFIG_ARGUMENTS.items()}
    depth = encoder.get("pos_conv_depth", 1)
    options["extractor_mode"] = {ours: theirs for theirs, ours in EXTRACTOR_MODES.items()}[encoder["conv_norm"]]
    options["conv_feature_layers"] = str([tuple(layer) for layer in encoder["conv_layers"]])
    options["conv_pos"] = encoder["pos_conv_kernel"] * depth
    options["activation_fn"] = "gelu"
    if depth > 1:
        options.update(_name="data2vec_audio", pos_conv_depth=depth)
    if encoder.get("position_buckets"):
        options.update(_name="wavlm", relative_position_embedding=True, gru_rel_pos=True)
        options.update(num_buckets=encoder["position_buckets"], max_distance=encoder["position_max_distance"])
    return options


def _joined_heads(heads: List[PredictionHead]) -> Dict[str, Tensor]:
    """Stack the heads as fairseq does. Embeddings of special symbols are zeros, with cosine 0 to every frame."""
    specials = torch.zeros(len(SPECIALS), heads[0].embeddings.shape[1])
    return {
        "final_proj.weight": torch.cat([head.weight for head in heads]),
        "final_proj.bias": torch.cat([head.bias for head in heads]),
        "label_embs_concat": torch.cat([rows for head in heads for rows in (specials, head.embeddings)]),
    }


def _with_special_rows(letters) -> Tuple[Tensor, Tensor]:
    """Weight and bias in fairseq's order: blank (``<s>``), three special rows that are never chosen, labels."""
    weight, bias = letters.weight, letters.bias
    unused = len(SPECIALS) - 1
    return (
        torch.cat([weight[-1:], weight.new_zeros(unused, weight.shape[1]), weight[:-1]]),
        torch.cat([bias[-1:], bias.new_full((unused,), NEVER), bias[:-1]]),
    )
