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

"""Tables of tensor names in other ecosystems and in ours, one row per module, for both directions.

A row covers the module's ``weight`` and ``bias`` and both spellings of a weight norm. ``{}`` is the number of a layer.
None means that the tensor has no place in our models and is dropped. A name in no row is an error.

Some names do not belong to the encoder: ``ctc`` is an output layer; ``final_proj`` and ``label_embeddings`` are
HuBERT's prediction heads.

Sources: fairseq ``models/wav2vec/wav2vec2.py``, ``models/hubert/hubert.py``; transformers ``modeling_hubert.py``,
``modeling_wavlm.py``, ``modeling_data2vec_audio.py``; torchaudio ``models/wav2vec2/components.py``.
"""

import re
from typing import Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from torch import Tensor

from nemo_mshubert.modules.state_dicts import listed

Row = Tuple["re.Pattern[str]", Optional[str]]

_LEAVES = r"(\.(?:weight|bias|parametrizations\.weight\.original[01]))?"
# Names of torch.nn.utils.weight_norm -> names of its successor in torch.nn.utils.parametrizations
_WEIGHT_NORM = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}

# --- Rows: theirs -> ours --------------------------------------------------------------------------------------------

HUGGING_FACE = {
    "masked_spec_embed": "mask_embedding",
    "feature_extractor.conv_layers.{}.conv": "feature_extractor.conv_layers.{}.conv",
    "feature_extractor.conv_layers.{}.layer_norm": "feature_extractor.conv_layers.{}.layer_norm",
    "feature_projection.layer_norm": "feature_projection.layer_norm",
    "feature_projection.projection": "feature_projection.projection",
    "encoder.pos_conv_embed.conv": "pos_conv_embed.conv",
    "encoder.layer_norm": "layer_norm",
    "encoder.layers.{}.attention.q_proj": "layers.{}.attention.q_proj",
    "encoder.layers.{}.attention.k_proj": "layers.{}.attention.k_proj",
    "encoder.layers.{}.attention.v_proj": "layers.{}.attention.v_proj",
    "encoder.layers.{}.attention.out_proj": "layers.{}.attention.out_proj",
    "encoder.layers.{}.layer_norm": "layers.{}.layer_norm",
    "encoder.layers.{}.feed_forward.intermediate_dense": "layers.{}.feed_forward.intermediate_dense",
    "encoder.layers.{}.feed_forward.output_dense": "layers.{}.feed_forward.output_dense",
    "encoder.layers.{}.final_layer_norm": "layers.{}.final_layer_norm",
    # data2vec: a stack of positional convolutions
    "encoder.pos_conv_embed.layers.{}.conv": "pos_conv_embed.layers.{}.conv",
    # WavLM: gated relative positions
    "encoder.layers.0.attention.rel_attn_embed": "position_bias.embedding",
    "encoder.layers.{}.attention.gru_rel_pos_linear": "layers.{}.attention.gate_linear",
    "encoder.layers.{}.attention.gru_rel_pos_const": "layers.{}.attention.gate_constant",
    "lm_head": "ctc",
    "final_proj": None,  # ContentVec's; its label embeddings are not in the folder
    # wav2vec 2.0's contrastive head
    "quantizer.codevectors": None,
    "quantizer.weight_proj": None,
    "project_hid": None,
    "project_q": None,
}
HUGGING_FACE_PREFIXES = ("hubert.", "wav2vec2.", "wavlm.", "data2vec_audio.")

FAIRSEQ = {
    "mask_emb": "mask_embedding",
    "feature_extractor.conv_layers.{}.0": "feature_extractor.conv_layers.{}.conv",
    "layer_norm": "feature_projection.layer_norm",
    "post_extract_proj": "feature_projection.projection",
    "encoder.pos_conv.0": "pos_conv_embed.conv",
    "encoder.layer_norm": "layer_norm",
    "encoder.layers.{}.self_attn.q_proj": "layers.{}.attention.q_proj",
    "encoder.layers.{}.self_attn.k_proj": "layers.{}.attention.k_proj",
    "encoder.layers.{}.self_attn.v_proj": "layers.{}.attention.v_proj",
    "encoder.layers.{}.self_attn.out_proj": "layers.{}.attention.out_proj",
    "encoder.layers.{}.self_attn_layer_norm": "layers.{}.layer_norm",
    "encoder.layers.{}.fc1": "layers.{}.feed_forward.intermediate_dense",
    "encoder.layers.{}.fc2": "layers.{}.feed_forward.output_dense",
    "encoder.layers.{}.final_layer_norm": "layers.{}.final_layer_norm",
    # data2vec
    "encoder.pos_conv.{}.0": "pos_conv_embed.layers.{}.conv",
    "_ema": None,  # the teacher
    # WavLM
    "encoder.layers.0.self_attn.relative_attention_bias": "position_bias.embedding",
    "encoder.layers.{}.self_attn.grep_linear": "layers.{}.attention.gate_linear",
    "encoder.layers.{}.self_attn.grep_a": "layers.{}.attention.gate_constant",
    # heads; `proj` is `w2v_encoder.proj` of the CTC wrappers
    "proj": "ctc",
    "final_proj": "final_proj",
    "label_embs_concat": "label_embeddings",
    # wav2vec 2.0's contrastive head
    "quantizer.vars": None,
    "quantizer.weight_proj": None,
    "project_q": None,
}
# The names of the front end's norms depend on extractor_mode.
FAIRSEQ_CONV_NORM = {
    "group_norm": {"feature_extractor.conv_layers.0.2": "feature_extractor.conv_layers.0.layer_norm"},
    "layer_norm": {"feature_extractor.conv_layers.{}.2.1": "feature_extractor.conv_layers.{}.layer_norm"},
}
FAIRSEQ_PREFIXES = ("w2v_encoder.", "w2v_model.")

TORCHAUDIO = {
    "mask_generator.mask_embedding": "mask_embedding",
    "feature_extractor.conv_layers.{}.conv": "feature_extractor.conv_layers.{}.conv",
    "feature_extractor.conv_layers.{}.layer_norm": "feature_extractor.conv_layers.{}.layer_norm",
    "encoder.feature_projection.layer_norm": "feature_projection.layer_norm",
    "encoder.feature_projection.projection": "feature_projection.projection",
    "encoder.transformer.pos_conv_embed.conv": "pos_conv_embed.conv",
    "encoder.transformer.layer_norm": "layer_norm",
    "encoder.transformer.layers.{}.attention.q_proj": "layers.{}.attention.q_proj",
    "encoder.transformer.layers.{}.attention.k_proj": "layers.{}.attention.k_proj",
    "encoder.transformer.layers.{}.attention.v_proj": "layers.{}.attention.v_proj",
    "encoder.transformer.layers.{}.attention.out_proj": "layers.{}.attention.out_proj",
    "encoder.transformer.layers.{}.layer_norm": "layers.{}.layer_norm",
    "encoder.transformer.layers.{}.feed_forward.intermediate_dense": "layers.{}.feed_forward.intermediate_dense",
    "encoder.transformer.layers.{}.feed_forward.output_dense": "layers.{}.feed_forward.output_dense",
    "encoder.transformer.layers.{}.final_layer_norm": "layers.{}.final_layer_norm",
    # WavLM; `attention.attention.*` are renamed as above before this table is used
    "encoder.transformer.layers.0.attention.rel_attn_embed": "position_bias.embedding",
    "encoder.transformer.layers.{}.attention.gru_rel_pos_linear": "layers.{}.attention.gate_linear",
    "encoder.transformer.layers.{}.attention.gru_rel_pos_const": "layers.{}.attention.gate_constant",
    "aux": "ctc",
    "logit_generator.final_proj": "final_proj",
    "logit_generator.label_embeddings": "label_embeddings",
}
TORCHAUDIO_PREFIXES = ("model.", "wav2vec2.")

NameOf = Callable[[str], str]  # our name of a tensor -> theirs

NOT_ENCODER = ("ctc", "final_proj", "label_embeddings")


# --- Reading them ----------------------------------------------------------------------------------------------------


class KeyTable:
    """A table of rows, the prefixes that names may have, and the spelling of weight norms when writing.

    Args:
        name: of the layout, for messages.
        rows: theirs -> ours; if several rows lead to one of our names, the first is used for writing.
        prefixes: removed from names in this order, if present.
        parametrizations: write ``parametrizations.weight.original0/1`` instead of ``weight_g/weight_v``.
    """

    def __init__(self, name: str, rows: Mapping[str, Optional[str]], prefixes: Sequence[str], parametrizations: bool):
        self.name = name
        self.prefixes = prefixes
        self.parametrizations = parametrizations
        self._inward: List[Row] = [(_pattern(theirs), ours) for theirs, ours in rows.items()]
        self._outward: List[Row] = [(_pattern(ours), theirs) for theirs, ours in rows.items() if ours is not None]

    def to_ours(self, state: Mapping[str, Tensor], where: str) -> Tuple[Dict[str, Tensor], List[str]]:
        """Tensors under our names, and the names of dropped tensors.

        Raises:
            ValueError: a tensor is in no row, or two tensors get the same name.
        """
        mapped: Dict[str, Tensor] = {}
        dropped, unknown = [], []
        for name, tensor in state.items():
            found, ours = _translate(_canonical(self._strip(name)), self._inward)
            if not found:
                unknown.append(name)
            elif ours is None:
                dropped.append(name)
            elif ours in mapped:
                raise ValueError(f"{where}: {name} and another tensor are both {ours}. Remove the copy.")
            else:
                mapped[ours] = tensor
        if unknown:
            raise ValueError(
                f"{where}: unknown tensors {listed(unknown)}. It is not of the {self.name} layout of HuBERT, wav2vec "
                "2.0, WavLM or data2vec, or has parts beside the encoder: name its layout with "
                "scripts/convert_checkpoint.py --from, or remove them."
            )
        return mapped, dropped

    def to_theirs(self, weights: Mapping[str, Tensor]) -> Dict[str, Tensor]:
        """Our tensors under their names, without prefixes."""
        return {self.their_name(name): tensor for name, tensor in weights.items()}

    def their_name(self, name: str) -> str:
        """Their name of one of our tensors; raises ``ValueError`` if their layout has no such part."""
        found, theirs = _translate(name, self._outward)
        if not found:
            raise ValueError(f"The {self.name} layout has no place for our tensor {name}.")
        return theirs if self.parametrizations else _old_weight_norm(theirs)

    def spell(self, name: str) -> str:
        """`their_name` for messages, or our name if they have none."""
        found, theirs = _translate(name, self._outward)
        return self.their_name(name) if found else name

    def _strip(self, name: str) -> str:
        for prefix in self.prefixes:
            name = name.removeprefix(prefix)
        return name


def hugging_face_table() -> KeyTable:
    """Names of ``HubertModel`` and its relatives in transformers."""
    return KeyTable("Hugging Face", HUGGING_FACE, HUGGING_FACE_PREFIXES, parametrizations=True)


def fairseq_table(conv_norm: Optional[str] = None) -> KeyTable:
    """Names of fairseq's models. For writing, ``conv_norm`` says which norms the front end has."""
    norms = [conv_norm] if conv_norm else list(FAIRSEQ_CONV_NORM)
    rows = {**FAIRSEQ, **{theirs: ours for norm in norms for theirs, ours in FAIRSEQ_CONV_NORM[norm].items()}}
    return KeyTable("fairseq", rows, FAIRSEQ_PREFIXES, parametrizations=False)


def torchaudio_table() -> KeyTable:
    """Names of ``Wav2Vec2Model`` and ``HuBERTPretrainModel`` in torchaudio."""
    return KeyTable("torchaudio", TORCHAUDIO, TORCHAUDIO_PREFIXES, parametrizations=False)


def _pattern(template: str) -> "re.Pattern[str]":
    return re.compile(re.escape(template).replace(r"\{\}", r"(\d+)") + _LEAVES)


def _translate(name: str, rows: Sequence[Row]) -> Tuple[bool, Optional[str]]:
    """Whether a row has the name, and the name on its other side."""
    for pattern, other_side in rows:
        match = pattern.fullmatch(name)
        if match:
            *numbers, leaf = match.groups()
            return True, None if other_side is None else other_side.format(*numbers) + (leaf or "")
    return False, None


def _canonical(name: str) -> str:
    stem, _, leaf = name.rpartition(".")
    return f"{stem}.{_WEIGHT_NORM[leaf]}" if leaf in _WEIGHT_NORM else name


def _old_weight_norm(name: str) -> str:
    for old, new in _WEIGHT_NORM.items():
        if name.endswith(f".{new}"):
            return name.removesuffix(new) + old
    return name
