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

"""The probes of SUPERB: a weighted sum of frozen hidden states, a small network, and CTC (s3prl: interfaces.py,
downstream/asr, ctc).

Legend: B utterances, T frames, L + 1 hidden states of width D, P width of the projection, V tokens without the blank.
"""

from typing import List, Sequence, Tuple

import lightning.pytorch as pl
import numpy as np
import torch
from nemo.collections.asr.losses.ctc import CTCLoss
from nemo.collections.asr.modules import SpectrogramAugmentation
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from nemo_mshubert.analysis.superb.batches import Batch
from nemo_mshubert.analysis.superb.features import FrozenFeatures
from nemo_mshubert.decoding.error_rates import ErrorCounts, error_counts
from nemo_mshubert.decoding.greedy import greedy_ids

DEV_ERROR = "dev_error"  # this logged rate chooses the checkpoint and the learning rate


class WeightedSum(nn.Module):
    """Softmax-weighted sum of the hidden states; the weights start equal."""

    def __init__(self, num_states: int):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(num_states))

    @property
    def weights(self) -> Tensor:
        """``[L + 1]``, with sum 1; index 0 is the input of the transformer."""
        return self.logits.softmax(dim=0)

    def forward(self, states_TLD: Tensor) -> Tensor:
        """States of one utterance -> ``[T, D]`` in fp32."""
        return torch.einsum("tld,l->td", states_TLD.float(), self.weights)


class RecurrentLayers(nn.Module):
    """Bidirectional LSTMs with dropout after each of them, including the last (s3prl: downstream/model.py, RNNs)."""

    def __init__(self, width: int, hidden: int, layers: int, dropout: float):
        super().__init__()
        between = dropout if layers > 1 else 0.0
        self.lstm = nn.LSTM(width, hidden, layers, batch_first=True, dropout=between, bidirectional=True)
        self.dropout = nn.Dropout(dropout)
        self.out_features = 2 * hidden

    def forward(self, x_BTP: Tensor, frames_B: Tensor) -> Tensor:
        """``[B, T, P]`` and frame counts -> ``[B, T, 2 hidden]``; padding does not change the result."""
        packed = pack_padded_sequence(x_BTP, frames_B.cpu(), batch_first=True, enforce_sorted=False)
        return self.dropout(pad_packed_sequence(self.lstm(packed)[0], batch_first=True)[0])


class FeatureAugmentation(nn.Module):
    """SpecAugment of a padded batch of features: time warp, then NeMo's masks of frames and of dimensions.

    Args:
        time_warp: W, the maximum number of frames by which a point is moved; it is at least W frames from the ends.
            0: no warp. Utterances of at most 2 W frames stay unchanged.
        **masks: of NeMo's SpectrogramAugmentation: freq_masks, freq_width, time_masks, time_width.
    """

    def __init__(self, time_warp: int, **masks: int):
        super().__init__()
        self.time_warp = time_warp
        self.masks = SpectrogramAugmentation(**masks)

    def forward(self, features: List[Tensor]) -> List[Tensor]:
        """A list of ``[T, D]`` -> the same shapes."""
        features = [warp_time(x_TD, self.time_warp) for x_TD in features]
        frames_B = torch.tensor([len(x_TD) for x_TD in features], device=features[0].device)
        x_BDT = pad_sequence(features, batch_first=True).transpose(1, 2)
        # NeMo's masking stops gradients, which the layer weights need. So it masks a tensor of ones, to multiply by.
        masked_BDT = x_BDT * self.masks(input_spec=torch.ones_like(x_BDT), length=frames_B)
        return [x_DT[:, :count].T for x_DT, count in zip(masked_BDT, frames_B.tolist())]


def warp_time(x_TD: Tensor, window: int) -> Tensor:
    """Move a random point by up to ``window`` frames; one side is stretched, the other squeezed (SpecAugment)."""
    num_frames = len(x_TD)
    if window == 0 or num_frames <= 2 * window:
        return x_TD
    point = int(torch.randint(window, num_frames - window, ()))
    moved = point + int(torch.randint(1 - window, window + 1, ()))
    sides = ((x_TD[:point], moved), (x_TD[point:], num_frames - moved))
    return torch.cat([_resample(side, frames) for side, frames in sides])


def _resample(x_TD: Tensor, num_frames: int) -> Tensor:
    shape = (num_frames, x_TD.shape[1])
    return nn.functional.interpolate(x_TD[None, None], shape, mode="bicubic", align_corners=False)[0, 0]


class CtcProbe(pl.LightningModule):
    """Weighted sum, [SpecAugment,] Linear to P, [BLSTMs,] Linear to the tokens, CTC.

    Args:
        features: of the frozen encoder; they are no part of the probe or its checkpoints.
        vocabulary: tokens in the order of their numbers; the CTC blank follows.
        config: ``projection`` (P), ``recurrent`` (hidden, layers, dropout, or null), ``spec_augment`` (or null).
        learning_rate: of Adam.
        seed: for the initial weights, dropout and SpecAugment. Dropout and SpecAugment depend only on the seed and
            the step, so that a resumed run repeats them.
        words: True if tokens are letters and errors are counted in words; otherwise errors are counted in tokens.
    """

    def __init__(
        self,
        features: FrozenFeatures,
        vocabulary: Sequence[str],
        config: DictConfig,
        learning_rate: float,
        seed: int,
        words: bool,
    ):
        super().__init__()
        torch.manual_seed(seed)
        self.features, self.vocabulary, self.words = features, list(vocabulary), words
        self.learning_rate, self.seed = learning_rate, seed
        self.weighted_sum = WeightedSum(features.num_states)
        self.augment = FeatureAugmentation(**config.spec_augment) if config.spec_augment else None
        self.projection = nn.Linear(features.width, config.projection)
        self.recurrent = RecurrentLayers(config.projection, **config.recurrent) if config.recurrent else None
        width = self.recurrent.out_features if self.recurrent else config.projection
        self.output = nn.Linear(width, len(self.vocabulary) + 1)
        self.loss = CTCLoss(num_classes=len(self.vocabulary), zero_infinity=True, reduction="mean")
        self.errors = ErrorCounts()

    def forward(self, states: Sequence[np.ndarray]) -> Tuple[Tensor, Tensor]:
        """States ``[T, L + 1, D]`` of each utterance -> log-probabilities ``[B, T, V + 1]`` and frame counts
        ``[B]``."""
        features = [self.weighted_sum(torch.from_numpy(array).to(self.device)) for array in states]
        if self.training and self.augment is not None:
            features = self.augment(features)
        frames_B = torch.tensor([len(x_TD) for x_TD in features], device=self.device)
        x_BTP = self.projection(pad_sequence(features, batch_first=True))
        if self.recurrent is not None:
            x_BTP = self.recurrent(x_BTP, frames_B)
        return self.output(x_BTP).log_softmax(dim=-1), frames_B

    def _log_probs(self, batch: Batch) -> Tuple[Tensor, Tensor]:
        return self(self.features.finish(batch.lines, batch.loaded))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        torch.manual_seed(self.seed + self.trainer.fit_loop.epoch_loop.batch_progress.total.ready)
        log_probs_BTV, frames_B = self._log_probs(batch)
        lengths_B = torch.tensor([len(tokens) for tokens in batch.tokens], device=self.device)
        targets_BN = pad_sequence(batch.tokens, batch_first=True).to(self.device)
        loss = self.loss(log_probs=log_probs_BTV, targets=targets_BN, input_lengths=frames_B, target_lengths=lengths_B)
        self.log("train_loss", loss, prog_bar=True, batch_size=len(batch.lines))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        for tokens, best in zip(batch.tokens, self.decode(*self._log_probs(batch))):
            self.errors += self.count_errors(tokens.tolist(), best)

    def on_validation_epoch_start(self) -> None:
        self.errors = ErrorCounts()

    def on_validation_epoch_end(self) -> None:
        self.log(DEV_ERROR, self.errors.rate, prog_bar=True)

    def decode(self, log_probs_BTV: Tensor, frames_B: Tensor) -> List[List[int]]:
        """`greedy_ids` of each utterance."""
        rows = log_probs_BTV.detach().float().cpu().numpy()
        return [greedy_ids(row[:count]) for row, count in zip(rows, frames_B.tolist())]

    def count_errors(self, reference: List[int], hypothesis: List[int]) -> ErrorCounts:
        """Errors in words if tokens are letters, otherwise in tokens."""
        reference, hypothesis = (self.spell(tokens) for tokens in (reference, hypothesis))
        return error_counts(reference, hypothesis)

    def spell(self, tokens: List[int]) -> List[str]:
        """Words if tokens are letters, otherwise phones."""
        symbols = [self.vocabulary[token] for token in tokens]
        return "".join(symbols).split() if self.words else symbols

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch  # `forward` moves the states of one utterance at a time: a batch has hundreds of MB

    def layer_weights(self) -> List[float]:
        """Weights of the transformer's input and of each block; their sum is 1."""
        return self.weighted_sum.weights.detach().cpu().tolist()
