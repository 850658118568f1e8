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

"""Swap, section 2.2.1 of the paper: the two views trade their masked frames after every transformer block.

V = 2 views (0: masked, 1: unmasked duplicate), B utterances, T frames, D width.
"""

import torch
from torch import Tensor


def swap(x_VBTD: Tensor, mask_BT: Tensor) -> Tensor:
    """Exchange the two views at the masked frames; all other frames pass through.

    Out of place, so gradients flow through the exchange into both streams.

    Args:
        x_VBTD: outputs of a transformer block for both views, ``[2, B, T, D]``.
        mask_BT: True at masked frames, ``[B, T]``; the same frames for both views.
    """
    return torch.where(mask_BT[..., None], x_VBTD.flip(0), x_VBTD)


def masked_stream_view(layer: int) -> int:
    """View that holds, after the exchange of block ``layer`` (from 1), the tokens which started as mask embeddings.

    Every exchange moves them to the other view: view 1 after odd blocks, view 0 after even ones.
    """
    return layer % 2
