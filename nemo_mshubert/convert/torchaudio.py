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

"""Reads state dicts of torchaudio's ``Wav2Vec2Model`` (HuBERT, wav2vec 2.0, WavLM) and ``HuBERTPretrainModel``."""

import re
from pathlib import Path
from typing import Any, Dict, List, Mapping

from torch import Tensor

from nemo_mshubert.convert.checkpoint import (
    ENGLISH_LETTERS,
    SPECIALS,
    Checkpoint,
    CtcHead,
    PredictionHead,
    Source,
    assemble,
)
from nemo_mshubert.convert.pickles import load_torch_file
from nemo_mshubert.convert.tables import torchaudio_table
from nemo_mshubert.whole_files import PathLike

# Number of rows of a LibriSpeech output layer -> tokens. torchaudio's pipelines drop rows 1 to 3 of fairseq's layer.
LETTER_ROWS = {
    len(SPECIALS) + len(ENGLISH_LETTERS): [*SPECIALS, *ENGLISH_LETTERS],
    1 + len(ENGLISH_LETTERS): [SPECIALS[0], *ENGLISH_LETTERS],
}


def read_torchaudio(path: PathLike) -> Checkpoint:
    """The encoder and its heads of a saved state dict.

    Raises:
        FileNotFoundError, ValueError: no such file; code in the pickle; another family; a tensor that does not fit.
    """
    return from_torchaudio(load_torch_file(path), str(path))


def from_torchaudio(content: Any, where: str) -> Checkpoint:
    """As `read_torchaudio`, for the content of a loaded file; of a Lightning checkpoint, its ``state_dict``."""
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise ValueError(f"{where}: holds a {type(content).__name__}, expected a state dict.")
    source = Source(where, _split_packed_attention(content), torchaudio_table(), mask_embedding_optional=True)
    checkpoint, heads = assemble(source)
    if "ctc.weight" in heads:
        checkpoint.ctc = _ctc_head(heads, where, checkpoint.notes)
    if "label_embeddings" in heads and "final_proj.weight" in heads:
        weights = (heads[f"final_proj.{leaf}"] for leaf in ("weight", "bias"))
        checkpoint.prediction_heads = [PredictionHead(*weights, heads["label_embeddings"])]
    return checkpoint


def _ctc_head(heads: Mapping[str, Tensor], where: str, notes: List[str]) -> CtcHead:
    """The output layer. Shapes do not show which letters it has: models trained on VoxPopuli have as many rows, but in
    another order."""
    weight = heads["ctc.weight"]
    tokens = LETTER_ROWS.get(len(weight)) if "voxpopuli" not in Path(where).name else None
    if tokens:
        notes.append(
            f"assumed the letters of LibriSpeech for its {len(weight)} outputs: if it was fine-tuned on other data, "
            "their order is another, and its texts are wrong"
        )
    return CtcHead(weight, heads["ctc.bias"], tokens)


def _split_packed_attention(state: Mapping[str, Tensor]) -> Dict[str, Tensor]:
    """Split WavLM's ``attention.attention.in_proj_*`` into the three projections of the other models."""
    split: Dict[str, Tensor] = {}
    for name, tensor in state.items():
        packed = re.fullmatch(r"(.*\.attention)\.attention\.in_proj_(weight|bias)", name)
        if packed:
            stem, leaf = packed.groups()
            split.update({f"{stem}.{part}_proj.{leaf}": rows for part, rows in zip("qkv", tensor.chunk(3))})
        else:
            split[name.replace(".attention.attention.out_proj.", ".attention.out_proj.")] = tensor
    return split
