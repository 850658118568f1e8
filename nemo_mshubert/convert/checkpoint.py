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

"""The form into which every format is read and from which it is written: our encoder's config, weights and heads."""

from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence

import torch
from torch import Tensor

from nemo_mshubert.alphabet import SPACE, WRITTEN_SPACE, label_of
from nemo_mshubert.convert.architecture import blank_weights, check_finite, check_weights, infer_architecture
from nemo_mshubert.convert.tables import NOT_ENCODER, KeyTable
from nemo_mshubert.decoding.lexicon import fold_case
from nemo_mshubert.modules.state_dicts import listed

SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")  # the first rows of every fairseq dictionary, in this order
# LibriSpeech's letters, which follow the specials (fairseq: examples/wav2vec/dict.ltr.txt)
ENGLISH_LETTERS = tuple("|ETAONIHSRDLUMWCFGYPBVK'XJQZ")


@dataclass
class CtcHead:
    """An output layer for CTC.

    ``tokens`` names each row; it is None if the source does not. ``blank`` is the row of the blank. ``specials`` are
    tokens that no transcript uses. ``keeps_case``: whether letters keep their case. Letters of other ecosystems become
    lower case, since LibriSpeech models have capitals there, but lower case in NeMo.
    """

    weight: Tensor  # [V, D]
    bias: Tensor  # [V]
    tokens: Optional[List[str]]
    blank: int = 0
    specials: Sequence[str] = SPECIALS
    keeps_case: bool = False

    def other_tokens(self) -> str:
        """Describes the tokens if they are not letters."""
        if self.tokens is None:
            return "tokens that are not known"
        longer = [token for token in self.tokens if len(token) > 1 and token not in self.specials]
        return f"tokens of several characters ({', '.join(map(repr, longer[:5]))})" if longer else "no tokens"

    def letters(self) -> Optional["LetterHead"]:
        """The rows in NeMo's order: labels, then the blank; no special rows. None if the tokens are not letters.

        Raises:
            ValueError: two rows have the same letter.
        """
        if self.tokens is None:
            return None
        rows = [row for row, token in enumerate(self.tokens) if row != self.blank and token not in self.specials]
        labels = [label_of(self.tokens[row]) for row in rows]
        if not rows or any(len(label) != 1 for label in labels):
            return None
        for index, label in enumerate(labels):
            if label in labels[:index]:
                first, second = rows[labels.index(label)], rows[index]
                raise ValueError(
                    f"rows {first} and {second} of the output layer, {self.tokens[first]!r} and "
                    f"{self.tokens[second]!r}, are one letter, and one of them would be lost ({WRITTEN_SPACE!r} is "
                    "the space). Give each row a token of its own in the model's vocabulary."
                )
        row_of = dict(zip(labels if self.keeps_case else _small(labels), rows))
        labels = sorted(row_of, key=_nemo_order)
        order = [row_of[label] for label in labels] + [self.blank]
        return LetterHead(labels, self.weight[order], self.bias[order])


class LetterHead(NamedTuple):
    """NeMo's output layer: row i is ``labels[i]``, the last row is the blank."""

    labels: List[str]
    weight: Tensor  # [len(labels) + 1, D]
    bias: Tensor


class PredictionHead(NamedTuple):
    """HuBERT's prediction head of one label set: `modules.label_heads.LabelHead` without the temperature."""

    weight: Tensor  # [E, D], of final_proj
    bias: Tensor  # [E]
    embeddings: Tensor  # [K, E]


@dataclass
class Checkpoint:
    """A speech model from any source."""

    encoder: Dict[str, Any]  # arguments of MSHuBERTEncoder
    weights: Dict[str, Tensor]  # its state dict, fp32
    normalize: bool  # whether it expects audio of zero mean and unit variance
    ctc: Optional[CtcHead] = None
    prediction_heads: List[PredictionHead] = field(default_factory=list)  # finest first, or in the order of the file
    notes: List[str] = field(default_factory=list)  # assumptions, and names of dropped tensors
    drawn: List[str] = field(default_factory=list)  # names of weights that the source lacks: drawn at random


@dataclass
class Source:
    """The content of a file as a reader found it, before it is checked.

    ``declared``: arguments of `MSHuBERTEncoder` that a config states. ``normalize``: None if it is not stated.
    """

    where: str
    tensors: Mapping[str, Tensor]
    table: KeyTable
    declared: Dict[str, Any] = field(default_factory=dict)
    normalize: Optional[bool] = None
    mask_embedding_optional: bool = False


def assemble(source: Source) -> "tuple[Checkpoint, Dict[str, Tensor]]":
    """A checked `Checkpoint` without heads, and the tensors of its heads under the names of `NOT_ENCODER`.

    Raises:
        ValueError: an unknown, missing, surplus, misshapen or non-finite tensor, by name; a config of another model.
    """
    mapped, dropped = source.table.to_ours(source.tensors, source.where)
    notes = [f"dropped {listed(dropped)}"] if dropped else []
    mapped = {name: tensor.detach().to(torch.float32) for name, tensor in mapped.items()}
    heads = {name: mapped.pop(name) for name in list(mapped) if name.split(".")[0] in NOT_ENCODER}
    encoder, assumptions = infer_architecture(mapped, source.declared, source.table.spell, source.where)
    notes += assumptions
    drawn = []
    if source.mask_embedding_optional and "mask_embedding" not in mapped:
        mapped["mask_embedding"] = random_mask_embedding(encoder["d_model"])
        drawn.append("mask_embedding")
        notes.append("drew a random mask embedding, since there is none: it serves only to mask frames in training")
    check_weights(mapped, blank_weights(encoder), source.table.spell, source.where)
    _check_heads(heads, source)
    normalize = source.normalize
    if normalize is None:
        normalize = encoder["conv_norm"] == "layer_norm"
        notes.append(f"assumed {'normalised' if normalize else 'raw'} audio, as published models of its front end")
    return Checkpoint(encoder, mapped, normalize, notes=notes, drawn=drawn), heads


def _check_heads(heads: Mapping[str, Tensor], source: Source) -> None:
    for head in ("ctc", "final_proj"):
        missing = {f"{head}.weight", f"{head}.bias"} - heads.keys()
        if len(missing) == 1:
            raise ValueError(
                f"{source.where}: missing tensor {source.table.spell(missing.pop())}. Get its weights again, or save "
                "the model without that layer."
            )
    check_finite({source.table.spell(name): tensor for name, tensor in heads.items()}, source.where)


def random_mask_embedding(d_model: int) -> Tensor:
    """Values from U(0, 1), as in a new encoder."""
    return torch.rand(d_model, generator=torch.Generator().manual_seed(0))


def _small(labels: Sequence[str]) -> Sequence[str]:
    """Labels in lower case, or unchanged if two of them would become one or one would become two."""
    is_turkish = {"I", "İ"} <= set(labels)  # Turkish: their lower-case letters are ı and i
    small = [fold_case(label, "ı" if is_turkish else "i") for label in labels]
    fits = len(set(small)) == len(small) and all(len(letter) == 1 for letter in small)
    return small if fits else labels


def _nemo_order(label: str) -> tuple:
    """Sort key: the space, then letters, then the rest, as in alphabet.ENGLISH_LABELS."""
    return (label != SPACE, not label.isalpha(), label)
