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

"""All hidden states of an encoder, and utterances in groups whose states fit into memory."""

from typing import Any, Iterable, Iterator, Optional, Sequence

import torch
from torch import nn

from nemo_mshubert.clustering.audio_windows import Utterance, audio_windows
from nemo_mshubert.clustering.features import HiddenFeatures
from nemo_mshubert.data.manifest import SAMPLE_RATE, Line
from nemo_mshubert.modules.frames import FRAME_RATE, HOP_SAMPLES
from nemo_mshubert.whole_files import PathLike

UTTERANCES_AT_ONCE = 4  # all layers of 4 x 35 s in fp32 are 280 MB for a base model


class AllHiddenStates(HiddenFeatures):
    """Hidden states 0 (input of the transformer) to L of an encoder, concatenated: ``[T, (L + 1) D]``, unmasked, fp32.

    Args:
        encoder: an MSHuBERTEncoder.
        preprocessor: of the same model; it says whether the model was trained on audio scaled to unit variance.
    """

    def __init__(self, encoder: nn.Module, preprocessor: Optional[nn.Module] = None, device="cpu"):
        if encoder.subsampling_factor != HOP_SAMPLES:
            raise ValueError(
                f"The encoder makes a frame of {encoder.subsampling_factor} samples "
                f"({SAMPLE_RATE / encoder.subsampling_factor:g} Hz), expected {HOP_SAMPLES} ({FRAME_RATE} Hz). Word "
                "and phone spans are those of 50 Hz encoders; scores are not comparable at other rates."
            )
        self._normalized = bool(getattr(preprocessor, "normalized", False))
        self.num_states = len(encoder.layers) + 1
        super().__init__(encoder, layer=0, device=device)

    @property
    def name(self) -> str:
        return f"hidden states of encoder {self.fingerprint}"

    @property
    def normalized(self) -> bool:
        return self._normalized

    @property
    def width(self) -> int:
        """Width of one state."""
        return self.dimension // self.num_states

    def _extract(self, audio: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        states, _ = self.encoder.hidden_states(audio[:, None, :], length)
        return torch.cat(states, dim=-1)


def groups_of(utterances: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Groups of `UTTERANCES_AT_ONCE`, in order."""
    for first in range(0, len(utterances), UTTERANCES_AT_ONCE):
        yield utterances[first : first + UTTERANCES_AT_ONCE]


def utterance_groups(lines: Iterable[Line]) -> Iterator[Sequence[Utterance]]:
    """Groups of utterances with their audio; within a window, utterances of similar length are grouped."""
    for window in audio_windows(lines):
        yield from groups_of(sorted(window, key=lambda utterance: len(utterance.samples)))  # less padding


def load_hidden_states(path: PathLike, device: str = "cpu") -> AllHiddenStates:
    """The hidden states of a pre-trained or fine-tuned ``.nemo``, for audio scaled as its own preprocessor does.

    Raises:
        FileNotFoundError, ValueError: not a NeMo model, another encoder, or a frame rate other than 50 Hz.
    """
    from nemo_mshubert.models.loading import restore_mshubert  # imports NeMo, which takes seconds

    model = restore_mshubert(path)
    try:
        return AllHiddenStates(model.encoder, getattr(model, "preprocessor", None), device)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
